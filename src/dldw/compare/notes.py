"""What a run could not show in its budget, said in its results."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from dldw.compare.item import note
from dldw.compare.plan import Plan
from dldw.compare.records import Record

_MORE = "dldw compare --budget full gives more."
_STUDIES = {
    "cost": "The cost of a step",
    "wider cost": "The cost of a step on the wider task",
    "landscape": "The path through the two-weight landscape",
    "estimate": "The quality of the estimate",
    "displacement": "Where its steps lead",
    "inside": "What happens inside the model",
    "companion": "Training on the companion task",
    "learning-rate": "Training over learning rates",
    "width": "Training over widths",
}


def notes(plan: Plan, records: Iterable[Any], *, resumed: bool) -> list[Record]:
    """Notes on what this run leaves open."""
    every: list[Mapping[str, Any]] = list(records)
    budget, out = plan.budget, list(plan.dropped)
    ends = [r for r in every if r["kind"] == "end"]
    missed: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for end in ends:
        if end["study"] == "curves" and end["task"] == plan.target and end["failed"]:
            missed[end["method"]].append(end)
    out += _shared_out(plan)
    if missed:
        labels = [spec.label for spec in plan.specs if spec.label in missed]
        shown = ", ".join(f"{label} in {len(missed[label])} of {plan.seeds} runs" for label in labels)
        out.append(
            f"The target was missed within {budget.forwards:,.0f} forward passes by {shown}; whether they get there later "
            f"is not shown. {_MORE}"
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
    for method, (step, trial) in plan.untuned().items():
        out.append(
            f"{method} was not tuned on {plan.target}: one step takes {step:,.0f} forward passes, and a trial of the search "
            f"had {trial:,.0f}. It keeps its default settings, and makes no step where a run has fewer forwards than that."
        )
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


def _shared_out(plan: Plan) -> list[str]:
    """What many methods had to give up so that the whole stays within its total, and how to see it."""
    out = []
    seeds, forwards = plan.wanted
    if (plan.seeds, plan.budget.forwards) != (seeds, forwards):
        out.append(
            f"Shared out over {len(plan.specs)} methods, each has {plan.seeds} learning curves of "
            f"{plan.budget.forwards:,.0f} forward passes, where fewer methods would have {seeds} of {forwards:,.0f}. {_MORE}"
        )
    for study, specs in plan.left_out().items():
        names = [spec.label for spec in specs]
        out.append(
            f"{_STUDIES[study]} was left out, so that the run stays short, for: {', '.join(names)}. To see it for some of "
            f"them: {shlex.join(['dldw', 'compare', plan.target, *names[:2]])}. {_MORE}"
        )
    return out
