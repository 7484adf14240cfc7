"""One weight of a whole population: members that moved along directions, and what is shared between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from dldw.gemm import linear, product, product_beside

Scales = list[list[float]]
"""Lengths of steps, one list for each column (the two sides of a difference, say), one number for each row."""


class Moved(ABC):
    """One weight of all members: w + scales[c][r] * z_r for columns c and rows r, column after column.

    Args:
        weight: w.
        scales: Lengths of the steps.
    """

    def __init__(self, weight: Tensor, scales: Scales) -> None:
        self.weight, self.scales = weight.detach(), scales
        self.rows = len(scales[0])
        self.members = len(scales) * self.rows

    @abstractmethod
    def stack(self) -> Tensor:
        """The weight of each member [n, *shape]."""

    @abstractmethod
    def transposed(self) -> Moved:
        """The same with matrices transposed."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Moved:
        """The same of rows ``start`` to ``stop`` of each member's weight."""

    @abstractmethod
    def member(self, number: int) -> Tensor:
        """The weight of one member."""

    @abstractmethod
    def convolved(self, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        """``convolve(kernels)`` [B, m, *positions] with each z_r in the place of the kernels: [rows, B, m, *positions]."""

    @abstractmethod
    def of_columns(self, base: Tensor, columns: Tensor, shift: Tensor | None) -> Tensor:
        """base [m, B] + scales[c][r] * (z_r columns + shift_r) for matrices z_r [m, k], columns [k, B]: [n, m, B].

        Args:
            base: What w makes of the columns.
            columns: The same of all members.
            shift: Directions of a bias that moves by the same steps, [rows, m, 1].
        """

    @abstractmethod
    def picked(self, index: Tensor) -> Tensor:
        """Rows ``index`` of each z_r: [rows, *index.shape, k]."""

    def moved(self, base: Tensor, along: Tensor) -> Tensor:
        """base [..] + scales[c][r] * along[r], [n, ..]: what is linear in the weight, from what it makes of w and of z."""
        out = along.new_empty((len(self.scales), *along.shape))
        for column, scale in zip(out, self.scales, strict=True):
            if scale.count(scale[0]) == self.rows:
                if scale[0]:
                    torch.add(base, along, alpha=scale[0], out=column)
                else:
                    column.copy_(base)
            else:
                steps = torch.tensor(scale, dtype=along.dtype, device=along.device)
                torch.addcmul(base, along, steps.view(-1, *[1] * (along.ndim - 1)), out=column)
        return out.flatten(0, 1)


class DenseMoved(Moved):
    """Directions in full.

    Args:
        weight: w.
        scales: Lengths of the steps.
        z: One direction a row, [rows, *shape].
    """

    def __init__(self, weight: Tensor, scales: Scales, z: Tensor) -> None:
        super().__init__(weight, scales)
        self.z = z

    def stack(self) -> Tensor:
        return self.moved(self.weight, self.z)

    def transposed(self) -> DenseMoved:
        return DenseMoved(self.weight.mT, self.scales, self.z.mT)

    def part(self, start: int, stop: int) -> DenseMoved:
        return DenseMoved(self.weight[start:stop], self.scales, self.z[:, start:stop])

    def member(self, number: int) -> Tensor:
        column, row = divmod(number, self.rows)
        return torch.add(self.weight, self.z[row], alpha=self.scales[column][row])

    def convolved(self, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        out = convolve(self.z.flatten(0, 1))
        return out.view(len(out), self.rows, -1, *out.shape[2:]).transpose(0, 1)

    def of_columns(self, base: Tensor, columns: Tensor, shift: Tensor | None) -> Tensor:
        along = product(self.z.reshape(-1, len(columns)), columns).view(self.rows, -1, columns.shape[1])
        return self.moved(base, along if shift is None else along.add_(shift))

    def picked(self, index: Tensor) -> Tensor:
        return self.z[:, index]


class LowRankMoved(Moved):
    """Directions A_r B_rᵀ.

    Args:
        weight: w, [m, *rest] with k = prod(rest).
        scales: Lengths of the steps.
        a: [rows, m, rank].
        b: [rows, k, rank].
    """

    def __init__(self, weight: Tensor, scales: Scales, a: Tensor, b: Tensor) -> None:
        super().__init__(weight, scales)
        self.a, self.b = a, b

    def stack(self) -> Tensor:
        return self.moved(self.weight, (self.a @ self.b.mT).view(self.rows, *self.weight.shape))

    def transposed(self) -> LowRankMoved:
        return LowRankMoved(self.weight.mT, self.scales, self.b, self.a)

    def part(self, start: int, stop: int) -> LowRankMoved:
        return LowRankMoved(self.weight[start:stop], self.scales, self.a[:, start:stop], self.b)

    def member(self, number: int) -> Tensor:
        column, row = divmod(number, self.rows)
        scale, w = self.scales[column][row], self.weight
        return torch.addmm(w.reshape(len(w), -1), self.a[row], self.b[row].mT, alpha=scale).view(w.shape)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of each member [n, m, r] and [n, k, r], the scale in A."""
        return self._scaled(self.a), self._each(self.b)

    def convolved(self, convolve: Callable[[Tensor], Tensor]) -> Tensor:
        thin = convolve(self.b.mT.reshape(-1, *self.weight.shape[1:]))  # [B, rows * rank, *positions]
        each = thin.view(len(thin), self.rows, self.a.shape[2], -1).transpose(0, 1)
        out = self.a.unsqueeze(1) @ each  # [rows, B, m, positions]
        return out.view(*out.shape[:3], *thin.shape[2:])

    def of_columns(self, base: Tensor, columns: Tensor, shift: Tensor | None) -> Tensor:
        thin = product(self.b.mT.reshape(-1, len(columns)), columns).view(self.rows, -1, columns.shape[1])
        if thin.shape[1] > 1 or base.dtype not in (torch.float32, torch.float64):  # 16 bits are too few for a step
            return self.moved(base, self.a @ thin if shift is None else torch.baddbmm(shift, self.a, thin))
        steps = self._steps(base)
        if shift is None:
            return torch.addcmul(base, steps * self.a, thin).flatten(0, 1)
        return torch.add(base, steps * shift).addcmul_(steps * self.a, thin).flatten(0, 1)

    def picked(self, index: Tensor) -> Tensor:
        return self.a[:, index.reshape(-1)].matmul(self.b.mT).view(self.rows, *index.shape, -1)

    def added(self, out: Tensor, columns: Tensor) -> Tensor:
        """``out`` [n, m, B] plus what the directions make of each member's own ``columns`` [n, k, B], in place."""
        thin = self._each(self.b).mT @ columns
        return out.baddbmm_(self._scaled(out), thin.to(out.dtype))

    def picked_each(self, index: Tensor) -> Tensor:
        """Rows ``index`` [n, ..] of each member's own step: [n, .., k]."""
        places = torch.arange(self.members, device=index.device).remainder_(self.rows).mul_(self.a.shape[1])
        rows = self.a.flatten(0, 1)[index + places.view(-1, *[1] * (index.ndim - 1))]
        scale = torch.tensor(self.scales, dtype=rows.dtype, device=rows.device).view(-1, 1, 1)
        return (rows.view(self.members, -1, rows.shape[-1]) @ (scale * self._each(self.b)).mT).view(*index.shape, -1)

    def of_rows(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """Each member's rows [n, B, k] times its matrix transposed, plus ``bias`` [m] or [n, 1, m]: [n, B, m].

        One product over the examples of all members for the weight that they share, and one thin one for each of them.
        """
        thin, factor = rows @ self._each(self.b), self._scaled(rows)
        if thin.dtype == rows.dtype == self.weight.dtype:
            return product_beside(rows, self.weight.mT, bias, thin, factor.mT)
        out = linear(rows, self.weight)  # autocast makes products of the lower precision
        out = out + (thin @ factor.mT).to(out.dtype)
        return out if bias is None else out + bias.to(out.dtype)

    def _each(self, factor: Tensor) -> Tensor:
        """A factor for each member, column after column."""
        return factor.expand(len(self.scales), *factor.shape).flatten(0, 1)

    def _steps(self, like: Tensor) -> Tensor:
        return torch.tensor(self.scales, dtype=like.dtype, device=like.device).view(len(self.scales), -1, 1, 1)

    def _scaled(self, like: Tensor) -> Tensor:
        return (self._steps(like) * self.a).flatten(0, 1).to(like.dtype)


Stacked = Tensor | Moved
"""One weight of all members: [n, *shape], or moved along directions."""
