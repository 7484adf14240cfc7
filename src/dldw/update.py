"""The update of a learner that never fills ``.grad``: piece by piece, in the precision of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dldw.directions import Drawn, wide
from dldw.errors import DldwError
from dldw.noise import Key, Rows, tiles, words
from dldw.weights import Weights

Rounding = Literal["nearest", "stochastic", "compensated"]


class Update:
    """w ← w - lr (λ w + m) with m ← μ m + ghat, as ``torch.optim.SGD`` has it where λ or μ is 0.

    Args:
        weights: What is updated, in place.
        momentum: μ; other than 0 it keeps a buffer of the size of the weights.
        weight_decay: λ, decoupled from the momentum.
        rounding: How a sum is rounded to weights of 16 bits. ``nearest``: less than half a unit in the last place is lost;
            ``stochastic``: up or down, right on average; ``compensated`` (Kahan): what was lost is kept in a buffer of the
            size of the weights, and added next time. Wider weights are rounded to the nearest.
        key: Makes stochastic rounding repeat.
    """

    def __init__(self, weights: Weights, momentum: float, weight_decay: float, rounding: Rounding, key: Key) -> None:
        if not 0 <= momentum < 1:
            raise DldwError(f"momentum must be at least 0 and below 1, got {momentum}: from 1 on it never forgets.")
        if weight_decay < 0:
            raise DldwError(f"weight_decay must not be negative, got {weight_decay}: weights would grow.")
        if rounding not in get_args(Rounding):
            raise DldwError(f"rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}.")
        self.weights, self.key = weights, key
        self.momentum, self.weight_decay, self.rounding = momentum, weight_decay, rounding
        self._moments = [torch.zeros_like(p, dtype=wide(p), requires_grad=False) for p in self._if(momentum > 0)]
        compensated = rounding == "compensated"
        self._lost = [torch.zeros_like(p, requires_grad=False) for p in self._if(compensated)]
        to_the_nearest = rounding == "nearest" or all(p.element_size() > 2 for p in weights.tensors)
        self._direct = not self._moments and to_the_nearest

    def _if(self, kept: bool) -> Iterable[Tensor]:
        return self.weights.tensors if kept else ()

    @torch.no_grad()
    def apply(self, step: int, lr: float, parts: Iterable[tuple[Drawn, list[float]]]) -> None:
        """One step from ghat, given as directions and coefficients, some at a time."""
        for i, p in enumerate(self.weights.tensors if self.weight_decay else ()):
            for piece, rows in enumerate(tiles(p)):
                self._add(i, rows, p[rows].to(wide(p)) * (-lr * self.weight_decay), (2 * step, i << 32 | piece))
        for moment in self._moments:
            moment.mul_(self.momentum)
        for number, (drawn, coefficients) in enumerate(parts):
            scaled = coefficients if self._moments else [-lr * c for c in coefficients]
            if self._direct:
                drawn.add_to([p.detach() for p in self.weights.tensors], self.weights, scaled)
                continue
            for piece, (i, rows, total) in enumerate(drawn.sums(self.weights, scaled)):
                if self._moments:
                    self._moments[i][rows].add_(total)
                else:
                    self._add(i, rows, total, (2 * step + 1, number << 32 | piece))
        for i, moment in enumerate(self._moments):
            for piece, rows in enumerate(tiles(moment)):
                self._add(i, rows, moment[rows] * -lr, (2 * step + 1, i << 32 | piece))

    def _add(self, i: int, rows: Rows, total: Tensor, counter: tuple[int, int]) -> None:
        p = self.weights.tensors[i].detach()[rows]
        if p.element_size() > 2 or self.rounding == "nearest":
            p.add_(total)
        elif self.rounding == "stochastic":
            p.copy_(rounded(total.to(wide(p)).add_(p), p.dtype, self.key, *counter))
        else:
            lost, before = self._lost[i][rows], p.to(wide(p))
            total = total + lost
            p.add_(total)
            lost.copy_(total.sub_(p.to(wide(p)).sub_(before)))

    def state_dict(self) -> dict[str, Any]:
        """The buffers, if any."""
        return {"moments": self._moments, "lost": self._lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        for mine, kept in zip((*self._moments, *self._lost), (*state["moments"], *state["lost"]), strict=True):
            mine.copy_(kept)


def rounded(x: Tensor, dtype: torch.dtype, key: Key, *counter: int) -> Tensor:
    """``x`` (float32) in bfloat16 or float16, up or down at random so that the mean is x.

    Random bits are added to those that ``dtype`` drops, and a carry makes the rest one unit larger (Croci et al. 2022,
    arXiv 2103.10378). Subnormal numbers of float16 are rounded to the nearest.
    """
    dropped = 16 if dtype == torch.bfloat16 else 13
    noise = words((x.numel() + 3) // 4, x.device, key, *counter).view(torch.int16)[: x.numel()]
    bits = x.contiguous().view(torch.int32)
    bits = bits + (noise.int() & ((1 << dropped) - 1)).view(x.shape)
    return (bits & -(1 << dropped)).view(torch.float32).to(dtype)
