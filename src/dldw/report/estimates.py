"""How good the estimate of each method is: figures of the points in training put together, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dldw.report.intervals import bootstrap
from dldw.report.results import Results
from dldw.report.words import number, significant


class Figure(NamedTuple):
    """A figure over points in training with its 95 % interval, whose ends are NaN where it is not known."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is an interval, and more to it than one point."""
        return math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high

    def said(self, show: Callable[[float], str] = number) -> str:
        """'12 (10 to 14)'."""
        return show(self.value) + (f" ({show(self.low)} to {show(self.high)})" if self.known else "")


def over_points(records: Iterable[Any], key: str, low: str, high: str, divisor: str | None = None) -> Figure | None:
    """The mean of a figure over points, each with an interval of its own; None where no record has it.

    With three points or more they are resampled; with fewer, the intervals of the points, which are independent, are put
    together.

    Args:
        records: One for each point.
        key: Of the figure.
        low, high: Of the ends of its interval.
        divisor: Of what the figure is divided by, if anything.
    """
    rows = [
        [math.nan if (value := r.get(k)) is None else value / (r[divisor] if divisor else 1) for k in (key, low, high)]
        for r in records
        if r.get(key) is not None
    ]
    if not rows:
        return None
    table = np.array(rows)
    middle = float(table[:, 0].mean())
    if len(rows) >= 3:
        found = bootstrap(table[:, 0])
        return Figure(middle, found.low, found.high)
    below, above = (float(np.sqrt(np.square(table[:, end] - table[:, 0]).sum())) / len(rows) for end in (1, 2))
    return Figure(middle, middle - below, middle + above)


def estimates_of(results: Results, method: str | None) -> list[Any]:
    """The records of a method at the task's own size; at all sizes where there is none of that."""
    own = [e for e in results.estimates if e["method"] == method]
    weights = results.task["weights"] if results.task else None
    return [e for e in own if e["weights"] == weights] or own


def variance_of(records: Iterable[Any]) -> Figure | None:
    """The measured variance over the squared gradient."""
    return over_points(records, "relative_variance", "variance_low", "variance_high")


def closed_form(records: Iterable[Any]) -> float | None:
    """The variance by the closed form on the method's card."""
    return next((e["theory_variance"] for e in records if e["theory_variance"] is not None), None)


def decrease_of(records: Iterable[Any]) -> Figure | None:
    """What one forward-pass equivalent takes off the loss, by a step along an estimate at the best length."""
    return over_points(records, "decrease", "decrease_low", "decrease_high", "forwards")


HEAD = ("Cosine", "Relative error", "Bias", "Variance, closed form", "Variance, measured", "Loss per forward")


def lines(results: Results) -> list[tuple[str, list[str]]]:
    """The columns of ``HEAD`` for each method whose estimate was held against the exact gradient, the best buy first."""
    weights = results.task["weights"] if results.task else None
    rows = []
    for label in results.labels:
        found = [e for e in results.estimates if e["method"] == label and e["weights"] == weights]
        if not found:
            continue
        buys, closed = decrease_of(found), closed_form(found)
        error = over_points(found, "relative_error", "relative_error", "relative_error")
        cells = [
            _cell(over_points(found, "cosine", "cosine_low", "cosine_high")),
            number(significant(error.value, 2)) if error else "–",
            _cell(_range(found, "bias", "relative_bias", "bias_high"), least=0.0),
            "–" if closed is None else number(closed),
            _cell(variance_of(found), least=0.0),
            _cell(buys),
        ]
        rows.append((-buys.value if buys else math.inf, label, cells))
    return [(label, cells) for _, label, cells in sorted(rows, key=lambda row: row[0])]


def _range(records: Iterable[Any], key: str, low: str, high: str) -> Figure | None:
    """The mean of a figure and the range of its intervals: zero is in it where it may be zero at any point."""
    rows = [r for r in records if r.get(key) is not None]
    if not rows:
        return None
    ends = [min(r[low] for r in rows), max(math.inf if r[high] is None else r[high] for r in rows)]
    return Figure(math.fsum(r[key] for r in rows) / len(rows), *ends)


def _cell(figure: Figure | None, least: float = -math.inf) -> str:
    if figure is None:
        return "–"
    return Figure(figure.value, max(least, figure.low), figure.high).said(lambda v: number(significant(v, 2)))
