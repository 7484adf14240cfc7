"""What a comparison under one bound of memory adds to claims 3, 5 and 6, where one was made."""

from __future__ import annotations

from dldw.report.budgets import Equal, bound_of, equal_memory, equal_time
from dldw.report.results import Results, cost_of
from dldw.report.words import duration, number, size, times


def steps(results: Results) -> str:
    """For claim 3: what a step takes of those that learn from two forward passes, and of back-propagation."""
    found = [
        f"{label} {times(cost['time_ratio'])} in {number(cost['forwards_card'])} passes"
        for label in (*results.labelled("mezo"), results.backprop, *results.labelled("backprop", checkpoint=True))
        if results.fits and label and (cost := cost_of(results, label)) is not None
    ]
    if len(found) < 2:
        return ""
    return f" {_model(results)}, steps over two bare forwards of their batch: {', '.join(found)}."


def price(results: Results) -> str:
    """For claim 5: how far the exact gradient and the approximations get in the same time."""
    found = equal_time(results)
    return "" if found is None else _ahead(results, found, f"in {duration(found.seconds)}")


def memory(results: Results) -> str:
    """For claim 6: the same within the bound of memory, and what does not fit into it."""
    found = equal_memory(results)
    return "" if found is None else _ahead(results, found, f"within {size(bound_of(results))}")


def _ahead(results: Results, equal: Equal, budget: str) -> str:
    metric = results.task["metric"] if results.task else "loss"
    told = [
        f"{kind}, {best.method}, ended at {best.metric.value:.3f}"
        for kind, blind in (("the best that takes gradients", False), ("the best that sees only losses", True))
        if (best := equal.best(results, blind)) is not None and best.metric is not None
    ]
    if len(told) < 2:
        return ""
    out = [e.method for e in equal.entries if not e.rows]
    text = f" {_model(results)} {budget}, {metric} {equal.before:.3f} at first: {' and '.join(told)}."
    return text + (f" Not even one row fits with {', '.join(out)}." if out else "")


def _model(results: Results) -> str:
    return f"With {number(results.task['weights'] if results.task else 0)} weights"
