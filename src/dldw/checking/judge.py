"""From quotients and the slopes a gradient predicts to a verdict: right, wrong or cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, median_low

from dldw.checking.quotient import Quotient
from dldw.checking.result import Verdict

DOUBT = 4.0
"""A disagreement counts from so many times the estimated error of the quotient on, and for less it may be chance."""

MISSED = 4.0
"""An error of the gradient of so many times what a direction resolves escapes all of eight with a probability below 1e-5."""


@dataclass(frozen=True)
class Judgement:
    """A verdict with its figures: ``error`` and ``resolution`` relative to the slopes (root mean squares).

    ``kinked`` says that kinks and not rounding hide the answer, ``flat`` that the loss did not change at all.
    """

    verdict: Verdict
    error: float
    resolution: float
    kinked: bool = False
    flat: bool = False


def judge(
    quotients: Sequence[Quotient], slopes: Sequence[float], *, floor: float, limit: float, needed: int = 4
) -> Judgement:
    """Judges the predicted ``slopes`` by the measured ones.

    A direction with a kink judges nothing: autograd may take either side of each unit that stands on one, and where there are
    several, their jumps may cancel in the one that is seen.

    Args:
        quotients: Measured slopes.
        slopes: What the gradient predicts along the same directions.
        floor: The relative error that the gradient may have by rounding in its own dtype.
        limit: The relative size of an error that has to be resolvable for the verdict ``right``.
        needed: Along how many directions.
    """
    finite = [q for q in quotients if math.isfinite(q.error)]
    if not finite:
        return Judgement("cannot tell", math.nan, math.inf)
    scale = math.sqrt(sum(q.value**2 for q in finite) / len(finite))
    usual = median_low(q.error for q in finite)
    resolved = [max(DOUBT * max(q.error, usual), floor * scale) for q in quotients]
    bounds = [math.inf if q.jump else bound for q, bound in zip(quotients, resolved, strict=True)]
    misses = [abs(p - q.value) for p, q in zip(slopes, quotients, strict=True)]
    if not all(map(math.isfinite, slopes)):
        return Judgement("wrong", math.inf, 0.0)
    if not any(slopes) and all(q.flat for q in finite):
        return Judgement("cannot tell", 0.0, math.inf, flat=True)
    known = [(miss, bound) for miss, bound in zip(misses, bounds, strict=True) if math.isfinite(bound)]
    rms = math.sqrt(sum(miss**2 for miss, _ in known) / len(known)) if known else math.nan
    error = rms / scale if scale else math.inf
    if any(miss > bound for miss, bound in known):
        return Judgement("wrong", error, MISSED * min(b for _, b in known) / scale if scale else 0.0)
    clear = sorted(bound for bound in bounds if MISSED * bound <= limit * scale)
    enough = len(clear) >= needed
    resolution = MISSED * (clear[-1] if enough else median(resolved)) / scale if scale else math.inf
    kinked = sum(q.jump + q.truncation > q.rounding for q in finite) > len(finite) / 2
    return Judgement("right" if enough else "cannot tell", error, resolution, kinked)
