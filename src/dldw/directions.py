"""Which directions z a directional method probes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.moved import DenseMoved, Scales, Stacked
from dldw.noise import Rows, normal, signs
from dldw.weights import Weights, add_to_grad


class Drawn(ABC):
    """Some directions z_1 .. z_n over all weights of a model."""

    count: int

    @abstractmethod
    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        """w + scale * z_row, one tensor for each weight (the parameter itself where z is zero)."""

    @abstractmethod
    def stacked(self, weights: Weights, start: int, scales: Scales) -> Sequence[Stacked]:
        """w + scales[c][r] * z_(start + r) for all weights, column after column; the parameter itself where z is zero."""

    def member_bytes(self, weights: Weights) -> int:
        """What the weights of one member take in ``stacked``: here a direction and the sum."""
        return 2 * weights.bytes

    @abstractmethod
    def tangents(self, weights: Weights, row: int) -> Sequence[Tensor]:
        """z_row itself, one tensor for each weight."""

    @abstractmethod
    def sums(self, weights: Weights, coefficients: list[float]) -> Iterator[tuple[int, Rows, Tensor]]:
        """The sum of coefficients[i] * z_i, piece by piece: the number of a weight, some of its rows, the sum there.

        Pieces that are left out are zero; no row comes twice. Sums for weights of 16 bits are in float32.
        """

    def add_to(self, tensors: Sequence[Tensor], weights: Weights, coefficients: list[float]) -> None:
        """Adds the sum of coefficients[i] * z_i to ``tensors``, one of the shape of each weight."""
        for i, rows, total in self.sums(weights, coefficients):
            tensors[i][rows].add_(total)

    def accumulate(self, weights: Weights, coefficients: list[float]) -> None:
        """Adds the sum of coefficients[i] * z_i to the ``.grad`` of the weights."""
        grads = []
        for p in weights.tensors:
            if p.grad is None:
                p.grad = _zeros(p)
            grads.append(p.grad)
        self.add_to(grads, weights, coefficients)


class Directions(ABC):
    """A recipe for directions; random ones satisfy E[z zᵀ] = I."""

    @abstractmethod
    def count(self, weights: Weights) -> int:
        """How many directions one estimate takes."""

    @abstractmethod
    def held(self, weights: Weights) -> int:
        """Bytes that one direction takes."""

    @abstractmethod
    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        """Directions ``start`` to ``stop``; random ones are drawn from ``generator``, the same for the same state."""

    def factor(self, weights: Weights) -> float:
        """What the sum of slope * z is multiplied with: 1 / n for random directions, 1 for coordinates."""
        return 1 / self.count(weights)


@dataclass(frozen=True)
class _Random(Directions):
    directions: int = 1

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise DldwError(
                f"directions must be at least 1, got {self.directions}: without one there is nothing to probe."
            )

    def count(self, weights: Weights) -> int:
        return self.directions

    def held(self, weights: Weights) -> int:
        return weights.size * weights.dtype.itemsize


class Gaussian(_Random):
    """z ~ N(0, I)."""

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        z = normal(_empty(weights, stop - start), generator)
        return Dense(weights, z, stop - start)


class Rademacher(_Random):
    """Independent random signs: the least variance of all independent entries, (d - 1) / n relative (Spall 1992)."""

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        return Dense(weights, signs(_empty(weights, stop - start), generator), stop - start)


class Sphere(_Random):
    """z uniform on the sphere of radius sqrt(d)."""

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        count = stop - start
        z = normal(_empty(weights, count), generator)
        blocks = [block.view(count, -1) for block in weights.blocks(z, count)]
        squares = torch.stack([block.square().sum(1, dtype=torch.float64) for block in blocks]).sum(0)
        length = (weights.size / squares).sqrt().to(z.dtype).unsqueeze(1)
        for block in blocks:
            block.mul_(length)
        return Dense(weights, z, count)


@dataclass(frozen=True)
class RandomCoordinates(Directions):
    """``weights`` single weights, each picked uniformly over all trainable weights of the model."""

    weights: int = 1

    def __post_init__(self) -> None:
        if self.weights < 1:
            raise DldwError(f"weights must be at least 1, got {self.weights}: without one there is nothing to nudge.")

    def count(self, weights: Weights) -> int:
        return self.weights

    def held(self, weights: Weights) -> int:
        return _PICK

    def factor(self, weights: Weights) -> float:
        return 1.0

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        picks = torch.randint(weights.size, (stop - start,), generator=generator, device=weights.device)
        return Coordinates(weights, picks.tolist())


@dataclass(frozen=True)
class AllCoordinates(Directions):
    """Every weight in turn."""

    def count(self, weights: Weights) -> int:
        return weights.size

    def held(self, weights: Weights) -> int:
        return _PICK

    def factor(self, weights: Weights) -> float:
        return 1.0

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        return Coordinates(weights, range(start, stop))


class SomeCoordinates(Directions):
    """A part of all weights, drawn anew for each estimate, or given.

    Args:
        fraction: Which part is drawn, at least one weight.

    Attributes:
        given: Positions among all trainable weights that take the place of drawn ones.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self.given: list[int] | None = None
        self._order: list[int] = []

    def count(self, weights: Weights) -> int:
        return math.ceil(self.fraction * weights.size) if self.given is None else len(self.given)

    def held(self, weights: Weights) -> int:
        return _PICK

    def factor(self, weights: Weights) -> float:
        return 1.0

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        if self.given is not None:
            return Coordinates(weights, self.given[start:stop])
        if start == 0:
            order = torch.randperm(weights.size, generator=generator, device=weights.device)
            self._order = order[: self.count(weights)].tolist()
        return Coordinates(weights, self._order[start:stop])


