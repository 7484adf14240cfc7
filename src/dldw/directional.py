"""The engine: directions x slope x combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from operator import mul
from statistics import fmean
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from dldw.directions import Directions
from dldw.evaluate import Evaluator, Mode
from dldw.objective import Objective
from dldw.slopes import Measured, Slope
from dldw.source import Batch, GradientSource, Loss


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


class Directional(GradientSource):
    """Estimates dL/dw from slopes along directions; every named directional method is this with its three choices made.

    ghat = factor * sum_i c_i z_i, with z_i from ``directions``, losses along them from ``slope``, and c_i from ``combine``.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        directions: Which z.
        slope: How the slope along z is found.
        combine: How the slopes are combined; the mean by default.
        evaluate: ``auto``, ``sequential`` or ``batched``; see ``dldw.evaluate.Evaluator``.
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
        evaluate: Mode = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(loss, generator)
        self._directions, self._slope, self._combine = directions, slope, combine or Mean()
        self._evaluator = Evaluator(evaluate)
        self._depends: Callable[[], nn.Module | None] = lambda: None

    @property
    def additive(self) -> bool:
        return self._combine.additive

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        generator = self._generator_on(weights.device)
        with torch.no_grad():
            return self._estimate(Objective(model, self.loss, batch, weights), generator)

    def _estimate(self, objective: Objective, generator: torch.Generator) -> Tensor:
        weights, draw = objective.weights, self._directions.draw
        count = self._directions.count(weights)
        rows = 1 if count == 1 else self._evaluator.held(self._directions.held(weights), count)
        chunks = [(start, min(start + rows, count)) for start in range(0, count, rows)]
        replay = len(chunks) > 1  # directions that do not fit together are drawn again to be combined
        states, parts = [], []
        for start, stop in chunks:
            if replay:
                states.append(generator.get_state())
            drawn = draw(weights, generator, start, stop)
            parts.append(self._slope.measure(objective, drawn, self._evaluator, generator))
        measured = _joined(parts) if replay else parts[0]
        self._require_dependence(objective, measured.losses)
        objective.finish()

        coefficients = self._combine.coefficients(measured, self._directions.factor(weights))
        if not replay:
            drawn.accumulate(weights, coefficients)
        else:
            end = generator.get_state()
            for (start, stop), state in zip(chunks, states, strict=True):
                generator.set_state(state)
                draw(weights, generator, start, stop).accumulate(weights, coefficients[start:stop])
            generator.set_state(end)
        loss = objective.plain_loss
        return objective.tensor(fmean(chain(*measured.losses)) if loss is None else loss)

    def _require_dependence(self, objective: Objective, losses: list[list[float]]) -> None:
        """Equal losses may be chance (a dead weight, a step network); once for each model, find out."""
        if self._depends() is not objective.model:
            if all(loss == losses[0][0] for loss in chain(*losses)):
                objective.require_dependence()
            self._depends = ref(objective.model)


def _joined(parts: list[Measured]) -> Measured:
    losses = [row for part in parts for row in part.losses]
    return Measured(losses, parts[0].stencil, [step for part in parts for step in part.steps])
