"""One function per chart: tidy rows, a Vega-Lite specification, and a sentence that says what these rows show.

Colours and fonts come from the page's theme, so no specification names one: methods take the named range ``category``,
shares the ranges ``ramp`` and ``heatmap``. Every chart has the parameters ``shown`` (the methods that the reader left
on), ``focus`` (the one pointed at), ``ink`` and ``paper``, which the page sets in all charts at once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np
from altair.utils.schemapi import debug_mode

from dldw.compare.records import Cost
from dldw.report.data import (
    NUDGE_LIMIT,
    Growth,
    Interval,
    Reach,
    Results,
    between,
    bootstrap,
    by_weights,
    cost_of,
    duration,
    ends_of,
    growth_of_noise,
    growth_of_ratio,
    list_of,
    number,
    percent,
    power,
    ratio,
    significant,
    size,
    times,
)

Row = dict[str, Any]

SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
DASHES = ((1, 0), (6, 2), (2, 2), (8, 3, 2, 3), (4, 1), (10, 4), (1, 3), (6, 2, 2, 2))
COLOURS = 9
SLOTS = {
    "backprop": 0,
    "weight-perturbation": 1,
    "spsa": 2,
    "evolution-strategy": 3,
    "forward-gradient": 4,
    "random-search": 5,
    "finite-difference": 6,
    "untrained": 8,
}
"""The colour a method has in every report; others, and a second variant of the same, take what is free."""


COUNT = "datum.value < 1 ? format(datum.value, '~g') : replace(format(datum.value, '~s'), 'G', 'B')"
SMALL = "format(datum.value, datum.value < 1e-3 ? '.0e' : '~g')"
SHARE = "format(datum.value, datum.value < 1e-4 ? '.0e' : '~%')"


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every chart.

    Attributes:
        method: The label.
        colour: Index into the page's palette.
        shape: A Vega symbol.
        dash: Lengths of line and gap.
    """

    method: str
    colour: int
    shape: str
    dash: tuple[int, ...]


