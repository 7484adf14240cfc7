"""How the slope of the loss along a direction is found."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dldw.directions import Drawn
from dldw.errors import DldwError
from dldw.evaluate import Evaluator
from dldw.moved import Stacked
from dldw.objective import Objective
from dldw.weights import Weights


class Measured(NamedTuple):
    """What was measured along n directions: slope_i = sum over j of stencil[j] * losses[i][j], divided by steps[i].

    Attributes:
        losses: Mean losses, n rows of k.
        stencil: Weights of the k losses.
        steps: Length of the step along each direction, n.
    """

    losses: list[list[float]]
    stencil: tuple[float, ...]
    steps: list[float]


class Slope(ABC):
    """Measures the loss along directions."""

    width: int
    """Losses taken along one direction."""

    def count(self, directions: int, objective: Objective) -> int:
        """How many directions are measured where ``directions`` are asked for."""
        return directions

    @abstractmethod
    def steps(self, count: int, weights: Weights, generator: torch.Generator) -> list[float]:
        """Lengths of the steps along ``count`` directions; random ones are drawn from ``generator``."""

    def flat(self, losses: list[list[float]]) -> bool:
        """Whether these losses leave open that the loss does not depend on the weights at all."""
        return all(loss == losses[0][0] for row in losses for loss in row)

    @abstractmethod
    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, steps: list[float]) -> Measured:
        """Measures along all of ``drawn``, a step for each."""


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

    def draw(self, generator: torch.Generator, device: torch.device) -> float:
        """One step length, not zero."""
        step = 0.0
        while step == 0:
            uniform = torch.rand((), dtype=torch.float64, generator=generator, device=device).item()
            step = self.low + (self.high - self.low) * uniform
        return step


def power_of_two(step: float) -> float:
    """The nearest one."""
    return 2.0 ** round(math.log2(step))


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

    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, steps: list[float]) -> Measured:
        losses = evaluate(objective, Probes(drawn, objective.weights, self.offsets, steps))
        if self.baseline:
            plain = evaluate.plain(objective)
            for row in losses:
                row.append(plain)
        return Measured(losses, self.stencil, steps)

    def steps(self, count: int, weights: Weights, generator: torch.Generator) -> list[float]:
        if isinstance(self.step, Uniform):
            return [self.step.draw(generator, weights.device) for _ in range(count)]
        if self.step is not None:
            return [float(self.step)] * count
        eps = max(torch.finfo(p.dtype).eps for p in weights.tensors)
        return [power_of_two(eps**self.power)] * count


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

    def steps(self, count: int, weights: Weights, generator: torch.Generator) -> list[float]:
        return [1.0] * count

    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, steps: list[float]) -> Measured:
        last = drawn.count - 1
        slopes = [objective.jvp(drawn.tangents(objective.weights, i), plain=i == last)[1] for i in range(drawn.count)]
        return Measured([[slope] for slope in slopes], (1.0,), steps)


class EachExample(Slope):
    """A direction for each example of the batch, all in one pass: of B directions, each moves the loss of one example.

    Args:
        step: Length of the step.
        baseline: What the loss of a moved example is compared with: the example moved the other way (``antithetic``), not
            moved (``original``), or the mean of the other, moved ones (``leave-one-out``).
    """

    def __init__(self, step: float, baseline: str) -> None:
        Central(step)  # refuses a step that is none
        self.step, self.baseline = step, baseline
        self.width = 1 if baseline == "leave-one-out" else 2

    def count(self, directions: int, objective: Objective) -> int:
        count = examples(objective.batch)
        if count < 2 and self.width == 1:
            raise DldwError(
                "the batch holds one example, and leave-one-out compares it with others. Use larger batches, or "
                "baseline='antithetic'."
            )
        return directions * count

    def steps(self, count: int, weights: Weights, generator: torch.Generator) -> list[float]:
        return [self.step] * count

    def flat(self, losses: list[list[float]]) -> bool:
        return self.width == 1 or all(moved == other for moved, other in losses)  # examples differ among themselves

    def measure(self, objective: Objective, drawn: Drawn, evaluate: Evaluator, steps: list[float]) -> Measured:
        count = drawn.count
        up = evaluate.each(objective, drawn, steps)
        if self.baseline == "leave-one-out":
            down, factor = (up.sum() - up) / (count - 1), 1.0
        else:  # the plain losses, too, are taken as those of moved examples are: with the same random numbers
            factor = 2.0 if self.baseline == "antithetic" else 1.0
            down = evaluate.each(objective, drawn, [(1 - factor) * step for step in steps])
        losses = torch.stack([up, down], 1).tolist()
        for row in losses:
            objective.require_finite(np.array(row))
        return Measured(losses, (1.0, -1.0), [factor * step * count for step in steps])


def examples(batch: Any) -> int:
    """B, the length that all tensors of a batch have in common.

    Raises:
        DldwError: They have none.
    """
    lengths = {t.shape[0] if t.ndim else None for t in tree_leaves(batch) if isinstance(t, Tensor)}
    length = next(iter(lengths), None)
    if length is None or len(lengths) != 1:
        raise DldwError(
            f"a direction for each example needs a batch of tensors [B, ...], got first dimensions "
            f"{', '.join(sorted(map(str, lengths))) or 'of no tensor'}. Put what all examples share into the loss function."
        )
    return length


class Probes:
    """The candidates w + offsets[j] * steps[i] * z_i."""

    def __init__(self, drawn: Drawn, weights: Weights, offsets: tuple[float, ...], steps: list[float]) -> None:
        self.drawn, self.weights, self.offsets, self.steps = drawn, weights, offsets, steps
        self.width = len(offsets)

    @property
    def member_bytes(self) -> int:
        return self.drawn.member_bytes(self.weights)

    def __len__(self) -> int:
        return len(self.steps)

    def member(self, row: int, column: int) -> Sequence[Tensor]:
        return self.drawn.perturbed(self.weights, row, self.offsets[column] * self.steps[row])

    def stack(self, start: int, stop: int) -> Sequence[Stacked]:
        scales = [[offset * step for step in self.steps[start:stop]] for offset in self.offsets]
        return self.drawn.stacked(self.weights, start, scales)
