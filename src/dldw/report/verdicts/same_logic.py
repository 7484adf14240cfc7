"""Claim 7: other ways to learn follow the same logic."""

from __future__ import annotations

import math

from dldw.report.intervals import Reach
from dldw.report.results import Results, ends_of
from dldw.report.verdicts.verdict import Ruling, Verdict, family, not_shown
from dldw.report.words import list_of

WITHOUT_BACKPROP = ("perceptron", "boltzmann", "divergence", "swarm", "genetic")


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
    labels = [m for m in family(results, WITHOUT_BACKPROP) if ends_of(results, m)]
    if not labels:
        return not_shown(claim, rule, "Not in this run: no method of these families was trained.")
    solved = [m for m in labels if math.isfinite(Reach.of(ends_of(results, m)).median())]
    ruling: Ruling = "holds" if len(solved) == len(labels) else "holds partly" if solved else "does not hold"
    seeds = min(len(ends_of(results, m)) for m in labels)
    meaning = f"Trained: {list_of(labels)}. Reached the target in most seeds: {list_of(solved)}."
    return Verdict(claim, ruling, f"{len(solved)} of {len(labels)}", f"{seeds} seeds each", meaning, rule)
