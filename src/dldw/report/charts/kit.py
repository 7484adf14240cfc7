"""What all charts share: the look of a method, the chart itself, scales, axes and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import numpy as np

from dldw.report.results import Results
from dldw.report.words import significant

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
SHARE = "datum.value < 1e-4 ? format(100 * datum.value, '.0e') + '%' : format(datum.value, ',~%')"


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
        aspect: Height over width, where it shows images.
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
    aspect: float = 0.0
    step: int = 0


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


def for_tasks(tasks: Iterable[str], specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each specification for each task: their parameter ``task`` is all that differs."""
    return {
        f"{task}/{key}".removesuffix("/"): {
            **spec,
            "params": [{**p, "value": task} if p["name"] == "task" else p for p in spec["params"]],
        }
        for task in tasks
        for key, spec in specs.items()
    }


def log_axis(title: str, values: Sequence[float], label: str = COUNT) -> Any:
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


def loss_y(field: str, title: str, values: Iterable[float], lowest: float = 0.0) -> Any:
    """An axis for what cannot be negative: logarithmic where it falls by so many powers of ten that no other shows it.

    Args:
        field: What is drawn.
        title: Of the axis.
        values: All that is drawn.
        lowest: What lies below is drawn here, where the axis is logarithmic.
    """
    known = [v for v in values if math.isfinite(v)]
    positive = [v for v in known if v > 0]
    if min(known, default=-1.0) < 0 or not positive or max(positive) < 1000 * min(positive):
        return alt.Y(
            field, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(title=title, format=",~r", tickCount=6)
        )
    least = max(lowest, min(positive))
    scale = alt.Scale(type="log", nice=False, clamp=True, domainMin=least)
    return alt.Y(field, scale=scale, axis=log_axis(title, [least, max(positive)], SMALL))


def weights_axis(rows: Iterable[Row]) -> Any:
    """An axis labelled at the sizes of network that were looked at."""
    sizes = sorted({row["weights"] for row in rows})
    if sizes[-1] > 1000 * sizes[0]:
        axis = log_axis("number of weights", sizes)
        return alt.X("weights:Q", scale=alt.Scale(type="log", nice=False, padding=18), axis=axis)
    axis = alt.Axis(title="number of weights", values=sizes, labelExpr="replace(format(datum.value, '.2~s'), 'G', 'B')")
    return alt.X("weights:Q", scale=alt.Scale(type="log", nice=False, padding=18), axis=axis)


def rounded(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows with five significant digits, without what is absent or not finite."""
    return [{k: significant(v, 5) if isinstance(v, float) else v for k, v in row.items() if _plain(v)} for row in rows]


def _plain(v: Any) -> bool:
    return v is not None and not (isinstance(v, float) and not math.isfinite(v))


def thin(items: Sequence[Any], keep: int = 120) -> list[Any]:
    """At most about ``keep`` of the items, the early ones more densely, both ends always."""
    if len(items) <= keep:
        return list(items)
    picks = np.unique(np.round(np.geomspace(1, len(items), keep)).astype(int) - 1)
    return [items[i] for i in sorted({0, *picks.tolist(), len(items) - 1})]


def methods_axis(order: list[str]) -> Any:
    """Methods as rows, in this order."""
    axis = alt.Axis(title=None, ticks=False, domain=False, labelPadding=10, grid=False)
    return alt.Y("method:N", sort=order, axis=axis)
