"""A model trained in one way and evaluated in others, beside the published figures."""

from __future__ import annotations

from typing import Any

import altair as alt

from dldw.report.charts.kit import Chart, Kit, Row, rounded
from dldw.report.results import Results
from dldw.report.words import percent


def crossed(results: Results) -> Chart | None:
    """The table of accuracies: a row for each way of training, a column for each way of evaluating."""
    kit, name = Kit(results), results.task_name
    rows: list[Row] = [
        {
            **{k: c[k] for k in ("trained", "evaluated", "steps", "accuracy", "published")},
            "ours": f"{100 * c['accuracy']:.1f}",
            "paper": "" if c["published"] is None else f"{100 * c['published']:.1f}",
        }
        for c in results.crossings
        if c["task"] == name
    ]
    if not rows:
        return None
    trained = list(dict.fromkeys(r["trained"] for r in sorted(rows, key=lambda r: _order(r["trained"]))))
    asked = list(dict.fromkeys(r["evaluated"] for r in sorted(rows, key=lambda r: _order(r["evaluated"]))))
    x = alt.X("evaluated:O", sort=asked, axis=alt.Axis(title="evaluated with", labelAngle=0))
    y = alt.Y("trained:O", sort=trained, axis=alt.Axis(title="trained with", grid=False))
    tooltip: list[Any] = [
        alt.Tooltip("trained:N", title="trained with"),
        alt.Tooltip("evaluated:N", title="evaluated with"),
        alt.Tooltip("accuracy:Q", format=".2%"),
        alt.Tooltip("published:Q", format=".1%"),
        alt.Tooltip("steps:Q", format=","),
    ]
    shade = alt.Color(
        "accuracy:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=["--card", "--land-2"], interpolate="rgb")
    )
    cells = alt.Chart().encode(x=x, y=y)
    layers = [
        cells.mark_rect().encode(color=shade, tooltip=tooltip),
        cells.mark_text(dy=-6, fontSize=14, fontWeight=600, color=alt.expr("ink")).encode(text="ours:N"),
        cells.mark_text(dy=11, fontSize=11, color=alt.expr("ink"), opacity=0.75).encode(text="paper:N"),
    ]
    return Chart(
        "crossed",
        "Trained one way, evaluated another",
        _sentence(rows),
        f"Large: accuracy in per cent after {_steps(rows)} steps; small: the published figure, of a model trained for "
        "150,000 steps on longer sequences (arXiv 2001.04451, table 2). A number is rounds of hashing; full is full "
        "attention.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers, 58 * len(trained) + 40)},
        wide=True,
    )


def _order(way: str) -> tuple[bool, float]:
    """``full`` first, then the most hashes."""
    return way.isdigit(), -float(way) if way.isdigit() else 0.0


def _steps(rows: list[Row]) -> str:
    counts = sorted({r["steps"] for r in rows})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _sentence(rows: list[Row]) -> str:
    held = [r for r in rows if r["published"] is not None]
    hashed = [r for r in rows if r["trained"].isdigit() and r["evaluated"].isdigit()]
    best = max(hashed or rows, key=lambda r: r["accuracy"])
    text = (
        f"Trained with {best['trained']} and evaluated with {best['evaluated']}, {percent(best['accuracy'], 1)} of the "
        "symbols are right"
    )
    if held:
        apart = max(held, key=lambda r: abs(r["accuracy"] - r["published"]))
        text += (
            f"; the furthest from the published table is training with {apart['trained']} and evaluating with "
            f"{apart['evaluated']}: {percent(apart['accuracy'], 1)} against {percent(apart['published'], 1)}"
        )
    return text + "."
