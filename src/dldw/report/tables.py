"""Tables of the page: figures of all methods that a reader wants to read off, not to see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dldw.report.budgets import Entry, Equal, bound_of, equal_memory, equal_time
from dldw.report.estimates import HEAD, lines
from dldw.report.intervals import Interval, final_metric
from dldw.report.results import Results, cost_of, ends_of
from dldw.report.words import duration, number, size


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        id: Its anchor.
        section: Where it stands.
        title: A few words.
        sentence: What to see, computed from the rows.
        note: What the figures are.
        head: Names of the columns after the method.
        rows: A method, and one text for each column.
    """

    id: str
    section: str
    title: str
    sentence: str
    note: str
    head: list[str]
    rows: list[tuple[str, list[str]]]


def tables(results: Results) -> list[Table]:
    """Every table that these results have rows for."""
    return [table for make in TABLES if (table := make(results)) is not None]


def memory_table(results: Results) -> Table | None:
    """Every method within one bound of memory."""
    found = equal_memory(results)
    if found is None:
        return None
    return _table(
        results,
        found,
        "equal-memory",
        f"The same memory: {size(bound_of(results))}",
        f"Every method has the largest batch whose step stays within {size(bound_of(results))} above the loaded model: "
        "activations, gradients, the optimizer's state and the method's own buffers, as the allocator counts them in two "
        f"steps. Then each has {duration(found.seconds)} in its steps: what the quickest took for {_work(results)}. The "
        f"learning rate is the best of 1/3, 1 and 3 times the tuned one, on the validation split.{_floor(results)}",
    )


def time_table(results: Results) -> Table | None:
    """Every method in the same time."""
    found = equal_time(results)
    if found is None:
        return None
    return _table(
        results,
        found,
        "equal-time",
        f"The same time: {duration(found.seconds)}",
        f"Every method has {duration(found.seconds)} in its steps, evaluation aside, with the batch and the settings tuned "
        f"for it: what the quickest took for {_work(results)}. Peak: of a step above the loaded model, by the allocator.",
    )


def estimate_table(results: Results) -> Table | None:
    """Every estimate beside the exact gradient."""
    rows = lines(results)
    if not rows or results.task is None:
        return None
    best, cells = rows[0]
    return Table(
        "estimates",
        "estimate",
        f"How good is each estimate at {results.task['weights']:,} weights",
        f"Of what one forward pass buys, {best} gives the most: {cells[-1]} off the loss.",
        "One estimate against the exact gradient g of the same batch, at points early in training, with 95 % intervals. "
        "Error and bias are relative to ‖g‖, variances to ‖g‖². Ranked and standardised estimates have a direction and no "
        "size. Loss per forward: what one step along an estimate takes off the loss at the best of 37 lengths, divided by "
        "the forward-pass equivalents of the estimate.",
        list(HEAD),
        rows,
    )


def published_table(results: Results) -> Table | None:
    """What methods reached here, beside what papers report of them."""
    if results.task is None or results.task["metric"] != "accuracy":
        return None
    reached = {label: final_metric(ends_of(results, label)) for label in results.labels}
    found = [
        (m["method"], here, p)
        for m in results.methods
        if (here := reached[m["method"]]) is not None
        for p in m.get("published", [])
    ]
    if not found:
        return None
    exact = reached.get(results.backprop or "")
    gaps = [
        f"{method} is {_points(p['accuracy'] - p['backprop'])} backprop on {p['data']} in its paper, and "
        f"{_points(100 * (here.value - exact.value))} it here"
        for method, here, p in found
        if p["backprop"] is not None and exact is not None
    ]
    return Table(
        "published",
        "learning",
        "What papers report",
        f"{'; '.join(gaps)}." if gaps else "No paper named here gives backprop on the same network.",
        "Accuracy on test images in per cent, here at the end of the runs, mean over seeds with its 95 % interval. Networks "
        "and images of the papers are not those of this run, so the figures are no targets: what carries over is the "
        "distance to backprop on the same network, where a paper gives it.",
        ["Here", "Published", "Backprop there", "Images", "Network", "Source"],
        [
            (
                method,
                [
                    _with_interval(here, 100, 1),
                    f"{p['accuracy']:g}",
                    "–" if p["backprop"] is None else f"{p['backprop']:g}",
                    p["data"],
                    p["network"],
                    p["source"],
                ],
            )
            for method, here, p in found
        ],
    )


def _points(x: float) -> str:
    """'3.2 points below', or 'level with' where it would read as none."""
    return f"{number(abs(x))} points {'above' if x > 0 else 'below'}" if abs(x) >= 0.005 else "level with"


TABLES: tuple[Callable[[Results], Table | None], ...] = (published_table, memory_table, time_table, estimate_table)


def _work(results: Results) -> str:
    rows = results.task["batch_size"] if results.task else 0
    budget = results.run["config"].get("budget")
    forwards = budget.get("forwards", math.nan) if isinstance(budget, dict) else math.nan
    return f"{number(forwards)} forward-pass equivalents, one being a forward pass of {rows} rows"


def _floor(results: Results) -> str:
    """What the bound is to be compared with."""
    task, cost = results.task, cost_of(results, results.backprop)
    if task is None or cost is None:
        return ""
    own = next(m["settings"].get("rows", task["batch_size"]) for m in results.methods if m["method"] == cost["method"])
    return f" One bare forward pass of {own} rows takes {size(cost['forward_peak_bytes'])}."


def _table(results: Results, found: Equal, name: str, title: str, note: str) -> Table:
    metric = results.task["metric"] if results.task else "loss"
    return Table(
        name,
        "equal",
        title,
        _sentence(results, found, metric),
        f"{note} {metric.capitalize()}: on the test split, at a run's last evaluation within that time, mean over seeds "
        "with its 95 % interval.",
        ["Rows", "Peak", metric.capitalize(), "Steps"],
        [(e.method, [_rows(e), _peak(e), *_outcome(e)]) for e in found.entries],
    )


def _rows(e: Entry) -> str:
    return number(e.rows) if e.rows else "none"


def _peak(e: Entry) -> str:
    if e.peak is None:
        return "–"
    return size(e.peak) if e.rows else f"{size(e.peak)} with one row"


def _outcome(e: Entry) -> list[str]:
    if not e.rows:
        return ["does not fit", "–"]
    if e.metric is None:
        return [f"lost in {e.lost} runs" if e.lost else "–", number(e.steps)]
    return [_with_interval(e.metric), number(e.steps)]


def _with_interval(x: Interval, scale: float = 1, digits: int = 3) -> str:
    value, low, high = (f"{scale * v:.{digits}f}" for v in (x.value, x.low, x.high))
    return f"{value} ({low} to {high})" if x.known else value


def _sentence(results: Results, found: Equal, metric: str) -> str:
    """Who is ahead: of those that take gradients, and of those that see only losses."""
    told = [
        f"with {kind}, {best.method} ended at {best.metric.value:.3f}"
        for kind, blind in (("gradients", False), ("losses alone", True))
        if (best := found.best(results, blind)) is not None and best.metric is not None
    ]
    out = [e.method for e in found.entries if not e.rows]
    text = f"At first the {metric} was {found.before:.3f}; {'; '.join(told) or 'no run has ended yet'}."
    return text + (f" Not even one row fits with {', '.join(out)}." if out else "")
