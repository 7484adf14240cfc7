"""What a comparison consists of: the pieces of work, worked out from what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dldw.compare.budget import Budget
from dldw.compare.contrastive import Sampling
from dldw.compare.crossed import Crossing
from dldw.compare.depth import Deepening
from dldw.compare.displacement import Displacing
from dldw.compare.estimate import Estimating, Nudging
from dldw.compare.inside import Inside
from dldw.compare.item import SECONDS_PER_FORWARD, Item
from dldw.compare.landscape import Mapping2d
from dldw.compare.meter import Metering, seconds_within
from dldw.compare.probe import build, probe, unable
from dldw.compare.records import MethodRecord, Record, Study, TaskRecord
from dldw.compare.share import (
    COMPANION,
    COSTS,
    CURVES,
    DISPLACEMENTS,
    ESTIMATES,
    INSIDE,
    LANDSCAPE,
    RATES,
    curves_within,
    fitting,
    ranked,
)
from dldw.compare.spec import Spec, parse, parse_all
from dldw.compare.train import START, Training, forwards_per_step
from dldw.compare.tune import Tuning
from dldw.compare.width import Widening
from dldw.errors import DldwError
from dldw.registry import METHODS, method
from dldw.searcher import Searcher
from dldw.tasks.task import Settings, Task, tuned
from dldw.tasks.userfile import fingerprint
from dldw.weights import Weights

BASELINES = ("backprop", "backprop[checkpoint=true]", "random-search")
"""In every comparison: what nobody may leave out. The untrained model is the evaluation at step 0."""
FIRST = ("backprop", "weight-perturbation", "backprop[checkpoint=true]", "random-search")
"""What studies take before all others: what the question asks about, and the baselines."""
NAMED = ("perceptron", "contrastive-divergence", "particle-swarm", "genetic-algorithm")
"""Whose steps are followed before those of all others but the first: the discussion names them."""
HOMES = {"perceptron": "separable", "contrastive-divergence": "two-bars"}
"""Where the steps of these are followed when they cannot run on the task of the comparison: small tasks of their kind."""
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
            "settings": {spec.label: spec.settings(self.task.settings) for spec in self.specs},
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
        budget, shares = self.budget, self.shares
        items = [item for spec in self.specs for item in self._curves(spec, settings)]
        items += [item for spec in shares["companion"] for item in self._companion(spec, companion_settings)]
        items += [item for spec in shares["width"] for item in self._widths(spec, settings)]
        items += [item for spec in shares["learning-rate"] for item in self._rates(spec, settings)]
        items += [item for spec in shares["estimate"] for item in self._estimates(spec, settings)]
        items += [item for spec in shares["displacement"] for item in self._displacements(spec, settings)]
        items += [item for spec in self.elsewhere for item in self._at_home(spec)]
        items += [item for spec in shares["inside"] for item in self._insides(spec, settings)]
        items += self._samplings()
        items += self._crossings(settings)
        if budget.nudged_weights:
            items.append(self._nudging())
        if shares["landscape"]:
            items.append(self._landscape(shares["landscape"], settings))
        return sorted(items, key=lambda item: -item.weight)

    def metering(self, settings: Settings) -> list[Item]:
        """What has to run alone: the cost of a step."""
        return [
            item
            for study, name in (("cost", self.target), ("wider cost", self.task.wider))
            for spec in self.shares[study]
            for item in self._costs(spec, settings, name)
        ] + [
            Deepening(self.target, self.data, spec, _frozen(spec.settings(settings)), depth, self.budget.cost_seconds)
            for spec in self.specs
            if spec.method.card.claim == "exact" and spec.method.card.needs == "autograd"
            for depth in self.task.depths
        ]

    @cached_property
    def shares(self) -> dict[str, list[Spec]]:
        """The methods that each study takes, by the rule of ``dldw.compare.share``; all that can where there is no total."""
        budget, order = self.budget, ranked(self.specs, FIRST)
        plain = [spec for spec in order if spec.tuned_as == spec]
        sources = [spec for spec in plain if spec.method.is_source]
        able: dict[str, list[Spec]] = {
            "cost": order,
            "wider cost": order if self.task.wider else [],
            "landscape": plain if budget.grid else [],
            "estimate": sources if budget.draws else [],
            "displacement": ranked(plain, (*FIRST, *NAMED)) if budget.displacements else [],
            "inside": [s for s in order if not issubclass(s.method.factory, Searcher)]
            if budget.inside_forwards
            else [],
            "companion": plain if self.task.companion and budget.companion_seeds else [],
            "learning-rate": sources if budget.factors else [],
            "width": sources if budget.widths and self.task.width is not None else [],
        }
        if not budget.total:
            return able
        cost: dict[str, Callable[[Spec], float]] = {
            "cost": lambda spec: CORES * counted(self._costs(spec, {}, self.target)),
            "wider cost": lambda spec: CORES * counted(self._costs(spec, {}, self.task.wider)),
            "landscape": lambda spec: counted([self._landscape([spec], {})]) - counted([self._landscape([], {})]),
            "estimate": lambda spec: counted(self._estimates(spec, {})),
            "displacement": lambda spec: counted(self._displacements(spec, {})),
            "inside": lambda spec: counted(self._insides(spec, {})),
            "companion": lambda spec: counted(self._companion(spec, {})),
            "learning-rate": lambda spec: counted(self._rates(spec, {})),
            "width": lambda spec: counted(self._widths(spec, {})),
        }
        left = budget.total - sum(counted(self._curves(spec, {})) for spec in self.specs)
        taken: dict[str, list[Spec]] = {}

        def take(study: str, limit: float) -> float:
            taken[study], spent = fitting(able[study], cost[study], limit)
            return spent

        metered = take("cost", COSTS * budget.total)
        metered += take("wider cost", COSTS * budget.total - metered)
        left -= metered + (counted([self._nudging()]) if budget.nudged_weights else 0.0)
        left -= counted([self._landscape([], {})]) if budget.grid else 0.0
        left -= counted(self._samplings() + self._crossings({}))
        left -= sum(counted(self._at_home(spec)) for spec in self.elsewhere)
        parts = {
            "landscape": LANDSCAPE, "estimate": ESTIMATES, "displacement": DISPLACEMENTS, "inside": INSIDE,
            "companion": COMPANION, "learning-rate": RATES,
        }  # fmt: skip
        spent = sum(take(study, part * left) for study, part in parts.items())
        take("width", left - spent)
        return {study: taken[study] for study in able}

    def left_out(self) -> dict[str, list[Spec]]:
        """The methods that each study would take and the total has no room for."""
        everything = replace(self, budget=replace(self.budget, total=0)).shares
        return {
            study: out
            for study, specs in everything.items()
            if (out := [s for s in specs if s not in self.shares[study]])
        }

    def _curves(self, spec: Spec, settings: Settings) -> list[Item]:
        return self._trainings(spec, settings, "curves", self.seeds, self.budget.forwards)

    def _rates(self, spec: Spec, settings: Settings) -> list[Item]:
        budget = self.budget
        return [
            item
            for factor in budget.factors
            for item in self._trainings(
                spec, settings, "learning-rate", budget.factor_seeds, budget.factor_forwards, factor
            )
        ]

    def _trainings(
        self, spec: Spec, settings: Settings, study: Study, seeds: int, forwards: float, factor: float = 1.0
    ) -> list[Item]:
        return [
            Training(
                self.target, self.data, spec, _frozen(spec.settings(settings)), study=study, seed=seed,
                width=self.task.width, factor=factor, forwards=forwards, per_decade=self.budget.per_decade,
                stop_at_target=study != "curves",
            )
            for seed in range(seeds)
        ]  # fmt: skip

    def _companion(self, spec: Spec, settings: Settings) -> list[Item]:
        from dldw.tasks import load_task

        name = cast(str, self.task.companion)
        return [
            Training(
                name, self.data, spec, _frozen(spec.settings(settings)), study="curves", seed=seed,
                width=load_task(name, self.data).width, factor=1.0, forwards=self.budget.companion_forwards,
                per_decade=self.budget.per_decade, stop_at_target=False,
            )
            for seed in range(self.budget.companion_seeds)
        ]  # fmt: skip

    def _widths(self, spec: Spec, settings: Settings) -> list[Item]:
        budget, width = self.budget, cast(int, self.task.width)
        return [
            Widening(
                self.target, self.data, spec, _frozen(spec.settings(settings)), width=max(2, int(width * ratio)),
                seeds=budget.width_seeds, forwards=budget.width_forwards, per_decade=budget.per_decade,
            )
            for ratio in budget.widths
        ]  # fmt: skip

    def _estimates(self, spec: Spec, settings: Settings) -> list[Item]:
        budget, width = self.budget, self.task.width
        widths = [width] if width is None else [max(2, int(width * r)) for r in budget.widths or (1.0,)]
        frozen = _frozen(spec.settings(settings))
        return [
            Estimating(self.target, self.data, spec, frozen, seed=seed, width=w, draws=budget.draws)
            for w in widths
            for seed in range(budget.estimate_seeds)
        ]

    def _displacements(self, spec: Spec, settings: Settings) -> list[Item]:
        budget, frozen = self.budget, _frozen(spec.settings(settings))
        return [
            Displacing(
                self.target, self.data, spec, frozen, seed=seed, width=self.task.width, steps=budget.displacements
            )
            for seed in range(budget.estimate_seeds)
        ]

    def _at_home(self, spec: Spec) -> list[Item]:
        from dldw.tasks import load_task

        budget, home = self.budget, load_task(HOMES[spec.target])
        frozen = _frozen(spec.settings(home.settings))
        return [
            Displacing(home.name, None, spec, frozen, seed=seed, width=home.width, steps=budget.displacements)
            for seed in range(budget.estimate_seeds if budget.displacements else 0)
        ]

    def _insides(self, spec: Spec, settings: Settings) -> list[Item]:
        budget, frozen = self.budget, _frozen(spec.settings(settings))
        return [Inside(self.target, self.data, spec, frozen, 0, budget.inside_forwards, budget.per_decade)]

    def _samplings(self) -> list[Item]:
        wanted = self.budget.sampling_draws and self.task.enumerable() is not None
        return [Sampling(self.target, self.data, self.budget.sampling_draws)] if wanted else []

    def _crossings(self, settings: Settings) -> list[Item]:
        lr = parse("backprop").settings(settings).get("lr", 1e-3)
        plain = self.budget.crossed_forwards / forwards_per_step(parse("backprop"), {}, 1)
        return [
            Crossing(self.target, self.data, way, max(1, round(longer * plain)), lr)
            for way, longer in self.task.ways.items()
            if plain
        ]

    def _nudging(self) -> Item:
        return Nudging(self.target, self.data, self.budget.nudges, self.budget.nudged_weights)

    def _landscape(self, specs: Iterable[Spec], settings: Settings) -> Item:
        drawn = tuple((s, _frozen(s.settings(settings))) for s in specs)
        return Mapping2d(self.target, self.data, drawn, self.budget.grid, self.budget.path_forwards)

    def _costs(self, spec: Spec, settings: Settings, name: str | None) -> list[Item]:
        from dldw.tasks import load_task

        if name is None:
            return []
        width = self.task.width if name == self.target else load_task(name, self.data).width
        frozen = _frozen(spec.settings(settings))
        return [Metering(name, self.data, spec, frozen, width, self.budget.cost_seconds)]

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
    wanted = (count, budget.forwards)
    if budget.total:
        count, forwards = curves_within(
            CURVES * budget.total, len(specs), count, budget.forwards, fixed=seeds is not None,
            start=START / SECONDS_PER_FORWARD,
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
    )


def counted(items: Iterable[Item]) -> float:
    """What pieces of work count together, in forward-pass equivalents."""
    return sum(item.counted for item in items)


def _frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())
