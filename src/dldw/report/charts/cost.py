"""What one step costs in time, operations and memory."""

from __future__ import annotations

import altair as alt

from dldw.compare.records import Cost
from dldw.report.charts.kit import (
    Chart,
    Kit,
    Row,
    for_tasks,
    log_axis,
    methods_axis,
    rounded,
)
from dldw.report.results import Results, cost_of
from dldw.report.words import duration, significant, size, times


def _costs(results: Results) -> list[Cost]:
    """What a step costs, of every method on every task at its own width, the task asked for first."""
    found = [c for m in results.labels if (c := cost_of(results, m)) is not None]
    own = results.task_name
    rest = {(c["method"], c["task"]): c for c in results.costs if c["task"] != own}
    return found + [c for t in results.tasks for m in results.labels if (c := rest.get((m, t["task"]))) is not None]


def step_cost(results: Results) -> Chart | None:
    """Time, floating-point operations and the card's count of a step, each over two bare forwards."""
    kit, costs = Kit(results), _costs(results)
    if not costs:
        return None
    rows: list[Row] = [
        {
            "task": c["task"],
            "method": c["method"],
            "time": c["time_ratio"],
            "low": c["time_ratio_low"],
            "high": c["time_ratio_high"],
            "operations": c["forwards_measured"] / 2,
            "card": c["forwards_card"] / 2,
            "step": duration(c["step_seconds"]),
            "two forwards": duration(c["two_forwards_seconds"]),
            "weights": c["weights"],
            "repeats": c["repeats"],
        }
        for c in costs
    ]
    tasks = list(dict.fromkeys(c["task"] for c in costs))
    title = "× two bare forwards"
    values = [v for r in rows for v in (r["time"], r["low"], r["high"], r["operations"], r["card"]) if v > 0]
    wide_range = max(values) > 25 * min(values)
    scale = alt.Scale(type="log", nice=False) if wide_range else alt.Scale(zero=True)
    axis = log_axis(title, values) if wide_range else alt.Axis(title=title, tickCount=5)
    y = methods_axis([r["method"] for r in sorted(rows, key=lambda r: (r["task"] != tasks[0], r["time"]))])
    base = alt.Chart().transform_filter("datum.task == task")
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("time:Q", format=".3~g", title="time, × two forwards"),
        alt.Tooltip("operations:Q", format=".3~g", title="operations, × two forwards"),
        alt.Tooltip("card:Q", format=".3~g", title="card, × two forwards"),
        alt.Tooltip("step:N", title="a step"),
        alt.Tooltip("two forwards:N"),
        alt.Tooltip("weights:Q", format=","),
        alt.Tooltip("repeats:Q"),
    ]
    bar = base.mark_bar(height=14, cornerRadiusEnd=2).encode(
        x=alt.X("time:Q", scale=scale, axis=axis), y=y, color=kit.colour(), opacity=kit.opacity(0.9), tooltip=tooltip
    )
    if wide_range:
        bar = bar.encode(x2=alt.X2Datum(1))
    spread = base.mark_rule(strokeWidth=1.5, color=alt.expr("ink"))
    diamond = base.mark_point(
        shape="diamond", filled=True, size=60, fill=alt.expr("paper"), stroke=alt.expr("ink"), strokeWidth=1.3
    )
    tick = base.mark_tick(thickness=2.5, size=20, color=alt.expr("ink"))
    floor = alt.Chart(alt.InlineData([{"one": 1}])).mark_rule(strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6)
    layers = [
        bar,
        spread.encode(x="low:Q", x2="high:Q", y=y, opacity=kit.opacity(0.8)),
        tick.encode(x="card:Q", y=y, opacity=kit.opacity(), tooltip=tooltip),
        diamond.encode(x="operations:Q", y=y, opacity=kit.opacity(), tooltip=tooltip),
        floor.encode(x="one:Q"),
    ]
    exact, own = cost_of(results, results.backprop), cost_of(results, results.nudge)
    if exact is not None and own is not None:
        text = (
            f"A step of back-propagation takes {times(exact['time_ratio'])} the time of two bare forwards and "
            f"{times(exact['forwards_measured'] / 2)} their operations; a one-weight step takes "
            f"{times(own['time_ratio'])} and {times(own['forwards_measured'] / 2)}."
        )
    else:
        cheap = min(rows, key=lambda r: r["time"])
        text = f"The cheapest step is that of {cheap['method']}, {times(cheap['time'])} the time of two bare forwards."
    return Chart(
        "cost",
        "Time and operations",
        text,
        "Bar: time, measured alone and in turns with bare forwards (line: middle half). Diamond: floating-point "
        "operations. Tick: what the method's card says.",
        {"rows": rounded(rows)},
        for_tasks(tasks, {"": kit.finish(layers, task="")}),
        [("task", tasks)],
        step=30,
    )


