"""Directions in full that are never held: noise by counter, made a tile at a time where it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dldw import noise
from dldw.directions import Dense, Directions, Drawn, wide
from dldw.errors import DldwError
from dldw.gemm import linear
from dldw.moved import DenseMoved, Scales, Stacked
from dldw.noise import Distribution, Key, Rows, draw_keys, fill, tiles
from dldw.perturbed import StandIn, product_rules, unwatched
from dldw.weights import Weights


@dataclass(frozen=True)
class Streamed(Directions):
    """Independent entries of variance 1, made anew wherever they are needed: a direction takes 128 bits.

    Those of a small model, which take no more than one tile, are made once and held.

    Args:
        directions: How many.
        distribution: ``rademacher`` (random signs) or ``gaussian``.
    """

    directions: int = 1
    distribution: Distribution = "rademacher"

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise DldwError(
                f"directions must be at least 1, got {self.directions}: without one there is nothing to probe."
            )
        if self.distribution not in get_args(Distribution):
            raise DldwError(f"distribution must be rademacher or gaussian, got {self.distribution!r}.")

    def count(self, weights: Weights) -> int:
        return self.directions

    def held(self, weights: Weights) -> int:
        return weights.bytes if self._small(weights) else 16

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        count = stop - start
        if self._small(weights):
            numbers = torch.empty(count * weights.size, dtype=weights.dtype, device=weights.device)
            numbers = fill(numbers, self.distribution, draw_keys(generator, 1)[0])
            return Dense(weights, numbers, count)
        return StreamedDrawn(draw_keys(generator, count), self.distribution)

    def _small(self, weights: Weights) -> bool:
        """Whether all directions together take no more than a tile: then they are held, and made once."""
        return self.directions * weights.size <= noise.TILE


Mask = Callable[[Tensor, int, Rows, int], Tensor]
"""Of a weight, its number, some rows and the number of that tile: which entries are other than zero."""


class StreamedDrawn(Drawn):
    """Directions by their keys.

    Args:
        keys: One for each direction.
        distribution: Of the entries.
    """

    def __init__(self, keys: list[Key], distribution: Distribution) -> None:
        self.count = len(keys)
        self.keys, self.distribution = keys, distribution
        self.mask: Mask | None = None
        """Which entries are other than zero, if not all are."""

    def noise(self, p: Tensor, index: int, row: int) -> Noise:
        """z_row of the weight ``p``, which is number ``index`` of the model."""
        return Noise(p, self.distribution, self.keys[row], index, self.mask)

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        noises = [self.noise(p, i, row) for i, p in enumerate(weights.tensors)]
        return [
            Moving(noise, scale) if noise.weight.ndim > 1 else torch.add(noise.weight, noise.whole(), alpha=scale)
            for noise in noises
        ]

    def stacked(self, weights: Weights, start: int, scales: Scales) -> Sequence[Stacked]:
        rows = range(start, start + len(scales[0]))
        return [
            DenseMoved(p, scales, torch.stack([self.noise(p, i, row).whole() for row in rows]))
            for i, p in enumerate(weights.tensors)
        ]

    def tangents(self, weights: Weights, row: int) -> Sequence[Tensor]:
        return [self.noise(p, i, row).whole() for i, p in enumerate(weights.tensors)]

    def sums(self, weights: Weights, coefficients: list[float]) -> Iterator[tuple[int, Rows, Tensor]]:
        for i, p in enumerate(weights.tensors):
            noises = [self.noise(p, i, row) for row in range(self.count)]
            for tile, rows in enumerate(noises[0].rows):
                total = noises[0].tile(tile).to(wide(p)).mul_(coefficients[0])
                for other, c in zip(noises[1:], coefficients[1:], strict=True):
                    total.add_(other.tile(tile), alpha=c)
                yield i, rows, total


class Noise:
    """z for one weight, tile by tile. A tile is some rows, the same ones for every weight of that shape.

    Args:
        weight: The weight.
        distribution: Of the entries.
        key: Of the direction.
        index: Number of the weight in the model.
        mask: Which entries are other than zero, if not all are.
    """

    def __init__(
        self, weight: Tensor, distribution: Distribution, key: Key, index: int, mask: Mask | None = None
    ) -> None:
        self.parameter, self.mask = weight, mask
        self.weight, self.rows = weight.detach(), tiles(weight)
        self._distribution, self._key, self._index = distribution, key, index

    def tile(self, number: int) -> Tensor:
        """The numbers of one tile, a new tensor of the dtype of the weight."""
        out = torch.empty_like(self.weight[self.rows[number]], memory_format=torch.contiguous_format)
        out = fill(out, self._distribution, self._key, self._index, number)
        if self.mask is not None:
            out.mul_(self.mask(self.parameter, self._index, self.rows[number], number))
        return out

    def whole(self) -> Tensor:
        """All numbers."""
        if len(self.rows) == 1:
            return self.tile(0)
        return torch.cat([self.tile(number) for number in range(len(self.rows))])


class Moving(StandIn):
    """W + s z, some of its rows, or these transposed; a product sees one tile of it at a time, and so does an embedding.

    Args:
        noise: z, and W with it.
        scale: s.
        rows: First row, and the one after the last; all by default.
        turned: Whether it stands for the transposed matrix.
    """

    noise: Noise
    scale: float
    rows: tuple[int, int]
    turned: bool

    @staticmethod
    def __new__(cls, noise: Noise, scale: float, rows: tuple[int, int] | None = None, turned: bool = False) -> Moving:
        weight, rows = noise.weight, rows or (0, len(noise.weight))
        shape = torch.Size((rows[1] - rows[0], *weight.shape[1:]))
        self = torch.Tensor._make_wrapper_subclass(
            cls, torch.Size(reversed(shape)) if turned else shape, dtype=weight.dtype, device=weight.device
        )
        self.noise, self.scale, self.rows, self.turned = noise, scale, rows, turned
        moving: Moving = self
        return moving

    def materialised(self) -> Tensor:
        weight = self.noise.weight[slice(*self.rows)]
        out = torch.empty_like(weight)
        for rows, tile in self.moved():
            out[rows] = tile
        return out.mT if self.turned else out

    def part(self, start: int, stop: int) -> Tensor:
        if self.turned:
            return self.materialised()[start:stop]
        return Moving(self.noise, self.scale, (self.rows[0] + start, self.rows[0] + stop))

    def transposed(self) -> Moving:
        return Moving(self.noise, self.scale, self.rows, not self.turned)

    def detail(self) -> str:
        return f"tiles={len(self.noise.rows)}"

    def moved(self) -> Iterator[tuple[slice, Tensor]]:
        """W + s z before any transposition, tile by tile, and which of its rows they are."""
        (first, end), noise = self.rows, self.noise
        height = len(noise.weight[noise.rows[0]])
        for number in range(first // height, -(-end // height)):
            tile = noise.tile(number).mul_(self.scale).add_(noise.weight[noise.rows[number]])
            start, stop = max(number * height, first), min((number + 1) * height, end)
            yield slice(start - first, stop - first), tile[start - number * height : stop - number * height]


def _tiled(x: Any, weight: Any) -> bool:
    """Whether the product may be taken tile by tile: where autograd or autocast watches, it may not."""
    return (
        isinstance(weight, Moving)
        and type(x) is Tensor
        and len(weight.noise.rows) > 1
        and weight.numel() > 0
        and weight.ndim == 2
        and x.dtype == weight.dtype
        and unwatched(x.device.type)
    )


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Any:
    if not _tiled(input, weight):
        return NotImplemented
    return _sum_of_parts(input, weight, bias) if weight.turned else _by_outputs(input, weight, bias)


def _matmul(x: Any, weight: Any) -> Any:
    return _addmm(None, x, weight) if _tiled(x, weight) and x.ndim > 1 else NotImplemented


def _addmm(bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if not _tiled(x, weight) or beta != 1 or alpha != 1 or not (bias is None or bias.ndim == 1):
        return NotImplemented
    return _by_outputs(x, weight, bias) if weight.turned else _sum_of_parts(x, weight, bias)


def _by_outputs(x: Tensor, weight: Moving, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b with the rows of W, in tiles."""
    height = weight.rows[1] - weight.rows[0]
    out = x.new_empty((*x.shape[:-1], height))
    inputs, outputs = x.reshape(-1, x.shape[-1]), out.view(-1, height)
    for rows, w in weight.moved():
        outputs[:, rows] = linear(inputs, w, None if bias is None else bias[rows])
    return out


