"""What the size of the network and the learning rate do to training."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import altair as alt

from dldw.report.charts.kit import (
    Chart,
    Kit,
    Row,
    log_axis,
    methods_axis,
    rounded,
    weights_axis,
)
from dldw.report.growth import Growth, growth_of_ratio
from dldw.report.intervals import Interval, Reach, ratio
from dldw.report.results import Results, by_weights
from dldw.report.words import between, percent, power


def growth(results: Results) -> Chart | None:
    """Forwards to target over those of backprop against the number of weights, with the fitted power."""
    kit, base = Kit(results), results.backprop
    if base is None:
        return None
    rows: list[Row] = []
    fits: dict[str, Growth] = {}
    bases = by_weights(results, base)
    for label in [m for m in results.labels if m != base]:
        own = by_weights(results, label)
        points = {d: ratio(Reach.of(own[d]), Reach.of(bases[d])) for d in sorted(own.keys() & bases.keys())}
        found: dict[int, Interval] = {d: p for d, p in points.items() if p is not None and math.isfinite(p.value)}
        if len(own) < 2:
            continue
        fit = growth_of_ratio(results, label)
        if fit is not None:
            fits[label] = fit
        for d, p in found.items():
            row: Row = {"method": label, "weights": d, "ratio": p.value, "bound": p.bound or "measured"}
            row |= {"low": p.low, "high": p.high if math.isfinite(p.high) else None} if p.known else {}
            row["fit"] = fit.at_one * d**fit.exponent.value if fit is not None and d in fit.solved else None
            rows.append(row)
    if not rows:
        return None
    x = weights_axis(rows)
    y_scale = alt.Scale(type="log", nice=True)
    y_axis = log_axis("forwards to target ÷ backprop’s", [1.0, *(r["ratio"] for r in rows)])
    y = alt.Y("ratio:Q", scale=y_scale, axis=y_axis)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("weights:Q", format=","),
        alt.Tooltip("ratio:Q", format=",.3~g", title="× backprop"),
        alt.Tooltip("bound:N", title="which is"),
        alt.Tooltip("low:Q", format=",.3~g", title="95 % from"),
        alt.Tooltip("high:Q", format=",.3~g", title="to"),
    ]
    plain = alt.Chart()
    measured = plain.transform_filter("datum.bound == 'measured'")
    marks: dict[str, Any] = {"x": x, "y": y, "color": kit.colour(), "opacity": kit.opacity()}
    fitted = plain.transform_filter("isValid(datum.fit)").mark_line(strokeWidth=1.2, strokeDash=[2, 3])
    spread = measured.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_rule(strokeWidth=1.5)
    solid = measured.mark_point(filled=True, size=70)
    hollow = plain.transform_filter("datum.bound != 'measured'").mark_point(size=70, filled=False, strokeWidth=1.5)
    arrow = plain.transform_filter("datum.bound == 'at least'").mark_text(text="↑", dy=-13, fontSize=14)
    at_one = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6)
    bounds = {r["bound"] for r in rows}
    layers = [at_one.encode(y="one:Q")]
    if fits:
        layers.append(fitted.encode(**marks | {"y": alt.Y("fit:Q", scale=y_scale, axis=y_axis)}))
    if any(r.get("low") and r.get("high") and r["bound"] == "measured" for r in rows):
        layers.append(spread.encode(**marks | {"y": alt.Y("low:Q", scale=y_scale, axis=y_axis)}, y2="high:Q"))
    if "measured" in bounds:
        layers.append(solid.encode(**marks, shape=kit.shape(), tooltip=tooltip))
    if bounds - {"measured"}:
        layers.append(hollow.encode(**marks, shape=kit.shape(), tooltip=tooltip))
    if "at least" in bounds:
        layers.append(arrow.encode(**marks))
    if fits:
        label = results.nudge if results.nudge in fits else next(iter(fits))
        exponent = fits[label].exponent
        text = (
            f"The extra work of {label} grows like {power(exponent.value)} (exponent: "
            f"{between(exponent, lambda v: f'{v:.2f}')})."
        )
    else:
        loose = sum(r["bound"] != "measured" for r in rows)
        text = f"Too few sizes were solved for a fitted power: {loose} of {len(rows)} points are only bounds."
    return Chart(
        "growth",
        "What happens as networks grow",
        text,
        "Filled: measured, with its 95 % interval. Open with an arrow: at least so much, the target was missed "
        "within the budget. Dotted: fitted power of d. Dashed: back-propagation.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers, 320)},
    )


def failures(results: Results) -> Chart | None:
    """The share of runs that missed the target over learning rate × method."""
    kit = Kit(results)
    table: dict[tuple[str, float], list[Any]] = defaultdict(list)
    name = results.task_name
    for e in results.ends:
        if e["study"] == "learning-rate" and e["task"] == name:
            table[e["method"], e["factor"]].append(e)
    if not table:
        return None
    rows: list[Row] = []
    for (method, factor), ends in sorted(table.items(), key=lambda item: (kit.rank(item[0][0]), item[0][1])):
        failed, diverged = sum(e["failed"] for e in ends), sum(e["reason"] == "diverged" for e in ends)
        rows.append(
            {
                "method": method,
                "factor": factor,
                "rate": (f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}") + "×",
                "failed": failed,
                "runs": len(ends),
                "share": failed / len(ends),
                "diverged": diverged,
                "text": f"{failed}/{len(ends)}",
            }
        )
    x = alt.X(
        "rate:N",
        sort=[r["rate"] for r in sorted(rows, key=lambda r: r["factor"])],
        axis=alt.Axis(
            title="learning rate ÷ tuned learning rate", labelAngle=0, ticks=False, domain=False, labelOverlap="greedy"
        ),
    )
    y = methods_axis(list(dict.fromkeys(r["method"] for r in rows)))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("rate:N", title="learning rate"),
        alt.Tooltip("text:N", title="missed the target"),
        alt.Tooltip("diverged:Q"),
    ]
    base = alt.Chart()
    layers = [
        base.mark_rect(stroke=alt.expr("paper"), strokeWidth=2, cornerRadius=4).encode(
            x=x,
            y=y,
            color=alt.Color("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range="ramp", interpolate="rgb")),
            opacity=kit.opacity(),
            tooltip=tooltip,
        ),
        base.mark_text(
            fontSize=11, color=alt.expr("datum.share > (luminance(paper) > 0.5 ? 0.7 : 0.5) ? paper : ink")
        ).encode(x=x, y=y, text="text:N", opacity=kit.opacity()),
    ]
    factors = len({r["factor"] for r in rows})
    shares = {
        m: sum(r["failed"] for r in rows if r["method"] == m) / sum(r["runs"] for r in rows if r["method"] == m)
        for m in dict.fromkeys(r["method"] for r in rows)
    }
    worst, best = max(shares, key=lambda m: shares[m]), min(shares, key=lambda m: shares[m])
    total = sum(r["diverged"] for r in rows)
    if shares[worst] == shares[best]:
        text = f"Over {factors} learning rates every method misses the target in {percent(shares[best])} of its runs."
    else:
        text = (
            f"Over {factors} learning rates {best} misses the target in {percent(shares[best])} of its runs, "
            f"{worst} in {percent(shares[worst])}."
        )
    text += f" {total} runs diverged." if total != 1 else " One run diverged."
    return Chart(
        "failures",
        "Where training fails",
        text,
        "In each cell: runs that missed the target within the budget, of all runs. The stronger the colour, the more.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers)},
        step=46,
    )
