"""Claim 2: such methods get worse as networks grow."""

from __future__ import annotations

from dldw.report.growth import Growth, growth_of_noise, growth_of_ratio
from dldw.report.results import Results
from dldw.report.verdicts.verdict import Ruling, Verdict, not_shown
from dldw.report.words import between, number, power, times

NO_GROWTH = 0.25  # an exponent that stays below it counts as no growth


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
    return not_shown(claim, rule, "Fewer than three sizes of network were trained or probed.")


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
