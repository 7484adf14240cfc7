"""What the same memory and the same time are good for: the loss against the peak of a step."""

from __future__ import annotations

import altair as alt

from dldw.report.budgets import Equal, bound_of, equal_memory, equal_time
from dldw.report.charts.kit import Chart, Kit, Row, loss_y, rounded
from dldw.report.results import Results
from dldw.report.words import duration, significant, size


def budgets(results: Results) -> Chart | None:
    """The metric at the end against the peak of a step, under a bound of memory and under one of time."""
    found = [equal for equal in (equal_memory(results), equal_time(results)) if equal is not None]
    rows = [row for equal in found for row in _rows(equal)]
    if not rows or results.task is None:
        return None
    kit, metric, bound = Kit(results), results.task["metric"], bound_of(results)
    names = [f"the same {equal.name}" for equal in found]
    peaks = [r["peak"] for r in rows] + [bound / 2**20]
    x = alt.X(
        "peak:Q",
        scale=alt.Scale(
            type="log", nice=False, domain=[significant(0.8 * min(peaks), 3), significant(1.25 * max(peaks), 3)]
        ),
        axis=alt.Axis(title="peak of a step above the loaded model, MiB", tickCount=6, format="~g"),
    )
    y = loss_y("value:Q", f"{metric} on the test split", [v for r in rows for v in (r["low"], r["high"])])
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("value:Q", format=".3f", title=metric),
        alt.Tooltip("size:N", title="peak of a step"),
        alt.Tooltip("rows:Q", title="rows in a batch"),
        alt.Tooltip("steps:Q", format=",.0f"),
    ]
    base = alt.Chart().transform_filter("datum.budget == budget")
    spread = base.mark_rule(strokeWidth=1.5).encode(
        x=x, y=alt.Y("low:Q"), y2="high:Q", color=kit.colour(), opacity=kit.opacity(0.8)
    )
    points = base.mark_point(filled=True, size=90).encode(
        x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip
    )
    limit = alt.Chart(alt.InlineData([{"bound": bound / 2**20}])).mark_rule(
        strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6
    )
    layers = [spread, points, limit.encode(x="bound:Q")]
    return Chart(
        "budgets",
        f"{metric.capitalize()} against peak memory",
        _sentence(found, bound),
        f"Points: one method each; lines: 95 % intervals over seeds. Dashed: the bound of {size(bound)}. How memory and time "
        "are made equal is said beneath the tables.",
        {"rows": rounded(rows)},
        {name: kit.finish(layers, budget=name) for name in names},
        [("budget", names)],
    )


def _rows(equal: Equal) -> list[Row]:
    return [
        {
            "budget": f"the same {equal.name}",
            "method": e.method,
            "peak": e.peak / 2**20,
            "value": e.metric.value,
            "low": e.metric.low if e.metric.known else e.metric.value,
            "high": e.metric.high if e.metric.known else e.metric.value,
            "size": size(e.peak),
            "rows": e.rows,
            "steps": e.steps,
        }
        for e in equal.entries
        if e.metric is not None and e.peak is not None
    ]


def _sentence(found: list[Equal], bound: int) -> str:
    told = []
    for equal in found:
        best = next((e for e in equal.entries if e.metric is not None), None)
        budget = f"within {size(bound)}" if equal.name == "memory" else f"in {duration(equal.seconds)}"
        if best is not None and best.metric is not None:
            told.append(f"{budget}, {best.method} gets furthest, to {best.metric.value:.3f}")
    text = "; ".join(told)
    return text[:1].upper() + text[1:] + "."
