"""A verdict, and what several of the rules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dldw.report.intervals import Interval, Reach, ratio
from dldw.report.results import Results, ends_of
from dldw.report.words import times

Ruling = Literal["holds", "holds partly", "does not hold", "not shown in this run"]


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


def not_shown(claim: str, rule: str, why: str) -> Verdict:
    """The verdict where the figures that the rule needs are not there."""
    return Verdict(claim, "not shown in this run", "–", "", why, rule)


def ratio_in_words(found: Interval) -> str:
    """A ratio in words: '74 ×', or 'more than 74 ×' where it is only bounded."""
    return {"": "", "at least": "more than ", "at most": "less than "}[found.bound] + times(found.value)


def ratio_to_backprop(results: Results, method: str | None) -> Interval | None:
    """Forward-equivalents to the target of a method over those of plain back-propagation; None where either is unknown."""
    return ratio(Reach.of(ends_of(results, method)), Reach.of(ends_of(results, results.backprop)))


def missed_runs(results: Results, method: str | None) -> str:
    """How many runs of a method missed the target, in words; nothing where none did."""
    reach = Reach.of(ends_of(results, method))
    missed = len(reach.high) - reach.reached
    return f"{missed} of {len(reach.high)} runs missed it within the budget" if missed else ""


def family(results: Results, words: tuple[str, ...]) -> list[str]:
    """The labels of the methods whose registered name has one of these words in it."""
    return [m["method"] for m in results.methods if any(word in m["name"] for word in words)]
