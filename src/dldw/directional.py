"""The engine: directions x slope x combine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from dldw.directions import Directions
from dldw.evaluate import Evaluator, Mode, Objective
from dldw.slopes import Measured, Slope
from dldw.source import Batch, GradientSource, Loss


class Combine(ABC):
    """Turns the losses of all directions into what is averaged over them."""

    additive: bool

    @abstractmethod
    def shape(self, losses: np.ndarray) -> np.ndarray:
        """The losses [n, k] or what takes their place, [n, k]."""

    def coefficients(self, measured: Measured) -> np.ndarray:
        """The coefficient of each direction in the estimate, [n], before the average over them."""
        return np.asarray(self.shape(measured.losses) @ measured.stencil / measured.steps)


class Mean(Combine):
    """The losses as they are: the estimate is the mean of slope * z."""

    additive = True

    def shape(self, losses: np.ndarray) -> np.ndarray:
        return losses


class CenteredRanks(Combine):
    """Ranks in [-1/2, 1/2] in place of losses; equal losses share their mean rank (Salimans et al. 2017)."""

    additive = False

    def shape(self, losses: np.ndarray) -> np.ndarray:
        values, inverse, counts = np.unique(losses, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts + 1) / 2)[inverse].reshape(losses.shape)
        return np.asarray(ranks / max(1, losses.size - 1) - 0.5 if values.size > 1 else np.zeros(losses.shape))


class Standardised(Combine):
    """z-scores in place of losses: mean 0 and standard deviation 1 over all that were taken."""

    additive = False

    def shape(self, losses: np.ndarray) -> np.ndarray:
        deviation = losses.std()
        return np.asarray((losses - losses.mean()) / deviation if deviation > 0 else np.zeros(losses.shape))


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
        self._depends: WeakSet[nn.Module] = WeakSet()

    @property
    def additive(self) -> bool:
        return self._combine.additive

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        generator = self._generator_on(weights.device)
        objective = Objective(model, self.loss, batch, weights)
        count = self._directions.count(weights)
        rows = self._evaluator.rows(objective, self._slope.width, count) if count > 1 else 1

        replay = rows < count  # directions that do not fit together are drawn again from these states to be combined
        states, parts = [], []
        for start in range(0, count, rows):
            if replay:
                states.append(generator.get_state())
            drawn = self._directions.draw(weights, generator, start, min(start + rows, count))
            parts.append(self._slope.measure(objective, drawn, self._evaluator, generator))
        measured = parts[0] if len(parts) == 1 else _joined(parts)
        self._require_dependence(objective, measured)
        objective.finish()

        coefficients = self._combine.coefficients(measured) * self._directions.factor(weights)
        if not replay:
            estimate = drawn.combined(weights, coefficients)
        else:
            estimate = [torch.zeros_like(p, requires_grad=False) for p in weights.tensors]
            end = generator.get_state()
            for start, state in zip(range(0, count, rows), states, strict=True):
                generator.set_state(state)
                stop = min(start + rows, count)
                part = self._directions.draw(weights, generator, start, stop).combined(weights, coefficients[start:stop])
                torch._foreach_add_(estimate, part)
            generator.set_state(end)
        weights.add_to_grad(estimate)
        known = objective.plain_loss
        return objective.tensor(float(measured.losses.mean()) if known is None else known)

    def _require_dependence(self, objective: Objective, measured: Measured) -> None:
        """Equal losses may be chance (a dead weight, a step network); once for each model, find out."""
        if objective.model in self._depends:
            return
        if np.ptp(measured.losses) == 0:
            objective.require_dependence()
        self._depends.add(objective.model)


def _joined(parts: list[Measured]) -> Measured:
    return Measured(
        np.concatenate([p.losses for p in parts]), parts[0].stencil, np.concatenate([p.steps for p in parts])
    )
