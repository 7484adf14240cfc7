"""The claims of the discussion that started this project, each judged by a rule on the figures of one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dldw.report.data import (
    NUDGE_LIMIT,
    Growth,
    Interval,
    Reach,
    Results,
    between,
    bootstrap,
    cost_of,
    ends_of,
    growth_of_noise,
    growth_of_ratio,
    list_of,
    number,
    percent,
    power,
    ratio,
    significant,
    size,
    times,
)

Ruling = Literal["holds", "holds partly", "does not hold", "not shown in this run"]

NO_GROWTH = 0.25  # an exponent that stays below it counts as no growth
EXACT_COSINE = 0.99  # an estimate at least this close in direction counts as exact
EXACT_QUOTIENT = 0.01  # and a difference quotient with at most this relative error
ABOUT_AS_MUCH = 2.0  # costs within this factor count as about the same

WITHOUT_BACKPROP = ("perceptron", "boltzmann", "divergence", "swarm", "genetic")
RELIEVING_BACKPROP = ("reversible", "reformer")


@dataclass(frozen=True)
class Verdict:
    """One claim beside what this run says of it.

    Attributes:
        claim: What was said, in our own words.
        ruling: The outcome of the rule.
        figure: The figure the ruling rests on, short.
        interval: How sure that figure is.
        meaning: One or two sentences on what was measured.
        rule: How the ruling follows from the figures.
    """

    claim: str
    ruling: Ruling
    figure: str
    interval: str
    meaning: str
    rule: str


def verdicts(results: Results) -> list[Verdict]:
    """All eight, in the order of the discussion."""
    return [claim(results) for claim in CLAIMS]


def disadvantage(results: Results) -> Verdict:
    """Claim 1: forward-equivalents to the target, the question's method over back-propagation."""
    claim = "Changing one random weight at a time must have some disadvantage."
    rule = (
        "Forward-pass equivalents to the target, median over seeds, of the one-weight method divided by those of "
        "back-propagation; seeds are resampled in pairs, and a run that missed the target lies between what it "
        "spent and infinity. Holds when the whole interval is above 1, does not hold when it is below 1, holds "
        "partly otherwise or with fewer than 3 seeds."
    )
    found = _ratio_to_backprop(results, results.nudge)
    if found is None:
        return _not_shown(
            claim, rule, "Neither method, or only one of them, has runs that say how long the target takes."
        )
    ruling: Ruling = "holds partly"
    if found.known:
        ruling = "holds" if found.low > 1 else "does not hold" if found.high < 1 else "holds partly"
    missed = _missed(results, results.nudge)
    meaning = (
        f"To reach the target, nudging one weight at a time took {_bounded(found)} the forward-pass equivalents of "
        f"back-propagation{f'; {missed}' if missed else ''}."
    )
    return Verdict(claim, ruling, _bounded(found), between(found, times), meaning, rule)


def scaling(results: Results) -> Verdict:
    """Claim 2: how the same ratio grows with the number of weights."""
    claim = "Methods of this kind optimise poorly, take long, and get worse as networks grow."
    rule = (
        "The ratio of claim 1 is fitted as a power of the number of weights d, over at least three sizes that "
        "both methods solved; seeds are resampled. Holds when the exponent's interval is above 0, does not hold "
        f"when it reaches below 0 and stays under {NO_GROWTH}, holds partly otherwise. Where fewer than three "
        "sizes were solved, the exponent of 1/cosine² stands in, the noise that has to be averaged away, and the "
        "claim holds at most partly. Theory: the variance of an estimate along random directions grows in "
        "proportion to d, an exponent of 1."
    )
    for label in [m for m in (results.nudge, *results.forwards_only) if m]:
        growth = growth_of_ratio(results, label)
        if growth is not None:
            ruling: Ruling = "holds partly"
            if growth.exponent.known:
                below = growth.exponent.low <= 0 and growth.exponent.high < NO_GROWTH
                ruling = "holds" if growth.exponent.low > 0 else "does not hold" if below else "holds partly"
            meaning = f"{_subject(results, label)} takes {_growing(growth)}; theory says the noise grows like d¹."
            unsolved = len(growth.points) - len(growth.solved)
            meaning += f" At {unsolved} of {len(growth.points)} sizes the target was missed." if unsolved else ""
            return _power(claim, rule, ruling, growth, meaning)
    for label in [m for m in (results.nudge, *results.forwards_only) if m]:
        growth = growth_of_noise(results, label)
        if growth is not None:
            flat = growth.exponent.known and growth.exponent.low <= 0 and growth.exponent.high < NO_GROWTH
            meaning = (
                f"The target was not reached at enough sizes, so the estimate speaks for it: the noise of "
                f"{label}, 1/cosine², grows like {power(growth.exponent.value)}; theory says d¹."
            )
            return _power(claim, rule, "does not hold" if flat else "holds partly", growth, meaning)
    return _not_shown(claim, rule, "Fewer than three sizes of network were trained or probed.")


