"""Where a gradient is wrong: which tensors, then which rows, columns and entries, by bisection over blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from dldw.checking.causes import Probe, entry, looks, shared_once, stale, uncut
from dldw.checking.judge import DOUBT
from dldw.checking.problem import Claim, Problem
from dldw.checking.quotient import Block, Direction, Losses, Region
from dldw.checking.result import Part, Verdict

MANY = 4
"""Wrong intervals at one level of a bisection from which on the error counts as spread over the whole dimension."""

FLOOR = 1e-7
"""The relative error of a slope inside a block below which it is not wrong."""


def locate(
    problem: Problem, losses: Losses, claim: Claim, step: float, seed: int
) -> tuple[list[Part], tuple[str, ...]]:
    """Every tensor in question with its own verdict, and the causes that concern all that are wrong.

    Args:
        problem: What was found to be wrong.
        losses: Its losses.
        claim: What it claims.
        step: A step that gave good quotients along all weights at once.
        seed: What directions are drawn from.
    """
    search = _Search(problem, losses, claim, step, seed)
    wrong = _bisect(problem.chosen, lambda some: search.wrong(dict.fromkeys(some)), many=len(problem.chosen)) or ()
    parts = [search.examine(i) if i in wrong else part_of(problem, claim, i, "right") for i in problem.chosen]
    return parts, (*stale(problem, claim), *entry(problem, claim, parts))


def part_of(
    problem: Problem,
    claim: Claim,
    i: int,
    verdict: Verdict,
    *,
    error: float | None = None,
    where: str = "",
    causes: tuple[str, ...] = (),
) -> Part:
    """What is to be said of one tensor."""
    g = None if claim.tensors is None else claim.tensors[i]
    norm = None if g is None else float(g.double().norm())
    return Part(problem.names[i], tuple(problem.weights.tensors[i].shape), norm, verdict, error, where, causes)


class _Search:
    def __init__(self, problem: Problem, losses: Losses, claim: Claim, step: float, seed: int) -> None:
        self.problem, self.losses, self.claim, self.step = problem, losses, claim, step
        self.generator = torch.Generator(problem.weights.device).manual_seed(seed + 1)
        self.uncut = uncut(problem)
        self.size = sum(problem.weights.tensors[i].numel() for i in problem.chosen)

    def probe(self, block: Block) -> Probe:
        """A quotient along a direction inside ``block``, at a step that grows as the block is smaller."""
        direction = Direction(self.problem.weights, block, self.generator)
        size = sum(int(z.count_nonzero()) for z in direction.parts.values())
        step = min(self.step * math.sqrt(self.size / max(size, 1)), self.losses.scale / 8)
        return Probe(direction, self.losses.search(direction, step, good=1e-6, forwards=12))

    def probes(self, block: Block, count: int) -> list[Probe]:
        return [self.probe(block) for _ in range(count)]

    def misses(self, claim: Claim, probes: Sequence[Probe]) -> bool:
        """Whether ``claim`` is wrong along any of ``probes``."""
        for direction, quotient in probes:
            slope = claim.along(direction)
            bound = max(DOUBT * quotient.error, FLOOR * max(abs(slope), abs(quotient.value)))
            if not abs(slope - quotient.value) <= bound:
                return True
        return False

    def wrong(self, block: Block) -> bool:
        """Whether the claim is wrong inside ``block``: along one of two directions."""
        return any(self.misses(self.claim, [self.probe(block)]) for _ in range(2))

    def examine(self, i: int) -> Part:
        """A tensor that is wrong: where, and what it looks like."""
        probes = self.probes({i: None}, 4)
        squares = sum(q.value**2 for _, q in probes)
        miss = sum((self.claim.along(z) - q.value) ** 2 for z, q in probes)
        error = math.sqrt(miss / squares) if squares else math.inf
        causes = shared_once(self.problem, self.losses, self.claim, i, probes) or looks(
            self.problem, self.claim, i, None, probes
        )
        if self.uncut is not None and not self.misses(self.uncut.claim, probes):
            causes += tuple(f"detached by {cut}; without that it is right" for cut in self.uncut.cuts)
        where = "all of it"
        if not causes:
            region = self.narrow(i)
            where = describe(region, self.problem.weights.tensors[i].shape)
            if any(chosen is not None for chosen in region):
                causes = looks(self.problem, self.claim, i, region, self.probes({i: region}, 4))
        return part_of(self.problem, self.claim, i, "wrong", error=error, where=where, causes=causes)

    def narrow(self, i: int) -> Region:
        """The indices of each dimension that are wrong, one dimension after the other."""
        shape = self.problem.weights.tensors[i].shape
        region: list[Sequence[int] | None] = [None] * len(shape)

        for dim, length in enumerate(shape):
            rest = region[:dim], region[dim + 1 :]

            def within(chosen: Sequence[int], rest: tuple[list[Sequence[int] | None], ...] = rest) -> bool:
                return self.wrong({i: (*rest[0], chosen, *rest[1])})

            if length > 1:
                found = _bisect(range(length), within, many=MANY)
                region[dim] = found if found and len(found) < length else None
        return tuple(region)


def _bisect(items: Sequence[int], wrong: Callable[[Sequence[int]], bool], *, many: int) -> list[int] | None:
    """Those of ``items``, wrong together, that are wrong alone; None where more than ``many`` intervals are."""
    level, found = [items], list[Sequence[int]]()
    while level:
        halves = [half for group in level for half in (group[: len(group) // 2], group[len(group) // 2 :]) if half]
        level = []
        for half in halves:
            if wrong(half):
                (level if len(half) > 1 else found).append(half)
        if len(level) + len(found) > many:
            return None
    return sorted(half[0] for half in found)


def describe(region: Region, shape: Sequence[int]) -> str:
    """A region in words and in the notation of an index."""
    fixed = [dim for dim, chosen in enumerate(region) if chosen is not None]
    if not fixed:
        return "all of it"
    index = ", ".join(":" if c is None else str(c[0]) if len(c) == 1 else str(list(c)) for c in region)
    several = any(len(c) > 1 for c in region if c is not None)
    if len(fixed) == len(shape):
        kind = "entries" if several else "entry"
    elif len(shape) == 2:
        kind = ("row", "column")[fixed[0]] + ("s" if several else "")
    else:
        kind = "slice" + ("s" if several else "")
    return f"{kind} [{index}]"
