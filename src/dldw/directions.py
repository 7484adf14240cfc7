"""Which directions z a directional method probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.weights import Weights


class Drawn(ABC):
    """Some directions z_1 .. z_n over all weights of a model."""

    count: int

    @abstractmethod
    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        """w + scale * z_row, one tensor for each weight (the parameter itself where z is zero)."""

    @abstractmethod
    def stacked(self, weights: Weights, start: int, stop: int, scales: np.ndarray) -> Sequence[Tensor]:
        """w + scales[r, c] * z_r for rows ``start`` to ``stop``, tensors [columns * rows, *shape], column after column."""

    @abstractmethod
    def tangents(self, weights: Weights, row: int) -> Sequence[Tensor]:
        """z_row itself, one tensor for each weight."""

    @abstractmethod
    def combined(self, weights: Weights, coefficients: np.ndarray) -> list[Tensor]:
        """The sum of coefficients[i] * z_i, new tensors, one for each weight."""


class Directions(ABC):
    """A recipe for directions; random ones satisfy E[z zᵀ] = I."""

    @abstractmethod
    def count(self, weights: Weights) -> int:
        """How many directions one estimate takes."""

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
            raise DldwError(f"directions must be at least 1, got {self.directions}: without one there is nothing to probe.")

    def count(self, weights: Weights) -> int:
        return self.directions


class Gaussian(_Random):
    """z ~ N(0, I)."""

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        return Dense([_empty(p, stop - start).normal_(generator=generator) for p in weights.tensors])


class Rademacher(_Random):
    """Independent random signs: the least variance of all independent entries, (d - 1) / n relative (Spall 1992)."""

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        return Dense([_signs(_empty(p, stop - start), generator) for p in weights.tensors])


class Sphere(_Random):
    """z uniform on the sphere of radius sqrt(d)."""

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        z = [_empty(p, stop - start).normal_(generator=generator) for p in weights.tensors]
        squares = torch.stack([t.reshape(len(t), -1).square().sum(1, dtype=torch.float64) for t in z]).sum(0)
        for t in z:
            t.mul_((weights.size / squares).sqrt().to(t.dtype).view(-1, *[1] * (t.ndim - 1)))
        return Dense(z)


@dataclass(frozen=True)
class RandomCoordinates(Directions):
    """``weights`` single weights, each picked uniformly over all trainable weights of the model."""

    weights: int = 1

    def __post_init__(self) -> None:
        if self.weights < 1:
            raise DldwError(f"weights must be at least 1, got {self.weights}: without one there is nothing to nudge.")

    def count(self, weights: Weights) -> int:
        return self.weights

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

    def factor(self, weights: Weights) -> float:
        return 1.0

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        return Coordinates(weights, range(start, stop))


class Dense(Drawn):
    """Directions stored in full.

    Args:
        z: One tensor [n, *shape] for each weight.
    """

    def __init__(self, z: list[Tensor]) -> None:
        self.z = z
        self.count = z[0].shape[0]

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        return [torch.add(p.detach(), z[row], alpha=scale) for p, z in zip(weights.tensors, self.z, strict=True)]

    def stacked(self, weights: Weights, start: int, stop: int, scales: np.ndarray) -> Sequence[Tensor]:
        rows, columns = stop - start, scales.shape[1]
        stacks = []
        for p, z in zip(weights.tensors, self.z, strict=True):
            out = torch.empty((columns, rows, *p.shape), dtype=p.dtype, device=p.device)
            for column in range(columns):
                if np.ptp(scales[:, column]) == 0:
                    torch.add(p.detach(), z[start:stop], alpha=float(scales[0, column]), out=out[column])
                else:
                    scale = torch.as_tensor(scales[:, column], dtype=p.dtype, device=p.device)
                    torch.addcmul(p.detach(), z[start:stop], scale.view(-1, *[1] * p.ndim), out=out[column])
            stacks.append(out.flatten(0, 1))
        return stacks

    def tangents(self, weights: Weights, row: int) -> Sequence[Tensor]:
        return [z[row] for z in self.z]

    def combined(self, weights: Weights, coefficients: np.ndarray) -> list[Tensor]:
        if self.count == 1:
            return [z[0] * float(coefficients[0]) for z in self.z]
        c = torch.as_tensor(coefficients)
        return [torch.tensordot(c.to(z), z, dims=1) for z in self.z]


class Coordinates(Drawn):
    """Unit vectors.

    Args:
        weights: The weights they count through, one parameter after another.
        picks: Positions among all trainable weights, each in 0 .. d - 1.
    """

    def __init__(self, weights: Weights, picks: Sequence[int]) -> None:
        self.count = len(picks)
        self.at: list[tuple[int, int]] = []
        sizes = [p.numel() for p in weights.tensors]
        for pick in picks:
            tensor = 0
            while pick >= sizes[tensor]:
                pick -= sizes[tensor]
                tensor += 1
            self.at.append((tensor, pick))

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]:
        tensor, offset = self.at[row]
        tensors: list[Tensor] = list(weights.tensors)
        tensors[tensor] = moved = weights.tensors[tensor].detach().clone(memory_format=torch.contiguous_format)
        moved.view(-1)[offset] += scale
        return tensors

    def stacked(self, weights: Weights, start: int, stop: int, scales: np.ndarray) -> Sequence[Tensor]:
        rows, columns = stop - start, scales.shape[1]
        stacks: list[Tensor] = list(weights.tensors)
        for tensor in {self.at[row][0] for row in range(start, stop)}:
            p = weights.tensors[tensor].detach()
            hits = [row - start for row in range(start, stop) if self.at[row][0] == tensor]
            offsets = torch.tensor([self.at[start + hit][1] for hit in hits], device=p.device)
            stack = p.expand(columns, rows, *p.shape).clone(memory_format=torch.contiguous_format)
            steps = torch.as_tensor(scales[hits].T.copy(), dtype=p.dtype, device=p.device)
            stack.view(columns, rows, -1)[:, hits, offsets] += steps
            stacks[tensor] = stack.flatten(0, 1)
        return stacks

    def tangents(self, weights: Weights, row: int) -> Sequence[Tensor]:
        return self.combined(weights, np.eye(self.count)[row])

    def combined(self, weights: Weights, coefficients: np.ndarray) -> list[Tensor]:
        sums = [torch.zeros_like(p, requires_grad=False, memory_format=torch.contiguous_format) for p in weights.tensors]
        if self.count == 1:
            tensor, offset = self.at[0]
            sums[tensor].view(-1)[offset] = float(coefficients[0])
            return sums
        tensors, offsets = np.array(self.at).T
        for i, total in enumerate(sums):
            mine = tensors == i
            index = torch.as_tensor(offsets[mine], device=total.device)
            total.view(-1).index_add_(0, index, torch.as_tensor(coefficients[mine]).to(total))
        return sums


def _empty(p: Tensor, count: int) -> Tensor:
    return torch.empty((count, *p.shape), dtype=p.dtype, device=p.device)


def _signs(out: Tensor, generator: torch.Generator) -> Tensor:
    """Fills ``out`` with random signs, 64 to each random word, as ``bernoulli_`` takes a draw for each."""
    words = torch.empty((out.numel() + 63) // 64, dtype=torch.int64, device=out.device)
    words.random_(-(2**63), None, generator=generator)
    bits = torch.arange(8, dtype=torch.uint8, device=out.device)
    signs = words.view(torch.uint8).unsqueeze(1).bitwise_right_shift(bits).bitwise_and_(1)
    return torch.sub(1, signs.view(-1)[: out.numel()].view(out.shape).to(out.dtype), alpha=2, out=out)
