"""What a comparison consists of: the pieces of work, worked out from what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dldw.compare.budget import Budget
from dldw.compare.estimate import Estimating, Nudging
from dldw.compare.item import Item
from dldw.compare.landscape import Mapping2d
from dldw.compare.meter import Metering
from dldw.compare.records import MethodRecord, Record, TaskRecord
from dldw.compare.spec import Spec, parse, parse_all
from dldw.compare.train import Training, forwards_per_step
from dldw.compare.tune import Tuning
from dldw.compare.width import Widening
from dldw.errors import DldwError
from dldw.registry import METHODS, method
from dldw.tasks.task import Settings, Task, tuned
from dldw.tasks.userfile import fingerprint, where
from dldw.weights import Weights

BASELINES = ("backprop", "backprop[checkpoint=true]", "random-search")
"""In every comparison: what nobody may leave out. The untrained model is the evaluation at step 0."""


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        target: The task as named.
        task: The task.
        data: Directory of the task's data.
        specs: The methods, baselines included.
        budget: What each may spend.
        seeds: Learning curves of a method.
        trials: Of ``--tune``, for each method; 0 for the settings that ship.
        dropped: Why baselines, or methods of the default comparison, that cannot run on this task are not there.
    """

    target: str
    task: Task
    data: Path | None
    specs: tuple[Spec, ...]
    budget: Budget
    seeds: int
    trials: int = 0
    dropped: tuple[str, ...] = ()

    def config(self, version: str) -> dict[str, Any]:
        """Everything that decides the results: only runs in which all of it is equal may be mixed."""
        return {
            "task": self.target,
            "methods": [spec.label for spec in self.specs],
            "seeds": self.seeds,
            "budget": self.budget.figures(),
            "tune": self.trials,
            "settings": {spec.label: spec.settings(self.task.settings) for spec in self.specs},
            "files": {t: fingerprint(t) for t in (self.target, *(s.target for s in self.specs)) if ".py:" in t},
            "dldw": version,
        }

    def tuning(self) -> list[Item]:
        """The search for settings, one item for each method that has any to search for."""
        searched = {spec.tuned_as: None for spec in self.specs} if self.trials else {}
        return [
            Tuning(self.target, self.data, spec, spec.given, self.trials, self.budget.tune_forwards)
            for spec in searched
            if set(spec.method.card.space) - dict(spec.given).keys()
        ]

    def studies(self, settings: Settings, companion_settings: Settings) -> list[Item]:
        """All that may run side by side, the longest first, so that no process waits for the last one."""
        budget, width = self.budget, self.task.width
        items: list[Item] = []

        def training(spec: Spec, study: str, seeds: int, forwards: float, **more: Any) -> None:
            arguments: dict[str, Any] = {
                "study": study, "width": width, "factor": 1.0, "forwards": forwards, "stop_at_target": study != "curves",
                "per_decade": budget.per_decade, **more,
            }  # fmt: skip
            frozen = _frozen(spec.settings(settings))
            items.extend(
                Training(self.target, self.data, spec, frozen, seed=seed, **arguments) for seed in range(seeds)
            )

        for spec in self.specs:
            training(spec, "curves", self.seeds, budget.forwards)
        for spec in self.sources:
            if width is not None:
                frozen = _frozen(spec.settings(settings))
                items.extend(
                    Widening(
                        self.target, self.data, spec, frozen, width=max(2, int(width * ratio)), seeds=budget.width_seeds,
                        forwards=budget.width_forwards, per_decade=budget.per_decade,
                    )
                    for ratio in budget.widths
                )  # fmt: skip
            for factor in budget.factors:
                training(spec, "learning-rate", budget.factor_seeds, budget.factor_forwards, factor=factor)
            frozen = _frozen(spec.settings(settings))
            if budget.draws:
                widths = [width] if width is None else [max(2, int(width * r)) for r in budget.widths or (1.0,)]
                items.extend(
                    Estimating(self.target, self.data, spec, frozen, seed=seed, width=w, draws=budget.draws)
                    for w in widths
                    for seed in range(budget.estimate_seeds)
                )
        if self.task.companion and budget.companion_seeds:
            items.extend(self._companion(companion_settings))
        if budget.nudged_weights:
            items.append(Nudging(self.target, self.data, budget.nudges, budget.nudged_weights))
        if budget.grid:
            drawn = tuple((s, _frozen(s.settings(settings))) for s in self.specs if s.tuned_as == s)
            items.append(Mapping2d(self.target, self.data, drawn, budget.grid, budget.path_forwards))
        return sorted(items, key=lambda item: -item.weight)

    def _companion(self, settings: Settings) -> Iterable[Item]:
        from dldw.tasks import load_task

        name = cast(str, self.task.companion)
        width = load_task(name, self.data).width
        for spec in self.specs:
            if spec.tuned_as == spec:
                for seed in range(self.budget.companion_seeds):
                    yield Training(
                        name, self.data, spec, _frozen(spec.settings(settings)), study="curves", seed=seed, width=width,
                        factor=1.0, forwards=self.budget.companion_forwards, per_decade=self.budget.per_decade,
                        stop_at_target=False,
                    )  # fmt: skip

    def metering(self, settings: Settings) -> list[Item]:
        """What has to run alone: the cost of a step."""
        from dldw.tasks import load_task

        tasks = {self.target: self.task.width}
        if self.task.wider:
            tasks[self.task.wider] = load_task(self.task.wider, self.data).width
        return [
            Metering(name, self.data, spec, _frozen(spec.settings(settings)), width, self.budget.cost_seconds)
            for name, width in tasks.items()
            for spec in self.specs
        ]

    @property
    def sources(self) -> list[Spec]:
        """The methods with a learning rate and an estimate to judge, those that differ in cost alone left out."""
        return [s for s in self.specs if s.method.is_source and s.tuned_as == s]

    def header(self, settings: Settings) -> list[Record]:
        """The records of tasks and methods, and where shipped settings come from."""
        from dldw.tasks import load_task

        names = [n for n in (self.task.companion if self.budget.companion_seeds else None, self.task.wider) if n]
        tasks = {self.target: self.task, **{n: load_task(n, self.data) for n in names}}
        out: list[Record] = [task_record(name, task) for name, task in tasks.items()]
        size = Weights(self.task.model(0)).size
        out += [method_record(spec, spec.settings(settings), size) for spec in self.specs]
        if not self.trials:
            shipped = tuned(self.task.name)["record"]
            out += [cast(Record, r) for r in shipped if parse(r["method"]) in self.specs]
        return out


