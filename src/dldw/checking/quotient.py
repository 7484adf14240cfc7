"""Difference quotients along random sign directions, each with an estimate of its own error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dldw.objective import Objective
from dldw.slopes import power_of_two
from dldw.weights import Weights

Region = tuple[Sequence[int] | None, ...]
"""Which indices of each dimension of a weight, None for all."""

Block = Mapping[int, Region | None]
"""Some weights, by their place in ``Weights.tensors``, and which part of each (None: all of it)."""


class Direction:
    """Random signs with magnitudes in [1/2, 3/2] inside a block and zero outside.

    Magnitudes that differ keep errors of equal size, as two exchanged entries have, from cancelling: with bare signs they
    would in half of all directions.

    Args:
        weights: The weights it moves.
        block: Where it is not zero.
        generator: Where it is drawn from.
    """

    def __init__(self, weights: Weights, block: Block, generator: torch.Generator) -> None:
        self._weights = weights
        self.parts = {i: _draw(weights.tensors[i], region, generator) for i, region in block.items()}

    def moved(self, step: float) -> list[Tensor]:
        """w + step * z, the parameter itself where z is zero."""
        tensors: list[Tensor] = list(self._weights.tensors)
        for i, z in self.parts.items():
            tensors[i] = torch.add(tensors[i].detach(), z, alpha=step)
        return tensors

    def dot(self, gradient: Sequence[Tensor | None]) -> float:
        """The slope along z that ``gradient`` predicts, summed in float64."""
        total = 0.0
        for i, z in self.parts.items():
            if (g := gradient[i]) is not None:
                total += float(torch.dot(g.reshape(-1).double(), z.reshape(-1).double()))
        return total

    def tangents(self) -> list[Tensor]:
        """z itself, one tensor for each weight."""
        return [self.parts.get(i, torch.zeros_like(p.detach())) for i, p in enumerate(self._weights.tensors)]


def _draw(p: Tensor, region: Region | None, generator: torch.Generator) -> Tensor:
    z = torch.empty(p.shape, dtype=p.dtype, device=p.device).uniform_(-1, 1, generator=generator)
    z.add_(z.sign(), alpha=0.5)
    for dim, chosen in enumerate(region or ()):
        if chosen is not None:
            keep = torch.zeros(p.shape[dim], dtype=p.dtype, device=p.device)
            keep[list(chosen)] = 1
            z.mul_(keep.view(-1, *[1] * (p.ndim - dim - 1)))
    return z


@dataclass(frozen=True)
class Quotient:
    """A slope measured by central differences at two steps h and h/2.

    Attributes:
        value: Q(h/2) + (Q(h/2) - Q(h)) / 3, which Richardson's extrapolation frees of the error of order h².
        truncation: |Q(h) - Q(h/2)|, three times the error of Q(h/2) where the loss is smooth, and noise where there is noise.
        rounding: What rounding the losses to their dtype adds; what is lost on the way to them shows in ``truncation``.
        jump: How far the one-sided quotients disagree where that does not shrink with h, as it does at a kink.
        step: h.
        flat: Whether all four losses were that at the weights themselves.
    """

    value: float
    truncation: float
    rounding: float
    jump: float
    step: float
    flat: bool = False

    @property
    def error(self) -> float:
        """The estimated error of ``value``."""
        return self.truncation + self.rounding + self.jump


class Losses:
    """Mean losses at moved weights, and the quotients made of them.

    Args:
        objective: The loss as a function of the weights.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.here = self.at(objective.weights.tensors)
        dtypes = {p.dtype for p in objective.weights.tensors} | {objective.tensor(0.0).dtype}
        self.eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        tensors = [p.detach() for p in objective.weights.tensors if p.numel()]
        sizes = sorted(s for p in tensors if (s := float(p.norm()) / math.sqrt(p.numel())) > 0)
        self.scale = sizes[len(sizes) // 2] if sizes else 1.0

    def at(self, tensors: Sequence[Tensor]) -> float:
        """The mean loss at these weights, NaN and infinity included."""
        with torch.no_grad():
            return self.objective.any_mean_at(tensors)

    @property
    def first_step(self) -> float:
        """The step at which truncation and rounding of a central difference balance: eps^(1/3) of a weight's size."""
        return power_of_two(self.eps ** (1 / 3) * self.scale)

    def quotient(self, direction: Direction, step: float) -> Quotient:
        """The slope along ``direction``; four forwards."""
        return self.between(lambda length: self.at(direction.moved(length)), step)

    def between(self, at: Callable[[float], float], step: float) -> Quotient:
        """The slope at 0 of a function whose value there is ``here``."""
        far, near = ([at(side * length) for side in (1, -1)] for length in (step, step / 2))
        if not all(map(math.isfinite, (*far, *near))):
            return Quotient(math.nan, math.inf, 0.0, 0.0, step)
        wide, narrow = (far[0] - far[1]) / (2 * step), (near[0] - near[1]) / step
        rounding = self.eps * max(map(abs, (*far, *near))) / step
        jumps = [abs(sum(pair) - 2 * self.here) / length for pair, length in ((far, step), (near, step / 2))]
        kinked = jumps[1] > 0.75 * jumps[0] and jumps[1] > 8 * rounding
        flat = {*far, *near} == {self.here}
        jump = jumps[1] if kinked else 0.0
        return Quotient(narrow + (narrow - wide) / 3, abs(narrow - wide), rounding, jump, step, flat)

    def bend(self, at: Callable[[float], float], step: float) -> Quotient:
        """The second derivative at 0 of a function whose value there is ``here``."""
        far, near = (sum(at(side * length) - self.here for side in (1, -1)) for length in (step, step / 2))
        if not (math.isfinite(far) and math.isfinite(near)):
            return Quotient(math.nan, math.inf, 0.0, 0.0, step)
        wide, narrow = far / step**2, 4 * near / step**2
        rounding = 16 * self.eps * abs(self.here) / step**2
        return Quotient(narrow + (narrow - wide) / 3, abs(narrow - wide), rounding, 0.0, step)

    def search(self, direction: Direction, step: float, *, good: float, forwards: int) -> Quotient:
        """The quotient at the best step: from ``step`` on shorter or longer ones are tried while the error falls.

        Args:
            direction: Along which.
            step: Where to begin.
            good: The relative error at which the search ends.
            forwards: How many may be taken, four for each step.
        """
        return self.best(lambda length: self.quotient(direction, length), step, good=good, forwards=forwards)[0]

    def best(
        self, measure: Callable[[float], Quotient], step: float, *, good: float, forwards: int
    ) -> tuple[Quotient, int]:
        """The same for any quotient that takes four forwards, and how many were taken."""
        best = measure(step)
        spent = 4
        shorter = best.truncation + best.jump > best.rounding
        for factor in (1 / 32, 32.0) if shorter else (32.0, 1 / 32):
            while best.error > good * abs(best.value) or not math.isfinite(best.error):
                longest = best.step * factor <= self.scale
                if spent + 4 > forwards or not longest or best.step * factor < self.eps * self.scale:
                    break
                trial = measure(best.step * factor)
                spent += 4
                if not trial.error < best.error and math.isfinite(best.error):
                    break
                best = trial
        return best, spent
