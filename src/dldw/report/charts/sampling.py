"""How biased contrastive divergence is."""

from __future__ import annotations

import altair as alt

from dldw.report.charts.kit import Chart, Kit, Row, rounded
from dldw.report.results import Results
from dldw.report.words import list_of, number


def sampling(results: Results) -> Chart | None:
    """Cosine and norm of the mean estimate against the exact gradient, over training."""
    kit, name = Kit(results), results.task_name
    rows: list[Row] = [{**s} for s in results.samplings if s["task"] == name]
    if not rows:
        return None
    estimators = list(dict.fromkeys(r["estimator"] for r in rows))
    steps = sorted({r["step"] for r in rows})
    own = [f"--m{i}" for i in (1, 5, 2, 3, 4, 6, 7, 8)]
    shapes = ["circle", "square", "triangle-up", "diamond", "cross"]
    x = alt.X("step:O", sort=steps, axis=alt.Axis(title="steps of exact gradient descent before", labelAngle=0))
    legend = alt.Legend(title=None, orient="bottom", labelColor=alt.expr("ink"))
    colour = alt.Color("estimator:N", legend=legend, scale=alt.Scale(domain=estimators, range=own[: len(estimators)]))
    shape = alt.Shape("estimator:N", legend=legend, scale=alt.Scale(domain=estimators, range=shapes[: len(estimators)]))
    tooltip = [
        alt.Tooltip("estimator:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("cosine:Q", format=".4f"),
        alt.Tooltip("norm:Q", format=".3f", title="norm over the gradient’s"),
        alt.Tooltip("error:Q", format=".3f", title="error over the gradient’s norm"),
    ]
    titles = {"cosine": "cosine with the exact gradient", "norm": "norm over that of the exact gradient"}
    specs = {}
    for field, title in titles.items():
        values = [r[field] for r in rows]
        room = 0.08 * (max(1.0, *values) - min(values))
        scale = alt.Scale(domain=[min(values) - room, max(1.0, *values) + room], nice=False, zero=False)
        y = alt.Y(f"{field}:Q", scale=scale, axis=alt.Axis(title=title, tickCount=5))
        base = alt.Chart().encode(x=x, y=y, color=colour)
        specs[field] = kit.finish(
            [
                alt.Chart(alt.NamedData("one"))
                .mark_rule(strokeDash=[3, 3], color=alt.expr("ink"), opacity=0.6)
                .encode(y=alt.Y("at:Q", scale=scale)),
                base.mark_line(strokeWidth=2),
                base.mark_point(filled=True, size=75, opacity=1).encode(shape=shape, tooltip=tooltip),
            ],
            320,
        )
    return Chart(
        "sampling",
        "How biased contrastive divergence is",
        _sentence(rows, steps),
        "The mean of many estimates on all data, less its noise, against the exact gradient of the log-likelihood by "
        "enumeration, at some points of a training by that gradient. CD-k: k steps of Gibbs sampling from the data; PCD-1: "
        "one step from chains that go on.",
        {"rows": rounded(rows), "one": [{"at": 1.0}]},
        specs,
        [("shown", list(specs))],
    )


def _sentence(rows: list[Row], steps: list[int]) -> str:
    worst = min(rows, key=lambda r: r["cosine"])
    last = {r["estimator"]: r for r in rows if r["step"] == steps[-1]}
    told = [f"{name} {number(r['cosine'])} and {number(r['norm'])} of its length" for name, r in last.items()]
    return (
        f"After {number(steps[-1])} steps the mean estimate has a cosine with the exact gradient, and a length, of: "
        f"{list_of(told)}. The lowest cosine is {number(worst['cosine'])}, of "
        f"{worst['estimator']} after {number(worst['step'])}."
    )