def make_plan(
    target: str,
    methods: Iterable[str],
    *,
    budget: Budget,
    seeds: int | None = None,
    trials: int = 0,
    data: Path | None = None,
) -> Plan:
    """The plan for what the command line asks; everything that can be wrong with it is found here, before any work.

    Raises:
        UnknownNameError: A task, method or setting that does not exist.
        DldwError: The task or a method cannot be used as given.
    """
    from dldw.tasks import load_task

    task = load_task(target, data)
    plays = task.interactions is not None
    asked = parse_all(methods or [name for name in METHODS if plays or method(name).card.needs != "episodes"])
    _probe(target, task)
    asked += [baseline for baseline in parse_all(BASELINES) if baseline not in asked]
    dropped = []
    for spec in list(asked):
        optional = spec.label in BASELINES or (not methods and spec.method.card.needs != "loss values")
        if optional and (reason := _unable(task, spec)):
            dropped.append(f"{spec.label} is not there, because it cannot run on {target}: {reason}")
            asked.remove(spec)
    specs = sorted(asked, key=lambda spec: not spec.label.startswith("backprop"))
    count = budget.seeds if seeds is None else seeds
    if count < 1 or trials < 0:
        raise DldwError(f"--seeds must be at least 1 and --tune at least 0, got {count} and {trials}.")
    for spec in specs:
        _build(task, spec)
    return Plan(target, task, data, tuple(specs), budget, count, trials, tuple(dropped))


def task_record(name: str, task: Task) -> Record:
    """The record of a task."""
    return TaskRecord(
        kind="task",
        task=name,
        summary=task.summary,
        metric=task.metric,
        maximise=task.rises,
        target=task.target,
        weights=Weights(task.model(0)).size,
        batch_size=task.batch_size,
        train_examples=task.train_examples,
        test_examples=task.test_examples,
    )


def method_record(spec: Spec, settings: Mapping[str, Any], d: int) -> Record:
    """The record of a method: its card, and the settings it runs with."""
    card = spec.method.card
    return MethodRecord(
        kind="method",
        method=spec.label,
        name=spec.target,
        claim=card.claim,
        needs=card.needs,
        forwards=card.forwards,
        forwards_per_step=forwards_per_step(spec, settings, d),
        memory=card.memory,
        paper=card.paper,
        note=card.note,
        settings=dict(settings),
        baseline=spec.label in BASELINES,
    )


def _unable(task: Task, spec: Spec) -> str:
    """Why a method cannot make a step on this task, or nothing where it can."""
    try:
        learner = spec.method.build(task.model(0), task.loss, torch.Generator(), **spec.settings(task.settings))
        learner.step(next(task.batches(0)))
    except DldwError as error:
        return str(error)
    return ""


def _probe(target: str, task: Task) -> None:
    """Runs what the user may have written once, so that its errors come at once and with their place."""
    try:
        model = task.model(0)
        batch = next(task.batches(0))
        loss = task.loss(model, batch)
        figures = task.evaluate(model)
    except DldwError:
        raise
    except Exception as error:
        raise DldwError(
            f"task {target} cannot be used: {where(error)} raised {type(error).__name__}: {error}"
        ) from error
    if task.metric not in figures or "loss" not in figures:
        raise DldwError(
            f"task {target}: evaluate must return 'loss' and the task's metric {task.metric!r}, and returned "
            f"{sorted(figures)}. Add what is missing, or set metric to 'loss'."
        )
    if loss.ndim != 1:
        raise DldwError(
            f"task {target}: loss must return one value per example, shape [B], and returned shape {list(loss.shape)}. "
            "Leave the mean out (reduction='none'): methods that need per-example losses cannot do without."
        )
    Weights(model).require_trainable()


def _build(task: Task, spec: Spec) -> None:
    """Builds a method once, so that settings it cannot have are found before any work."""
    try:
        spec.method.build(task.model(0), task.loss, None, **spec.settings(task.settings))
        forwards_per_step(spec, spec.settings(task.settings), 1)
    except DldwError as error:
        raise type(error)(f"{spec.label}: {error}") from error
    except Exception as error:
        at = f" at {where(error)[:-1]}" if ".py:" in spec.target else ""
        raise DldwError(f"{spec.label} cannot be built{at}: {type(error).__name__}: {error}") from error


def _frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())
