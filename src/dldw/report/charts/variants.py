"""The same method with other settings, side by side."""

from __future__ import annotations

import altair as alt

from dldw.report.charts.kit import Chart, Kit, Row, methods_axis, rounded
from dldw.report.intervals import bootstrap
from dldw.report.results import Results, ends_of
from dldw.report.words import list_of, number, percent


def variants(results: Results) -> Chart | None:
    """Where the runs of each variant ended, for methods that are there more than once.

    Variants of exact methods are left out: all have the same gradient.
    """
    kit, task = Kit(results), results.task
    names: dict[str, list[str]] = {}
    for m in results.methods:
        if m["claim"] != "exact" and ends_of(results, m["method"]):
            names.setdefault(m["name"], []).append(m["method"])
    shown = [label for labels in names.values() if len(labels) > 1 for label in labels]
    if task is None or not shown:
        return None
    ends = {m: [e for e in ends_of(results, m) if e["metric"] is not None] for m in shown}
    rows: list[Row] = [
        {"method": m, "metric": e["metric"], "seed": e["seed"], "forwards": e["forwards"]}
        for m, runs in ends.items()
        for e in runs
    ]
    middle = {m: bootstrap(r["metric"] for r in rows if r["method"] == m) for m, runs in ends.items() if runs}
    means: list[Row] = [{"method": m, "metric": i.value, "low": i.low, "high": i.high} for m, i in middle.items()]
    accuracy = task["metric"] == "accuracy"
    x = alt.X(
        "metric:Q",
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(title=f"{task['metric']} at the end", format=".0%" if accuracy else "~g", tickCount=5),
    )
    y = methods_axis(shown)
    y["axis"]["labelExpr"] = "split(replace(datum.label, '[', '\\n['), '\\n')"  # the setting on a line of its own
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("metric:Q", format=".1%" if accuracy else ".4~g", title=task["metric"]),
    ]
    base, middles = alt.Chart(), alt.Chart(alt.NamedData("means"))
    layers = [
        base.mark_tick(thickness=2, size=16).encode(
            x=x, y=y, color=kit.colour(), opacity=kit.opacity(0.5), tooltip=tooltip
        ),
        middles.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=kit.colour(), opacity=kit.opacity()),
        middles.mark_point(filled=True, size=90).encode(
            x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip
        ),
    ]
    show = (lambda v: percent(v, 1)) if accuracy else number
    told = [
        " against ".join(f"{label} {show(middle[label].value)}" for label in labels if label in middle)
        for labels in names.values()
        if len(labels) > 1
    ]
    return Chart(
        "variants",
        "The same method, set otherwise",
        f"At the end of the same budget: {list_of(told)}.",
        "One tick per run; symbol and line: the median over seeds and its 95 % interval. Node perturbation reads every "
        "example’s own loss, or with per_example=false the mean loss alone.",
        {"rows": rounded(rows), "means": rounded(means)},
        {"": kit.finish(layers)},
        step=34,
        wide=True,
    )
