"""Settings for every method by equal trials, on the validation split."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dldw.card import Choice
from dldw.compare.item import Identity, MethodItem
from dldw.compare.records import Record
from dldw.compare.results import write_whole
from dldw.compare.train import Curve, train
from dldw.tasks.task import Settings, Task, Tuned

if TYPE_CHECKING:
    import optuna

SEED = 1000
"""Of every trial: not among the seeds of the comparison."""


@dataclass(frozen=True)
class Tuning(MethodItem):
    """All trials of one method; ``settings`` holds those that are given and so are not searched."""

    trials: int
    forwards: float

    @property
    def weight(self) -> float:
        return self.trials * self.seconds_of(self.forwards)

    @property
    def keys(self) -> list[Identity]:
        return [("tuning", self.task, self.label, trial) for trial in range(self.trials)]

    @property
    def what(self) -> str:
        return f"tuning {self.label}"

    def run(self) -> list[Record]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        task, records = self.loaded(), []
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
        for number in range(self.trials):
            trial = study.ask()
            settings = {**dict(self.settings), **self._suggested(trial)}
            rows = trial.suggest_categorical("rows", task.rows) if task.rows else None
            curve = train(task.resized(rows), self.spec, settings, SEED, forwards=self.forwards, tuning=True)
            score = trial_score(task, curve, self.forwards)
            if score is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, score)
            last = curve.points[-1] if curve.points else {"forwards": 0.0, "seconds": 0.0}
            record: dict[str, Any] = {
                "kind": "tuning", "task": self.task, "method": self.label, "trial": number,
                "settings": settings | ({} if rows is None else {"rows": rows}),
                "score": score, "forwards": last["forwards"], "seconds": last["seconds"], "chosen": False,
            }  # fmt: skip
            records.append(record)
        scored = [r for r in records if r["score"] is not None]
        if scored:
            max(scored, key=lambda r: r["score"])["chosen"] = True
        return cast(list[Record], records)

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        given = {name for name, _ in self.spec.given}
        out: dict[str, Any] = {}
        for name, space in self.spec.method.card.space.items():
            if name in given:
                continue
            if isinstance(space, Choice):
                out[name] = trial.suggest_categorical(name, list(space.options))
            else:
                out[name] = trial.suggest_float(name, space.low, space.high, log=space.log)
        return out


def trial_score(task: Task, curve: Curve, forwards: float) -> float | None:
    """How good a trial was, higher is better; None where it diverged or made no step.

    score = -log10(error at the end) + log10(budget / forwards to the target), the latter where the target was reached;
    the error is 1 - accuracy, or what the loss is above its least. A rate that rushes ahead and stays noisy and one that
    is too careful both lose: half the error at the end is worth as much as half the time to the target. The end is the mean
    of the last three evaluations.
    """
    if curve.reason in ("diverged", "error") or len(curve.points) < 2:
        return None
    last = curve.points[1:][-3:]
    errors = [1 - p["accuracy"] if task.metric == "accuracy" else p["loss"] - task.lowest for p in last]
    score = -math.log10(max(sum(errors) / len(errors), 1e-6))
    return score + (math.log10(forwards / curve.to_target["forwards"]) if curve.to_target else 0.0)


def chosen(records: Iterable[Mapping[str, Any]]) -> Settings:
    """The settings of the chosen trials, by method."""
    return {r["method"]: dict(r["settings"]) for r in records if r["kind"] == "tuning" and r["chosen"]}


def write_settings(path: Path, task: str, trials: int, forwards: float, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes what was found in the form of ``tasks/settings/*.json``, with the record of every trial."""
    mine = [dict(r) for r in records if r["kind"] == "tuning" and r["task"] == task]
    found = Tuned(task=task, trials=trials, forwards=forwards, settings=chosen(mine), record=mine)
    write_whole(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
