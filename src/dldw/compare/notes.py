"""What a run could not show in its budget, said in its results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from dldw.compare.item import note
from dldw.compare.plan import Plan
from dldw.compare.records import Record

_MORE = "dldw compare --budget full gives more."


def notes(plan: Plan, records: Iterable[Any], *, resumed: bool) -> list[Record]:
    """Notes on what this run leaves open."""
    every: list[Mapping[str, Any]] = list(records)
    budget, out = plan.budget, list(plan.dropped)
    ends = [r for r in every if r["kind"] == "end"]
    missed: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for end in ends:
        if end["study"] == "curves" and end["task"] == plan.target and end["failed"]:
            missed[end["method"]].append(end)
    for method, runs in missed.items():
        out.append(
            f"{method} missed the target in {len(runs)} of {plan.seeds} runs within {budget.forwards:,.0f} forward passes; "
            f"whether it gets there later is not shown. {_MORE}"
        )
    cut = sorted({(r["method"], r["width"]) for r in ends if r["study"] == "width" and r["failed"]}, key=str)
    if cut:
        shown = ", ".join(f"{method} at {width}" for method, width in cut)
        out.append(
            f"Over widths, these missed the target within {budget.width_forwards:,.0f} forward passes in at least one "
            f"run and count as infinitely slow there: {shown}. {_MORE}"
        )
    if budget.widths:
        out.append(
            "Over widths, the learning rate is the fastest of 1/3, 1 and 3 times the tuned one on the validation split, for "
            "each method and width; all other settings are those tuned at the task's own width."
        )
    dear = [r["method"] for r in every if r["kind"] == "method" and r["forwards_per_step"] > budget.forwards]
    if dear:
        out.append(f"One step costs more than the whole budget, so none was made: {', '.join(dear)}. {_MORE}")
    if not plan.task.settings and not plan.trials:
        out.append(
            f"{plan.target} has no tuned settings: every method ran with its defaults, which suits some better than others. "
            "Give --tune 20 to give each the same number of trials."
        )
    if resumed:
        out.append("This run was stopped and taken up again; the time it took is that of its last part.")
    if plan.seeds < 3:
        out.append(
            f"{plan.seeds} seed(s) say little about the spread: intervals over so few are wide or cannot be given."
        )
    if budget.name == "quick":
        out.append("This was the quick budget, which shows how things work and settles nothing.")
    return [note(text) for text in out]
