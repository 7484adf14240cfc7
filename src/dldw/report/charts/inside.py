"""What was seen inside the models: where estimates point as training goes on, and what every layer knows."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from dldw.compare.records import Inside
from dldw.report.charts.kit import Chart, Kit, Row, log_axis, rounded
from dldw.report.results import Results
from dldw.report.words import list_of, number, percent

SHARES = {"all weights": "angle", "first layer": "first"}


def insides_of(results: Results) -> list[Inside]:
    """Those on the task of the run, one for each method, in the order of the methods."""
    kit, name = Kit(results), results.task_name
    first = {i["method"]: i for i in reversed(results.insides) if i["task"] == name and i["method"] in kit.labels}
    return sorted(first.values(), key=lambda i: kit.rank(i["method"]))


def alignment(results: Results) -> Chart | None:
    """The angle between estimates and the exact gradient over a training run."""
    kit = Kit(results)
    rows: list[Row] = [
        {"method": i["method"], **a, "last": a is i["angles"][-1]}
        for i in insides_of(results)
        for a in i["angles"]
        if a["forwards"] > 0
    ]
    if not rows:
        return None
    x = alt.X(
        "forwards:Q",
        scale=alt.Scale(type="log", nice=False),
        axis=log_axis("forward-pass equivalents", [r["forwards"] for r in rows]),
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("angle:Q", format=".1f", title="all weights, °"),
        alt.Tooltip("first:Q", format=".1f", title="first layer, °"),
        alt.Tooltip("forwards:Q", format=",.0f"),
        alt.Tooltip("step:Q", format=","),
    ]
    specs = {}
    for name, field in SHARES.items():
        base = alt.Chart().transform_filter(f"isValid(datum.{field})")
        top = max([100.0, *(r[field] for r in rows if r[field] is not None)])
        axis = alt.Axis(title="angle to the exact gradient", labelExpr="datum.value + '°'", values=[*range(0, 181, 30)])
        y = alt.Y(f"{field}:Q", scale=alt.Scale(domain=[0, top], nice=False), axis=axis)
        square = alt.Chart(alt.NamedData("right")).encode(y="angle:Q")
        specs[name] = kit.finish(
            [
                square.mark_rule(strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6),
                square.mark_text(
                    align="left", baseline="bottom", dx=4, dy=-3, color=alt.expr("ink"), opacity=0.7, fontSize=11
                ).encode(x=alt.value(0), text="text:N"),
                base.mark_line(strokeWidth=2).encode(
                    x=x, y=y, color=kit.colour(), strokeDash=kit.dash(), opacity=kit.opacity(), detail="method:N"
                ),
                base.mark_point(size=90, opacity=0, filled=True).encode(x=x, y=y, tooltip=tooltip),
                base.transform_filter("datum.last")
                .mark_point(size=55, filled=True)
                .encode(x=x, y=y, color=kit.colour(), shape=kit.shape(), opacity=kit.opacity(), tooltip=tooltip),
            ],
            340,
        )
    return Chart(
        "alignment",
        "Where estimates point as training goes on",
        _turned(rows),
        "The angle between one estimate of each method and the exact gradient of the task’s loss, on a batch that stays the "
        "same, at the weights the method has come to. At 90° a step leads neither down nor up. Feedback alignment: the "
        "weights come to align with the feedback. Exact methods are at 0° and not drawn.",
        {"rows": rounded(rows), "right": [{"angle": 90, "text": "90°: as good as any direction"}]},
        specs,
        [("over", list(specs))],
    )


def _turned(rows: Sequence[Row]) -> str:
    """The angles in the first layer, at first and at their least, of the methods in which they fell most."""
    told = []
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r["first"] for r in rows if r["method"] == method and r["first"] is not None]
        if own:
            told.append((min(own) - own[0], own[0], method))
    told.sort()
    if not told:
        return "No estimate could be held against the exact gradient."
    parts = [
        f"{m} comes from {first:.0f}° to {first + fall:.0f}°" if fall < -1 else f"{m} stays at {first:.0f}° or more"
        for fall, first, m in told[:3]
    ]
    return f"In the first layer, the estimate of {list_of(parts)}."


def layers(results: Results) -> Chart | None:
    """The accuracy of a linear read-out of every layer."""
    kit = Kit(results)
    found = [i for i in insides_of(results) if len(i["layers"]) > 2]
    if not found:
        return None
    rows: list[Row] = [
        {
            "method": i["method"],
            "layer": _place(a["layer"], len(i["layers"])),
            "number": a["layer"],
            "features": a["features"],
            "accuracy": a["accuracy"],
        }
        for i in found
        for a in i["layers"]
    ]
    order = list(dict.fromkeys(r["layer"] for r in sorted(rows, key=lambda r: (r["layer"] == "output", r["number"]))))
    x = alt.X("layer:O", sort=order, scale=alt.Scale(padding=0.3), axis=alt.Axis(title=None, labelAngle=0))
    y = alt.Y(
        "accuracy:Q",
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(title="held-out accuracy of a linear read-out", format=".0%", tickCount=6),
    )
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("layer:O"),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("features:Q", format=","),
    ]
    base = alt.Chart()
    marks = {"x": x, "y": y, "color": kit.colour(), "opacity": kit.opacity()}
    layers = [
        base.mark_line(strokeWidth=2).encode(**marks, strokeDash=kit.dash(), detail="method:N"),
        base.mark_point(filled=True, size=65).encode(**marks, shape=kit.shape(), tooltip=tooltip),
    ]
    hidden = {
        i["method"]: (i["layers"][0]["accuracy"] or 0.0, max(a["accuracy"] or 0.0 for a in i["layers"][1:-1]))
        for i in found
    }
    ahead = sorted(hidden, key=lambda m: -hidden[m][1])
    best, last = ahead[0], ahead[-1]
    text = (
        f"A linear read-out of the pixels themselves is right for {percent(hidden[best][0], 1)}; of the best hidden layer "
        f"that {best} has trained, for {percent(hidden[best][1], 1)}"
    )
    text += f", and of {last}’s, for {percent(hidden[last][1], 1)}." if last != best else "."
    return Chart(
        "layerwise",
        "What every layer knows",
        text,
        f"After {number(found[0]['forwards'])} forward-pass equivalents: the test accuracy of ridge regression from what "
        "each layer hands on to the classes, fitted on training examples; last, the accuracy of the model itself.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers, 340)},
    )


def _place(layer: int, count: int) -> str:
    return "input" if layer == 0 else "output" if layer == count - 1 else f"layer {layer}"