def passes(results: Results) -> Verdict:
    """Claim 3: one forward and one backward pass against two forwards, in passes and in cost."""
    claim = "Back-propagation needs one forward pass for an update; changing a weight and looking needs two."
    rule = (
        "Passes: the one-weight step must measure at least 1.5 forwards in floating-point operations. Cost: the "
        "time of a back-propagation step, measured in turns with two bare forwards, over the time of a one-weight "
        "step, and the same in floating-point operations. Holds when the passes are as said and back-propagation's "
        "step is the cheaper in both; holds partly when the passes are as said but it is not; does not hold when "
        "the one-weight step gets by with fewer passes."
    )
    base, own = cost_of(results, results.backprop), cost_of(results, results.nudge)
    if base is None or own is None:
        return _not_shown(claim, rule, "The cost of a step was not measured for both methods.")
    as_said = own["forwards_measured"] >= 1.5
    cheaper = base["time_ratio_high"] < own["time_ratio"] and base["step_flops"] < own["step_flops"]
    ruling: Ruling = "does not hold" if not as_said else "holds" if cheaper else "holds partly"
    meaning = (
        f"By passes: one forward and one backward against two forwards. By cost: the back-propagation step takes "
        f"{times(base['time_ratio'])} the time of two bare forwards and {number(base['forwards_measured'])} forwards’ "
        f"worth of floating-point operations; the one-weight step takes {times(own['time_ratio'])} and "
        f"{number(own['forwards_measured'])}. The backward pass is not free."
    )
    spread = (
        f"middle half {number(base['time_ratio_low'])} to {number(base['time_ratio_high'])}, {base['repeats']} repeats"
    )
    return Verdict(claim, ruling, f"{times(base['time_ratio'])} two forwards", spread, meaning, rule)


def noise(results: Results) -> Verdict:
    """Claim 4: the quotient is an approximation, and its noise can make training fail."""
    claim = "The difference quotient is only an approximation, and its noise can make training fail."
    rule = (
        "Two parts. Approximation: the interval of the one-weight estimate's cosine to the exact gradient stays "
        f"below {EXACT_COSINE}, or its quotient is off by more than {percent(EXACT_QUOTIENT)} at the largest nudge "
        "up to 0.1, the question's. Failure: over the same learning rates and seeds, a larger share of its runs "
        "misses the target than of back-propagation's, and the interval of the difference (seeds resampled) is "
        "above 0. Holds with both, holds partly with one, does not hold with neither; what was not measured "
        "counts as open, and with an open part the claim holds at most partly. A missed target may also mean too "
        "small a budget; diverged runs are named."
    )
    cosine = bootstrap(e["cosine"] for e in _estimates(results)) if _estimates(results) else None
    quotient = max(_biases(results), key=lambda b: (b["nudge"] <= NUDGE_LIMIT, b["nudge"]), default=None)
    failures = _failures(results)
    rough: bool | None = None
    facts = []
    if cosine is not None:
        bound = cosine.high if cosine.known else max(e["cosine_high"] for e in _estimates(results))
        rough = bound < EXACT_COSINE
        facts.append(
            f"one estimate points along the gradient with a cosine of {number(cosine.value)}{_variance(results)}"
        )
    if quotient is not None:
        rough = bool(rough) or quotient["relative_error"] > EXACT_QUOTIENT
        facts.append(
            f"with dw = {number(quotient['nudge'])} the quotient is off by "
            f"{percent(quotient['relative_error'], 1)} of a typical derivative and has the wrong sign for "
            f"{percent(quotient['wrong_sign'], 1)} of the weights"
        )
    fails: bool | None = None
    if failures is not None:
        difference, own, base, diverged = failures
        fails = difference.known and difference.low > 0
        facts.append(
            f"over learning rates and seeds {percent(own)} of its runs missed the target against {percent(base)} with "
            f"back-propagation ({diverged} diverged)"
        )
    if rough is None and fails is None:
        return _not_shown(claim, rule, "Neither the estimate nor training over several learning rates was looked at.")
    ruling: Ruling = "holds" if rough and fails else "holds partly" if rough or fails else "does not hold"
    if ruling == "does not hold" and (rough is None or fails is None):
        ruling = "not shown in this run"
    text = "; ".join(facts)
    if failures is not None:
        figure = f"{percent(failures[1])} against {percent(failures[2])}"
        spread = f"of runs failed; difference: {between(failures[0], percent)}"
    elif cosine is not None:
        figure, spread = f"cosine {number(cosine.value)}", between(cosine)
    else:
        assert quotient is not None
        figure = f"off by {percent(quotient['relative_error'], 1)}"
        low, high = (percent(quotient[k], 1) for k in ("relative_error_low", "relative_error_high"))
        spread = f"middle half {low} to {high}"
    return Verdict(claim, ruling, figure, spread, text[0].upper() + text[1:] + ".", rule)