def _sum_of_parts(x: Tensor, weight: Moving, bias: Tensor | None) -> Tensor:
    """x W + b, a sum over tiles, as the rows of W are what is summed over."""
    inputs, width = x.reshape(-1, x.shape[-1]), weight.noise.weight.shape[1]
    out = x.new_empty((*x.shape[:-1], width))
    outputs = out.view(-1, width)
    first = torch.mm if bias is None else partial(torch.addmm, bias)
    for rows, w in weight.moved():
        part = inputs[:, rows]
        if rows.start == 0:
            first(part, w, out=outputs)
        else:
            torch.addmm(outputs, part, w, out=outputs)
    return out


def _embedding(
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *rest: Any,
    **named: Any,
) -> Any:
    whole = isinstance(weight, Moving) and weight.rows == (0, len(weight.noise.weight)) and not weight.turned
    if max_norm is not None or not whole or len(weight.noise.rows) == 1 or torch.is_grad_enabled():
        return NotImplemented
    noise = weight.noise
    height = len(noise.weight[noise.rows[0]])
    out = F.embedding(input, noise.weight, padding_idx)
    flat, indices = out.view(-1, out.shape[-1]), input.reshape(-1)
    for tile in torch.unique(indices // height).tolist():
        hits = (indices // height == tile).nonzero().squeeze(1)
        flat.index_add_(0, hits, noise.tile(tile)[indices[hits] - tile * height], alpha=weight.scale)
    return out


Moving.rules = product_rules(_linear, _matmul, _addmm, _embedding)
