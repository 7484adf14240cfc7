"""How a figure grows with the number of weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dldw.report.intervals import Floats, Interval, Reach, bootstrap, quantiles, ratio, resample
from dldw.report.results import Results, by_weights


@dataclass(frozen=True)
class Growth:
    """How a figure grows with the number of weights: figure ∝ d^exponent.

    Attributes:
        exponent: The fitted slope in log-log coordinates, resampled over seeds.
        points: d -> the figure with its interval, bounds included.
        solved: The values of d the fit rests on.
        at_one: The fitted figure at d = 1.
    """

    exponent: Interval
    points: dict[int, Interval]
    solved: list[int]
    at_one: float


def growth_of_ratio(results: Results, method: str) -> Growth | None:
    """Forwards to target of ``method`` over those of backprop against d; needs three sizes that both solved."""
    if results.backprop is None:
        return None
    own, base = by_weights(results, method), by_weights(results, results.backprop)
    points, tables = {}, {}
    for d in sorted(own.keys() & base.keys()):
        a, b = Reach.of(own[d]), Reach.of(base[d])
        point = ratio(a, b)
        if point is None:
            continue
        points[d] = point
        if not point.bound:
            seeds = sorted(a.high.keys() & b.high.keys())
            tables[d] = {s: (a.high[s], b.high[s]) for s in seeds}
    return _fit(points, tables, lambda pairs: np.median(pairs[..., 0], axis=-1) / np.median(pairs[..., 1], axis=-1))


def growth_of_noise(results: Results, method: str) -> Growth | None:
    """1/cosine² of the estimate, in the mean square, against d: what theory says grows in proportion to d."""
    tables: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for e in results.estimates:
        if e["method"] == method and e["cosine"] > 0:
            tables[e["weights"]][e["seed"]] = (e.get("cosine_rms", e["cosine"]) ** 2, 1.0)
    points = {d: bootstrap(1 / t[0] for t in rows.values()) for d, rows in sorted(tables.items())}
    return _fit(points, dict(sorted(tables.items())), lambda pairs: 1 / np.mean(pairs[..., 0], axis=-1))


def _fit(
    points: dict[int, Interval],
    tables: dict[int, dict[int, tuple[float, float]]],
    figure: Callable[[Floats], Floats],
) -> Growth | None:
    if len(tables) < 3:
        return None
    seeds = sorted(set.intersection(*(set(rows) for rows in tables.values())))
    if not seeds:
        return None
    x = np.log(np.array(list(tables), dtype=float))
    pairs = np.array([[rows[s] for s in seeds] for rows in tables.values()])  # [sizes, seeds, 2]
    whole = np.log(figure(pairs))
    slope, intercept = np.polyfit(x, whole, 1)
    low = high = math.nan
    if len(seeds) >= 3:
        with np.errstate(invalid="ignore"):
            drawn = np.log(figure(pairs[:, resample(len(seeds))]))  # [sizes, draws]
        drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
        centred = x - x.mean()
        if drawn.size:
            low, high = quantiles(centred @ drawn / (centred @ centred))
    exponent = Interval(float(slope), low, high, len(seeds))
    return Growth(exponent, points, list(tables), float(np.exp(intercept)))
