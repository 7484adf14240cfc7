"""How a comparison that would take too long is cut to its total: the same for all methods, and never by a clock.

A plan is counted before any work, in forward-pass equivalents by the cards, so that it is the same on every machine and
for every run that goes on after a stop. Learning curves and step costs come first and are for every method: with many
methods each gets fewer seeds, then fewer forwards, and less time on the meter. What is left goes to the studies, method
after method in the order of ``ranked``, while the next one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dldw.compare.spec import Spec

CURVES, COSTS = 0.30, 0.12
"""Of the total: at most, for the learning curves and for the cost of a step."""
LANDSCAPE, ESTIMATES, SIZES, DISPLACEMENTS, INSIDE, COMPANION, RATES = 0.03, 0.07, 0.03, 0.05, 0.05, 0.10, 0.20
"""Of what these leave: at most; the widths, the dearest, take the rest."""
FEWEST_SEEDS = 3
"""Seeds are not cut below this: there is no interval with fewer. Beyond, each curve gets fewer forwards."""


def curves_within(
    total: float, methods: int, seeds: int, forwards: float, *, fixed: bool, start: float = 0.0
) -> tuple[int, float]:
    """Seeds and forwards of each method's learning curves, so that all together take ``total`` forwards at most.

    Args:
        total: Forward-pass equivalents for the curves of all methods.
        methods: How many.
        seeds: Curves of a method where there is room.
        forwards: Of one curve where there is room.
        fixed: Whether the number of seeds was asked for and so is kept.
        start: What each curve takes beyond its forwards.

    Example:
        >>> curves_within(1.2e6, 10, 5, 12_000, fixed=False)
        (5, 12000)
        >>> curves_within(1.2e6, 25, 5, 12_000, fixed=False)
        (4, 12000)
        >>> curves_within(1.2e6, 50, 5, 12_000, fixed=False)
        (3, 8000.0)
    """
    each = total / methods
    if not fixed:
        seeds = min(seeds, max(FEWEST_SEEDS, int(each // (forwards + start))))
    return seeds, max(1.0, min(forwards, each // seeds - start))


def ranked(specs: Iterable[Spec], first: Sequence[str]) -> list[Spec]:
    """The methods in the order in which studies take them.

    Those named in ``first``, then one of each kind in turn, a kind being what a card claims and needs: the first method of
    every kind, the second of every kind, and so on, each in the order given.
    """
    rank: dict[Spec, tuple[int, int]] = {}
    seen: dict[tuple[str, str], int] = {}
    for spec in sorted(specs, key=lambda spec: first.index(spec.label) if spec.label in first else len(first)):
        card = spec.method.card
        nth = seen[card.claim, card.needs] = seen.get((card.claim, card.needs), -1) + 1
        rank[spec] = (0, first.index(spec.label)) if spec.label in first else (1, nth)
    return sorted(rank, key=lambda spec: rank[spec])


def fitting(specs: Iterable[Spec], cost: Callable[[Spec], float], limit: float) -> tuple[list[Spec], float]:
    """As many of the methods as fit in ``limit``, from the first on, and what they cost together."""
    taken, spent = [], 0.0
    for spec in specs:
        more = cost(spec)
        if spent + more > limit:
            break
        taken.append(spec)
        spent += more
    return taken, spent
