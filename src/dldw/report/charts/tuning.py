"""What finding the settings cost."""

from __future__ import annotations

from collections import defaultdict

import altair as alt

from dldw.report.charts.kit import (
    Chart,
    Kit,
    methods_axis,
    rounded,
)
from dldw.report.results import Results
from dldw.report.words import duration, number


def tuning(results: Results) -> Chart | None:
    """The score of every trial of settings, and what the search cost."""
    kit = Kit(results)
    if not results.tunings:
        return None
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
        axis=alt.Axis(title="score of a trial", format="~g", tickCount=5),
    )
    known = [m for m in results.labels if any(t["method"] == m for t in results.tunings)]
    y = methods_axis(known + [m for m in dict.fromkeys(t["method"] for t in results.tunings) if m not in known])
    tooltip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("trial:Q"),
        alt.Tooltip("score:Q", format=".3~g"),
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
        text
        + (f"; {lost} trials have no score: they diverged, or could make no step." if lost else "; no trial diverged."),
        "One tick per trial, on the validation split; the large symbol is the trial whose settings were used. One point "
        "more is a tenth of the error at the end, or a tenth of the forwards to the target.",
        {"rows": rounded(rows)},
        {"": kit.finish(layers)},
        step=30,
        wide=True,
    )
