"""The engine: directions x slope x combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from operator import mul
from statistics import fmean
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from dldw.compiled import forwards_alone
from dldw.directions import Directions, Drawn
from dldw.evaluate import Evaluator, Mode
from dldw.objective import Objective
from dldw.slopes import Measured, Slope
from dldw.source import Batch, GradientSource, Loss
from dldw.weights import Weights


class Combine(ABC):
    """Turns the losses of all directions into what is averaged over them."""

    additive: bool

    @abstractmethod
    def shape(self, losses: list[list[float]]) -> list[list[float]]:
        """The losses, n rows of k, or what takes their place."""

    def coefficients(self, measured: Measured, factor: float) -> list[float]:
        """The coefficient of each direction in the estimate, n of them."""
        losses, stencil, steps = measured
        return [
            factor * sum(map(mul, row, stencil)) / step for row, step in zip(self.shape(losses), steps, strict=True)
        ]


class Mean(Combine):
    """The losses as they are: the estimate is the mean of slope * z."""

    additive = True

    def shape(self, losses: list[list[float]]) -> list[list[float]]:
        return losses


class CenteredRanks(Combine):
    """Ranks in [-1/2, 1/2] in place of losses; equal losses share their mean rank (Salimans et al. 2017)."""

    additive = False

    def shape(self, losses: list[list[float]]) -> list[list[float]]:
        values, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
        if values.size == 1:
            return [[0.0] * len(row) for row in losses]
        ranks = np.cumsum(counts) - (counts + 1) / 2
        shaped: list[list[float]] = (ranks / (inverse.size - 1) - 0.5)[inverse].reshape(len(losses), -1).tolist()
        return shaped


class Standardised(Combine):
    """z-scores in place of losses: mean 0 and standard deviation 1 over all that were taken."""

    additive = False

    def shape(self, losses: list[list[float]]) -> list[list[float]]:
        values = np.array(losses)
        shaped: list[list[float]] = ((values - values.mean()) / (values.std() or 1.0)).tolist()
        return shaped


class LeaveOneOut(Combine):
    """Each loss less the mean of the others, which does not depend on its direction (Kool et al. 2019)."""

    additive = True

    def shape(self, losses: list[list[float]]) -> list[list[float]]:
        values = np.array(losses)
        n = len(values)
        shaped: list[list[float]] = ((values - values.mean(0)) * (n / (n - 1))).tolist()
        return shaped


@dataclass
class Deviations(Combine):
    """What another combination makes of the losses, over the standard deviation of the probed ones in place of the step.

    Args:
        combine: The other combination.
        step: Length of the step that a slope is divided by, and that is taken back here.
    """

    combine: Combine
    step: float
    additive = False

    def shape(self, losses: list[list[float]]) -> list[list[float]]:
        deviation = float(np.array(losses)[:, 0].std(ddof=1)) or 1.0
        return [[self.step / deviation * value for value in row] for row in self.combine.shape(losses)]


@dataclass
class Estimate:
    """What an estimate consists of: ghat = sum_i coefficients[i] * z_i.

    Attributes:
        loss: The detached loss, [].
        coefficients: One for each direction.
        drawn: All directions, in order; those that do not fit together are drawn as they are asked for, once.
    """

    loss: Tensor
    coefficients: list[float]
    drawn: Iterable[Drawn]

    def parts(self) -> Iterator[tuple[Drawn, list[float]]]:
        """The directions, as many at a time as are held, each with its coefficient."""
        return paired(self.drawn, self.coefficients)


def paired(drawn: Iterable[Drawn], coefficients: list[float]) -> Iterator[tuple[Drawn, list[float]]]:
    """Directions with their coefficients."""
    at = 0
    for some in drawn:
        yield some, coefficients[at : at + some.count]
        at += some.count


class Directional(GradientSource):
    """Estimates dL/dw from slopes along directions; every named directional method is this with its three choices made.

    ghat = factor * sum_i c_i z_i, with z_i from ``directions``, losses along them from ``slope``, and c_i from ``combine``.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        directions: Which z.
        slope: How the slope along z is found.
        combine: How the slopes are combined; the mean by default.
        evaluate: ``auto``, ``sequential`` or ``batched``, or an ``Evaluator`` with a memory bound of its own.
        generator: See ``GradientSource``.

    Example:
        A method nobody has named: forward-mode slopes along points of a sphere, standardised.

        >>> import torch, dldw
        >>> from dldw.directions import Sphere
        >>> from dldw.directional import Directional, Standardised
        >>> from dldw.slopes import Jvp
        >>> model, batch = torch.nn.Linear(3, 1), torch.ones(5, 3)
        >>> source = Directional(lambda m, x: m(x).square().sum(1), Sphere(4), Jvp(), Standardised())
        >>> loss = source(model, batch)
        >>> model.weight.grad.shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        loss: Loss,
        directions: Directions,
        slope: Slope,
        combine: Combine | None = None,
        *,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(loss, generator)
        self._directions, self._slope, self._combine = directions, slope, combine or Mean()
        self._evaluator = evaluate if isinstance(evaluate, Evaluator) else Evaluator(evaluate)
        self._depends: Callable[[], nn.Module | None] = lambda: None

    @property
    def additive(self) -> bool:
        return self._combine.additive

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        generator = self._generator_on(weights.device)
        with torch.no_grad(), forwards_alone(model, weights.checkpointed):
            estimate = self._estimate(Objective(model, self.loss, batch, weights), generator)
            for drawn, coefficients in estimate.parts():
                drawn.accumulate(weights, coefficients)
        return estimate.loss

    def estimate(self, model: nn.Module, batch: Batch) -> Estimate:
        """What a call adds to ``.grad``, as directions and coefficients: nothing of the size of the model is made.

        Raises:
            NonFiniteLossError, DldwError: See ``GradientSource``.
        """
        weights = self._checked(model)
        generator = self._generator_on(weights.device)
        with torch.no_grad(), forwards_alone(model, weights.checkpointed):
            return self._estimate(Objective(model, self.loss, batch, weights), generator)

    def redraw(self, weights: Weights, generator: torch.Generator, count: int) -> Iterator[Drawn]:
        """The ``count`` directions of an estimate, some at a time; the same for the same state of ``generator``."""
        self._slope.steps(count, weights, generator)
        return self._draw(weights, generator, count)

    def _draw(self, weights: Weights, generator: torch.Generator, count: int) -> Iterator[Drawn]:
        rows = self._evaluator.held(self._directions.held(weights), count)
        for start in range(0, count, rows):
            yield self._directions.draw(weights, generator, start, min(start + rows, count))

    def _again(self, weights: Weights, generator: torch.Generator, count: int, state: Tensor) -> Iterator[Drawn]:
        generator.set_state(state)
        yield from self._draw(weights, generator, count)

    def _estimate(self, objective: Objective, generator: torch.Generator) -> Estimate:
        weights = objective.weights
        count = self._slope.count(self._directions.count(weights), objective)
        steps = self._slope.steps(count, weights, generator)
        if count == 1 or self._evaluator.held(self._directions.held(weights), count) >= count:
            one = self._directions.draw(weights, generator, 0, count)
            drawn: Iterable[Drawn] = (one,)
            measured = self._slope.measure(objective, one, self._evaluator, steps)
        else:  # directions that do not fit together are drawn again to be combined
            state, parts = generator.get_state(), []
            left = iter(steps)
            for some in self._draw(weights, generator, count):
                parts.append(self._slope.measure(objective, some, self._evaluator, list(islice(left, some.count))))
            measured = Measured([row for part in parts for row in part.losses], parts[0].stencil, steps)
            drawn = self._again(weights, generator, count, state)
        self._require_dependence(objective, measured.losses)
        objective.finish()

        coefficients = self._combine.coefficients(measured, self._directions.factor(weights))
        loss = objective.plain_loss
        value = objective.tensor(fmean(chain(*measured.losses)) if loss is None else loss)
        return Estimate(value, coefficients, drawn)

    def _require_dependence(self, objective: Objective, losses: list[list[float]]) -> None:
        """Equal losses may be chance (a dead weight, a step network); once for each model, find out."""
        if self._depends() is not objective.model:
            if self._slope.flat(losses):
                objective.require_dependence()
            self._depends = ref(objective.model)
