"""Difference quotients of single weights, the losses found in the cheapest way that the model allows."""

from __future__ import annotations

import logging
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dldw.differences.every_weight import Nudged, nudged
from dldw.differences.tensor import Inexact
from dldw.directional import Directional, Estimate
from dldw.directions import Coordinates, Directions
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode, first_line
from dldw.objective import Objective
from dldw.slopes import Central, OneSided, power_of_two
from dldw.source import Loss

_log = logging.getLogger("dldw")


class SingleWeights(Directional):
    """Slopes along single weights by the first of three ways that the model allows; ``path`` says which it was.

    1. ``differences``: changes are followed through the model's own forward pass from the changed layer on, by rules in which
       nothing cancels (``dldw.differences``). With ``values of ...`` it names operations that have no rule: these are
       evaluated, for all changed weights at once, and subtracted.
    2. ``batched``: many models in one pass (``torch.func.vmap``), which share what comes before the changed layer.
    3. ``one by one``.

    Args:
        loss: See ``GradientSource``.
        directions: Which weights.
        step: h; by default eps^(1/3) (central) or eps^(1/2) of the coarsest dtype among the weights, rounded to a power of
            two; where nothing cancels eps^(3/4), which leaves no truncation and hardly a kink within the step.
        central: Two-sided differences.
        reuse: Whether changes are followed.
        evaluate: ``auto`` tries the three ways in turn; ``batched`` and ``sequential`` are the second and the third.
        generator: See ``GradientSource``.
    """

    def __init__(
        self,
        loss: Loss,
        directions: Directions,
        step: float | None,
        central: bool,
        *,
        reuse: bool = True,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        slope = Central(step) if central else OneSided(step)
        super().__init__(loss, directions, slope, evaluate=evaluate, generator=generator)
        self.step, self.central, self.reuse = step, central, reuse
        self.path: str | None = None
        """How the last estimate was made."""
        self._inexact: WeakSet[nn.Module] = WeakSet()
        self._not_followed: WeakSet[nn.Module] = WeakSet()

    def _estimate(self, objective: Objective, generator: torch.Generator) -> Estimate:
        state = generator.get_state()
        followed = self._followed(objective, generator)
        if followed is not None:
            found, path = followed
            if path != self.path:
                _log.info("single weights of %s are nudged by the path %r", type(objective.model).__name__, path)
            self.path = path
            return found
        generator.set_state(state)
        found = super()._estimate(objective, generator)
        count = len(found.coefficients) * self._slope.width
        self.path = "batched" if self._evaluator.batches(objective, count) else "one by one"
        return found

    def _followed(self, objective: Objective, generator: torch.Generator) -> tuple[Estimate, str] | None:
        """The estimate by changes that are followed through the model, and its path; None where they cannot be."""
        weights, evaluator = objective.weights, self._evaluator
        fine = {p.dtype for p in weights.tensors} <= {torch.float32, torch.float64}
        if (
            not self.reuse
            or evaluator.mode != "auto"
            or evaluator.ranks is not None
            or not fine
            or objective.model in self._not_followed
        ):
            return None
        count = self._slope.count(self._directions.count(weights), objective)
        drawn = self._directions.draw(weights, generator, 0, count)
        if not isinstance(drawn, Coordinates):
            return None
        picks = None if drawn.picks == range(weights.size) else drawn.offsets(weights)
        try:
            found, step = self._nudged(objective, picks)
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, DldwError):
                raise
            self._not_followed.add(objective.model)
            _log.info("changes cannot be followed through %s: %s", type(objective.model).__name__, first_line(error))
            return None
        slopes = [odd.div_(step) for odd in found.odd]
        if not self.central:
            for slope, even in zip(slopes, found.even, strict=True):
                slope.add_(even, alpha=1 / step)
        flat = torch.cat([slope.reshape(-1).double() for slope in slopes])
        coefficients: list[float] = (flat if picks is None else flat[drawn.picks]).tolist()
        self._require_dependence(objective, [[c] for c in coefficients] if any(coefficients) else [[0.0]])
        objective.finish()
        loss = objective.plain_loss
        mean = objective.mean(found.loss, "at the model's own weights") if loss is None else loss
        return Estimate(objective.tensor(mean), coefficients, (drawn,)), found.path

    def _nudged(self, objective: Objective, picks: list[Tensor] | None) -> tuple[Nudged, float]:
        memory, eps = self._evaluator.memory, max(torch.finfo(p.dtype).eps for p in objective.weights.tensors)
        if self.step is None and objective.model not in self._inexact:
            short = power_of_two(eps**0.75)
            try:
                return nudged(objective, short, memory, exact=True, odd_only=self.central, picks=picks), short
            except Inexact:
                self._inexact.add(objective.model)
        step = self._slope.steps(1, objective.weights, torch.Generator())[0]
        return nudged(objective, step, memory, odd_only=self.central, picks=picks), step
