"""The page itself: everything inlined once, nothing fetched."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from importlib.resources import files
from typing import Any

import altair as alt
import jinja2
import numpy as np
import vl_convert
from markupsafe import Markup, escape

from dldw.report.charts import Chart, Look, charts, looks
from dldw.report.intervals import Reach, final_metric
from dldw.report.results import Results, cost_of, ends_of
from dldw.report.tables import tables
from dldw.report.verdicts import headline, verdicts
from dldw.report.words import between, duration, number, percent, size, times

SECTIONS = (
    ("learning", "How far the same work goes", ("curves", "target", "variants")),
    ("ways", "Ways to run the same weights", ("crossed",)),
    ("populations", "What populations do", ("generations", "diversity")),
    ("equal", "The same memory, the same time", ("budgets",)),
    ("price", "What one step costs", ("cost", "memory")),
    ("layers", "What depth costs", ("depth",)),
    ("estimate", "How good is each estimate", ("cosine", "quotient", "sigma", "sampling")),
    ("inside", "Inside the models", ("alignment", "layerwise")),
    ("machine", "What the Boltzmann machine has learnt", ("filters", "samples", "chains", "occluded")),
    ("size-and-settings", "What size and settings do", ("growth", "failures")),
    ("descent", "A picture of the descent", ("landscape",)),
    ("settings", "The price of good settings", ("tuning",)),
)
GLOBALS = "window.vegaEmbed = vegaEmbed; window.vegaLite = vegaLite; window.vega = vega;"
"""What the bundle makes known to the page's own script."""
ICONS = {"holds": "✓", "holds partly": "◐", "does not hold": "✕", "not shown in this run": "–"}
SYMBOLS = {
    "circle": "M14 1.5a4.5 4.5 0 1 0 .01 0z",
    "triangle-up": "M14 1l5 9H9z",
    "square": "M10 2h8v8h-8z",
    "diamond": "M14 .5L19 6l-5 5.5L9 6z",
    "cross": "M12.3 1.5h3.4v2.8h2.8v3.4h-2.8v2.8h-3.4V7.7H9.5V4.3h2.8z",
    "triangle-down": "M14 11l5-9H9z",
    "triangle-right": "M19 6l-9-5v10z",
    "triangle-left": "M9 6l9-5v10z",
}


def render(results: Results) -> str:
    """The whole page as one string."""
    drawn = charts(results)
    styles = {look.method: look for look in looks(results)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dldw.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"paper": _linked}
    found = verdicts(results)
    by_id = {chart.id: chart for chart in drawn}
    page: str = environment.get_template("page.html.j2").render(
        task=results.task,
        run=results.run,
        headline=headline(results),
        verdicts=found,
        icons=ICONS,
        tally=[(r, icon, n) for r, icon in ICONS.items() if (n := sum(v.ruling == r for v in found))],
        sections=[(i, t, [by_id[c] for c in ids if c in by_id]) for i, t, ids in SECTIONS if by_id.keys() & set(ids)],
        tables=tables(results),
        looks=[styles[label] for label in results.labels],
        swatch=lambda label: _swatch(styles[label]),
        rows=[_row(results, label) for label in results.labels],
        cards=results.methods,
        settings=_settings,
        missing=results.missing(),
        notes=[note["text"] for note in results.notes],
        measured=_measured(results),
        config=json.dumps(results.run["config"], indent=2, ensure_ascii=False),
        data=_json([_plain(chart) for chart in drawn]),
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
        vega=Markup(_bundle()),
    )
    return page


@cache
def _bundle() -> str:
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    known = vl_convert.get_vegalite_versions()
    code = vl_convert.javascript_bundle(GLOBALS, vl_version=version if version in known else None)
    return code.replace("</script", "<\\/script")


def _asset(name: str) -> str:
    return (files("dldw.report") / name).read_text(encoding="utf-8")


