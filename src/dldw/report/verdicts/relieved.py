"""Claim 8: some layers relieve back-propagation instead of replacing it."""

from __future__ import annotations

import math

from dldw.report.intervals import Reach
from dldw.report.results import Results, cost_of, ends_of
from dldw.report.verdicts.verdict import Ruling, Verdict, family, not_shown
from dldw.report.words import percent, size, times

RELIEVING_BACKPROP = ("reversible", "reformer")


def relieved(results: Results) -> Verdict:
    """Claim 8: layers that make back-propagation lighter instead of replacing it."""
    claim = "Reversible layers and the Reformer take weight off back-propagation instead of replacing it."
    rule = (
        "Every reversible or Reformer model in the run is held against plain back-propagation. Holds when all of "
        "them peak at less memory in a step and reached the target in most seeds, holds partly when some do, does "
        "not hold when none does."
    )
    base = cost_of(results, results.backprop)
    costs = {m: c for m in family(results, RELIEVING_BACKPROP) if (c := cost_of(results, m)) is not None}
    if not costs or base is None:
        return not_shown(claim, rule, "Not in this run: no reversible layer and no Reformer was trained.")
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
