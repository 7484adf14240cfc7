"""Figures over seeds with their intervals: means, times to a target of which some were missed, and their ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dldw.compare.records import End

DRAWS = 4000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; ``bound`` says when the figure itself is only a bound.

    With fewer than three seeds there is no interval: ``low`` and ``high`` are those of the bound alone, or NaN.
    """

    value: float
    low: float
    high: float
    seeds: int
    bound: str = ""  # "at least", "at most" or nothing

    @property
    def known(self) -> bool:
        """Whether there are enough seeds for an interval."""
        return self.seeds >= 3 and not math.isnan(self.low)


def resample(n: int) -> NDArray[np.int64]:
    """[DRAWS, n] indices drawn with replacement, always the same: the report is a function of the results."""
    return np.random.default_rng(0).integers(0, n, (DRAWS, n))


def quantiles(values: Floats) -> tuple[float, float]:
    """The central 95 % of ``values``, which may be infinite."""
    low = np.quantile(values, 0.025, method="lower")
    high = np.quantile(values, 0.975, method="higher")
    return float(low), float(high)


def bootstrap(values: Iterable[float], statistic: Callable[..., Any] = np.mean) -> Interval:
    """A statistic over seeds with its bootstrap interval."""
    array = np.asarray(list(values), dtype=float)
    value = float(statistic(array))
    if len(array) < 3:
        return Interval(value, math.nan, math.nan, len(array))
    return Interval(value, *quantiles(statistic(array[resample(len(array))], axis=1)), len(array))


def final_metric(ends: Iterable[End]) -> Interval | None:
    """The task's metric at the end of runs, over seeds; None where none has one."""
    known = [end["metric"] for end in ends if end["metric"] is not None]
    return bootstrap(known) if known else None


def to_target(end: End, axis: str) -> float | None:
    """What a run spent until the target, in ``forwards``, ``seconds`` or ``interactions``; None where it missed it."""
    if axis == "interactions":
        return end.get("interactions_to_target")
    return end["forwards_to_target"] if axis == "forwards" else end["seconds_to_target"]


@dataclass(frozen=True)
class Reach:
    """The work spent until the target, by seed: a run that missed it lies between what it spent and infinity."""

    low: dict[int, float]
    high: dict[int, float]

    @classmethod
    def of(cls, ends: Iterable[End], key: str = "forwards") -> Reach:
        """The reach of these runs in ``forwards`` (or ``seconds``, where only reached runs have a bound)."""
        low, high = {}, {}
        for end in ends:
            reached = to_target(end, key)
            low[end["seed"]] = float(end["forwards"] if reached is None else reached)
            high[end["seed"]] = math.inf if reached is None else float(reached)
        return cls(low, high)

    def median(self) -> float:
        """The median over seeds, infinite when half of them missed."""
        return float(np.median(list(self.high.values()))) if self.high else math.nan

    @property
    def reached(self) -> int:
        """How many runs reached the target."""
        return sum(map(math.isfinite, self.high.values()))


def ratio(a: Reach, b: Reach) -> Interval | None:
    """Median of ``a`` over median of ``b``, resampled over the seeds both have.

    None when they share no seed, or when half the runs of both missed, so that nothing is known of the ratio. Where a
    run missed the target the ratio is only known to lie between two bounds, and the interval covers both.
    """
    seeds = sorted(a.low.keys() & b.low.keys())
    if not seeds:
        return None
    table = np.array([[r[s] for s in seeds] for r in (a.low, a.high, b.low, b.high)])  # [4, seeds]
    a_low, a_high, b_low, b_high = np.maximum(np.median(table, axis=1), 1e-12)
    lower, upper = a_low / b_high, a_high / b_low
    if lower < 1e-9 and math.isinf(upper):  # neither got there, or the one that did not made no step at all
        return None
    value, bound = (lower, "") if lower == upper else (lower, "at least") if lower > 0 else (upper, "at most")
    if len(seeds) < 3:
        return Interval(float(value), float(lower), float(upper), len(seeds), bound)
    drawn = np.maximum(np.median(table[:, resample(len(seeds))], axis=2), 1e-12)  # [4, draws]
    low, high = quantiles(drawn[0] / drawn[3])[0], quantiles(drawn[1] / drawn[2])[1]
    return Interval(float(value), low, high, len(seeds), bound)