def price(results: Results) -> Verdict:
    """Claim 5: an exact gradient costs about as much as an approximation."""
    claim = (
        "The exact gradient costs about as much as the approximation, so computing it at every step is not the "
        "heavier way."
    )
    rule = (
        "Time of a back-propagation step over that of a one-weight step, each measured in turns with two bare "
        f"forwards, and the same in floating-point operations. Holds when both are at most {ABOUT_AS_MUCH:g} (the "
        "upper quartile, for time), holds partly when one is, does not hold when neither is."
    )
    base, own = cost_of(results, results.backprop), cost_of(results, results.nudge)
    if base is None or own is None:
        return _not_shown(claim, rule, "The cost of a step was not measured for both methods.")
    value, low, high = (base[k] / own["time_ratio"] for k in ("time_ratio", "time_ratio_low", "time_ratio_high"))
    work = base["step_flops"] / max(own["step_flops"], 1)
    ruling: Ruling = ("does not hold", "holds partly", "holds")[(high <= ABOUT_AS_MUCH) + (work <= ABOUT_AS_MUCH)]
    meaning = (
        f"The exact gradient of all {number(base['weights'])} weights takes {times(value)} the time of an "
        f"approximation for one of them, and {times(work)} the floating-point operations."
    )
    full = cost_of(results, next(iter(results.labelled("finite-difference")), None))
    if full is not None:
        meaning += (
            f" Differences for all of them take {times(full['time_ratio'] / base['time_ratio'])} the time of the "
            "exact gradient."
        )
    else:
        meaning += f" Differences for all of them would take {number(base['weights'] + 1)} forwards."
    spread = f"middle half {number(low)} to {number(high)}, {base['repeats']} repeats"
    return Verdict(claim, ruling, f"{times(value)} the time", spread, meaning, rule)


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
        return _not_shown(claim, rule, "No task without a useful gradient was trained with both kinds of method.")
    best = max(rivals, key=lambda m: float(np.median(list(rivals[m].values()))))
    gain = bootstrap([rivals[best][s] - base[s] for s in sorted(rivals[best].keys() & base.keys())])
    ratios = [r for m in results.forwards_only if (r := _ratio_to_backprop(results, m)) is not None]
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
    if lean is not None:
        meaning += (
            " Memory is a reason of its own: " if lean else " Memory was no reason: "
        ) + f"a step without a backward pass peaks at {_peaks(results)}."
    shown = between(gain, lambda x: f"{number(significant(100 * x, 2))}")
    return Verdict(claim, ruling, f"{100 * gain.value:+.1f} points".replace("-", "−"), shown, meaning, rule)


def same_logic(results: Results) -> Verdict:
    """Claim 7: other ways to learn without back-propagation."""
    claim = (
        "Perceptrons, Boltzmann machines, swarms and genetic algorithms follow the same logic: learning without "
        "back-propagation."
    )
    rule = (
        "Every method of these families in the run is asked whether most of its seeds reached the target. Holds "
        "when all of them did, holds partly when some did, does not hold when none did."
    )
    labels = [m for m in _family(results, WITHOUT_BACKPROP) if ends_of(results, m)]
    if not labels:
        return _not_shown(claim, rule, "Not in this run: no method of these families was trained.")
    solved = [m for m in labels if math.isfinite(Reach.of(ends_of(results, m)).median())]
    ruling: Ruling = "holds" if len(solved) == len(labels) else "holds partly" if solved else "does not hold"
    seeds = min(len(ends_of(results, m)) for m in labels)
    meaning = f"Trained: {list_of(labels)}. Reached the target in most seeds: {list_of(solved)}."
    return Verdict(claim, ruling, f"{len(solved)} of {len(labels)}", f"{seeds} seeds each", meaning, rule)


