"""Where a method moves the weights: the displacement of each of its steps against the exact downhill direction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn

from dldw.compare.estimate import LONGEST, exact_gradient, trained_point
from dldw.compare.item import Identity, MethodItem, note
from dldw.compare.records import Record
from dldw.compare.sampled import Drawing, trainable
from dldw.compare.statistics import mean_interval
from dldw.compare.train import forwards_per_step
from dldw.errors import DldwError
from dldw.source import GradientSource
from dldw.weights import Weights


@dataclass(frozen=True)
class Displacing(MethodItem):
    """The cosine of w' - w with -dL/dw on the batch of the step, over the first ``steps`` steps from one point in training.

    It can be asked of every learner, whether it estimates a gradient or not. A step that moves nothing has no direction
    and counts as 0; a method whose step is dear makes fewer, and two at least.
    """

    seed: int
    width: int | None
    steps: int

    @property
    def weight(self) -> float:
        return 0.1 + self.seconds_of(min(self._affordable * self._each, LONGEST))

    @cached_property
    def _each(self) -> float:
        return forwards_per_step(self.spec, dict(self.settings), Weights.of(self.loaded().model(0, self.width)).size)

    @property
    def _affordable(self) -> int:
        return max(2, min(self.steps, int(LONGEST // self._each)))

    @property
    def keys(self) -> list[Identity]:
        return [("displacement", self.task, self.label, self.seed)]

    @property
    def what(self) -> str:
        return f"where steps lead: {self.label}"

    def run(self) -> list[Record]:
        task, settings = self.loaded(), dict(self.settings)
        try:
            model, _ = trained_point(task, self.seed, self.width)
        except RuntimeError as error:
            return [note(f"Steps on {self.task} have no exact gradient to be compared with: {error}")]
        cosines: list[float] = []
        steepest = 0.0
        own: list[tuple[float, float]] = []
        try:
            learner: Any = self.spec.method.build(
                model, task.loss, torch.Generator().manual_seed(30_000 + self.seed), **settings
            )
            weights = Weights.of(model)  # of what the learner trains: adapters, where it added some
            for batch in islice(task.batches(40_000 + self.seed), self._affordable):
                before, g = weights.flat(), exact_gradient(task, model, batch)
                if (found := against_criterion(learner, batch)) is not None:
                    own.append(found)
                learner.step(batch)
                moved = weights.flat() - before
                steep = float(g.norm())
                steepest = max(steepest, steep)
                lengths = float(moved.norm()) * steep
                cosines.append(-float(moved @ g) / lengths if lengths else 0.0)
        except DldwError as error:
            return [note(f"The steps of {self.label} could not be followed on {self.task}: {error}")]
        if not steepest:
            return [note(f"Steps on {self.task} have no way down to be compared with: the exact derivative is zero.")]
        cosine, low, high = mean_interval(cosines)
        record: dict[str, Any] = {
            "kind": "displacement",
            "task": self.task,
            "method": self.label,
            "seed": self.seed,
            "steps": len(cosines),
            "still": cosines.count(0.0),
            "cosine": cosine,
            "cosine_low": low,
            "cosine_high": high,
            "needs": self.spec.method.card.needs,
            "forwards_per_step": self._each,
        }
        if own:
            record["criterion_cosine"] = fmean(cosine for cosine, _ in own)
            record["off_criterion"] = max(off for _, off in own)
        return [cast(Record, record)]


def against_criterion(learner: Any, batch: Any) -> tuple[float, float] | None:
    """A source's estimate against the derivative of the criterion it says it follows: the cosine and the largest difference.

    None where it says of none, where that cannot be computed for this model, or where one of the two is zero.
    """
    source: Any = getattr(learner, "source", None)
    if source is None or source.card.needs != "no loss" or not hasattr(source, "criterion"):
        return None
    try:
        values = source.criterion(learner.model, batch)
    except DldwError:
        return None
    exact = torch.cat(
        [g.flatten() for g in torch.autograd.grad(values.mean(), list(trainable(learner.model).values()))]
    )
    estimate = drawn_aside(source, learner.model, batch)
    lengths = float(estimate.norm() * exact.double().norm())
    if not lengths:
        return None
    return float(estimate @ exact.double()) / lengths, float((estimate - exact).abs().max())


def drawn_aside(source: GradientSource, model: nn.Module, batch: Any) -> Tensor:
    """One estimate [d]; the source draws next what it would have drawn without."""
    state = source.state_dict()
    try:
        return Drawing(source, model, batch).draw()
    finally:
        source.load_state_dict(state)
