"""Claim 8: some layers relieve back-propagation instead of replacing it."""

from __future__ import annotations

from statistics import median

import numpy as np

from dldw.compare.records import Depth
from dldw.report.intervals import Interval, bootstrap
from dldw.report.results import Results, depths_of, ends_of
from dldw.report.verdicts.verdict import Ruling, Verdict, not_shown
from dldw.report.words import number, percent, size, times

FLAT, GROWING = 0.1, 0.5  # memory for a further block, over that of plain autograd: below, between, above
NEAR_THE_FLOOR = 1.5  # time over that of plain autograd, where 4/3 is the least
AS_EXACT = 2.0  # error of the gradient over that of plain autograd in the same precision
SAME_ACCURACY = 0.01


def relieved(results: Results) -> Verdict:
    """Claim 8: layers that make back-propagation lighter instead of replacing it."""
    claim = "Reversible layers and the Reformer take weight off back-propagation instead of replacing it."
    rule = (
        "One network of reversible blocks, which are the core of the Reformer too, with its reversible backward pass "
        "and with plain autograd. Three parts. Exactness: at every depth the gradient is at most "
        f"{AS_EXACT:g} times as far from the one in float64 as plain autograd's is, and the final accuracies differ by less "
        f"than {percent(SAME_ACCURACY)} or by an interval around 0 (paired over seeds). Memory: what a further block adds to "
        f"the peak is at most {percent(FLAT)} of what it adds with plain autograd. Time: at most {NEAR_THE_FLOOR:g} times, "
        "median over depths. Holds with all three; does not hold when it is not exact or a further block takes more than "
        f"{percent(GROWING)}; holds partly otherwise."
    )
    label = next(iter(results.labelled("backprop", reversible=True)), None)
    lean = {d["depth"]: d for d in depths_of(results, label)}
    base = {d["depth"]: d for d in depths_of(results, results.backprop)}
    depths = sorted(lean.keys() & base.keys())
    if len(depths) < 2:
        return not_shown(
            claim,
            rule,
            "Not in this run: no reversible layer was tried at several depths. 'dldw compare deep' does that.",
        )
    own, plain = [lean[d] for d in depths], [base[d] for d in depths]
    share = _per_block(own) / max(_per_block(plain), 1.0)
    time = median(d["time_ratio"] for d in own)
    error = max(a["gradient_error"] / max(b["gradient_error"], 1e-300) for a, b in zip(own, plain, strict=True))
    accuracy = _accuracy(results, label)
    exact = error <= AS_EXACT and (accuracy is None or abs(accuracy.value) < SAME_ACCURACY or _around_zero(accuracy))
    ruling: Ruling = "holds partly"
    if not exact or share > GROWING:
        ruling = "does not hold"
    elif share <= FLAT and time <= NEAR_THE_FLOOR:
        ruling = "holds"
    last, other = own[-1], plain[-1]
    meaning = (
        f"At {number(depths[-1])} blocks the reversible pass peaks at {size(last['peak_bytes'])}, plain autograd at "
        f"{size(other['peak_bytes'])}; a further block adds {percent(share, 1)} of what it adds with plain autograd. The "
        f"gradient is off by {last['gradient_error']:.1e}, plain autograd's by {other['gradient_error']:.1e}"
    )
    if accuracy is not None:
        meaning += f"; accuracy after training differs by {100 * accuracy.value:+.1f} points".replace("-", "−")
    low, high = (median(d[k] for d in own) for k in ("time_ratio_low", "time_ratio_high"))
    spread = f"{times(time)} the time, middle half {number(low)} to {number(high)}"
    return Verdict(claim, ruling, f"{percent(share)} of the memory a block", spread, meaning + ".", rule)


def _per_block(rows: list[Depth]) -> float:
    """Bytes that a further block adds to the peak, fitted over the depths."""
    slope, _ = np.polyfit([d["depth"] for d in rows], [d["peak_bytes"] for d in rows], 1)
    return max(float(slope), 0.0)


def _accuracy(results: Results, label: str | None) -> Interval | None:
    """Final accuracy with the reversible pass less that with plain autograd, paired over seeds."""
    own, base = (
        {e["seed"]: e["metric"] for e in ends_of(results, m) if e["metric"] is not None}
        for m in (label, results.backprop)
    )
    seeds = sorted(own.keys() & base.keys())
    return bootstrap([own[s] - base[s] for s in seeds]) if seeds else None


def _around_zero(found: Interval) -> bool:
    return found.known and found.low <= 0 <= found.high
