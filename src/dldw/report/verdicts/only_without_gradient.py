"""Claim 6: approximate only where the exact gradient cannot be had."""

from __future__ import annotations

import numpy as np

from dldw.report.estimates import Figure, decrease_of
from dldw.report.intervals import bootstrap
from dldw.report.results import Results, cost_of, ends_of
from dldw.report.verdicts import bounded
from dldw.report.verdicts.verdict import Ruling, Verdict, not_shown, ratio_to_backprop
from dldw.report.words import between, number, percent, significant, size


def only_without_gradient(results: Results) -> Verdict:
    """Claim 6: approximate only where there is no exact gradient."""
    claim = "A numerical approximation makes sense only where the exact gradient cannot be had."
    rule = (
        "On step-digits, where the hidden weights have no useful gradient, the best method that sees only loss "
        "values must end above back-propagation (paired difference over seeds, interval above 0). And where the "
        "gradient exists, no such method may need fewer forward-pass equivalents to the target than "
        "back-propagation (the interval of the ratio not below 1), nor less memory in a step than "
        "back-propagation, checkpointed or not. Holds with all three; does not hold when the approximation loses "
        "on step-digits or wins where the gradient exists; holds partly otherwise: memory can be a reason of its "
        "own."
    )
    step = next((t["task"] for t in results.tasks if "step" in t["task"]), None)
    scores = {m: _scores(results, m, step) for m in (results.backprop, *results.forwards_only) if m} if step else {}
    base = scores.pop(results.backprop, {}) if results.backprop else {}
    rivals = {m: s for m, s in scores.items() if s.keys() & base.keys()}
    if not rivals:
        why = "No task without a useful gradient was trained with both kinds of method."
        return not_shown(claim, rule, why + bounded.memory(results))
    best = max(rivals, key=lambda m: float(np.median(list(rivals[m].values()))))
    gain = bootstrap([rivals[best][s] - base[s] for s in sorted(rivals[best].keys() & base.keys())])
    ratios = [r for m in results.forwards_only if (r := ratio_to_backprop(results, m)) is not None]
    beaten = any(r.known and r.high < 1 for r in ratios)
    lean = _leaner(results)
    ruling: Ruling = "holds partly"
    if (gain.known and gain.high < 0) or beaten:
        ruling = "does not hold"
    elif gain.known and gain.low > 0 and ratios and lean is False:
        ruling = "holds"
    ends = {m: percent(float(np.median(list(s.values()))), 1) for m, s in ((best, rivals[best]), ("backprop", base))}
    meaning = f"On {step}, {best} ended at {ends[best]} and back-propagation at {ends['backprop']}."
    if beaten:
        meaning += " Where the gradient exists, a method without it reached the target with less work."
    elif ratios:
        meaning += " Where the gradient exists, no method without it reached the target with less work."
    meaning += _bought(results)
    if lean is not None:
        meaning += (
            " Memory is a reason of its own: " if lean else " Memory was no reason: "
        ) + f"a step without a backward pass peaks at {_peaks(results)}."
    meaning += bounded.memory(results)
    shown = between(gain, lambda x: f"{number(significant(100 * x, 2))}")
    return Verdict(claim, ruling, f"{100 * gain.value:+.1f} points".replace("-", "−"), shown, meaning, rule)


def _bought(results: Results) -> str:
    """What a forward takes off the loss where the gradient exists: the best approximation beside back-propagation."""
    weights = results.task["weights"] if results.task else None
    found: dict[str, Figure] = {}
    for label in (results.backprop, *results.forwards_only):
        own = [e for e in results.estimates if e["method"] == label and e["weights"] == weights]
        if label is not None and (figure := decrease_of(own)) is not None:
            found[label] = figure
    exact = found.pop(results.backprop, None) if results.backprop else None
    if exact is None or not found:
        return ""
    best = max(found, key=lambda label: found[label].value)
    return (
        f" At the best length of a step, each forward spent on {best}, the best of them, takes {found[best].said()} off the "
        f"loss, and each spent on back-propagation {exact.said()}."
    )


def _scores(results: Results, method: str, task: str | None) -> dict[int, float]:
    ends = ends_of(results, method, "curves", task)
    record = next((t for t in results.tasks if t["task"] == task), None)
    sign = 1.0 if record is None or record["maximise"] else -1.0
    return {e["seed"]: sign * e["metric"] for e in ends if e["metric"] is not None}


def _leaner(results: Results) -> bool | None:
    exact = [c["peak_bytes"] for m in results.labelled("backprop", checkpoint=False) if (c := cost_of(results, m))]
    exact += [c["peak_bytes"] for m in results.labelled("backprop", checkpoint=True) if (c := cost_of(results, m))]
    others = [c["peak_bytes"] for m in results.forwards_only if (c := cost_of(results, m)) is not None]
    return min(others) < min(exact) if exact and others else None


def _peaks(results: Results) -> str:
    labels = results.labelled("backprop", checkpoint=False) + results.labelled("backprop", checkpoint=True)
    exact = [c for m in labels if (c := cost_of(results, m)) is not None]
    others = [c for m in results.forwards_only if (c := cost_of(results, m)) is not None]
    least, leanest = (min(c["peak_bytes"] for c in costs) for costs in (others, exact))
    return f"{size(least)} at best, back-propagation at {size(leanest)}"
