"""What a comparison consists of: the pieces of work, worked out from what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dldw.compare.budget import BUDGETS, Budget
from dldw.compare.item import SECONDS_PER_FORWARD, Item
from dldw.compare.meter import seconds_within
from dldw.compare.probe import build, probe, unable
from dldw.compare.records import MethodRecord, Record, TaskRecord
from dldw.compare.share import COSTS, CURVES, curves_within, fitting
from dldw.compare.sizes import widths_of
from dldw.compare.spec import Spec, parse, parse_all
from dldw.compare.studies import HOMES, STUDIES, Study, counted
from dldw.compare.train import START, forwards_per_step
from dldw.compare.tune import Tuning
from dldw.errors import DldwError
from dldw.registry import METHODS, method
from dldw.tasks.task import Settings, Task, tuned
from dldw.tasks.userfile import fingerprint
from dldw.weights import Weights

BASELINES = ("backprop", "backprop[checkpoint=true]", "random-search")
"""In every comparison: what nobody may leave out. The untrained model is the evaluation at step 0."""
CORES = 2
"""What a total is meant for: where one process runs alone, the other core waits, and that counts too."""


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
        wanted: Seeds and forwards of a learning curve before the total was shared out.
        dropped: Why baselines, or methods of the default comparison, that cannot run on this task are not there.
        elsewhere: Of these, the methods whose steps are followed on a task of their own, for the discussion names them.
    """

    target: str
    task: Task
    data: Path | None
    specs: tuple[Spec, ...]
    budget: Budget
    seeds: int
    trials: int = 0
    wanted: tuple[int, float] = (0, 0.0)
    dropped: tuple[str, ...] = ()
    elsewhere: tuple[Spec, ...] = ()

    def config(self, version: str) -> dict[str, Any]:
        """Everything that decides the results: only runs in which all of it is equal may be mixed."""
        return {
            "task": self.target,
            "methods": [spec.label for spec in self.specs],
            "seeds": self.seeds,
            "budget": self.budget.figures(),
            "tune": self.trials,
            "settings": {spec.label: _shown(spec, self.task.settings) for spec in self.specs},
            "files": {t: fingerprint(t) for t in (self.target, *(s.target for s in self.specs)) if ".py:" in t},
            "dldw": version,
        }

    def tuning(self) -> list[Item]:
        """The search for settings, one item for each method that has any to search for."""
        searched = {spec.tuned_as: None for spec in self.specs} if self.trials else {}
        too_dear = self.untuned()
        return [
            Tuning(self.target, self.data, spec, spec.given, self.trials, self.budget.tune_forwards)
            for spec in searched
            if set(spec.method.card.space) - dict(spec.given).keys() and spec.label not in too_dear
        ]

    def untuned(self) -> dict[str, tuple[float, float]]:
        """The methods a trial cannot be made of, as one step costs more: label -> forwards of a step and of a trial."""
        trial = self.budget.tune_forwards if self.trials else tuned(self.task.name)["forwards"]
        size, found = Weights(self.task.model(0)).size, {}
        for spec in {spec.tuned_as: None for spec in self.specs} if trial else {}:
            step = forwards_per_step(spec, spec.settings(self.task.settings), size)
            if spec.method.card.space and step > trial:
                found[spec.label] = (step, trial)
        return found

    def studies(self, settings: Settings, companion_settings: Settings) -> list[Item]:
        """All that may run side by side, the longest first, so that no process waits for the last one."""
        given = {False: settings, True: companion_settings}
        items = [
            item
            for study in STUDIES
            if not study.alone
            for item in study.items(self, self.shares[study.name], given[study.companion])
        ]
        return sorted(items, key=lambda item: -item.weight)

    def metering(self, settings: Settings) -> list[Item]:
        """What has to run alone: the cost of a step."""
        alone = [study for study in STUDIES if study.alone]
        return [item for study in alone for item in study.items(self, self.shares[study.name], settings)]

    @cached_property
    def shares(self) -> dict[str, list[Spec]]:
        """The methods that each study takes, by the rule of ``dldw.compare.share``; all that can where there is no total."""
        taken = {study.name: study.takes(self) for study in STUDIES}
        total = self.budget.total
        if not total:
            return taken

        def take(study: Study, limit: float) -> float:
            without = counted(study.items(self, [], {}))
            cores = CORES if study.alone else 1
            taken[study.name], spent = fitting(
                taken[study.name], lambda spec: cores * (counted(study.items(self, [spec], {})) - without), limit
            )
            return spent

        metered = 0.0
        for study in STUDIES:
            if study.alone and study.part is not None:
                metered += take(study, study.part * total - metered)
        rest = total - metered - sum(
            counted(study.items(self, taken[study.name] if study.part is None else [], {}))
            for study in STUDIES
            if not study.alone
        )  # fmt: skip
        whole = rest
        for study in STUDIES:
            if not study.alone and study.part is not None:
                rest -= take(study, min(study.part * whole, rest))
                whole = rest if study.first else whole
        return taken

    @cached_property
    def near(self) -> list[int | None]:
        """Widths at which all estimates are judged."""
        width = self.task.width
        return [width] if width is None else [max(2, int(width * r)) for r in self.budget.widths or (1.0,)]

    @cached_property
    def far(self) -> list[tuple[int, int]]:
        """Widths beyond these, for estimates that cost little there, each with about how many weights it gives."""
        sizes = self.budget.sizes if self.budget.draws else ()
        return [(width, size) for width, size in widths_of(self.task, sizes) if width not in self.near]

    def left_out(self) -> dict[str, list[Spec]]:
        """The methods that each study would take and the total has no room for."""
        everything = replace(self, budget=replace(self.budget, total=0)).shares
        return {
            study: out
            for study, specs in everything.items()
            if (out := [s for s in specs if s not in self.shares[study]])
        }

    def header(self, settings: Settings) -> list[Record]:
        """The records of tasks and methods, and where shipped settings come from."""
        from dldw.tasks import load_task

        names = [n for n in (self.task.companion if self.budget.companion_seeds else None, self.task.wider) if n]
        tasks = {self.target: self.task, **{n: load_task(n, self.data) for n in names}}
        out: list[Record] = [task_record(name, task) for name, task in tasks.items()]
        size = Weights(self.task.model(0)).size
        out += [method_record(spec, _shown(spec, settings), size) for spec in self.specs]
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
    default = task.methods or [name for name in METHODS if plays or method(name).card.needs != "episodes"]
    dropped = []
    if not methods and not trials and not task.methods and task.settings:  # untuned beside tuned would not be fair
        searched = {*task.settings, *(trial["method"] for trial in tuned(task.name)["record"])}
        if untuned := [name for name in default if name not in searched]:
            default = [name for name in default if name in searched]
            dropped.append(
                f"{', '.join(untuned)} {'are' if len(untuned) > 1 else 'is'} not there, because {target} has no settings "
                "tuned for them: name the methods to compare, or let --tune find settings for all"
            )
    asked = parse_all(methods or default)
    probe(target, task)
    asked += [baseline for baseline in parse_all(BASELINES) if baseline not in asked]
    for spec in list(asked):
        optional = spec.label in BASELINES or not methods  # nobody named it: left out where it cannot run
        if optional and (reason := unable(task, spec)):
            dropped.append(f"{spec.label} is not there, because it cannot run on {target}: {reason}")
            asked.remove(spec)
    specs = sorted(asked, key=lambda spec: not spec.label.startswith("backprop"))
    count = budget.seeds if seeds is None else seeds
    if count < 1 or trials < 0:
        raise DldwError(f"--seeds must be at least 1 and --tune at least 0, got {count} and {trials}.")
    for spec in specs:
        build(task, spec)
    if budget.name in BUDGETS:
        budget = budget.lightened(task.heft)
    wanted = (count, budget.forwards)
    if budget.total:
        wanted = (count, min(budget.forwards, CURVES * budget.total / task.heft / count))
        count, forwards = curves_within(
            CURVES * budget.total / task.heft, len(specs), count, budget.forwards, fixed=seeds is not None,
            start=START / SECONDS_PER_FORWARD / task.heft,
        )  # fmt: skip
        alone = COSTS * budget.total * SECONDS_PER_FORWARD / CORES / (2 if task.wider else 1)
        budget = replace(budget, forwards=forwards, cost_seconds=seconds_within(alone, len(specs), budget.cost_seconds))
    elsewhere = [spec for spec in parse_all(HOMES) if spec not in specs] if not methods else []
    return Plan(target, task, data, tuple(specs), budget, count, trials, wanted, tuple(dropped), tuple(elsewhere))


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
        published=[p for p in card.published if p["settings"].items() <= settings.items()],
    )


def _shown(spec: Spec, settings: Settings) -> dict[str, Any]:
    """What a method runs with, the size of its batches included where the task lets each have its own."""
    rows = spec.rows(settings)
    return spec.settings(settings) | ({} if rows is None else {"rows": rows})
