"""What populations do as they search: their best and median losses, and how far apart their members are."""

from __future__ import annotations

from collections import defaultdict
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
from dldw.report.results import Results
from dldw.report.words import number

FIGURES = {"best": "generation_best", "median": "generation_median", "diversity": "diversity"}


def generations(results: Results) -> Chart | None:
    """Best and median loss of each generation, of every method that has generations."""
    kit, rows = Kit(results), _rows(results, ("best", "median"))
    if not rows:
        return None
    values = [r[name] for r in rows for name in ("best", "median")]
    y = loss_y("best:Q", "loss on its batch", values)
    tooltip = [alt.Tooltip("best:Q", format=".3~g"), alt.Tooltip("median:Q", format=".3~g")]
    between = _base().mark_area().encode(x=_x(rows), y=y, y2="median:Q", color=kit.colour(), opacity=kit.opacity(0.14))
    middle = (
        _base()
        .mark_line(strokeWidth=1, strokeDash=[2, 2])
        .encode(
            x=_x(rows), y=loss_y("median:Q", "loss on its batch", values), color=kit.colour(), opacity=kit.opacity()
        )
    )
    last = _last(rows)
    near, far = (pick(last, key=lambda r: float(r["median"] - r["best"])) for pick in (min, max))
    text = f"In the last generation {near['method']} has the median closest to the best: {_pair(near)}"
    text += f"; {far['method']} has it farthest: {_pair(far)}." if far is not near else "."
    return Chart(
        "generations",
        "The best and the middle of each generation",
        text,
        "Upper line of a band: the median candidate's loss on its batch; lower line, with the symbol: the best "
        "one's. Medians over seeds; a batch more or less easy shows as a jag.",
        {"rows": rounded(rows)},
        for_tasks(_tasks(rows), {"": kit.finish([between, middle, *_lines(kit, rows, y, tooltip)], task="")}),
        [("task", _tasks(rows))],
    )


def diversity(results: Results) -> Chart | None:
    """How far apart the candidates of a generation are."""
    kit, rows = Kit(results), _rows(results, ("diversity",))
    if not rows:
        return None
    y = loss_y("diversity:Q", "deviation of a weight", [r["diversity"] for r in rows])
    tooltip = [alt.Tooltip("diversity:Q", format=".3~g")]
    last = _last(rows)
    first = {r["method"]: r["diversity"] for r in reversed(rows) if r["task"] == last[0]["task"]}
    shrunk = sorted((r["diversity"] / first[r["method"]], r["method"]) for r in last if first[r["method"]])
    wide = max(last, key=lambda r: float(r["diversity"]))
    text = f"At the end a weight deviates most with {wide['method']}, by {number(wide['diversity'])}"
    if shrunk:
        ratio, method = shrunk[0]
        text += f"; {method} has kept least of its first generation's, {number(100 * ratio)}\u00a0%"
    return Chart(
        "diversity",
        "How far apart a population is",
        f"{text}.",
        "Root mean square distance of a weight from its mean over the candidates of a generation, median over seeds. "
        "A population that has collapsed searches no further.",
        {"rows": rounded(rows)},
        for_tasks(_tasks(rows), {"": kit.finish(_lines(kit, rows, y, tooltip), task="")}),
        [("task", _tasks(rows))],
    )


def _rows(results: Results, names: tuple[str, ...]) -> list[Row]:
    """These figures of each generation that was looked at, the median over seeds."""
    found: dict[tuple[str, str], dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for e in results.evaluations:
        if e["study"] == "curves" and all(e.get(FIGURES[name]) is not None for name in names):
            found[e["task"], e["method"]][e["step"]].append(e)
    labels, rows = results.labels, []
    for (task, method), steps in sorted(found.items(), key=lambda item: labels.index(item[0][1])):
        own: list[Row] = [
            {"task": task, "method": method, "generation": step, "forwards": at[0]["forwards"], "seeds": len(at)}
            | {name: float(np.median([e[FIGURES[name]] for e in at])) for name in names}
            for step, at in sorted(steps.items())
        ]
        own = thin(own)
        own[-1]["last"] = True
        rows += own
    asked = results.task_name
    return sorted(rows, key=lambda r: bool(r["task"] != asked))


def _tasks(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r["task"] for r in rows))


def _last(rows: list[Row]) -> list[Row]:
    """The last generation of each method on the first of the tasks."""
    return [r for r in rows if r.get("last") and r["task"] == rows[0]["task"]]


def _pair(row: Row) -> str:
    return f"{number(row['median'])} and {number(row['best'])}"


def _base() -> Any:
    return alt.Chart().transform_filter("datum.task == task")


def _x(rows: list[Row]) -> Any:
    axis = log_axis("generation", [r["generation"] for r in rows])
    return alt.X("generation:Q", scale=alt.Scale(type="log", nice=False), axis=axis)


def _lines(kit: Kit, rows: list[Row], y: Any, figures: list[Any]) -> list[Any]:
    """A line for each method, with its symbol at the end; every point answers when it is pointed at."""
    marks: dict[str, Any] = {"x": _x(rows), "y": y, "color": kit.colour()}
    tooltip = [
        alt.Tooltip("method:N"), *figures, alt.Tooltip("generation:Q", format=","),
        alt.Tooltip("forwards:Q", format=",.0f", title="forward-pass equivalents"), alt.Tooltip("seeds:Q"),
    ]  # fmt: skip
    near = alt.selection_point(name="near", on="pointerover", clear="pointerout", empty=False)
    hidden = alt.OpacityValue(0, condition={"param": "near", "empty": False, "value": 1})
    points: dict[str, Any] = {**marks, "shape": kit.shape(), "tooltip": tooltip}
    return [
        _base()
        .mark_line(strokeWidth=2)
        .encode(**marks, strokeDash=kit.dash(), opacity=kit.opacity(), detail="method:N"),
        _base().transform_filter("datum.last").mark_point(size=55, filled=True).encode(**points, opacity=kit.opacity()),
        _base().mark_point(size=110, filled=True).encode(**points, opacity=hidden).add_params(near),
    ]
