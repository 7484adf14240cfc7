"""How the slope of the loss along a direction is found."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dldw.directions import Drawn
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Objective
from dldw.weights import Weights


@dataclass(frozen=True)
class Measured:
    """What was measured along n directions: slope_i = sum over j of stencil[j] * losses[i, j], divided by steps[i].

    Attributes:
        losses: Mean losses, float64 [n, k].
        stencil: Weights of the k losses, [k].
        steps: Length of the step along each direction, [n].
    """

    losses: np.ndarray
    stencil: np.ndarray
    steps: np.ndarray


class Slope(ABC):
    """Measures the loss along directions."""

    width: int
    """Losses taken along one direction."""

    @abstractmethod
    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, generator: torch.Generator) -> Measured:
        """Measures along all of ``drawn``; a step length that is random is drawn from ``generator``."""


@dataclass(frozen=True)
class Uniform:
    """A step length drawn from U(low, high) for each direction; zero is drawn again."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise DldwError(
                f"the nudge is drawn from U(low, high), which needs finite low < high, got {self.low} and {self.high}. "
                "The default is U(-0.1, 0.1)."
            )


class _Difference(Slope):
    """Losses at w + offset * step * z, and at w itself where ``baseline`` says so."""

    offsets: tuple[float, ...]
    stencil: tuple[float, ...]
    baseline = False
    power: float

    def __init__(self, step: float | Uniform | None) -> None:
        if isinstance(step, int | float) and not (step > 0 and math.isfinite(step)):
            raise DldwError(
                f"sigma (the length of the step along a direction) must be positive and finite, got {step}: the slope is a "
                "difference of losses divided by it. The usual value is 1e-3 in float32."
            )
        self.step = step
        self.width = len(self.offsets)

    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, generator: torch.Generator) -> Measured:
        steps = self._steps(drawn.count, objective.weights, generator)
        scales = steps[:, None] * np.array(self.offsets)
        losses = evaluate(objective, _Probes(drawn, objective.weights, scales))
        if self.baseline:
            losses = np.column_stack([losses, np.full(drawn.count, objective.plain())])
        return Measured(losses, np.array(self.stencil), steps)

    def _steps(self, count: int, weights: Weights, generator: torch.Generator) -> np.ndarray:
        if self.step is None:
            eps = max(torch.finfo(p.dtype).eps for p in weights.tensors)
            return np.full(count, 2.0 ** round(math.log2(eps**self.power)))
        if not isinstance(self.step, Uniform):
            return np.full(count, float(self.step))
        low, high = self.step.low, self.step.high
        steps = np.zeros(count)
        while (zero := steps == 0).any():
            draws = torch.rand(int(zero.sum()), dtype=torch.float64, generator=generator, device=weights.device)
            steps[zero] = [low + (high - low) * u for u in draws.tolist()]
        return steps


class Central(_Difference):
    """(L(w + s z) - L(w - s z)) / 2s: two losses a direction, error O(s²)."""

    offsets, stencil, power = (1.0, -1.0), (0.5, -0.5), 1 / 3


class OneSided(_Difference):
    """(L(w + s z) - L(w)) / s: one loss a direction and one for all, error O(s)."""

    offsets, stencil, baseline, power = (1.0,), (1.0, -1.0), True, 1 / 2


class ScoreFunction(_Difference):
    """L(w + s z) / s: one loss a direction; the loss itself is the weight of its direction (Williams 1992)."""

    offsets, stencil, power = (1.0,), (1.0,), 1 / 2


class Jvp(Slope):
    """The exact derivative along z by forward-mode differentiation: no step and no truncation error."""

    width = 1

    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, generator: torch.Generator) -> Measured:
        last = drawn.count - 1
        slopes = [objective.jvp(drawn.tangents(objective.weights, i), plain=i == last)[1] for i in range(drawn.count)]
        return Measured(np.array(slopes)[:, None], np.ones(1), np.ones(drawn.count))


class _Probes:
    """The candidates w + scales[i, j] * z_i."""

    def __init__(self, drawn: Drawn, weights: Weights, scales: np.ndarray) -> None:
        self.drawn, self.weights, self.scales = drawn, weights, scales
        self.width = scales.shape[1]

    def __len__(self) -> int:
        return len(self.scales)

    def member(self, row: int, column: int) -> list[Tensor]:
        return list(self.drawn.perturbed(self.weights, row, float(self.scales[row, column])))

    def stack(self, start: int, stop: int) -> list[Tensor]:
        return list(self.drawn.stacked(self.weights, start, stop, self.scales[start:stop]))
