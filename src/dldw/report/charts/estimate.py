"""How good one estimate of the gradient is."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import altair as alt
import numpy as np

from dldw.report.charts.kit import (
    SHARE,
    SMALL,
    Chart,
    Kit,
    Row,
    log_axis,
    rounded,
    weights_axis,
)
from dldw.report.growth import growth_of_noise
from dldw.report.intervals import bootstrap
from dldw.report.results import NUDGE_LIMIT, Results
from dldw.report.words import number, percent, power


def cosine(results: Results) -> Chart | None:
    """Cosine of one estimate to the exact gradient against the number of weights, beside the theory."""
    kit = Kit(results)
    table: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for e in results.estimates:
        table[e["method"], e["weights"]].append(e)
    if not table:
        return None
    rows = []
    for (method, weights), found in sorted(table.items(), key=lambda item: (kit.rank(item[0][0]), item[0][1])):
        over_seeds = bootstrap(e["cosine"] for e in found)
        low = over_seeds.low if over_seeds.known else min(e["cosine_low"] for e in found)
        high = over_seeds.high if over_seeds.known else max(e["cosine_high"] for e in found)
        theory = [e["theory_variance"] for e in found if e["theory_variance"] is not None]
        variance = [e["relative_variance"] for e in found if e["relative_variance"] is not None]
        row: Row = {
            "method": method,
            "weights": weights,
            "cosine": over_seeds.value,
            "low": max(low, 1e-4),
            "high": high,
        }
        row["theory"] = 1 / math.sqrt(1 + float(np.median(theory))) if theory else None
        row["variance"] = float(np.median(variance)) if variance else None
        row["draws"] = sum(e["draws"] for e in found)
        rows.append(row)
    x = weights_axis(rows)
    positive = all(r["cosine"] > 0 for r in rows)
    y_scale = alt.Scale(type="log", nice=True) if positive else alt.Scale(nice=True)
    y_title = "cosine to the exact gradient"
    y_axis = log_axis(y_title, [r["low"] for r in rows], SMALL) if positive else alt.Axis(title=y_title, tickCount=5)
    y = alt.Y("cosine:Q", scale=y_scale, axis=y_axis)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("weights:Q", format=","),
        alt.Tooltip("cosine:Q", format=".3~g"),
        alt.Tooltip("low:Q", format=".3~g", title="95 % from"),
        alt.Tooltip("high:Q", format=".3~g", title="to"),
        alt.Tooltip("theory:Q", format=".3~g"),
        alt.Tooltip("variance:Q", format=".3~s", title="variance / |g|²"),
        alt.Tooltip("draws:Q"),
    ]
    base = alt.Chart()
    theory_line = base.transform_filter("isValid(datum.theory)").mark_line(strokeWidth=1.2, strokeDash=[2, 3])
    theory_y = alt.Y("theory:Q", scale=y_scale, axis=y_axis)
    layers = [
        theory_line.encode(x=x, y=theory_y, color=kit.colour(), opacity=kit.opacity(0.8))
        for _ in range(any(r["theory"] is not None for r in rows))
    ]
    layers += [
        base.mark_rule(strokeWidth=1.5).encode(
            x=x, y="low:Q", y2="high:Q", color=kit.colour(), opacity=kit.opacity(0.9)
        ),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=kit.colour(), opacity=kit.opacity(0.9)),
        base.mark_point(filled=True, size=70).encode(
            x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip
        ),
    ]
    return Chart(
        "cosine",
        "How well one estimate points",
        _cosine_sentence(results, rows),
        "1 is the exact direction, 0 is no help. Points: mean with 95 % interval. Dotted: theory, 1/√(1 + "
        "variance), the root mean square of the cosine.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers, 320)},
    )


def _cosine_sentence(results: Results, rows: list[Row]) -> str:
    order = [results.nudge] + [r["method"] for r in rows if r["method"] != results.backprop]
    label = next((m for m in order if m and any(r["method"] == m for r in rows)), rows[0]["method"])
    own = [r for r in rows if r["method"] == label]
    if len(own) == 1:
        return (
            f"At {number(own[0]['weights'])} weights one estimate of {label} has a cosine of "
            f"{number(own[0]['cosine'])} to the exact gradient."
        )
    text = (
        f"The cosine of {label} goes from {number(own[0]['cosine'])} at {number(own[0]['weights'])} weights "
        f"to {number(own[-1]['cosine'])} at {number(own[-1]['weights'])}"
    )
    growth = growth_of_noise(results, label)
    if growth is not None:
        text += f": its noise, 1/cosine², grows like {power(growth.exponent.value)}, where theory says d¹"
    return text + "."


def quotient(results: Results) -> Chart | None:
    """The relative error of the difference quotient, and the share of wrong signs, against the nudge."""
    kit, task = Kit(results), results.task
    found = sorted((b for b in results.biases if task is None or b["task"] == task["task"]), key=lambda b: b["nudge"])
    if not found:
        return None
    rows = [
        {
            "dw": b["nudge"],
            "error": b["relative_error"],
            "low": b["relative_error_low"],
            "high": b["relative_error_high"],
            "wrong sign": b["wrong_sign"],
            "weights tried": b["weights_tried"],
        }
        for b in found
    ]
    least = 0.5 * min([v for r in rows for v in (r["low"], r["error"]) if v > 0] or [1e-6])
    for row in rows:
        row["low"], row["error"] = max(row["low"], least), max(row["error"], least)
    x_axis = log_axis("size of the nudge |dw|", [r["dw"] for r in rows], SMALL)
    x = alt.X("dw:Q", scale=alt.Scale(type="log", nice=False, padding=12), axis=x_axis)
    tooltip = [
        alt.Tooltip("dw:Q", format=".2~g"),
        alt.Tooltip("error:Q", format=".2%", title="relative error"),
        alt.Tooltip("low:Q", format=".2%", title="lower quartile"),
        alt.Tooltip("high:Q", format=".2%", title="upper quartile"),
        alt.Tooltip("wrong sign:Q", format=".1%"),
        alt.Tooltip("weights tried:Q"),
    ]
    base = alt.Chart()
    specs = {}
    for name, key, title in (
        ("error", "error", "relative error of ΔL/dw"),
        ("wrong sign", "wrong sign", "weights with the wrong sign"),
    ):
        scale = alt.Scale(type="log", nice=True) if key == "error" else alt.Scale(zero=True, nice=True)
        errors = [v for r in rows for v in (r["low"], r["high"])]
        axis = log_axis(title, errors, SHARE) if key == "error" else alt.Axis(title=title, format="~%", tickCount=5)
        y = alt.Y(f"{key}:Q", scale=scale, axis=axis)
        line = base.mark_line(strokeWidth=2, color=alt.expr("ink")).encode(x=x, y=y)
        dots = base.mark_point(filled=True, size=70, color=alt.expr("ink"), opacity=1).encode(x=x, y=y, tooltip=tooltip)
        band = base.mark_area(opacity=0.14, color=alt.expr("ink")).encode(
            x=x, y=alt.Y("low:Q", scale=scale, axis=axis), y2="high:Q"
        )
        specs[name] = kit.finish([band, line, dots] if key == "error" else [line, dots], 320)
    best, largest = min(rows, key=lambda r: r["error"]), ([r for r in rows if r["dw"] <= NUDGE_LIMIT] or rows[:1])[-1]
    text = (
        f"With a nudge |dw| = {number(largest['dw'])}{_as_asked(largest)} the quotient is typically off by "
        f"{percent(largest['error'], 1)} of a derivative and has the wrong sign for "
        f"{percent(largest['wrong sign'], 1)} of the weights; it is best at {number(best['dw'])}, "
        f"{_tiny_percent(best['error'])} off."
    )
    return Chart(
        "quotient",
        "How far off the difference quotient is",
        text,
        "Median over weights and, as a band, the middle half; the error is relative to the root mean square "
        "derivative. A larger nudge bends away from the tangent, a smaller one drowns in rounding.",
        {"rows": rounded(rows)},
        specs,
        [("show", ["error", "wrong sign"])],
    )


def _as_asked(row: Row) -> str:
    return ", the largest in the question," if abs(row["dw"] - 0.1) < 1e-6 else ""


def _tiny_percent(share: float) -> str:
    return percent(share, 1) if share >= 5e-4 else f"{number(100 * share)} %"
