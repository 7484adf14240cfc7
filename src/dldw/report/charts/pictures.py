"""What a Boltzmann machine has learnt, as images: filters, samples, chains over time, occluded digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import altair as alt

from dldw.compare.records import PictureRecord
from dldw.report.charts.inside import insides_of
from dldw.report.charts.kit import Chart, Kit, Row
from dldw.report.results import Results
from dldw.report.words import list_of, number, percent

GAP, CAPTION = 0.12, 0.42  # between images, and above one that has a caption, in image widths
Said = Callable[[str, Mapping[str, float]], str]
MOST = 6
"""Methods whose images are shown, those first whose models became best."""


def filters(results: Results) -> Chart | None:
    """The weights of the hidden units."""
    return _pictures(
        results,
        "filters",
        "What the hidden units look for",
        "The weights of hidden units, each as an image: blue where a lit pixel speaks against the unit, orange where it "
        "speaks for it.",
        lambda m, f: f"{m}: {number(f['largest weight'])}",
        "The largest weight of each machine, by the method that trained it: ",
    )


def samples(results: Results) -> Chart | None:
    """What the machine makes up."""
    return _pictures(
        results,
        "samples",
        "What the machine makes up",
        "First row: digits of the test split. Below: chains that began at random pixels, after a thousand steps of Gibbs "
        "sampling; shade is the probability of a lit pixel.",
        lambda m, f: f"{m} {number(f['metric'])}",
        "Digits that nobody wrote, below real ones; {name} at the end: ",
    )


def chains(results: Results) -> Chart | None:
    """Chains over time."""
    return _pictures(
        results,
        "chains",
        "How far chains wander",
        "Each row is one chain of Gibbs sampling that began at a test digit, after as many steps as the column says. What "
        "is left is the share of the first image, less the mean digit, that is still in the state, over 100 chains.",
        lambda m, f: (
            f"with {m} {percent(f['left after 10'])} after 10 steps and {percent(f['left after 1000'])} after 1,000"
        ),
        "Of the first image there is left, ",
    )


def occluded(results: Results) -> Chart | None:
    """Digits with their lower half taken away."""
    return _pictures(
        results,
        "occluded",
        "What belongs in the missing half",
        "The lower half of test digits is taken away and filled in by Gibbs sampling with the upper half held fixed. Errors "
        "are root mean squares over all test digits’ missing pixels.",
        lambda m, f: f"{m} {number(f['error'])}",
        "Error of a filled-in pixel, where the mean digit has {error of the mean image}: ",
    )


def _pictures(results: Results, name: str, title: str, note: str, said: Said, lead: str) -> Chart | None:
    """The images of one name, of each method whose model has them; ``lead`` and ``said`` make the sentence of figures."""
    kit = Kit(results)
    best = sorted(
        (i for i in insides_of(results) if any(p["name"] == name for p in i["pictures"])),
        key=lambda i: (-1 if results.task and results.task["maximise"] else 1) * (i["metric"] or 0.0),
    )[:MOST]
    if not best:
        return None
    found = {i["method"]: next(p for p in i["pictures"] if p["name"] == name) for i in best}
    rows = [row for method, picture in found.items() for row in _tiles(method, picture)]
    first = next(iter(found.values()))
    across, down = _extent(first)
    figures = {i["method"]: {"metric": i["metric"] or 0.0, **found[i["method"]]["figures"]} for i in best}
    for key, value in next(iter(figures.values())).items():
        lead = lead.replace("{" + key + "}", number(value))
    lead = lead.replace("{name}", results.task["metric"] if results.task else "")
    return Chart(
        name,
        title,
        f"{lead}{list_of([said(m, f) for m, f in list(figures.items())[:3]])}.",
        note,
        {"rows": rows, "captions": _captions(first)},
        {method: _spec(kit, method, first, across, down) for method in found},
        [("trained by", list(found))],
        aspect=down / across,
    )


def _places(picture: PictureRecord) -> tuple[list[float], list[float]]:
    """The left edge of every column and the top of every row, in image widths."""
    x = [c * (1 + GAP) for c in range(len(picture["pixels"][0]))]
    y, at = [], CAPTION if picture["columns"] else 0.0
    for row in range(len(picture["pixels"])):
        at += CAPTION if row < len(picture["rows"]) and picture["rows"][row] else 0.0
        y.append(at)
        at += _height(picture) + GAP
    return x, y


def _height(picture: PictureRecord) -> float:
    return picture["size"][0] / picture["size"][1]


def _extent(picture: PictureRecord) -> tuple[float, float]:
    x, y = _places(picture)
    return x[-1] + 1, y[-1] + _height(picture)


def _tiles(method: str, picture: PictureRecord) -> list[Row]:
    """One row for each image: where it is, and its pixels."""
    x, y = _places(picture)
    return [
        {"method": method, "row": r, "column": c, "x": round(x[c], 3), "y": round(y[r], 3), "pixels": pixels}
        for r, line in enumerate(picture["pixels"])
        for c, pixels in enumerate(line)
    ]


def _captions(picture: PictureRecord) -> list[Row]:
    x, y = _places(picture)
    return [{"x": x[c] + 0.5, "y": 0.0, "column": text} for c, text in enumerate(picture["columns"])] + [
        {"x": 0.0, "y": y[r] - CAPTION, "row": text} for r, text in enumerate(picture["rows"]) if text
    ]


def _spec(kit: Kit, method: str, picture: PictureRecord, across: float, down: float) -> dict[str, Any]:
    width = picture["size"][1]
    scales = [alt.Scale(domain=[0, end], nice=False, zero=False) for end in (across, down)]
    x = alt.X("left:Q", scale=scales[0], axis=None)
    y = alt.Y("top:Q", scale=alt.Scale(**{**scales[1].to_dict(), "reverse": True}), axis=None)
    colours = ["--m2", "--card", "--m1"] if picture["signed"] else ["--open-soft", "--ink"]
    shades = alt.Scale(domain=[0, 128, 255] if picture["signed"] else [0, 255], range=colours, interpolate="rgb")
    cells = (
        alt.Chart()
        .transform_filter("datum.method == which")
        .transform_flatten(["pixels"])
        .transform_window(at="row_number()", groupby=["row", "column"])
        .transform_calculate(
            left=f"datum.x + ((datum.at - 1) % {width}) / {width}",
            right=f"datum.left + 1 / {width}",
            top=f"datum.y + floor((datum.at - 1) / {width}) / {width}",
            bottom=f"datum.top + 1 / {width}",
        )
        .mark_rect()
        .encode(x=x, x2="right:Q", y=y, y2="bottom:Q", color=alt.Color("pixels:Q", legend=None, scale=shades))
    )
    words = alt.Chart(alt.NamedData("captions")).encode(x=alt.X("x:Q"), y=alt.Y("y:Q"))
    style: dict[str, Any] = {"baseline": "top", "color": alt.expr("ink"), "fontSize": 11, "opacity": 0.8}
    layers = [cells]
    if picture["columns"]:
        layers.append(
            words.transform_filter("isValid(datum.column)").mark_text(align="center", **style).encode(text="column:N")
        )
    if any(picture["rows"]):
        layers.append(
            words.transform_filter("isValid(datum.row)").mark_text(align="left", **style).encode(text="row:N")
        )
    return kit.finish(layers, 300, which=method)
