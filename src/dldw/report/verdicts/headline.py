"""The answer in two sentences."""

from __future__ import annotations

import math

from dldw.report.intervals import Reach
from dldw.report.results import Results, ends_of
from dldw.report.verdicts.verdict import ratio_in_words, ratio_to_backprop
from dldw.report.words import number, percent, times


def headline(results: Results) -> str:
    """The answer in two sentences, from the figures."""
    task, base = results.task, results.backprop
    ends = ends_of(results, base)
    if task is None or not ends:
        return "This run has no finished training with back-propagation yet, so it has no answer yet."
    reach = Reach.of(ends)
    goal = (
        percent(task["target"]) if task["metric"] == "accuracy" else f"a {task['metric']} of {number(task['target'])}"
    )
    if math.isinf(reach.median()):
        return (
            f"On {task['task']}, back-propagation itself missed {goal} in most runs: the budget was too small to "
            "compare."
        )
    first = (
        f"On {task['task']}, back-propagation reached {goal} after {number(reach.median())} forward passes’ worth "
        "of work"
    )
    rows = [(r, m) for m in results.forwards_only if (r := ratio_to_backprop(results, m)) is not None]
    solved = sorted((r.value, m) for r, m in rows if not r.bound)
    own = next((r for r, m in rows if m == results.nudge), None)
    parts = []
    if own is not None:
        parts.append(f"nudging one random weight at a time took {ratio_in_words(own)} as much")
    others = [(v, m) for v, m in solved if m != results.nudge]
    if others:
        value, label = others[0]
        parts.append(f"the best method that only sees losses, {label}, {times(value)}")
    elif len(rows) > (own is not None):
        parts.append("no other method that only sees losses got there within its budget")
    return first + (f"; {', and '.join(parts)}." if parts else ".")
