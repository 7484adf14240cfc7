"""Claim 1: changing one random weight at a time must have some disadvantage."""

from __future__ import annotations

from dldw.report.results import Results
from dldw.report.verdicts.verdict import Ruling, Verdict, missed_runs, not_shown, ratio_in_words, ratio_to_backprop
from dldw.report.words import between, times


def disadvantage(results: Results) -> Verdict:
    """Claim 1: forward-equivalents to the target, the question's method over back-propagation."""
    claim = "Changing one random weight at a time must have some disadvantage."
    rule = (
        "Forward-pass equivalents to the target, median over seeds, of the one-weight method divided by those of "
        "back-propagation; seeds are resampled in pairs, and a run that missed the target lies between what it "
        "spent and infinity. Holds when the whole interval is above 1, does not hold when it is below 1, holds "
        "partly otherwise or with fewer than 3 seeds."
    )
    found = ratio_to_backprop(results, results.nudge)
    if found is None:
        return not_shown(
            claim, rule, "Neither method, or only one of them, has runs that say how long the target takes."
        )
    ruling: Ruling = "holds partly"
    if found.known:
        ruling = "holds" if found.low > 1 else "does not hold" if found.high < 1 else "holds partly"
    missed = missed_runs(results, results.nudge)
    meaning = (
        f"To reach the target, nudging one weight at a time took {ratio_in_words(found)} the forward-pass equivalents of "
        f"back-propagation{f'; {missed}' if missed else ''}."
    )
    return Verdict(claim, ruling, ratio_in_words(found), between(found, times), meaning, rule)
