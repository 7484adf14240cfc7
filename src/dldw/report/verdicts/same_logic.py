"""Claim 7: other ways to learn follow the same logic."""

from __future__ import annotations

import math

from dldw.report.intervals import Interval
from dldw.report.results import Results
from dldw.report.verdicts.verdict import Ruling, Verdict, bounded, family, not_shown, ratio_to_backprop
from dldw.report.words import list_of, number

FAMILIES = {
    "perceptrons": ("perceptron",),
    "Boltzmann machines": ("boltzmann", "divergence"),
    "swarms": ("swarm",),
    "genetic algorithms": ("genetic",),
}


def same_logic(results: Results) -> Verdict:
    """Claim 7: the steps of the other families lead downhill too; what a step takes, and what the target costs."""
    claim = (
        "Perceptrons, Boltzmann machines, swarms and genetic algorithms follow the same logic: learning without "
        "back-propagation."
    )
    rule = (
        "From points in training, each method makes some steps; the cosine of what a step does to the weights with "
        "-dL/dw on its batch is averaged (95 % interval, steps that move nothing count as 0). A family follows the logic "
        "of the question's method when the interval of a member lies above 0. Holds when all four families named are in "
        "this run and do, does not hold when none does, holds partly otherwise."
    )
    members = {name: _steps(results, family(results, words)) for name, words in FAMILIES.items()}
    there = {name: steps for name, steps in members.items() if steps}
    if not there:
        return not_shown(claim, rule, "Not in this run: no method of these families had its steps followed.")
    downhill = [name for name, steps in there.items() if any(found.low > 0 for found in steps.values())]
    ruling: Ruling = "holds partly" if downhill else "does not hold"
    if len(downhill) == len(FAMILIES):
        ruling = "holds"
    asked = {m: found for steps in there.values() for m, found in steps.items()}
    beside = _steps(results, [m for m in (results.nudge, results.backprop) if m])
    shown = [f"{method} {_priced(results, method, found)}" for method, found in (asked | beside).items()]
    absent = [name for name in FAMILIES if name not in there]
    meaning = f"Mean cosine of a step, by its tuned optimizer, with the exact downhill direction: {list_of(shown)}."
    if absent:
        meaning += f" Not in this run: {list_of(absent)}."
    first = next(iter(asked.values()))
    return Verdict(claim, ruling, f"cosine {number(first.value)}", f"95\u00a0% interval {_range(first)}", meaning, rule)


def _steps(results: Results, methods: list[str]) -> dict[str, Interval]:
    """The mean cosine over points, by method; its interval follows from those at the points."""
    found = {}
    for method in methods:
        rows = [r for r in results.displacements if r["method"] == method]
        if rows:
            mean = sum(r["cosine"] for r in rows) / len(rows)
            half = math.hypot(*(r["cosine_high"] - r["cosine"] for r in rows)) / len(rows)
            found[method] = Interval(mean, mean - half, mean + half, len(rows))
    return found


def _range(found: Interval) -> str:
    return f"{number(found.low)} to {number(found.high)}"


def _priced(results: Results, method: str, found: Interval) -> str:
    record = next(m for m in results.methods if m["method"] == method)
    words = f"{number(found.value)} ({_range(found)}) at {number(record['forwards_per_step'])} forwards a step"
    ratio = ratio_to_backprop(results, method)
    return words + (
        f", {bounded(ratio)} back-propagation's to the target" if ratio and method != results.backprop else ""
    )