def _json(value: Any) -> Markup:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _plain(chart: Chart) -> dict[str, Any]:
    return {
        "id": chart.id,
        "title": chart.title,
        "specs": chart.specs,
        "choices": [{"name": name, "options": options} for name, options in chart.choices],
        "rows": chart.rows,
        "square": chart.square,
        "aspect": chart.aspect,
        "step": chart.step,
    }


def _swatch(look: Look) -> Markup:
    colour = f"var(--m{look.colour})"
    return Markup(
        '<svg class="swatch" width="28" height="12" viewBox="0 0 28 12" aria-hidden="true">'
        '<path d="M0 6h28" stroke="{}" stroke-width="2" stroke-dasharray="{}"/><path d="{}" fill="{}"/></svg>'
    ).format(colour, " ".join(map(str, look.dash)), SYMBOLS[look.shape], colour)


def _row(results: Results, label: str) -> dict[str, str]:
    """One line of the table of results."""
    record = next((m for m in results.methods if m["method"] == label), None)
    ends, cost, task = ends_of(results, label), cost_of(results, label), results.task
    metric = final_metric(ends)
    show = (lambda v: percent(v, 1)) if task is not None and task["metric"] == "accuracy" else number
    reach = Reach.of(ends)
    missed = len(ends) - reach.reached
    row = {
        "method": label,
        "claim": record["claim"] if record else "–",
        "metric": show(metric.value) if metric is not None and not math.isnan(metric.value) else "–",
        "interval": between(metric, show) if metric is not None and metric.known else "",
        "forwards": number(float(np.median(list(reach.high.values())))) if ends else "–",
        "ratio": times(cost["time_ratio"]) if cost else "–",
        "peak": size(cost["peak_bytes"]) if cost else "–",
        "missed": f"{missed} of {len(ends)}" if ends else "–",
    }
    tuned = [t for t in results.tunings if t["method"] == label]
    row["tuning"] = f"{len(tuned)} trials, {duration(sum(t['seconds'] for t in tuned))}" if tuned else "–"
    return row


def _settings(record: Any) -> str:
    shown = {k: v for k, v in record["settings"].items() if v is not None}
    return ", ".join(f"{k} = {v:.3g}" if isinstance(v, float) else f"{k} = {v}" for k, v in shown.items()) or "–"


def _linked(paper: str) -> Markup:
    text = str(escape(paper))
    return Markup(
        re.sub(r"arXiv (\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1" rel="noreferrer">arXiv \1</a>', text)
    )


def _measured(results: Results) -> list[tuple[str, str]]:
    """Where and how the figures came about."""
    run, task = results.run, results.task
    machine, config = run["machine"], run["config"]
    budget = config.get("budget")
    words = str(budget.get("name", "–")) if isinstance(budget, dict) else str(budget or "–")
    if isinstance(budget, dict) and isinstance(budget.get("forwards"), int | float):
        words += f": {number(budget['forwards'])} forward-pass equivalents a run"
    memory = machine.get("memory")
    seeds = config.get("seeds")
    lines = [
        ("Machine", ", ".join(str(machine[k]) for k in ("system", "processor") if machine.get(k))),
        ("Cores", f"{machine.get('cores', '–')}, {machine.get('threads', '–')} used by torch"),
        ("Memory", size(memory) if isinstance(memory, int | float) else "–"),
        ("Accelerator", str(machine.get("accelerator") or "none")),
        ("Versions", f"dldw {run['dldw']}, torch {run['torch']}, Python {run['python']}"),
        ("Seeds", ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds if seeds is not None else "–")),
        ("Budget", words),
        ("Started", f"{run['started'].replace('T', ' ').split('.')[0].removesuffix('+00:00').removesuffix('Z')} UTC"),
        ("Took", duration(results.done["seconds"]) if results.done else "not finished"),
        ("Largest process", size(results.done["peak_bytes"]) if results.done else "–"),
    ]
    if task is not None:
        split = f"{number(task['train_examples'])} training and {number(task['test_examples'])} test examples"
        lines.insert(
            0,
            (
                "Task",
                f"{task['task']}: {task['summary']} {number(task['weights'])} weights, batches of "
                f"{task['batch_size']}, {split}",
            ),
        )
    return lines
