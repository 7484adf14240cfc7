"""The loss over two weights, and every method's way through it."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np

from dldw.report.charts.kit import (
    Chart,
    Kit,
    Row,
    rounded,
    thin,
)
from dldw.report.results import Results
from dldw.report.words import number, significant


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
        points = thin(list(zip(p["x"], p["y"], p["loss"], p["forwards"], strict=True)), 160)
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
        {"rows": rounded(rows), "cells": cells},
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
