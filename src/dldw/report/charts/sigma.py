"""Which sigma: the valley between truncation and rounding, over the number of weights."""

from __future__ import annotations

import altair as alt

from dldw.compare.records import Sigma
from dldw.report.charts.kit import SHARE, SMALL, Chart, Kit, Row, log_axis, rounded
from dldw.report.results import Results
from dldw.report.words import number

USUAL = 1e-3
"""The sigma that most take."""


def sigma(results: Results) -> Chart | None:
    """The relative error of a slope against sigma, a line for each size of network."""
    kit, task = Kit(results), results.task
    found = sorted((s for s in results.sigmas if task is None or s["task"] == task["task"]), key=lambda s: s["weights"])
    rows: list[Row] = [
        {
            "weights": s["weights"],
            "network": number(s["weights"]),
            "sigma": value,
            "error": error,
            "at": "recommended" if value == s["recommended"] else "",
        }
        for s in found
        for value, error in zip(s["sigma"], s["error"], strict=True)
        if error is not None and error > 0
    ]
    if not rows:
        return None
    x_axis = log_axis("sigma", [r["sigma"] for r in rows], SMALL)
    x = alt.X("sigma:Q", scale=alt.Scale(type="log", nice=False, padding=12), axis=x_axis)
    y_axis = log_axis("relative error of the slope", [r["error"] for r in rows], SHARE)
    y = alt.Y("error:Q", scale=alt.Scale(type="log", nice=True), axis=y_axis)
    names = list(dict.fromkeys(r["network"] for r in rows))
    dash = alt.StrokeDash(
        "network:N",
        scale=alt.Scale(domain=names, range=[[1, 0], [8, 3], [4, 2], [2, 2], [1, 3]]),
        legend=alt.Legend(
            title="weights",
            orient="bottom",
            symbolSize=500,
            labelColor=alt.expr("ink"),
            titleColor=alt.expr("ink"),
            symbolStrokeColor=alt.expr("ink"),
        ),
    )
    tooltip = [
        alt.Tooltip("weights:Q", format=","),
        alt.Tooltip("sigma:Q", format=".2~g"),
        alt.Tooltip("error:Q", format=".2~%", title="relative error"),
        alt.Tooltip("at:N", title=" "),
    ]
    base = alt.Chart()
    usual = alt.Chart(alt.InlineData([{"usual": USUAL}])).mark_rule(
        strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.5
    )
    layers = [
        usual.encode(x=alt.X("usual:Q", scale=alt.Scale(type="log", nice=False, padding=12), axis=x_axis)),
        base.mark_line(strokeWidth=1.8, color=alt.expr("ink")).encode(x=x, y=y, strokeDash=dash),
        base.mark_point(filled=True, size=14, color=alt.expr("ink"), opacity=1).encode(x=x, y=y, tooltip=tooltip),
        base.transform_filter("datum.at == 'recommended'")
        .mark_point(filled=True, size=90, color=alt.expr("ink"), opacity=1)
        .encode(x=x, y=y, tooltip=tooltip),
    ]
    first, last = found[0], found[-1]
    best = number(first["recommended"])
    text = f"The error of a slope is least around sigma = {best} at {number(first['weights'])} weights"
    if first is not last:
        text += f" and around {number(last['recommended'])} at {number(last['weights'])}"
    off = {s["weights"]: _at(s, USUAL) for s in found}
    worst = max((d for d in off if off[d] is not None), key=lambda d: off[d] or 0.0, default=None)
    if worst is not None:
        text += f". At the usual {number(USUAL)} it is at most {_tiny(off[worst] or 0.0)}, at {number(worst)} weights"
    return Chart(
        "sigma",
        "Which sigma",
        text + ".",
        f"Central differences along random directions, in {found[0]['dtype']}; large points: recommended, the middle of the "
        "valley; dashed: the usual 0.001. Smaller steps drown in rounding, larger ones bend away from the tangent.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers, 320)},
        wide=True,
    )


def _at(record: Sigma, value: float) -> float | None:
    """The error at the sigma nearest to ``value``."""
    tried = zip(record["sigma"], record["error"], strict=True)
    pairs = [(abs(sigma / value - 1), error) for sigma, error in tried if error is not None]
    return min(pairs)[1] if pairs else None


def _tiny(share: float) -> str:
    return f"{number(100 * share)}\u00a0%"
