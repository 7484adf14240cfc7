"""Training within a bound of memory: every method with the largest batch whose step fits into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch

from dldw.compare.item import Identity, MethodItem, note
from dldw.compare.meter import peak_bytes
from dldw.compare.records import Record
from dldw.compare.spec import Spec
from dldw.compare.train import DEFAULT_LR, Training, train
from dldw.compare.tune import SEED, trial_score
from dldw.compare.width import FACTORS
from dldw.errors import DldwError
from dldw.learner import Learner
from dldw.tasks.task import Task

MOST = 1024
"""Rows that are tried at most."""
TRIED = 1 / 3
"""Of the budget of a run: what each learning rate is tried for."""
MEASURING = 3.0
"""Seconds that the search for the largest batch takes, about."""


@dataclass(frozen=True)
class Bounding(MethodItem):
    """All runs of one method within the bound.

    The rate tuned for another batch need not suit this one, so the best of three is taken, on the validation split.

    Attributes:
        bound: Bytes that a step may take above the loaded model, gradients and the optimizer's state included.
        seeds: Runs.
        forwards: Budget of each, a forward pass being one of the task's usual batch.
        per_decade: Evaluations in each factor of ten.
    """

    bound: int
    seeds: int
    forwards: float
    per_decade: int

    @property
    def weight(self) -> float:
        return MEASURING + self.seconds_of(self.forwards) * (self.seeds + TRIED * len(FACTORS))

    @property
    def keys(self) -> list[Identity]:
        return [("fit", self.task, self.label)]

    @property
    def what(self) -> str:
        return f"within {self.bound / 2**20:.3g} MiB: {self.label}"

    def run(self) -> list[Record]:
        task, settings = self.loaded(), dict(self.settings)
        try:
            rows, peak = largest(lambda rows: step_bytes(task, self.spec, settings, rows), self.bound)
        except DldwError as error:
            return [note(f"{self.label} was not tried within the bound of memory, because a step failed: {error}")]
        factor = self._factor(task.resized(rows)) if rows else 1.0
        if factor != 1.0:
            settings["lr"] = settings.get("lr", DEFAULT_LR) * factor
        runs = [
            Training(
                self.task, self.data, self.spec, tuple(settings.items()), study="memory", seed=seed, width=task.width,
                factor=1.0, forwards=self.forwards, per_decade=self.per_decade, stop_at_target=False, rows=rows,
            )
            for seed in range(self.seeds if rows else 0)
        ]  # fmt: skip
        fit: dict[str, Any] = {
            "kind": "fit",
            "task": self.task,
            "method": self.label,
            "bound": self.bound,
            "rows": rows,
            "peak_bytes": peak,
            "rate_factor": factor,
        }
        return [*(record for each in runs for record in each.run()), cast(Record, fit)]

    def _factor(self, task: Task) -> float:
        """The best of a few learning rates, over the one in the settings."""
        if "lr" not in self.spec.method.settings:
            return 1.0
        settings, scores = dict(self.settings), {}
        for factor in FACTORS:
            scaled = {**settings, "lr": settings.get("lr", DEFAULT_LR) * factor}
            forwards = TRIED * self.forwards
            curve = train(task, self.spec, scaled, SEED, forwards=forwards, per_decade=self.per_decade, tuning=True)
            scores[factor] = trial_score(task, curve, forwards)
        found = {factor: score for factor, score in scores.items() if score is not None}
        return max(found, key=found.__getitem__, default=1.0)


def largest(peak: Callable[[int], int], bound: int) -> tuple[int, int]:
    """The most rows whose peak is within the bound, and that peak; 0 rows and the peak of one where none are.

    Args:
        peak: Bytes that a step on so many rows takes; it grows with them.
        bound: Bytes.

    Example:
        >>> largest(lambda rows: 100 + 30 * rows, 400), largest(lambda rows: 100 + 30 * rows, 120)
        ((10, 400), (0, 130))
    """
    fits, found, rows = 0, peak(1), 1
    if found > bound:
        return 0, found
    too_many = MOST + 1
    while rows < too_many:
        measured = found if rows == 1 else peak(rows)
        if measured <= bound:
            fits, found = rows, measured
        else:
            too_many = rows
        rows = min(2 * fits, MOST) if too_many > MOST and fits < MOST else (fits + too_many) // 2
        if rows == fits:
            break
    return fits, found


def step_bytes(task: Task, spec: Spec, settings: Mapping[str, Any], rows: int) -> int:
    """The allocator's peak in making the learner and taking two steps on so many rows, above the loaded model."""
    model, batches = task.model(0), iter(list(islice(task.resized(rows).batches(0), 2)))
    made: list[Learner] = []

    def step() -> None:
        if not made:
            made.append(spec.method.build(model, task.loss, torch.Generator().manual_seed(0), **settings))
        made[0].step(next(batches))

    return peak_bytes(step, model)