class Dense(Drawn):
    """Directions stored in full.

    Args:
        weights: The weights they move.
        flat: All numbers [count * d], one weight after the other and in each one direction after the other.
        count: n.
    """

    def __init__(self, weights: Weights, flat: Tensor, count: int) -> None:
        self.count = count
        self.z = [block.to(p.dtype) for block, p in zip(weights.blocks(flat, count), weights.tensors, strict=True)]
        self._first = [z.view(p.shape) for z, p in zip(self.z, weights.tensors, strict=True)] if count == 1 else []

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        own: list[Tensor] = list(weights.tensors)
        moved: Sequence[Tensor] = torch._foreach_add(own, self.tangents(weights, row), alpha=scale)
        return moved

    def stacked(self, weights: Weights, start: int, scales: Scales) -> Sequence[Stacked]:
        stop = start + len(scales[0])
        return [DenseMoved(p, scales, z[start:stop]) for p, z in zip(weights.tensors, self.z, strict=True)]

    def tangents(self, weights: Weights, row: int) -> list[Tensor]:
        return self._first or [z[row] for z in self.z]

    def sums(self, weights: Weights, coefficients: list[float]) -> Iterator[tuple[int, Rows, Tensor]]:
        exact = torch.tensor(coefficients, dtype=torch.float64)
        for i, (p, z) in enumerate(zip(weights.tensors, self.z, strict=True)):
            c = exact.to(p.device, wide(p))
            yield i, ..., (c @ z.view(self.count, -1).to(c.dtype)).view(p.shape)

    def accumulate(self, weights: Weights, coefficients: list[float]) -> None:
        if self.count == 1:
            for p, z in zip(weights.tensors, self._first, strict=True):
                if p.grad is None:
                    p.grad = z * coefficients[0]
                else:
                    p.grad.add_(z, alpha=coefficients[0])
            return
        for i, _, total in self.sums(weights, coefficients):
            add_to_grad(weights.tensors[i], total)


