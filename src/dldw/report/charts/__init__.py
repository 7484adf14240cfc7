"""One function per chart: tidy rows, a Vega-Lite specification, and a sentence that says what these rows show.

Colours and fonts come from the page's theme, so no specification names one: methods take the named range ``category``,
shares the ranges ``ramp`` and ``heatmap``. Every chart has the parameters ``shown`` (the methods that the reader left
on), ``focus`` (the one pointed at), ``ink`` and ``paper``, which the page sets in all charts at once.
"""

from __future__ import annotations

from collections.abc import Callable

from altair.utils.schemapi import debug_mode

from dldw.report.charts.budgets import budgets
from dldw.report.charts.cost import memory, step_cost
from dldw.report.charts.crossed import crossed
from dldw.report.charts.depth import depth
from dldw.report.charts.estimate import cosine, quotient
from dldw.report.charts.generations import diversity, generations
from dldw.report.charts.inside import alignment, layers
from dldw.report.charts.kit import Chart, Look, looks
from dldw.report.charts.landscape import landscape
from dldw.report.charts.learning import learning_curves, time_to_target
from dldw.report.charts.pictures import chains, filters, occluded, samples
from dldw.report.charts.sampling import sampling
from dldw.report.charts.sigma import sigma
from dldw.report.charts.size import failures, growth
from dldw.report.charts.tuning import tuning
from dldw.report.charts.variants import variants
from dldw.report.results import Results

__all__ = ["CHARTS", "Chart", "Look", "charts", "looks"]


def charts(results: Results) -> list[Chart]:
    """Every chart that these results have rows for, in the order of the page."""
    with debug_mode(False):  # the schema is checked in the tests; here it would take most of the time
        made = [make(results) for make in CHARTS]
    return [chart for chart in made if chart is not None]


CHARTS: tuple[Callable[[Results], Chart | None], ...] = (
    learning_curves,
    time_to_target,
    variants,
    crossed,
    generations,
    diversity,
    budgets,
    step_cost,
    memory,
    depth,
    cosine,
    quotient,
    sigma,
    sampling,
    alignment,
    layers,
    filters,
    samples,
    chains,
    occluded,
    growth,
    failures,
    landscape,
    tuning,
)
