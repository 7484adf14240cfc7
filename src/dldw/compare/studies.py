"""What a comparison looks into: one entry a study, and a task takes part in those that its attributes ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dldw.compare.bounded import Bounding
from dldw.compare.contrastive import Sampling
from dldw.compare.crossed import Crossing
from dldw.compare.depth import Deepening
from dldw.compare.displacement import Displacing
from dldw.compare.estimate import Estimating, Nudging, Sweeping
from dldw.compare.inside import Inside
from dldw.compare.item import Item
from dldw.compare.landscape import Mapping2d
from dldw.compare.meter import Metering
from dldw.compare.records import Study as Why
from dldw.compare.share import (
    COMPANION,
    COSTS,
    DISPLACEMENTS,
    ESTIMATES,
    INSIDE,
    LANDSCAPE,
    RATES,
    SIZES,
    ranked,
)
from dldw.compare.sizes import draws_at
from dldw.compare.spec import Spec, parse
from dldw.compare.train import Training, forwards_per_step
from dldw.compare.width import Widening
from dldw.searcher import Searcher
from dldw.tasks.task import Settings

if TYPE_CHECKING:
    from dldw.compare.plan import Plan

FIRST = ("backprop", "weight-perturbation", "backprop[checkpoint=true]", "random-search")
"""What studies take before all others: what the question asks about, and the baselines."""
NAMED = ("perceptron", "contrastive-divergence", "particle-swarm", "genetic-algorithm")
"""Whose steps are followed before those of all others but the first: the discussion names them."""
HOMES = {"perceptron": "separable", "contrastive-divergence": "two-bars"}
"""Where the steps of these are followed when they cannot run on the task of the comparison: small tasks of their kind."""
FEW = 4
"""Forwards of an estimate that networks far larger than the task's own leave time for."""


@dataclass(frozen=True)
class Study:
    """One thing that a comparison looks into.

    Attributes:
        name: In ``Plan.shares``.
        said: What it is, for a note that it was left out.
        takes: The methods that it would take, in their order: none where the task or the budget has no room for it.
        items: Its work for some methods, with the settings they run with.
        part: At most, of the whole total where it runs ``alone``, else of what is left for studies; None: all of it, always.
        alone: Whether nothing else may run beside it.
        first: Whether other studies share what it leaves.
        companion: Whether its settings are those of the companion task.
    """

    name: str
    said: str
    takes: Callable[[Plan], list[Spec]]
    items: Callable[[Plan, Sequence[Spec], Settings], list[Item]]
    part: float | None = None
    alone: bool = False
    first: bool = False
    companion: bool = False


def _run(plan: Plan, spec: Spec, settings: Settings) -> tuple[str, Path | None, Spec, tuple[tuple[str, Any], ...]]:
    """What every piece of work of a method begins with."""
    return plan.target, plan.data, spec, frozen(spec.settings(settings))


def _ordered(plan: Plan) -> list[Spec]:
    return ranked(plan.specs, FIRST)


def _plain(plan: Plan) -> list[Spec]:
    return [spec for spec in _ordered(plan) if spec.tuned_as == spec]


def _sources(plan: Plan) -> list[Spec]:
    return [spec for spec in _plain(plan) if spec.method.is_source]