def relieved(results: Results) -> Verdict:
    """Claim 8: layers that make back-propagation lighter instead of replacing it."""
    claim = "Reversible layers and the Reformer take weight off back-propagation instead of replacing it."
    rule = (
        "Every reversible or Reformer model in the run is held against plain back-propagation. Holds when all of "
        "them peak at less memory in a step and reached the target in most seeds, holds partly when some do, does "
        "not hold when none does."
    )
    base = cost_of(results, results.backprop)
    costs = {m: c for m in _family(results, RELIEVING_BACKPROP) if (c := cost_of(results, m)) is not None}
    if not costs or base is None:
        return _not_shown(claim, rule, "Not in this run: no reversible layer and no Reformer was trained.")
    good = [
        m
        for m, c in costs.items()
        if c["peak_bytes"] < base["peak_bytes"] and math.isfinite(Reach.of(ends_of(results, m)).median())
    ]
    ruling: Ruling = "holds" if len(good) == len(costs) else "holds partly" if good else "does not hold"
    least = min(costs.values(), key=lambda c: c["peak_bytes"])
    share = least["peak_bytes"] / max(base["peak_bytes"], 1)
    meaning = (
        f"The leanest, {least['method']}, peaks at {size(least['peak_bytes'])} in a step, plain back-propagation at "
        f"{size(base['peak_bytes'])}, and takes {times(least['time_ratio'] / base['time_ratio'])} its time."
    )
    return Verdict(claim, ruling, f"{percent(share)} of the memory", f"{least['repeats']} repeats", meaning, rule)


CLAIMS: tuple[Callable[[Results], Verdict], ...] = (
    disadvantage,
    scaling,
    passes,
    noise,
    price,
    only_without_gradient,
    same_logic,
    relieved,
)


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
    rows = [(r, m) for m in results.forwards_only if (r := _ratio_to_backprop(results, m)) is not None]
    solved = sorted((r.value, m) for r, m in rows if not r.bound)
    own = next((r for r, m in rows if m == results.nudge), None)
    parts = []
    if own is not None:
        parts.append(f"nudging one random weight at a time took {_bounded(own)} as much")
    others = [(v, m) for v, m in solved if m != results.nudge]
    if others:
        value, label = others[0]
        parts.append(f"the best method that only sees losses, {label}, {times(value)}")
    elif len(rows) > (own is not None):
        parts.append("no other method that only sees losses got there within its budget")
    return first + (f"; {', and '.join(parts)}." if parts else ".")


def _not_shown(claim: str, rule: str, why: str) -> Verdict:
    return Verdict(claim, "not shown in this run", "–", "", why, rule)


def _power(claim: str, rule: str, ruling: Ruling, growth: Growth, meaning: str) -> Verdict:
    return Verdict(
        claim, ruling, power(growth.exponent.value), f"exponent: {between(growth.exponent, _hundredths)}", meaning, rule
    )


def _hundredths(x: float) -> str:
    return f"{x:.2f}".replace("-", "−")


def _growing(growth: Growth) -> str:
    first, last = growth.solved[0], growth.solved[-1]
    return (
        f"{times(growth.points[first].value)} the work of back-propagation at {number(first)} weights and "
        f"{times(growth.points[last].value)} at {number(last)}, a growth like {power(growth.exponent.value)}"
    )


def _subject(results: Results, label: str) -> str:
    return "Nudging one weight at a time" if label == results.nudge else label


def _bounded(found: Interval) -> str:
    return {"": "", "at least": "more than ", "at most": "less than "}[found.bound] + times(found.value)


def _ratio_to_backprop(results: Results, method: str | None) -> Interval | None:
    return ratio(Reach.of(ends_of(results, method)), Reach.of(ends_of(results, results.backprop)))


def _missed(results: Results, method: str | None) -> str:
    reach = Reach.of(ends_of(results, method))
    missed = len(reach.high) - reach.reached
    return f"{missed} of {len(reach.high)} runs missed it within the budget" if missed else ""


def _estimates(results: Results) -> list[Any]:
    own = [e for e in results.estimates if e["method"] == results.nudge]
    weights = results.task["weights"] if results.task else None
    return [e for e in own if e["weights"] == weights] or own


def _biases(results: Results) -> list[Any]:
    name = results.task["task"] if results.task else None
    return [b for b in results.biases if b["task"] == name]


def _variance(results: Results) -> str:
    values = [e["relative_variance"] for e in _estimates(results) if e["relative_variance"] is not None]
    return f" and a variance of {number(float(np.median(values)))} times the squared gradient" if values else ""


def _failures(results: Results) -> tuple[Interval, float, float, int] | None:
    own = ends_of(results, results.nudge, "learning-rate")
    base = ends_of(results, results.backprop, "learning-rate")
    seeds = sorted({e["seed"] for e in own} & {e["seed"] for e in base})
    if not seeds:
        return None
    shares = [[np.mean([e["failed"] for e in ends if e["seed"] == s]) for s in seeds] for ends in (own, base)]
    difference = bootstrap([a - b for a, b in zip(*shares, strict=True)])
    diverged = sum(e["reason"] == "diverged" for e in own)
    return difference, float(np.mean(shares[0])), float(np.mean(shares[1])), diverged


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


def _family(results: Results, words: tuple[str, ...]) -> list[str]:
    return [m["method"] for m in results.methods if any(word in m["name"] for word in words)]
