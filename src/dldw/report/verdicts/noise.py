"""Claim 4: the quotient is an approximation whose noise can make training fail."""

from __future__ import annotations

from typing import Any

import numpy as np

from dldw.report.estimates import closed_form, estimates_of, variance_of
from dldw.report.intervals import Interval, bootstrap
from dldw.report.results import NUDGE_LIMIT, Results, ends_of
from dldw.report.verdicts.verdict import Ruling, Verdict, not_shown
from dldw.report.words import between, number, percent

EXACT_COSINE = 0.99  # an estimate at least this close in direction counts as exact
EXACT_QUOTIENT = 0.01  # and a difference quotient with at most this relative error


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
    found = estimates_of(results, results.nudge)
    cosine = bootstrap(e["cosine"] for e in found) if found else None
    quotient = max(_biases(results), key=lambda b: (b["nudge"] <= NUDGE_LIMIT, b["nudge"]), default=None)
    failures = _failures(results)
    rough: bool | None = None
    facts = []
    if cosine is not None:
        bound = cosine.high if cosine.known else max(e["cosine_high"] for e in found)
        rough = bound < EXACT_COSINE
        facts.append(
            f"one estimate points along the gradient with a cosine of {number(cosine.value)}{_variance(found)}"
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
        return not_shown(claim, rule, "Neither the estimate nor training over several learning rates was looked at.")
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


def _biases(results: Results) -> list[Any]:
    name = results.task_name
    return [b for b in results.biases if b["task"] == name]


def _variance(found: list[Any]) -> str:
    variance, closed = variance_of(found), closed_form(found)
    if variance is None:
        return ""
    text = f" and a variance of {variance.said()} times the squared gradient"
    return text + (f", where the closed form says {number(closed)}" if closed is not None else "")


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