def looks(results: Results) -> list[Look]:
    """A colour, a shape and a dash for each method; no two share all three while there are fewer than 72."""
    names = {m["method"]: m["name"] for m in results.methods}
    taken: dict[str, int] = {}
    for label in results.labels:
        slot = SLOTS.get(names.get(label, label))
        if slot is not None and slot not in taken.values():
            taken[label] = slot
    free = [slot for slot in range(COLOURS) if slot not in taken.values()]
    rest = [label for label in results.labels if label not in taken]
    for i, label in enumerate(rest):
        taken[label] = free[i] if i < len(free) else COLOURS + i - len(free)
    return [
        Look(
            label,
            slot % COLOURS,
            SHAPES[(slot % COLOURS + slot // COLOURS) % len(SHAPES)],
            DASHES[(slot % COLOURS + slot // COLOURS) % len(DASHES)],
        )
        for label, slot in ((label, taken[label]) for label in results.labels)
    ]


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        id: Its anchor, and the name of its downloads.
        title: A few words.
        sentence: What to see, computed from the rows.
        note: How to read it.
        rows: Its data by name; ``rows`` is what a reader downloads.
        specs: Vega-Lite specifications by the choices that lead to them.
        choices: Groups of options, as (name, options); empty when there is one specification.
        wide: Whether it takes the whole width of the page.
        square: Whether its height follows its width.
        step: Height of one method's row, where the methods are rows.
    """

    id: str
    title: str
    sentence: str
    note: str
    rows: dict[str, list[Row]]
    specs: dict[str, dict[str, Any]]
    choices: list[tuple[str, list[str]]] = field(default_factory=list)
    wide: bool = False
    square: bool = False
    step: int = 0


def charts(results: Results) -> list[Chart]:
    """Every chart that these results have rows for, in the order of the page."""
    with debug_mode(False):  # the schema is checked in the tests; here it would take most of the time
        made = [make(results) for make in CHARTS]
    return [chart for chart in made if chart is not None]


# --- what all charts share ---


class Kit:
    """The scales of the methods, and what makes one specification of layers."""

    def __init__(self, results: Results) -> None:
        self.looks = looks(results)
        self.labels = [look.method for look in self.looks]

    def colour(self) -> Any:
        """The method's colour, without a legend: the page's chips are the legend of all charts."""
        places = [look.colour for look in self.looks]
        return alt.Color(
            "method:N", legend=None, scale=alt.Scale(domain=self.labels, range=[f"colour-{i}" for i in places])
        )

    def shape(self) -> Any:
        """The method's symbol."""
        return alt.Shape(
            "method:N", legend=None, scale=alt.Scale(domain=self.labels, range=[look.shape for look in self.looks])
        )

    def dash(self) -> Any:
        """The method's line."""
        return alt.StrokeDash(
            "method:N", legend=None, scale=alt.Scale(domain=self.labels, range=[list(look.dash) for look in self.looks])
        )

    def rank(self, label: str) -> int:
        """The method's place in every list."""
        return self.labels.index(label)

    @staticmethod
    def opacity(value: float = 1.0) -> Any:
        """Full for the method pointed at, faint for the others."""
        near = {"test": "focus == '' || focus == datum.method", "value": value}
        return alt.OpacityValue(value * 0.12, condition=near)

    def finish(self, layers: Sequence[Any], height: int = 320, **parameters: Any) -> dict[str, Any]:
        """One specification of these layers, filtered by what the reader left on; further parameters by name."""
        spec: dict[str, Any] = alt.layer(*layers, data=alt.NamedData("rows")).to_dict(validate=False)
        spec.pop("config", None)
        settings = {"shown": self.labels, "focus": "", "ink": "#222", "paper": "#fff", **parameters}
        spec["params"] = [{"name": k, "value": v} for k, v in settings.items()] + spec.get("params", [])
        left_on = {"filter": "!isValid(datum.method) || indexof(shown, datum.method) >= 0"}
        return {**spec, "width": "container", "height": height, "transform": [left_on]}


def _for_tasks(tasks: Iterable[str], specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each specification for each task: their parameter ``task`` is all that differs."""
    return {
        f"{task}/{key}".removesuffix("/"): {
            **spec,
            "params": [{**p, "value": task} if p["name"] == "task" else p for p in spec["params"]],
        }
        for task in tasks
        for key, spec in specs.items()
    }


def _log_axis(title: str, values: Sequence[float], label: str = COUNT) -> Any:
    """An axis with a label at every power of ten, and at 2 and 5 times one where the values span little."""
    known = [v for v in values if v > 0]
    narrow = bool(known) and max(known) < 200 * min(known)
    power_of_ten = "abs(log(datum.value) / LN10 - round(log(datum.value) / LN10)) < 1e-6"
    first = "substring(format(datum.value, '.0e'), 0, 1)"
    labelled = f"indexof(['1', '2', '5'], {first}) >= 0" if narrow else power_of_ten
    return alt.Axis(
        title=title,
        tickCount=8,
        labelExpr=f"{labelled} ? ({label}) : ''",
        gridOpacity=alt.condition(power_of_ten, alt.value(1), alt.value(0.4 if narrow else 0)),
    )


def _weights_axis(rows: Iterable[Row]) -> Any:
    """An axis labelled at the sizes of network that were looked at."""
    sizes = sorted({row["weights"] for row in rows})
    axis = alt.Axis(title="number of weights", values=sizes, labelExpr="replace(format(datum.value, '.2~s'), 'G', 'B')")
    return alt.X("weights:Q", scale=alt.Scale(type="log", nice=False, padding=18), axis=axis)


def _rounded(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    return [{k: significant(v, 5) if isinstance(v, float) else v for k, v in row.items() if _plain(v)} for row in rows]


def _plain(v: Any) -> bool:
    return v is not None and not (isinstance(v, float) and not math.isfinite(v))


def _thin(items: Sequence[Any], keep: int = 120) -> list[Any]:
    """At most about ``keep`` of the items, the early ones more densely, both ends always."""
    if len(items) <= keep:
        return list(items)
    picks = np.unique(np.round(np.geomspace(1, len(items), keep)).astype(int) - 1)
    return [items[i] for i in sorted({0, *picks.tolist(), len(items) - 1})]


# --- how well it learns ---

AXES = {"forwards": "forward-pass equivalents", "examples": "examples seen", "seconds": "seconds in steps"}
METRICS = {"accuracy": "test accuracy", "loss": "test loss"}


def learning_curves(results: Results) -> Chart | None:
    """Accuracy and loss against forward equivalents, examples and seconds, for every task of the run."""
    kit = Kit(results)
    rows, metrics = _curve_rows(results, kit)
    if not rows or results.task is None:
        return None
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    specs = {
        f"{metric}/{axis}": _curve_spec(kit, metric, axis, [r[axis] for r in rows])
        for metric in metrics
        for axis in AXES
    }
    return Chart(
        "curves",
        "Learning, by what it costs",
        _curve_sentence(results, rows),
        "Line: median over seeds. Band: from the lowest to the highest seed. A forward-pass equivalent is one "
        "forward pass over a batch; a backward pass counts as two.",
        {"rows": rows, "levels": _levels(results, tasks, metrics)},
        _for_tasks(tasks, specs),
        [("task", tasks), ("show", metrics), ("against", list(AXES))],
        wide=True,
    )


def _levels(results: Results, tasks: list[str], metrics: list[str]) -> list[Row]:
    """The target of each task, and where every method starts."""
    levels: list[Row] = []
    for task in tasks:
        record = next((t for t in results.tasks if t["task"] == task), None)
        for metric in metrics:
            show: Callable[[float], str] = percent if metric == "accuracy" else number
            curves: list[Any] = [e for e in results.evaluations if e["task"] == task and e["study"] == "curves"]
            start = [e[metric] for e in curves if e["step"] == 0]
            known = [v for v in start if v is not None]
            if known:
                levels.append({"task": task, "metric": metric, "what": "untrained", "level": float(np.median(known))})
            if record is not None and record["metric"] == metric:
                levels.append({"task": task, "metric": metric, "what": "target", "level": record["target"]})
            for row in levels:
                row.setdefault("text", f"{row['what']} {show(row['level'])}")
    return _rounded(levels)


def _curve_rows(results: Results, kit: Kit) -> tuple[list[Row], list[str]]:
    curves: dict[tuple[str, str], dict[int, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for e in results.evaluations:
        if e["study"] == "curves":
            curves[e["task"], e["method"]][e["seed"]][e["step"]] = e
    ended = {(e["task"], e["method"], e["seed"]) for e in results.ends if e["study"] == "curves"}
    metrics = [m for m in METRICS if any(e.get(m) is not None for e in results.evaluations)]
    rows = []
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
            row |= {axis: float(np.median([e[axis] for e in now])) for axis in AXES}
            for metric in metrics:
                values = [math.inf if e[metric] is None else e[metric] for e in last.values()]
                finite = [v for v in values if math.isfinite(v)]
                if finite and math.isfinite(float(np.median(values))):
                    row |= {
                        metric: float(np.median(values)),
                        f"{metric} low": min(finite),
                        f"{metric} high": max(finite),
                    }
            row["seeds"] = len(last)
            whole.append(row)
        thinned = _thin(whole)
        if thinned:
            thinned[-1]["last"] = True
        rows += thinned
    return _rounded(rows), metrics


def _curve_spec(kit: Kit, metric: str, axis: str, reach: list[float]) -> dict[str, Any]:
    base = alt.Chart().transform_filter(f"datum.task == task && datum.step > 0 && isValid(datum['{metric}'])")
    x = alt.X(f"{axis}:Q", scale=alt.Scale(type="log", nice=False), axis=_log_axis(AXES[axis], reach))
    shown = ".0%" if metric == "accuracy" else "~g"
    scale = alt.Scale(zero=False, nice=True)
    y_axis = alt.Axis(title=METRICS[metric], format=shown, tickCount=6)
    y = alt.Y(f"{metric}:Q", scale=scale, axis=y_axis)
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip(f"{metric}:Q", format=".1%" if metric == "accuracy" else ".3~g", title="median"),
        alt.Tooltip(f"{metric} low:Q", format=".1%" if metric == "accuracy" else ".3~g", title="lowest seed"),
        alt.Tooltip(f"{metric} high:Q", format=".1%" if metric == "accuracy" else ".3~g", title="highest seed"),
        *(alt.Tooltip(f"{a}:Q", format=",.3~s" if a == "seconds" else ",.0f", title=t) for a, t in AXES.items()),
        alt.Tooltip("seeds:Q"),
    ]
    near = alt.selection_point(name="near", on="pointerover", nearest=True, empty=False, clear="pointerout")
    layers = [
        base.mark_area(clip=True).encode(
            x=x, y=y.copy(), y2=f"{metric} high:Q", color=kit.colour(), opacity=kit.opacity(0.14)
        ),
        base.mark_line(strokeWidth=2, clip=True).encode(
            x=x, y=y, color=kit.colour(), strokeDash=kit.dash(), opacity=kit.opacity(), detail="method:N"
        ),
        base.transform_filter("datum.last")
        .mark_point(size=55, filled=True, clip=False)
        .encode(x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip),
        base.mark_point(size=70, filled=True)
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
    layers[0] = layers[0].encode(y=alt.Y(f"{metric} low:Q", scale=scale, axis=y_axis))
    here = (
        alt.Chart(alt.NamedData("levels"))
        .transform_filter(f"datum.task == task && datum.metric == '{metric}'")
        .encode(y="level:Q")
    )
    target, start = here.transform_filter("datum.what == 'target'"), here.transform_filter("datum.what == 'untrained'")
    above: Any = "bottom" if metric == "accuracy" else "top"
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
    return f"At the end of its budget {best} stands at {show(high)}, and {worst}, the last, at {show(low)}."


def time_to_target(results: Results) -> Chart | None:
    """The share of runs that reached the target within a given amount of work."""
    kit, task = Kit(results), results.task
    reaches = {m: ends_of(results, m) for m in results.labels}
    reaches = {m: ends for m, ends in reaches.items() if ends and any(e["forwards"] > 0 for e in ends)}
    if task is None or not reaches:
        return None
    rows: list[Row] = []
    for axis in ("forwards", "seconds"):
        key = f"{axis}_to_target"
        spent = {
            m: [e["forwards"] if axis == "forwards" else _seconds(results, e) for e in ends]
            for m, ends in reaches.items()
        }
        known = [float(v) for ends in reaches.values() for e in ends if (v := e[key]) is not None]  # type: ignore[literal-required]
        left = 0.6 * min([v for v in known if v > 0] or [1.0])
        right = max([*known, *(v for values in spent.values() for v in values if v), left * 10])
        for method, ends in reaches.items():
            hits = sorted(float(v) for e in ends if (v := e[key]) is not None)  # type: ignore[literal-required]
            steps = [
                (left, 0.0),
                *((v, (i + 1) / len(ends)) for i, v in enumerate(hits)),
                (right, len(hits) / len(ends)),
            ]
            rows += [
                {"axis": axis, "method": method, "x": x, "share": share, "of": len(ends), "last": i == len(steps) - 1}
                for i, (x, share) in enumerate(steps)
            ]
    specs = {
        axis: _target_spec(kit, axis, [r["x"] for r in rows if r["axis"] == axis]) for axis in ("forwards", "seconds")
    }
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
        "Time to target",
        text,
        "Each step up is one seed reaching the target; a line that stays low did not get there within its budget.",
        {"rows": _rounded(rows)},
        specs,
        [("against", ["forwards", "seconds"])],
        wide=True,
    )


def _seconds(results: Results, end: Any) -> float:
    last = [
        e["seconds"]
        for e in results.evaluations
        if e["method"] == end["method"]
        and e["seed"] == end["seed"]
        and e["study"] == "curves"
        and e["task"] == end["task"]
    ]
    return max(last, default=0.0)


def _target_spec(kit: Kit, axis: str, reach: list[float]) -> dict[str, Any]:
    base = alt.Chart().transform_filter(f"datum.axis == '{axis}'")
    x = alt.X("x:Q", scale=alt.Scale(type="log", nice=False), axis=_log_axis(AXES[axis], reach))
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


# --- what a step costs ---


def _costs(results: Results) -> list[Cost]:
    """What a step costs, of every method on every task at its own width, the task asked for first."""
    found = [c for m in results.labels if (c := cost_of(results, m)) is not None]
    own = results.task["task"] if results.task else None
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
    axis = _log_axis(title, values) if wide_range else alt.Axis(title=title, tickCount=5)
    y = _methods_axis([r["method"] for r in sorted(rows, key=lambda r: (r["task"] != tasks[0], r["time"]))])
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
        {"rows": _rounded(rows)},
        _for_tasks(tasks, {"": kit.finish(layers, task="")}),
        [("task", tasks)],
        step=30,
    )


def _methods_axis(order: list[str]) -> Any:
    axis = alt.Axis(title=None, ticks=False, domain=False, labelPadding=6, grid=False)
    return alt.Y("method:N", sort=order, axis=axis)


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
    axis = _log_axis(title, [r["peak"] for r in rows]) if spread else alt.Axis(title=title, tickCount=5, format="~g")
    y = _methods_axis([r["method"] for r in sorted(rows, key=lambda r: (r["task"] != tasks[0], r["peak"]))])
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
        {"rows": _rounded(rows)},
        _for_tasks(tasks, {"": kit.finish([bar, floor], task="")}),
        [("task", tasks)],
        step=30,
    )


# --- how good the estimate is ---


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
    x = _weights_axis(rows)
    positive = all(r["cosine"] > 0 for r in rows)
    y_scale = alt.Scale(type="log", nice=True) if positive else alt.Scale(nice=True)
    y_title = "cosine to the exact gradient"
    y_axis = _log_axis(y_title, [r["low"] for r in rows], SMALL) if positive else alt.Axis(title=y_title, tickCount=5)
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
        {"rows": _rounded(rows)},
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
    x_axis = _log_axis("size of the nudge |dw|", [r["dw"] for r in rows], SMALL)
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
        axis = _log_axis(title, errors, SHARE) if key == "error" else alt.Axis(title=title, format="~%", tickCount=5)
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
        {"rows": _rounded(rows)},
        specs,
        [("show", ["error", "wrong sign"])],
    )


def _as_asked(row: Row) -> str:
    return ", the largest in the question," if abs(row["dw"] - 0.1) < 1e-6 else ""


def _tiny_percent(share: float) -> str:
    return percent(share, 1) if share >= 5e-4 else f"{number(100 * share)} %"


# --- how it grows ---


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
    x = _weights_axis(rows)
    y_scale = alt.Scale(type="log", nice=True)
    y_axis = _log_axis("forwards to target ÷ backprop’s", [1.0, *(r["ratio"] for r in rows)])
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
        {"rows": _rounded(rows)},
        {"": kit.finish(layers, 320)},
    )


# --- where it fails ---


def failures(results: Results) -> Chart | None:
    """The share of runs that missed the target over learning rate × method."""
    kit = Kit(results)
    table: dict[tuple[str, float], list[Any]] = defaultdict(list)
    name = results.task["task"] if results.task else None
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
                "rate": f"{factor:g}".replace("e-0", "e-") + "×",
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
    y = _methods_axis(list(dict.fromkeys(r["method"] for r in rows)))
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
        {"rows": _rounded(rows)},
        {"": kit.finish(layers)},
        step=46,
    )


# --- two weights ---


def landscape(results: Results) -> Chart | None:
    """The loss over two weights, and the way every method takes through it."""
    kit, task = Kit(results), results.task
    found = next((s for s in results.landscapes if task is None or s["task"] == task["task"]), None)
    if found is None:
        return None
    xs, ys = np.asarray(found["x"], dtype=float), np.asarray(found["y"], dtype=float)
    loss = np.array([[math.nan if v is None else v for v in line] for line in found["loss"]], dtype=float)
    cells = _bands(xs, ys, loss)
    rows, ends = [], {}
    for p in results.paths:
        if p["task"] != found["task"]:
            continue
        points = _thin(list(zip(p["x"], p["y"], p["loss"], p["forwards"], strict=True)), 160)
        for i, (x, y, value, forwards) in enumerate(points):
            row = {
                "method": p["method"],
                "order": i,
                "x": x,
                "y": y,
                "loss": value,
                "forwards": forwards,
                "end": i == len(points) - 1,
            }
            rows.append(row)
        if points:
            ends[p["method"]] = (points[-1][2], points[-1][3])
    names = [_short(n) for n in found["names"]]
    domain_x, domain_y = [float(xs.min()), float(xs.max())], [float(ys.min()), float(ys.max())]
    x = alt.X(
        "x:Q", scale=alt.Scale(domain=domain_x, nice=False), axis=alt.Axis(title=names[0], grid=False, tickCount=5)
    )
    y = alt.Y(
        "y:Q", scale=alt.Scale(domain=domain_y, nice=False), axis=alt.Axis(title=names[1], grid=False, tickCount=5)
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("forwards:Q", format=",.0f"),
        alt.Tooltip("loss:Q", format=".4~g"),
        alt.Tooltip("x:Q", format=".3~g", title=names[0]),
        alt.Tooltip("y:Q", format=".3~g", title=names[1]),
    ]
    ground = (
        alt.Chart(alt.NamedData("cells"))
        .mark_rect(clip=True)
        .encode(
            x=x,
            x2="x2:Q",
            y=y,
            y2="y2:Q",
            color=alt.Color(
                "level:Q", legend=None, scale=alt.Scale(domain=[0, 11], range="heatmap", interpolate="rgb")
            ),
            tooltip=[
                alt.Tooltip("low:Q", format=".3~g", title="loss from"),
                alt.Tooltip("high:Q", format=".3~g", title="to"),
            ],
        )
    )
    base = alt.Chart()
    line: dict[str, Any] = {"x": x, "y": y, "order": alt.Order("order:Q"), "detail": "method:N"}
    layers = [
        ground,
        base.mark_line(strokeWidth=4.5, clip=True, color=alt.expr("paper")).encode(opacity=kit.opacity(0.7), **line),
        base.mark_line(strokeWidth=2, clip=True).encode(color=kit.colour(), opacity=kit.opacity(), **line),
        base.mark_point(size=26, opacity=0, filled=True, clip=True).encode(x=x, y=y, tooltip=tooltip),
        base.transform_filter("datum.end")
        .mark_point(size=110, filled=True, clip=True, stroke=alt.expr("paper"), strokeWidth=1.5)
        .encode(x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip),
        base.transform_filter("datum.order == 0")
        .mark_point(
            size=60, filled=True, color=alt.expr("ink"), stroke=alt.expr("paper"), strokeWidth=1.5, opacity=1, clip=True
        )
        .encode(x=x, y=y),
    ]
    if ends:
        low, high = min(ends, key=lambda m: ends[m][0]), max(ends, key=lambda m: ends[m][0])
        text = (
            f"From the same start {low} ends lowest, at a loss of {number(ends[low][0])} after "
            f"{number(ends[low][1])} forwards"
        )
        text += f", {high} highest, at {number(ends[high][0])} after {number(ends[high][1])}." if high != low else "."
    else:
        text = (
            f"Over these two weights the loss lies between {number(float(np.nanmin(loss)))} and "
            f"{number(float(np.nanmax(loss)))}; no path was recorded."
        )
    return Chart(
        "landscape",
        "Two weights, and the ways down",
        text,
        "Shade: the loss over two weights, all others fixed, in twelve bands of equal area; the lightest is lowest "
        "(in the dark, the darkest). Black dot: the common start. Large symbols: where each method ended.",
        {"rows": _rounded(rows), "cells": cells},
        {"": kit.finish(layers, 480)},
        wide=True,
        square=True,
    )


def _bands(xs: Any, ys: Any, loss: Any, fine: int = 150, count: int = 12) -> list[Row]:
    """The landscape as stripes of one level each, on a grid made finer by linear interpolation."""
    fine_x, fine_y = np.linspace(xs.min(), xs.max(), 2 * fine), np.linspace(ys.min(), ys.max(), fine)
    lines = np.array([np.interp(fine_x, xs, line) for line in loss])
    surface = np.array([np.interp(fine_y, ys, column) for column in lines.T]).T
    if not np.isfinite(surface).any():
        return []
    edges = np.quantile(surface[np.isfinite(surface)], np.linspace(0, 1, count + 1))
    levels = np.where(np.isfinite(surface), np.searchsorted(edges[1:-1], surface), -1)
    half_x, half_y = (fine_x[1] - fine_x[0]) / 2, (fine_y[1] - fine_y[0]) / 2
    cells = []
    for y, line in zip(fine_y, levels, strict=True):
        starts = [0, *(np.flatnonzero(np.diff(line)) + 1).tolist()]
        for start, stop in zip(starts, [*starts[1:], len(line)], strict=True):
            level = int(line[start])
            if level >= 0:
                x, x2 = fine_x[start] - half_x, fine_x[stop - 1] + half_x
                cell = {
                    "x": x,
                    "x2": x2,
                    "y": y - half_y,
                    "y2": y + half_y,
                    "low": edges[level],
                    "high": edges[level + 1],
                }
                cells.append({k: significant(float(v), 4) for k, v in cell.items()} | {"level": level})
    return cells


def _short(name: str) -> str:
    return name if len(name) <= 32 else "…" + name[-31:]


# --- what the settings cost ---


def tuning(results: Results) -> Chart | None:
    """The score of every trial of settings, and what the search cost."""
    kit = Kit(results)
    if not results.tunings:
        return None
    accuracy = results.task is None or results.task["metric"] == "accuracy"
    rows = [
        {
            "method": t["method"],
            "trial": t["trial"],
            "score": t["score"],
            "chosen": t["chosen"],
            "forwards": t["forwards"],
            "seconds": t["seconds"],
            "settings": ", ".join(
                f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in t["settings"].items()
            ),
        }
        for t in sorted(results.tunings, key=lambda t: (t["chosen"], t["trial"]))
    ]
    x = alt.X(
        "score:Q",
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(
            title="validation accuracy of a trial" if accuracy else "validation loss of a trial",
            format=".0%" if accuracy else "~g",
            tickCount=5,
        ),
    )
    known = [m for m in results.labels if any(t["method"] == m for t in results.tunings)]
    y = _methods_axis(known + [m for m in dict.fromkeys(t["method"] for t in results.tunings) if m not in known])
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("trial:Q"),
        alt.Tooltip("score:Q", format=".1%" if accuracy else ".3~g"),
        alt.Tooltip("settings:N"),
        alt.Tooltip("forwards:Q", format=",.0f"),
        alt.Tooltip("seconds:Q", format=".2~f"),
    ]
    base = alt.Chart().transform_filter("isValid(datum.score)")
    layers = [
        base.mark_tick(thickness=2, size=16).encode(
            x=x, y=y, color=kit.colour(), opacity=kit.opacity(0.55), tooltip=tooltip
        ),
        base.transform_filter("datum.chosen")
        .mark_point(filled=True, size=90)
        .encode(x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip),
    ]
    spent: dict[str, float] = defaultdict(float)
    for t in results.tunings:
        spent[t["method"]] += t["forwards"]
    dear = max(spent, key=lambda m: spent[m])
    lost = sum(t["score"] is None for t in results.tunings)
    text = (
        f"{len(rows)} trials over {len(spent)} methods took {number(sum(spent.values()))} forward-pass equivalents and "
        f"{duration(sum(t['seconds'] for t in results.tunings))}, most of it for {dear} ({number(spent[dear])})"
    )
    return Chart(
        "tuning",
        "What finding the settings cost",
        text + (f"; {lost} trials diverged." if lost else "; no trial diverged."),
        "One tick per trial, on the validation split; the large symbol is the trial whose settings were used.",
        {"rows": _rounded(rows)},
        {"": kit.finish(layers)},
        step=30,
        wide=True,
    )


CHARTS: tuple[Callable[[Results], Chart | None], ...] = (
    learning_curves,
    time_to_target,
    step_cost,
    memory,
    cosine,
    quotient,
    growth,
    failures,
    landscape,
    tuning,
)
