"""Intervals, and times to a target of which some were never reached."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1 .. 30 degrees of freedom; beyond, an expansion in 1 / freedom does.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def t95(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)  # Cornish-Fisher


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval by Student's t; one value alone has no interval but the whole line.

    Example:
        >>> [round(v, 3) for v in mean_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    sample = np.asarray(values, dtype=float)
    if sample.size == 0:
        return math.nan, math.nan, math.nan
    mean = float(sample.mean())
    if sample.size == 1:
        return mean, -math.inf, math.inf
    half = t95(sample.size - 1) * float(sample.std(ddof=1)) / math.sqrt(sample.size)
    return mean, mean - half, mean + half


def median_time(times: Sequence[float | None]) -> float:
    """The median time to a target; None, a run that never reached it, counts as infinitely long.

    Example:
        >>> median_time([3.0, None, 5.0]), median_time([3.0, None, None])
        (5.0, inf)
    """
    ordered = sorted(math.inf if t is None else t for t in times)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    low, high = ordered[middle - 1 : middle + 1]
    return high if math.isinf(high) else (low + high) / 2


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927), which holds up at 0 and 1 and for few trials.

    Example:
        >>> [round(v, 2) for v in share_interval(0, 5)]
        [0.0, 0.43]
    """
    if trials == 0:
        return 0.0, 1.0
    z2 = 1.96**2
    p = successes / trials
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (p * (1 - p) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def log_spaced(total: float, unit: float, per_decade: int) -> list[int]:
    """Steps at which a run is evaluated: 0, the last, and between them evenly on a logarithmic scale.

    Args:
        total: Budget in forwards.
        unit: Forwards in one step; where one step costs more than the budget, none is made.
        per_decade: Points in each factor of ten.
    """
    last = int(total // unit)
    count = max(1, round(per_decade * math.log10(max(1, last))))
    return sorted({0, last} | {round(last ** (i / count)) for i in range(count + 1) if last})
