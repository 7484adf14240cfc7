"""How good one estimate of the gradient is."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import altair as alt

from dldw.report.charts.kit import (
    COUNT,
    SHARE,
    SMALL,
    Chart,
    Kit,
    Row,
    log_axis,
    rounded,
    weights_axis,
)
from dldw.report.estimates import closed_form, over_points, variance_of
from dldw.report.growth import growth_of_noise
from dldw.report.results import NUDGE_LIMIT, Results
from dldw.report.words import number, percent, power


def cosine(results: Results) -> Chart | None:
    """Variance and cosine of one estimate against the number of weights, with the closed form of the variance."""
    kit = Kit(results)
    table: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for e in results.estimates:
        table[e["method"], e["weights"]].append(e)
    if not table:
        return None
    rows = []
    for (method, weights), found in sorted(table.items(), key=lambda item: (kit.rank(item[0][0]), item[0][1])):
        row: Row = {"method": method, "weights": weights, "draws": sum(e["draws"] for e in found)}
        spread, closed = variance_of(found), closed_form(found)
        for name, figure in (
            ("cosine", over_points(found, "cosine", "cosine_low", "cosine_high")),
            ("variance", spread),
        ):
            if figure is not None and (figure.value > 0 or name == "cosine"):
                low = max(figure.low, LEAST) if figure.value > 0 else figure.low
                row |= {name: figure.value, f"{name} low": low, f"{name} high": figure.high}
        if closed:
            row |= {"variance closed": closed, "cosine closed": 1 / math.sqrt(1 + closed)}
        elif closed == 0:
            row["cosine closed"] = 1.0
        rows.append(row)
    specs = {
        name: _against_size(kit, rows, name, title)
        for name, title in (("variance", "variance ÷ ‖g‖²"), ("cosine", "cosine to the exact gradient"))
        if any(name in r for r in rows)
    }
    return Chart(
        "cosine",
        "How well one estimate points",
        _cosine_sentence(results, rows),
        "Points: measured, with 95 % intervals; dotted: the closed form on the method’s card, for the cosine its root mean "
        f"square 1/√(1 + variance), above the mean of what is measured. {_sizes(results, rows)}",
        {"rows": rounded(rows)},
        specs,
        [("show", list(specs))],
    )


LEAST = 1e-9
"""In place of an end of an interval that is zero or below, on axes that are logarithmic."""


def _against_size(kit: Kit, rows: list[Row], name: str, title: str) -> dict[str, Any]:
    x = weights_axis(rows)
    shown = [r for r in rows if name in r]
    positive = all(r[name] > 0 for r in shown)
    y_scale, y_axis = alt.Scale(nice=True), alt.Axis(title=title, tickCount=5)
    if positive:
        values: list[float] = [r[key] for r in shown for key in (name, f"{name} closed") if key in r]
        y_scale = alt.Scale(type="log", nice=True, clamp=True, domainMin=0.5 * min(values))
        y_axis = log_axis(title, values, SMALL if name == "cosine" else COUNT)

    def at(field: str) -> Any:
        return alt.Y(f"{field}:Q", scale=y_scale, axis=y_axis)

    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("weights:Q", format=","),
        alt.Tooltip(f"{name}:Q", format=".3~g"),
        alt.Tooltip(f"{name} low:Q", format=".3~g", title="95 % from"),
        alt.Tooltip(f"{name} high:Q", format=".3~g", title="to"),
        alt.Tooltip(f"{name} closed:Q", format=".3~g", title="closed form"),
        alt.Tooltip("draws:Q", title="estimates"),
    ]
    base = alt.Chart()
    measured = base.transform_filter(f"isValid(datum['{name}'])")
    marks: dict[str, Any] = {"x": x, "color": kit.colour()}
    layers = []
    if any(f"{name} closed" in r for r in rows):
        closed = base.transform_filter(f"isValid(datum['{name} closed'])").mark_line(strokeWidth=1.2, strokeDash=[2, 3])
        layers.append(closed.encode(**marks, y=at(f"{name} closed"), opacity=kit.opacity(0.8)))
    plain = measured.transform_filter(f"!isValid(datum['{name} closed'])")
    spread = measured.transform_filter(f"isValid(datum['{name} low'])").mark_rule(strokeWidth=1.5)
    layers += [
        plain.mark_line(strokeWidth=1.5).encode(**marks, y=at(name), opacity=kit.opacity(0.7)),
        spread.encode(**marks, y=at(f"{name} low"), y2=f"{name} high:Q", opacity=kit.opacity(0.9)),
        measured.mark_point(filled=True, size=70).encode(
            **marks, y=at(name), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip
        ),
    ]
    return kit.finish(layers, 320)


def _sizes(results: Results, rows: list[Row]) -> str:
    """Which sizes there are, and what was left out."""
    budget = results.run["config"].get("budget")
    sizes = budget.get("sizes") if isinstance(budget, dict) else None
    largest = max(r["weights"] for r in rows)
    few = [r for r in rows if r["weights"] == largest]
    text = ""
    if sizes and largest > 0.5 * max(sizes):
        text = (
            f"Beyond the widths that were trained, at the first weights and with fewer estimates: "
            f"{number(min(r['draws'] for r in few))} at {number(largest)} weights, where the intervals are rough. "
        )
    return (
        text
        + f"Left out: networks above {number(largest)} weights"
        + ("; dldw compare --budget full goes to 10 million." if largest < 5e6 else ".")
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
