"""Claim 5: the exact gradient costs about as much as the approximation."""

from __future__ import annotations

from dldw.report.results import Results, cost_of
from dldw.report.verdicts import bounded
from dldw.report.verdicts.verdict import Ruling, Verdict, not_shown
from dldw.report.words import number, times

ABOUT_AS_MUCH = 2.0  # costs within this factor count as about the same


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
        return not_shown(claim, rule, "The cost of a step was not measured for both methods." + bounded.price(results))
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
    meaning += bounded.price(results)
    spread = f"middle half {number(low)} to {number(high)}, {base['repeats']} repeats"
    return Verdict(claim, ruling, f"{times(value)} the time", spread, meaning, rule)