class Coordinates(Drawn):
    """Unit vectors.

    Args:
        weights: The weights they count through, one parameter after another.
        picks: Positions among all trainable weights, each in 0 .. d - 1; ``range(d)`` for all.
    """

    def __init__(self, weights: Weights, picks: Sequence[int]) -> None:
        self.count, self.picks = len(picks), picks
        self.at: list[tuple[int, int]] = []
        sizes = [p.numel() for p in weights.tensors]
        for pick in picks:
            tensor = 0
            while pick >= sizes[tensor]:
                pick -= sizes[tensor]
                tensor += 1
            self.at.append((tensor, pick))

    def offsets(self, weights: Weights) -> list[Tensor]:
        """Which entries of each weight, each once."""
        each: list[set[int]] = [set() for _ in weights.tensors]
        for tensor, offset in self.at:
            each[tensor].add(offset)
        return [torch.tensor(sorted(some), dtype=torch.int64, device=weights.device) for some in each]

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        tensor, offset = self.at[row]
        tensors: list[Tensor] = list(weights.tensors)
        tensors[tensor] = moved = weights.tensors[tensor].clone()
        _add_to_entry(moved, offset, scale)
        return tensors

    def stacked(self, weights: Weights, start: int, scales: Scales) -> Sequence[Stacked]:
        rows = len(scales[0])
        at, steps = self.at[start : start + rows], torch.tensor(scales, dtype=torch.float64)
        stacks: list[Stacked] = list(weights.tensors)
        for tensor in {tensor for tensor, _ in at}:
            p = weights.tensors[tensor]
            hits = [row for row in range(rows) if at[row][0] == tensor]
            stack = p.expand(len(scales), rows, *p.shape).clone(memory_format=torch.contiguous_format)
            stack.view(len(scales), rows, -1)[:, hits, [at[hit][1] for hit in hits]] += steps[:, hits].to(p)
            stacks[tensor] = stack.flatten(0, 1)
        return stacks

    def tangents(self, weights: Weights, row: int) -> list[Tensor]:
        tensor, offset = self.at[row]
        tangents = [_zeros(p) for p in weights.tensors]
        _add_to_entry(tangents[tensor], offset, 1.0)
        return tangents

    def accumulate(self, weights: Weights, coefficients: list[float]) -> None:
        for p in weights.tensors:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.count == 1:
            tensor, offset = self.at[0]
            if (grad := weights.tensors[tensor].grad) is not None:
                _add_to_entry(grad, offset, coefficients[0])
            return
        for i, _, total in self.sums(weights, coefficients):
            add_to_grad(weights.tensors[i], total)

    def sums(self, weights: Weights, coefficients: list[float]) -> Iterator[tuple[int, Rows, Tensor]]:
        tensors, offsets = np.array(self.at).T
        for i in np.unique(tensors).tolist():
            p, mine = weights.tensors[i], tensors == i
            total = torch.zeros(p.numel(), dtype=wide(p), device=p.device)
            index = torch.as_tensor(offsets[mine], device=p.device)
            total.index_add_(0, index, torch.as_tensor(np.array(coefficients)[mine]).to(total))
            yield i, ..., total.view(p.shape)


def _add_to_entry(tensor: Tensor, offset: int, value: float) -> None:
    """Adds to the entry at ``offset`` in logical order, in place."""
    if tensor.dtype in _NUMPY and tensor.is_cpu and tensor.is_contiguous() and not tensor.requires_grad:
        tensor.numpy().reshape(-1)[offset] += value  # a fifth of what two views and an addition take to launch
    elif tensor.is_contiguous():
        tensor.view(-1)[offset] += value
    else:
        tensor[tuple(int(i) for i in np.unravel_index(offset, tensor.shape))] += value


_NUMPY = torch.float32, torch.float64


def wide(p: Tensor) -> torch.dtype:
    """The dtype that sums for this weight are taken in."""
    return torch.promote_types(p.dtype, torch.float32)


_PICK = 64
"""Bytes that the position of one weight takes."""


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(p, requires_grad=False)


def _empty(weights: Weights, count: int) -> Tensor:
    """Room for ``count`` directions, in the widest dtype among the weights."""
    return torch.empty(count * weights.size, dtype=weights.dtype, device=weights.device)
