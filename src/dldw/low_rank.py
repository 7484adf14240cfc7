"""Directions of low rank for every weight matrix: probed at the cost of inference, stored in m + n numbers for m x n."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dldw.directions import Directions, Drawn, wide
from dldw.errors import DldwError
from dldw.gemm import add_outer
from dldw.moved import DenseMoved, LowRankMoved, Scales, Stacked
from dldw.noise import Rows, normal, signs, tiles
from dldw.perturbed import Perturbed
from dldw.weights import Weights

Noise = Literal["sign", "gaussian"]


@dataclass(frozen=True)
class LowRank(Directions):
    """Z = A Bᵀ / sqrt(r) for each weight of two or more dimensions [m, *rest], n = prod(rest); vectors in full.

    With entries of variance 1, E[z zᵀ] = I. On an m x n weight and a linear loss the relative variance of one direction is
    mn - 1 for signs at rank 1, and mn + 1 + 2(m + n + 1)/r for Gaussians.

    Args:
        directions: How many.
        rank: r.
        noise: Entries of A and B: random signs, or Gaussian.
    """

    directions: int = 1
    rank: int = 1
    noise: Noise = "sign"

    def __post_init__(self) -> None:
        if self.directions < 1 or self.rank < 1:
            raise DldwError(f"directions and rank must be at least 1, got {self.directions} and {self.rank}.")
        if self.noise not in ("sign", "gaussian"):
            raise DldwError(f"noise must be sign or gaussian, got {self.noise!r}.")

    def count(self, weights: Weights) -> int:
        return self.directions

    def held(self, weights: Weights) -> int:
        return sum(sum(_sizes(p, self.rank)) for p in weights.tensors) * weights.dtype.itemsize

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        count = stop - start
        sizes = [s for p in weights.tensors for s in _sizes(p, self.rank)]
        numbers = torch.empty(count * sum(sizes), dtype=weights.dtype, device=weights.device)
        numbers = signs(numbers, generator) if self.noise == "sign" else normal(numbers, generator)
        parts = iter(numbers.split_with_sizes([count * size for size in sizes]))
        factors: list[_Factors] = []
        for p in weights.tensors:
            first = next(parts).to(p.dtype)
            if p.ndim < 2:
                factors.append(first.view(count, *p.shape))
            else:
                a = first.view(count, p.shape[0], self.rank).div_(math.sqrt(self.rank))
                factors.append((a, next(parts).to(p.dtype).view(count, -1, self.rank)))
        return LowRankDrawn(count, factors)


_Factors = Tensor | tuple[Tensor, Tensor]

_CACHED = 1 << 17
"""Numbers of a product of factors that stay in the processor's cache until they are added to a weight."""


def _pieces(p: Tensor, a: Tensor, b: Tensor) -> Iterator[tuple[Rows, Tensor]]:
    """A Bᵀ in the shape of ``p``, some rows at a time."""
    for rows in tiles(p, _CACHED):
        yield rows, (a[rows] @ b.mT).view(-1, *p.shape[1:])


def _sizes(p: Tensor, rank: int) -> list[int]:
    return [p.numel()] if p.ndim < 2 else [p.shape[0] * rank, p.numel() // p.shape[0] * rank]


class LowRankDrawn(Drawn):
    """Low-rank directions by their factors.

    Args:
        count: n.
        factors: For each weight (A [n, m, r], B [n, k, r]), or z [n, *shape] for a vector.
    """

    def __init__(self, count: int, factors: list[_Factors]) -> None:
        self.count = count
        self.factors = factors

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        return [
            torch.add(p, z[row], alpha=scale) if isinstance(z, Tensor) else Perturbed(p, scale * z[0][row], z[1][row])
            for p, z in zip(weights.tensors, self.factors, strict=True)
        ]

    def stacked(self, weights: Weights, start: int, scales: Scales) -> Sequence[Stacked]:
        rows = slice(start, start + len(scales[0]))
        return [
            DenseMoved(p, scales, f[rows]) if isinstance(f, Tensor) else LowRankMoved(p, scales, f[0][rows], f[1][rows])
            for p, f in zip(weights.tensors, self.factors, strict=True)
        ]

    def member_bytes(self, weights: Weights) -> int:
        return 2 * sum(t.nbytes for f in self.factors for t in ((f,) if isinstance(f, Tensor) else f)) // self.count

    def tangents(self, weights: Weights, row: int) -> Sequence[Tensor]:
        return [
            f[row] if isinstance(f, Tensor) else (f[0][row] @ f[1][row].mT).view(p.shape)
            for p, f in zip(weights.tensors, self.factors, strict=True)
        ]

    def sums(self, weights: Weights, coefficients: list[float]) -> Iterator[tuple[int, Rows, Tensor]]:
        for i, (p, factors) in enumerate(zip(weights.tensors, self._summed(weights, coefficients), strict=True)):
            if isinstance(factors, Tensor):
                yield i, ..., factors
            else:
                yield from ((i, rows, total) for rows, total in _pieces(p, *factors))

    def add_to(self, tensors: Sequence[Tensor], weights: Weights, coefficients: list[float]) -> None:
        for t, factors, summed in zip(tensors, self.factors, self._summed(weights, coefficients), strict=True):
            if isinstance(summed, Tensor):
                t.add_(summed)
                continue
            a, b = summed
            in_view, single = t.ndim == 2 or t.is_contiguous(), a.shape[1] == 1
            if not in_view or (t.element_size() == 2 and not single):
                for rows, total in _pieces(t, a, b):
                    t[rows].add_(total)
            elif single:  # in 16 bits, too, rounded once and with the coefficient in full
                add_outer(t.view(len(a), len(b)), factors[0][0], factors[1][0].mT, coefficients[0])
            else:
                t.view(len(a), len(b)).addmm_(a.to(t.dtype), b.mT.to(t.dtype))

    def _summed(self, weights: Weights, coefficients: list[float]) -> Iterator[_Factors]:
        """The sum of coefficients[i] * z_i: a vector [*shape], or factors [m, n r] and [k, n r] of a matrix."""
        each = torch.tensor(coefficients, dtype=torch.float64).view(-1, 1, 1)
        for p, factors in zip(weights.tensors, self.factors, strict=True):
            c = each.to(p.device, wide(p))
            if isinstance(factors, Tensor):
                yield torch.tensordot(c.view(-1), factors.to(c.dtype), dims=1)
            else:
                a, b = (f.transpose(0, 1).flatten(1) for f in (c * factors[0], factors[1].to(c.dtype)))
                yield a, b
