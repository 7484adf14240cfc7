"""How well each method learns for the same work, and when it reaches the target."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np

from dldw.report.charts.kit import (
    Chart,
    Kit,
    Row,
    for_tasks,
    log_axis,
    loss_y,
    rounded,
    thin,
)
from dldw.report.intervals import Reach, to_target
from dldw.report.results import Results, ends_of
from dldw.report.words import list_of, number, percent

AXES = {
    "interactions": "environment steps",
    "forwards": "forward-pass equivalents",
    "examples": "examples seen",
    "seconds": "seconds in steps",
}
METRICS = {
    "accuracy": "test accuracy",
    "return": "mean return of unseen episodes",
    "log-likelihood": "test log-likelihood, nats",
    "loss": "test loss",
}


def learning_curves(results: Results) -> Chart | None:
    """Accuracy and loss against forward equivalents, examples and seconds, for every task of the run."""
    kit = Kit(results)
    rows, metrics = _curve_rows(results, kit)
    if not rows or results.task is None:
        return None
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    axes = _axes(results)
    specs = {
        f"{metric}/{axis}": _curve_spec(
            kit, metric, axis, axes, [r[axis] for r in rows if axis in r], _y(results, rows, metric)
        )
        for metric in metrics
        for axis in axes
    }
    return Chart(
        "curves",
        "Learning, by what it costs",
        _curve_sentence(results, rows),
        "Line: median over seeds. Band: from the lowest to the highest seed. A forward-pass equivalent is one "
        "forward pass over a batch; a backward pass counts as two.",
        {"rows": rows, "levels": _levels(results, tasks, metrics)},
        for_tasks(tasks, specs),
        [("task", tasks), ("show", metrics), ("against", list(axes))],
        wide=True,
    )


def _axes(results: Results) -> dict[str, str]:
    """What there is to draw curves against: environment steps only where there are environments."""
    return {axis: title for axis, title in AXES.items() if any(e.get(axis) is not None for e in results.evaluations)}


def _levels(results: Results, tasks: list[str], metrics: list[str]) -> list[Row]:
    """The target of each task, and where every method starts."""
    levels: list[Row] = []
    for task in tasks:
        record = next((t for t in results.tasks if t["task"] == task), None)
        for metric in metrics:
            show: Callable[[float], str] = percent if metric == "accuracy" else number
            curves: list[Any] = [e for e in results.evaluations if e["task"] == task and e["study"] == "curves"]
            start = [e.get(metric) for e in curves if e["step"] == 0]
            known = [v for v in start if v is not None]
            if known:
                levels.append({"task": task, "metric": metric, "what": "untrained", "level": float(np.median(known))})
            if record is not None and record["metric"] == metric:
                levels.append({"task": task, "metric": metric, "what": "target", "level": record["target"]})
            for row in levels:
                row.setdefault("text", f"{row['what']} {show(row['level'])}")
    return rounded(levels)


def _curve_rows(results: Results, kit: Kit) -> tuple[list[Row], list[str]]:
    curves: dict[tuple[str, str], dict[int, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for e in results.evaluations:
        if e["study"] == "curves":
            curves[e["task"], e["method"]][e["seed"]][e["step"]] = e
    ended = {(e["task"], e["method"], e["seed"]) for e in results.ends if e["study"] == "curves"}
    metrics = [m for m in METRICS if any(e.get(m) is not None for e in results.evaluations)]
    axes, rows = _axes(results), []
    for (task, method), seeds in sorted(curves.items(), key=lambda item: kit.rank(item[0][1])):
        steps = sorted({step for runs in seeds.values() for step in runs})
        last: dict[int, Any] = {}
        whole = []
        for step in steps:
            for seed, runs in seeds.items():
                if step in runs:
                    last[seed] = runs[step]
                elif (task, method, seed) not in ended:
                    last.pop(
                        seed, None
                    )  # an unfinished run says nothing of later steps, an ended one stays where it was
            now = [e for e in last.values() if e["step"] == step]
            if not now:
                continue
            row: Row = {"task": task, "method": method, "step": step}
            row |= {a: float(np.median([e[a] for e in now])) for a in axes if now[0].get(a) is not None}
            for metric in metrics:
                values = [math.inf if e.get(metric) is None else e[metric] for e in last.values()]
                finite = [v for v in values if math.isfinite(v)]
                if finite and math.isfinite(float(np.median(values))):
                    row |= {
                        metric: float(np.median(values)),
                        f"{metric} low": min(finite),
                        f"{metric} high": max(finite),
                    }
            row["seeds"] = len(last)
            whole.append(row)
        thinned = thin(whole)
        if thinned:
            thinned[-1]["last"] = True
        rows += thinned
    return rounded(rows), metrics


def _y(results: Results, rows: list[Row], metric: str) -> Any:
    """The axis of a metric; a loss far below the target needs no more room."""
    if metric == "loss":
        task = results.task
        least = task["target"] / 10 if task is not None and task["metric"] == "loss" else 0.0
        return loss_y("loss:Q", METRICS[metric], [r[metric] for r in rows if metric in r], least)
    shown = ".0%" if metric == "accuracy" else ",~r"
    return alt.Y(
        f"{metric}:Q",
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(title=METRICS[metric], format=shown, tickCount=6),
    )


def _curve_spec(kit: Kit, metric: str, axis: str, axes: dict[str, str], reach: list[float], y: Any) -> dict[str, Any]:
    base = alt.Chart().transform_filter(f"datum.task == task && datum.step > 0 && isValid(datum['{metric}'])")
    x = alt.X(f"{axis}:Q", scale=alt.Scale(type="log", nice=False), axis=log_axis(AXES[axis], reach))
    low = y.copy()
    low["shorthand"] = f"{metric} low:Q"
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip(f"{metric}:Q", format=".1%" if metric == "accuracy" else ".3~g", title="median"),
        alt.Tooltip(f"{metric} low:Q", format=".1%" if metric == "accuracy" else ".3~g", title="lowest seed"),
        alt.Tooltip(f"{metric} high:Q", format=".1%" if metric == "accuracy" else ".3~g", title="highest seed"),
        *(alt.Tooltip(f"{a}:Q", format=",.3~s" if a == "seconds" else ",.0f", title=t) for a, t in axes.items()),
        alt.Tooltip("seeds:Q"),
    ]
    near = alt.selection_point(name="near", on="pointerover", clear="pointerout", empty=False)
    layers = [
        base.mark_area(clip=True).encode(
            x=x, y=low, y2=f"{metric} high:Q", color=kit.colour(), opacity=kit.opacity(0.14)
        ),
        base.mark_line(strokeWidth=2, clip=True).encode(
            x=x, y=y, color=kit.colour(), strokeDash=kit.dash(), opacity=kit.opacity(), detail="method:N"
        ),
        base.transform_filter("datum.last")
        .mark_point(size=55, filled=True, clip=False)
        .encode(x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip),
        base.mark_point(size=110, filled=True)
        .encode(
            x=x,
            y=y,
            color=kit.colour(),
            shape=kit.shape(),
            opacity=alt.OpacityValue(0, condition={"param": "near", "empty": False, "value": 1}),
            tooltip=tooltip,
        )
        .add_params(near),
    ]
    here = (
        alt.Chart(alt.NamedData("levels"))
        .transform_filter(f"datum.task == task && datum.metric == '{metric}'")
        .encode(y="level:Q")
    )
    target, start = here.transform_filter("datum.what == 'target'"), here.transform_filter("datum.what == 'untrained'")
    above: Any = "top" if metric == "loss" else "bottom"
    words: dict[str, Any] = {"color": alt.expr("ink"), "opacity": 0.7, "fontSize": 11}
    layers += [
        here.mark_rule(strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6),
        target.mark_text(align="left", baseline="bottom", dx=4, dy=-3, **words).encode(x=alt.value(0), text="text:N"),
        start.mark_text(align="right", baseline=above, dy=-3 if above == "bottom" else 4, **words).encode(
            x=alt.value(alt.expr("width")), text="text:N"
        ),
    ]
    return kit.finish(layers, 380, task="")


def _curve_sentence(results: Results, rows: list[Row]) -> str:
    task, base = results.task, results.backprop
    assert task is not None
    metric = task["metric"]
    show: Callable[[float], str] = (lambda v: percent(v, 1)) if metric == "accuracy" else number
    own = {
        m: [r for r in rows if r["method"] == m and r["task"] == task["task"] and metric in r] for m in results.labels
    }
    reach = Reach.of(ends_of(results, base)).median()
    if base is not None and math.isfinite(reach):
        others = [m for m in (results.nudge, *results.forwards_only) if m and own[m]]
        then = {
            m: max((r for r in own[m] if r["forwards"] <= reach), key=lambda r: r["step"], default=None) for m in others
        }
        known = [f"{m} at {show(row[metric])}" for m, row in then.items() if row is not None]
        known[:1] = [k.replace(" at ", " is at ", 1) for k in known[:1]]
        goal = percent(task["target"]) if metric == "accuracy" else number(task["target"])
        text = f"By the time back-propagation is at {goal}, after {number(reach)} forward-pass equivalents"
        if known:
            return f"{text}, {list_of(known[:3])}."
    last = sorted((rows[-1][metric], m) for m, rows in own.items() if rows)
    if not last:
        return f"Training on {task['task']} has begun; no figure of it is in yet."
    (low, worst), (high, best) = (last[0], last[-1]) if task["maximise"] else (last[-1], last[0])
    if show(low) == show(high):
        return f"At the end of its budget every method stands at {show(high)}."
    return f"At the end of its budget {best} stands at {show(high)}, and {worst}, the last, at {show(low)}."


def time_to_target(results: Results) -> Chart | None:
    """The share of runs that reached the target within a given amount of work."""
    kit, task = Kit(results), results.task
    reaches = {m: ends_of(results, m) for m in results.labels}
    reaches = {m: ends for m, ends in reaches.items() if ends and any(e["forwards"] > 0 for e in ends)}
    if task is None or not reaches:
        return None
    rows: list[Row] = []
    axes = ["forwards", "seconds"]
    if "interactions" in _axes(results) and any(
        "interactions_to_target" in e for ends in reaches.values() for e in ends
    ):
        axes.insert(0, "interactions")
    for axis in axes:
        spent = {m: [_spent(results, e, axis) for e in ends] for m, ends in reaches.items()}
        known = [float(v) for ends in reaches.values() for e in ends if (v := to_target(e, axis)) is not None]
        right = max([*known, *(v for values in spent.values() for v in values)]) or 10.0
        left = min(0.6 * min([v for v in known if v > 0] or [right]), right / 10)
        for method, ends in reaches.items():
            hits = sorted(float(v) for e in ends if (v := to_target(e, axis)) is not None)
            steps = [
                (left, 0.0),
                *((v, (i + 1) / len(ends)) for i, v in enumerate(hits)),
                (right, len(hits) / len(ends)),
            ]
            rows += [
                {"axis": axis, "method": method, "x": x, "share": share, "of": len(ends), "last": i == len(steps) - 1}
                for i, (x, share) in enumerate(steps)
            ]
    specs = {axis: _target_spec(kit, axis, [r["x"] for r in rows if r["axis"] == axis]) for axis in axes}
    fast = sorted((Reach.of(ends).median(), m) for m, ends in reaches.items())
    solved = [(v, m) for v, m in fast if math.isfinite(v)]
    never = [m for m, ends in reaches.items() if not Reach.of(ends).reached]
    if solved:
        text = f"Half of the runs of {solved[0][1]} are there after {number(solved[0][0])} forward-pass equivalents"
        text += (
            f"; of the methods that get there, {solved[-1][1]} is last with {number(solved[-1][0])}"
            if len(solved) > 1
            else ""
        )
    else:
        text = "No method brought half of its runs to the target"
    text += (
        f". No run of {list_of(never)} got there within its budget."
        if never
        else "; every method got there at least once."
    )
    return Chart(
        "target",
        "Success against budget",
        text,
        "Each step up is one seed reaching the target; a line that stays low did not get there within its budget.",
        {"rows": rounded(rows)},
        specs,
        [("against", axes)],
        wide=True,
    )


def _spent(results: Results, end: Any, axis: str) -> float:
    """What a run had spent at its end."""
    if axis == "forwards":
        return float(end["forwards"])
    known: list[Any] = [e for e in results.evaluations if e["study"] == "curves" and e["task"] == end["task"]]
    own = [e.get(axis) or 0.0 for e in known if e["method"] == end["method"] and e["seed"] == end["seed"]]
    return float(max(own, default=0.0))


def _target_spec(kit: Kit, axis: str, reach: list[float]) -> dict[str, Any]:
    base = alt.Chart().transform_filter(f"datum.axis == '{axis}'")
    x = alt.X("x:Q", scale=alt.Scale(type="log", nice=False), axis=log_axis(AXES[axis], reach))
    y = alt.Y(
        "share:Q",
        scale=alt.Scale(domain=[0, 1.02], nice=False),
        axis=alt.Axis(title="runs at the target", format=".0%", values=[0, 0.25, 0.5, 0.75, 1]),
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("share:Q", format=".0%", title="at the target"),
        alt.Tooltip("x:Q", format=",.3~s", title=AXES[axis]),
        alt.Tooltip("of:Q", title="runs"),
    ]
    line = base.mark_line(interpolate="step-after", strokeWidth=2).encode(
        x=x, y=y, color=kit.colour(), strokeDash=kit.dash(), opacity=kit.opacity(), detail="method:N"
    )
    dots = base.mark_point(filled=True, size=55).encode(
        x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip
    )
    return kit.finish([line, dots.transform_filter("datum.share > 0 || datum.last")], 260)