def memory(results: Results) -> Chart | None:
    """The allocator's peak in a step, above the loaded model."""
    kit, costs = Kit(results), _costs(results)
    if not costs:
        return None
    tasks = list(dict.fromkeys(c["task"] for c in costs))
    first = [c for c in costs if c["task"] == tasks[0]]
    top = max(c["peak_bytes"] for c in first)
    unit, divisor = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20)) if top >= s), ("KiB", 2**10))
    rows: list[Row] = [
        {
            "task": c["task"],
            "method": c["method"],
            "peak": c["peak_bytes"] / divisor,
            "floor": c["forward_peak_bytes"] / divisor,
            "bytes": c["peak_bytes"],
            "size": size(c["peak_bytes"]),
        }
        for c in costs
    ]
    least = 0.5 * min([v for r in rows for v in (r["peak"], r["floor"]) if v > 0] or [1.0])
    spread = max(r["peak"] for r in rows) > 80 * least
    scale = alt.Scale(type="log", nice=False, domainMin=significant(least, 3)) if spread else alt.Scale(zero=True)
    title = f"peak above the loaded model, {unit}"
    axis = log_axis(title, [r["peak"] for r in rows]) if spread else alt.Axis(title=title, tickCount=5, format="~g")
    y = methods_axis([r["method"] for r in sorted(rows, key=lambda r: (r["task"] != tasks[0], r["peak"]))])
    tooltip = [alt.Tooltip("method:N"), alt.Tooltip("size:N", title="peak in a step")]
    base = alt.Chart().transform_filter("datum.task == task")
    bar = base.mark_bar(height=14, cornerRadiusEnd=2).encode(
        x=alt.X("peak:Q", scale=scale, axis=axis), y=y, color=kit.colour(), opacity=kit.opacity(0.9), tooltip=tooltip
    )
    if spread:
        bar = bar.encode(x2=alt.X2Datum(significant(least, 3)))
    floor = base.mark_rule(strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6).encode(x="min(floor):Q")
    lean, heavy = min(first, key=lambda c: c["peak_bytes"]), max(first, key=lambda c: c["peak_bytes"])
    exact = cost_of(results, results.backprop)
    text = (
        f"{lean['method']} needs least, {size(lean['peak_bytes'])} in a step; {heavy['method']} most, "
        f"{size(heavy['peak_bytes'])}"
    )
    if exact is not None and results.backprop not in (lean["method"], heavy["method"]):
        text += f"; back-propagation {size(exact['peak_bytes'])}"
    return Chart(
        "memory",
        "Memory",
        text + f". One bare forward takes {size(first[0]['forward_peak_bytes'])}.",
        "Bar: the allocator's peak above the loaded model. Dashed rule: one bare forward without a gradient.",
        {"rows": rounded(rows)},
        for_tasks(tasks, {"": kit.finish([bar, floor], task="")}),
        [("task", tasks)],
        step=30,
    )
