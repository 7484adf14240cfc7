"""Figures as a reader wants them: rounded, with their unit, and unbreakable."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from dldw.report.intervals import Interval


def significant(x: float, digits: int = 3) -> float:
    """``x`` rounded to so many significant digits."""
    return x if x == 0 or not math.isfinite(x) else round(x, digits - 1 - math.floor(math.log10(abs(x))))


def number(x: float) -> str:
    """12345 -> '12,300', 3.2e6 -> '3.2 million', 0.0123 -> '0.012'."""
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    size = abs(x)
    for limit, word in ((1e9, "billion"), (1e6, "million")):
        if size >= 0.9995 * limit:
            return f"{significant(x / limit):g}\u00a0{word}"
    if size >= 100:
        return f"{significant(x):,.0f}"
    text = f"{significant(x, 2 if size < 10 else 3):g}" if size >= 1e-4 or size == 0 else f"{x:.1e}"
    return text.replace("-", "−")


def times(x: float) -> str:
    """A ratio: '74 ×', unbreakable like every figure with its unit."""
    return f"{number(significant(x, 2))}\u00a0×"


def percent(x: float, digits: int = 0) -> str:
    """A share: '93 %'."""
    return f"{100 * x:.{digits}f}\u00a0%".replace("-", "−")


def size(count: float) -> str:
    """Bytes: '1.2 MiB'."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{number(count / limit)}\u00a0{unit}"
    return f"{count:.0f}\u00a0B"


def duration(seconds: float) -> str:
    """Seconds: '2 min 5 s'."""
    if seconds < 1e-3:
        return f"{number(seconds * 1e6)}\u00a0µs"
    if seconds < 1:
        return f"{number(seconds * 1e3)}\u00a0ms"
    if seconds < 60:
        return f"{number(seconds)}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def power(exponent: float) -> str:
    """A power of the number of weights: 'd⁰·⁹⁰'."""
    return "d" + f"{exponent:.2f}".translate(str.maketrans("0123456789.-", "⁰¹²³⁴⁵⁶⁷⁸⁹·⁻"))


def between(interval: Interval, show: Callable[[float], str] = number) -> str:
    """'95 % interval 60 to 90, 5 seeds', or why there is none."""
    seeds = f"{interval.seeds}\u00a0seed{'s' if interval.seeds != 1 else ''}"
    if not interval.known:
        return f"{seeds}: too few for an interval"
    low, high = show(interval.low), show(interval.high)
    if math.isinf(interval.high):
        return f"95\u00a0% interval: {low} or more, {seeds}"
    unit = low.rpartition("\u00a0")[2]
    if low.endswith("\u00a0" + unit) and high.endswith("\u00a0" + unit):
        low = low.rpartition("\u00a0")[0]
    return f"95\u00a0% interval {low} to {high}, {seeds}"


def list_of(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