def _curves(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    return [i for s in specs for i in _trainings(plan, s, settings, "curves", plan.seeds, plan.budget.forwards)]


def _rates(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    budget = plan.budget
    return [
        item
        for spec in specs
        for factor in budget.factors
        for item in _trainings(
            plan, spec, settings, "learning-rate", budget.factor_seeds, budget.factor_forwards, factor
        )
    ]


def _trainings(
    plan: Plan, spec: Spec, settings: Settings, study: Why, seeds: int, forwards: float, factor: float = 1.0
) -> list[Item]:
    return [
        Training(
            *_run(plan, spec, settings), study=study, seed=seed,
            width=plan.task.width, factor=factor, forwards=forwards, per_decade=plan.budget.per_decade,
            stop_at_target=study != "curves", rows=spec.rows(settings),
        )
        for seed in range(seeds)
    ]  # fmt: skip


def _companion(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    from dldw.tasks import load_task

    if not specs:
        return []
    name = cast(str, plan.task.companion)
    width = load_task(name, plan.data).width
    return [
        Training(
            name, plan.data, spec, frozen(spec.settings(settings)), study="curves", seed=seed, width=width, factor=1.0,
            forwards=plan.budget.companion_forwards, per_decade=plan.budget.per_decade, stop_at_target=False,
        )
        for spec in specs
        for seed in range(plan.budget.companion_seeds)
    ]  # fmt: skip


def _widths(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    budget = plan.budget
    return [
        Widening(
            *_run(plan, spec, settings),
            width=max(2, int(cast(int, plan.task.width) * ratio)),
            seeds=budget.width_seeds, forwards=budget.width_forwards, per_decade=budget.per_decade,
        )
        for spec in specs
        for ratio in budget.widths
    ]  # fmt: skip


def _estimates(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    budget = plan.budget
    return [
        Estimating(*_run(plan, spec, settings), seed=seed, width=w, draws=budget.draws)
        for spec in specs
        for w in plan.near
        for seed in range(budget.estimate_seeds)
    ]


def _cheap(plan: Plan) -> list[Spec]:
    """Whose estimates have a closed form to be held against, and cost a few forwards however many weights."""
    if not plan.far:
        return []
    most, settings = max(plan.budget.sizes), plan.task.settings
    cards = [(spec, spec.method.card) for spec in _sources(plan)]
    return [
        spec
        for spec, card in cards
        if card.variance and card.claim != "exact" and forwards_per_step(spec, spec.settings(settings), most) <= FEW
    ]


def _far(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    """Estimates at other sizes; sigma is swept where anything is estimated there at all."""
    sweeps: list[Item] = [
        Sweeping(plan.target, plan.data, width, size)
        for width, size in ([(plan.task.width, 0), *plan.far] if _cheap(plan) else [])
    ]
    return sweeps + [
        Estimating(
            *_run(plan, spec, settings), seed, width,
            draws_at(size, plan.budget.draws), size,
        )
        for spec in specs
        for width, size in plan.far
        for seed in range(plan.budget.estimate_seeds)
    ]  # fmt: skip


def _displacements(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    budget = plan.budget
    return [
        Displacing(
            *_run(plan, spec, settings), seed=seed, width=plan.task.width,
            steps=budget.displacements,
        )
        for spec in specs
        for seed in range(budget.estimate_seeds)
    ]  # fmt: skip


def _at_home(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    from dldw.tasks import load_task

    homes = [(spec, load_task(HOMES[spec.target])) for spec in specs]
    return [
        Displacing(
            home.name, None, spec, frozen(spec.settings(home.settings)), seed=seed, width=home.width,
            steps=plan.budget.displacements,
        )
        for spec, home in homes
        for seed in range(plan.budget.estimate_seeds)
    ]  # fmt: skip


def _insides(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    budget = plan.budget
    return [Inside(*_run(plan, spec, settings), 0, budget.inside_forwards, budget.per_decade) for spec in specs]


def _samplings(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    wanted = plan.budget.sampling_draws and plan.task.enumerable() is not None
    return [Sampling(plan.target, plan.data, plan.budget.sampling_draws)] if wanted else []


def _crossings(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    lr = parse("backprop").settings(settings).get("lr", 1e-3)
    plain = plan.budget.crossed_forwards / forwards_per_step(parse("backprop"), {}, 1)
    return [
        Crossing(plan.target, plan.data, way, max(1, round(longer * plain)), lr)
        for way, longer in plan.task.ways.items()
        if plain
    ]


def _nudging(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    budget = plan.budget
    return [Nudging(plan.target, plan.data, budget.nudges, budget.nudged_weights)] if budget.nudged_weights else []


def _landscape(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    drawn = tuple((spec, frozen(spec.settings(settings))) for spec in specs)
    budget = plan.budget
    return [Mapping2d(plan.target, plan.data, drawn, budget.grid, budget.path_forwards)] if budget.grid else []


def _costs(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    return [_meter(plan, spec, settings, plan.target, plan.task.width, spec.rows(settings)) for spec in specs]


def _wider_costs(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    from dldw.tasks import load_task

    if not specs:
        return []
    name = cast(str, plan.task.wider)
    return [_meter(plan, spec, settings, name, load_task(name, plan.data).width, None) for spec in specs]


def _meter(plan: Plan, spec: Spec, settings: Settings, task: str, width: int | None, rows: int | None) -> Item:
    frozen_settings = frozen(spec.settings(settings))
    return Metering(task, plan.data, spec, frozen_settings, width, plan.budget.cost_seconds, rows)


def _exact(plan: Plan) -> list[Spec]:
    cards = [(spec, spec.method.card) for spec in plan.specs]
    return [spec for spec, card in cards if card.claim == "exact" and card.needs == "autograd" and plan.task.depths]


def _depths(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    return [
        Deepening(*_run(plan, spec, settings), depth, plan.budget.cost_seconds)
        for spec in specs
        for depth in plan.task.depths
    ]


def _bounded(plan: Plan, specs: Sequence[Spec], settings: Settings) -> list[Item]:
    return [
        Bounding(
            *_run(plan, spec, settings), bound=cast(int, plan.task.memory_bound),
            seeds=plan.seeds, forwards=plan.budget.forwards, per_decade=plan.budget.per_decade,
        )
        for spec in specs
    ]  # fmt: skip


STUDIES = (
    Study("curves", "The learning curve", lambda plan: list(plan.specs), _curves),
    Study("cost", "The cost of a step", _ordered, _costs, COSTS, alone=True),
    Study(
        "wider cost", "The cost of a step on the wider task",
        lambda plan: _ordered(plan) if plan.task.wider else [], _wider_costs, COSTS, alone=True,
    ),
    Study("depth", "What depth costs", _exact, _depths, alone=True),
    Study(
        "memory", "Training within the bound of memory",
        lambda plan: _ordered(plan) if plan.task.memory_bound else [], _bounded, 1.0, first=True,
    ),
    Study("nudge", "The bias of the difference quotient", lambda plan: [], _nudging),
    Study("sampling", "The bias of contrastive divergence", lambda plan: [], _samplings),
    Study("crossed", "Ways to run the same weights", lambda plan: [], _crossings),
    Study(
        "home", "Where its steps lead on a task of its own",
        lambda plan: list(plan.elsewhere) if plan.budget.displacements else [], _at_home,
    ),
    Study(
        "landscape", "The path through the two-weight landscape",
        lambda plan: _plain(plan) if plan.budget.grid else [], _landscape, LANDSCAPE,
    ),
    Study(
        "estimate", "The quality of the estimate",
        lambda plan: _sources(plan) if plan.budget.draws else [], _estimates, ESTIMATES,
    ),
    Study("size", "The quality of the estimate far from the task's own width", _cheap, _far, SIZES),
    Study(
        "displacement", "Where its steps lead",
        lambda plan: ranked(_plain(plan), (*FIRST, *NAMED)) if plan.budget.displacements else [],
        _displacements, DISPLACEMENTS,
    ),
    Study(
        "inside", "What happens inside the model",
        lambda plan: [s for s in _ordered(plan) if not issubclass(s.method.factory, Searcher)]
        if plan.budget.inside_forwards
        else [],
        _insides, INSIDE,
    ),
    Study(
        "companion", "Training on the companion task",
        lambda plan: _plain(plan) if plan.task.companion and plan.budget.companion_seeds else [],
        _companion, COMPANION, companion=True,
    ),
    Study(
        "learning-rate", "Training over learning rates",
        lambda plan: _sources(plan) if plan.budget.factors else [], _rates, RATES,
    ),
    Study(
        "width", "Training over widths",
        lambda plan: _sources(plan) if plan.budget.widths and plan.task.width is not None else [], _widths, 1.0,
    ),
)  # fmt: skip
"""In the order in which the total is shared out; a task of its own study has an attribute that the study reads."""


def counted(items: Iterable[Item]) -> float:
    """What pieces of work count together, in forward-pass equivalents."""
    return sum(item.counted for item in items)


def frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Settings as a piece of work holds them."""
    return tuple(settings.items())
