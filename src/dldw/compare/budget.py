"""How much a comparison may spend, in forward-pass equivalents, and on what."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from dldw.errors import DldwError, UnknownNameError
from dldw.registry import unknown


@dataclass(frozen=True)
class Budget:
    """What every method may spend; the same for all.

    Attributes:
        name: As the command line has it.
        total: Of the whole comparison, counted by the cards: with many methods each gets less (see ``dldw.compare.share``);
            0 for no such limit.
        forwards: Of one learning curve.
        seeds: Learning curves of a method.
        per_decade: Evaluations in each factor of ten of the forwards spent.
        companion_forwards, companion_seeds: The same on the companion task (hard steps).
        widths: Network widths over the task's own.
        width_forwards, width_seeds: Until the target, at each width.
        factors: Learning rates over the tuned one.
        factor_forwards, factor_seeds: Until the target, at each learning rate.
        draws: Estimates of the gradient at one point, at each width.
        estimate_seeds: Points.
        sizes: Numbers of weights, beyond the widths, at which methods with a closed form are held against it.
        displacements: Steps followed from each of these points.
        inside_forwards: Of the training run of each method whose model is looked into.
        sampling_draws: Estimates of contrastive divergence that are averaged for its bias, where it can be known.
        crossed_forwards: Of a model that is trained in one way and evaluated in others; for tasks whose forward passes are
            long, and so not fewer there.
        nudges: Sizes |dw| of the nudge of a single weight.
        nudged_weights: Weights tried at each size.
        grid: Points along each side of the two-weight landscape; 0 leaves it out.
        path_forwards: Spent on each path through it.
        cost_seconds: Time to measure the step of one method.
        tune_forwards: Of one trial of ``--tune``.
    """

    name: str
    forwards: float
    seeds: int = 5
    per_decade: int = 20
    companion_forwards: float = 0
    companion_seeds: int = 0
    widths: tuple[float, ...] = ()
    width_forwards: float = 0
    width_seeds: int = 0
    factors: tuple[float, ...] = ()
    factor_forwards: float = 0
    factor_seeds: int = 0
    draws: int = 0
    estimate_seeds: int = 0
    sizes: tuple[int, ...] = ()
    displacements: int = 0
    inside_forwards: float = 0
    sampling_draws: int = 0
    crossed_forwards: float = 0
    nudges: tuple[float, ...] = ()
    nudged_weights: int = 0
    grid: int = 0
    path_forwards: float = 0
    cost_seconds: float = 1.0
    tune_forwards: float = 0
    total: float = 0

    def figures(self) -> dict[str, Any]:
        """Everything that decides the results, for the record of the run."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def lightened(self, heft: float) -> Budget:
        """The same for a task whose forward passes take ``heft`` times as long: so many fewer, where no total cuts them."""
        if heft == 1.0:
            return self
        cut = ["width_forwards", "factor_forwards", "inside_forwards", "tune_forwards"]
        cut += [] if self.total else ["forwards", "companion_forwards"]
        fewer: dict[str, Any] = {name: getattr(self, name) / heft for name in cut}
        fewer |= {name: -int(-getattr(self, name) // heft) for name in ("draws", "nudged_weights")}
        return replace(self, **fewer)


_WIDTHS = (1 / 4, 1 / 2, 1.0, 2.0, 4.0)
_FACTORS = (1 / 10, 1 / 3, 1.0, 3.0, 10.0)
_NUDGES = tuple(10.0 ** (-4 + i / 2) for i in range(9))

BUDGETS = {
    "default": Budget(
        "default", forwards=12_000, companion_forwards=10_000, companion_seeds=3,
        widths=_WIDTHS, width_forwards=25_000, width_seeds=3,
        factors=_FACTORS, factor_forwards=8_000, factor_seeds=3,
        draws=200, estimate_seeds=2, sizes=(10**2, 10**5, 10**6), displacements=30,
        inside_forwards=6_000, sampling_draws=30,
        crossed_forwards=1_800,
        nudges=_NUDGES, nudged_weights=400, grid=41, path_forwards=400, cost_seconds=1.0, tune_forwards=20_000,
        total=5_000_000,
    ),
    "full": Budget(
        "full", forwards=200_000, seeds=10, companion_forwards=200_000, companion_seeds=10,
        widths=(*_WIDTHS, 8.0, 16.0), width_forwards=400_000, width_seeds=5,
        factors=(1 / 30, *_FACTORS, 30.0), factor_forwards=50_000, factor_seeds=5,
        draws=2000, estimate_seeds=5, sizes=(10**2, 10**5, 10**6, 10**7), displacements=200,
        inside_forwards=30_000, sampling_draws=100,
        crossed_forwards=9_000,
        nudges=_NUDGES, nudged_weights=2000, grid=61, path_forwards=400, cost_seconds=5.0, tune_forwards=20_000,
    ),
    "quick": Budget(
        "quick", forwards=2_000, seeds=2, per_decade=10, companion_forwards=1_000, companion_seeds=1,
        widths=(1 / 4, 1.0), width_forwards=800, width_seeds=1,
        factors=(1 / 10, 1.0, 10.0), factor_forwards=600, factor_seeds=1,
        draws=20, estimate_seeds=1, displacements=5, inside_forwards=600, sampling_draws=10,
        crossed_forwards=150,
        nudges=_NUDGES[::2], nudged_weights=50, grid=13, path_forwards=60, cost_seconds=0.05, tune_forwards=1_000,
    ),
}  # fmt: skip


def parse_budget(text: str) -> Budget:
    """A named budget, or the default one with so many forwards for each learning curve (and no study above that).

    Who gives a number gets it: no total cuts it, however long the comparison then takes.

    Raises:
        UnknownNameError: Neither a name nor a positive number.
    """
    if text in BUDGETS:
        return BUDGETS[text]
    try:
        forwards = float(text)
    except ValueError:
        raise UnknownNameError(
            unknown("budget", text, BUDGETS) + " A number gives the forward passes of each learning curve."
        ) from None
    if not 1 <= forwards < float("inf"):
        raise DldwError(f"the budget must be at least 1 forward pass and finite, got {text}. The default is 20000.")
    default = BUDGETS["default"]
    capped = {
        name: min(getattr(default, name), forwards)
        for name in (
            "companion_forwards",
            "width_forwards",
            "factor_forwards",
            "path_forwards",
            "tune_forwards",
            "inside_forwards",
            "crossed_forwards",
        )
    }
    return replace(default, name=f"{forwards:g}", forwards=forwards, total=0, **capped)
