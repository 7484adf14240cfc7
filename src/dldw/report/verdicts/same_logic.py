"""Claim 7: other ways to learn follow the same logic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dldw.compare.records import Displacement
from dldw.report.intervals import Interval
from dldw.report.results import Results
from dldw.report.verdicts.verdict import Ruling, Verdict, family, not_shown, ratio_in_words, ratio_to_backprop
from dldw.report.words import list_of, number

FAMILIES = {
    "perceptrons": ("perceptron",),
    "Boltzmann machines": ("boltzmann", "divergence"),
    "swarms": ("swarm",),
    "genetic algorithms": ("genetic",),
}
ASKS = {"no loss": "no loss value", "autograd": "one loss value and its derivative"}
"""What an update asks of the loss, by what the method needs; all others ask for as many values as they take forwards."""
CRITERIA = {"perceptrons": "the perceptron criterion", "Boltzmann machines": "the log-likelihood"}
"""What the families without a loss follow instead."""
EQUAL = 1e-6
"""An estimate that is off by no more in any entry is equal to the derivative, but for rounding."""


@dataclass(frozen=True)
class _Steps:
    """Where the steps of a method lead.

    Attributes:
        method: The label.
        task: Where they were made: the task of the run, or another where the method cannot run on it.
        cosine: Of a step with the exact downhill direction, over points in training.
        records: What it was read from.
    """

    method: str
    task: str
    cosine: Interval
    records: list[Displacement]


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
    members = {name: _followed(results, _members(results, words)) for name, words in FAMILIES.items()}
    there = {name: steps for name, steps in members.items() if steps}
    if not there:
        return not_shown(claim, rule, "Not in this run: no method of these families had its steps followed.")
    downhill = [name for name, steps in there.items() if any(found.cosine.low > 0 for found in steps)]
    ruling: Ruling = "holds partly" if downhill else "does not hold"
    if len(downhill) == len(FAMILIES):
        ruling = "holds"
    asked = [found for steps in there.values() for found in steps]
    beside = _followed(results, [m for m in (results.nudge, results.backprop) if m])
    meaning = "What an update takes, and the mean cosine of its step with the exact downhill direction: "
    meaning += f"{'; '.join(_said(results, s) for s in asked)}."
    for name, criterion in CRITERIA.items():
        meaning += "".join(_criterion(steps, criterion) for steps in members[name])
    if beside:
        meaning += f" Beside them, {'; '.join(_said(results, s) for s in beside)}."
    absent = [name for name in FAMILIES if name not in there]
    if absent:
        meaning += f" Not in this run: {list_of(absent)}."
    first = asked[0]
    interval = f"95\u00a0% interval {_range(first.cosine)}, {first.method}"
    return Verdict(claim, ruling, f"cosine {number(first.cosine.value)}", interval, meaning, rule)


def _members(results: Results, words: tuple[str, ...]) -> list[str]:
    """The methods of a family, also those that could not run on the task and were followed elsewhere."""
    followed = [r["method"] for r in results.displacements if any(word in r["method"] for word in words)]
    return list(dict.fromkeys([*family(results, words), *followed]))


def _criterion(steps: _Steps, criterion: str) -> str:
    """What a method without a loss follows, and how closely."""
    known = [r for r in steps.records if "criterion_cosine" in r]
    if not known:
        return ""
    off = max(r["off_criterion"] for r in known)
    if off <= EQUAL:
        apart = f"{off:.0e}" if off else "0"
        return (
            f" The update of {steps.method} is an exact subgradient of {criterion}: the largest difference of any entry "
            f"is {apart}."
        )
    cosine = sum(r["criterion_cosine"] for r in known) / len(known)
    return f" The estimate of {steps.method} has a cosine of {number(cosine)} with the exact gradient of {criterion}."


def _followed(results: Results, methods: list[str]) -> list[_Steps]:
    """The mean cosine over points of each method; its interval follows from those at the points."""
    asked, found = results.task_name, []
    for method in methods:
        rows = [r for r in results.displacements if r["method"] == method]
        rows.sort(key=lambda r: r["task"] != asked)
        rows = [r for r in rows if r["task"] == rows[0]["task"]]
        if rows:
            mean = sum(r["cosine"] for r in rows) / len(rows)
            half = math.hypot(*(r["cosine_high"] - r["cosine"] for r in rows)) / len(rows)
            found.append(_Steps(method, rows[0]["task"], Interval(mean, mean - half, mean + half, len(rows)), rows))
    return found


def _range(found: Interval) -> str:
    return f"{number(found.low)} to {number(found.high)}"


def _said(results: Results, steps: _Steps) -> str:
    """'swarm: 37 loss values, cosine 0.04 (0.03 to 0.05), 31 × the forward passes of back-propagation to the target'."""
    known: list[Mapping[str, Any]] = [*(m for m in results.methods if m["method"] == steps.method), *steps.records]
    takes = ASKS.get(known[0]["needs"], f"{number(known[0]['forwards_per_step'])} loss values")
    where = "" if results.task is None or steps.task == results.task["task"] else f" on {steps.task}"
    words = f"{steps.method}{where}: {takes}, cosine {number(steps.cosine.value)} ({_range(steps.cosine)})"
    ratio = None if where or steps.method == results.backprop else ratio_to_backprop(results, steps.method)
    return words + (f", {ratio_in_words(ratio)} the forward passes of back-propagation to the target" if ratio else "")
