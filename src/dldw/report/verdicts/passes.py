"""Claim 3: one forward pass for an update against two."""

from __future__ import annotations

from dldw.report.results import Results, cost_of
from dldw.report.verdicts import bounded
from dldw.report.verdicts.verdict import Ruling, Verdict, not_shown
from dldw.report.words import number, times


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
        return not_shown(claim, rule, "The cost of a step was not measured for both methods." + bounded.steps(results))
    as_said = own["forwards_measured"] >= 1.5
    cheaper = base["time_ratio_high"] < own["time_ratio"] and base["step_flops"] < own["step_flops"]
    ruling: Ruling = "does not hold" if not as_said else "holds" if cheaper else "holds partly"
    meaning = (
        f"By passes: one forward and one backward against two forwards. By cost: the back-propagation step takes "
        f"{times(base['time_ratio'])} the time of two bare forwards and {number(base['forwards_measured'])} forwards’ "
        f"worth of floating-point operations; the one-weight step takes {times(own['time_ratio'])} and "
        f"{number(own['forwards_measured'])}. The backward pass is not free.{bounded.steps(results)}"
    )
    spread = (
        f"middle half {number(base['time_ratio_low'])} to {number(base['time_ratio_high'])}, {base['repeats']} repeats"
    )
    return Verdict(claim, ruling, f"{times(base['time_ratio'])} two forwards", spread, meaning, rule)
