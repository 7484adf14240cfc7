"""What an exact gradient costs as the network gets deeper."""

from __future__ import annotations

from typing import Any

import altair as alt

from dldw.report.charts.kit import Chart, Kit, Row, log_axis, rounded
from dldw.report.results import Results, depths_of
from dldw.report.words import duration, number, size, times


def depth(results: Results) -> Chart | None:
    """Memory and time of a gradient against the number of blocks."""
    kit = Kit(results)
    found = [d for label in results.labels for d in depths_of(results, label)]
    if not found:
        return None
    top = max(d["peak_bytes"] for d in found)
    unit, divisor = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20)) if top >= s), ("KiB", 2**10))
    rows: list[Row] = [
        {
            "method": d["method"],
            "depth": d["depth"],
            "peak": d["peak_bytes"] / divisor,
            "time": d["time_ratio"],
            "low": d["time_ratio_low"],
            "high": d["time_ratio_high"],
            "size": size(d["peak_bytes"]),
            "step": duration(d["step_seconds"]),
            "error": d["gradient_error"],
            "weights": d["weights"],
        }
        for d in found
    ]
    depths = sorted({r["depth"] for r in rows})
    scale = alt.Scale(type="log", nice=False, padding=18)
    x = alt.X("depth:Q", scale=scale, axis=alt.Axis(title="blocks", values=depths, format="d"))
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("depth:Q", title="blocks"),
        alt.Tooltip("size:N", title="peak"),
        alt.Tooltip("time:Q", format=".3~g", title="time, × plain"),
        alt.Tooltip("step:N", title="a gradient"),
        alt.Tooltip("error:Q", format=".1e", title="relative error of the gradient"),
        alt.Tooltip("weights:Q", format=","),
    ]
    peaks = alt.Y(
        "peak:Q",
        scale=alt.Scale(type="log", nice=True),
        axis=log_axis(f"peak above weights and gradients, {unit}", [r["peak"] for r in rows]),
    )
    ratios = alt.Y("time:Q", scale=alt.Scale(zero=True), axis=alt.Axis(title="time, × plain autograd", tickCount=5))
    base = alt.Chart()
    spread = base.mark_rule(strokeWidth=1.5).encode(
        x=x, y=alt.Y("low:Q"), y2="high:Q", color=kit.colour(), opacity=kit.opacity(0.8)
    )
    specs = {}
    for name, y, under in (("memory", peaks, []), ("time", ratios, [spread])):
        marks: dict[str, Any] = {"x": x, "y": y, "color": kit.colour(), "opacity": kit.opacity()}
        line = base.mark_line(strokeWidth=2).encode(**marks, strokeDash=kit.dash())
        dots = base.mark_point(filled=True, size=70).encode(**marks, shape=kit.shape(), tooltip=tooltip)
        specs[name] = kit.finish([*under, line, dots])
    return Chart(
        "depth",
        "Memory and time against depth",
        _sentence(results, rows),
        "Points: the allocator's peak while one gradient is made, above the weights and their gradients, and its time over "
        "that of plain autograd in turns (line: middle half).",
        {"rows": rounded(rows)},
        specs,
        [("shown", list(specs))],
    )


def _sentence(results: Results, rows: list[Row]) -> str:
    last = max(r["depth"] for r in rows)
    at_last = sorted((r for r in rows if r["depth"] == last), key=lambda r: r["peak"])
    told = "; ".join(f"{r['method']} {r['size']} and {times(r['time'])} the time" for r in at_last)
    return f"At {number(last)} blocks a gradient takes, from the leanest on: {told}."
