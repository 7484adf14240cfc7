"""The course of a check: the claim, the quotients, the verdict, and where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dldw.checking.judge import Judgement, judge
from dldw.checking.locate import locate, part_of
from dldw.checking.problem import BackwardError, Claim, Gradient, Problem, Unavailable
from dldw.checking.quotient import Direction, Losses, Quotient
from dldw.checking.result import CheckResult, Part, Verdict
from dldw.errors import DldwError

FORWARDS = 40
"""Forward passes after which a check that has found nothing wrong ends."""

FIRST = 16
"""How many of them the first direction may take, along which the step is found."""

ENOUGH = 4
"""Directions along which a gradient has to agree, where so many are asked for."""

BESIDE = 2
"""Forward passes beside a kink before the first quotient: of the claim, and for the loss there."""

GOOD = 1e-7
"""The relative error of a quotient at which no better step is looked for."""

NEGLIGIBLE = 1e-6
"""The relative error of a gradient up to which it is right: methods that leave out terms of this size mean to."""


ROUNDED = 32.0
"""How many times as far as rounding the weights alone may move a gradient, rounding every step of its computation may."""


def examine(problem: Problem, *, directions: int, seed: int) -> CheckResult:
    """Checks the claim of ``problem``; the model, its gradients and the global random state are left as they were.

    Raises:
        DldwError: ``directions`` is less than one, or the loss cannot be evaluated.
    """
    if directions < 1:
        raise DldwError(f"directions must be at least 1, got {directions}: without one there is nothing to compare.")
    device = problem.weights.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Examination(problem, directions, seed).run()


def _goes_beside(needed: int, left: int) -> bool:
    """Whether ``left`` forward passes suffice for slopes along ``needed`` directions beside a kink."""
    return left >= BESIDE + 4 * needed


@dataclass
class _Measured:
    """The slopes of one problem along some directions."""

    problem: Problem
    losses: Losses
    directions: list[Direction]
    quotients: list[Quotient]
    needed: int

    def judge(self, claim: Claim, *, floor: float = 0.0) -> Judgement:
        slopes = [claim.along(direction) for direction in self.directions]
        limit = 1e-4 if self.losses.eps < 1e-12 and not floor else 1e-2
        return judge(
            self.quotients, slopes, floor=max(floor, 64 * claim.eps, NEGLIGIBLE), limit=limit, needed=self.needed
        )

    @property
    def flat(self) -> bool:
        return all(quotient.flat for quotient in self.quotients)

    @property
    def step(self) -> float:
        return self.quotients[-1].step


class _Examination:
    """One check.

    Args:
        problem: What is checked.
        directions: How many directions.
        seed: What they are drawn from.
    """

    def __init__(self, problem: Problem, directions: int, seed: int) -> None:
        self.problem, self.directions, self.seed = problem, directions, seed
        self.budget = max(FORWARDS, 4 * directions + 8)
        self.notes: list[str] = []

    def run(self) -> CheckResult:
        try:
            return self.compare(self.problem.claim())
        except BackwardError as error:
            return self.result("wrong", f"the backward pass itself raises: {error}")
        except Unavailable as error:
            return self.result("cannot tell", str(error))

    def compare(self, claim: Claim) -> CheckResult:
        losses, problem = self.in_float64()
        if not math.isfinite(losses.here):
            return self.result("cannot tell", f"the loss is {losses.here} at the given weights, so it has no slope.")
        same = self.same_loss(claim, losses)
        if not same and not self.repeats(losses):
            return self.not_deterministic(losses)
        measured = self.measure(problem, losses)
        if measured.flat and problem is not self.problem:  # the loss may not look at the copy it is given
            problem, losses = self.problem, Losses(self.problem.objective)
            measured = self.measure(problem, losses, self.problem.spent.forwards + self.budget)
        found = measured.judge(claim)
        if found.verdict != "right" and problem is not self.problem:
            narrow = claim
            try:
                claim = problem.claim()
            except (BackwardError, Unavailable) as error:
                self.notes.append(f"there is no derivative in float64: {error}")
                found = measured.judge(narrow, floor=_tolerance(narrow))
            else:
                found = measured.judge(claim)
                if found.verdict == "right":
                    found = self.rounded(problem, losses.scale, found, narrow, claim, same)
                    if found.verdict == "wrong":
                        return self.wrong_in_narrow(found, narrow, claim)
        if found.verdict == "cannot tell" and not found.flat:
            if not self.repeats(losses):
                return self.not_deterministic(losses)
            measured, claim, found = self.beside(measured, claim, found)
        return self.conclude(measured, claim, found)

    def in_float64(self) -> tuple[Losses, Problem]:
        """The problem in float64, itself or a copy, and its losses; as it is where it cannot be copied and converted."""
        problem = self.problem
        if any(p.dtype != torch.float64 for p in problem.weights.tensors):
            try:
                wide = problem.copied()
                return Losses(wide.objective), wide
            except Exception as error:  # whatever a model raises that cannot be copied or converted
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                dtype = _dtype(problem)
                self.notes.append(f"evaluated in {dtype}, as there can be no copy in float64: {reason}")
                problem.objective.rewind()
        return Losses(problem.objective), problem

    def same_loss(self, claim: Claim, losses: Losses) -> bool:
        """Whether the claim's forward pass gave the loss that the quotients start from."""
        first = claim.loss if isinstance(claim, Gradient) else None
        eps = max(torch.finfo(p.dtype).eps for p in self.problem.weights.tensors)
        return first is not None and math.isclose(first, losses.here, rel_tol=4 * math.sqrt(max(eps, losses.eps)))

    def repeats(self, losses: Losses) -> bool:
        return losses.at(losses.objective.weights.tensors) == losses.here

    def measure(self, problem: Problem, losses: Losses, last: int | None = None) -> _Measured:
        generator = torch.Generator(problem.weights.device).manual_seed(self.seed)
        needed = min(ENOUGH, self.directions)
        measured = _Measured(problem, losses, [], [], needed)
        step, kinks = losses.first_step, 0
        for i in range(self.directions):
            left = (last or self.budget) - problem.spent.forwards
            if left < 4 and i:
                break
            spare = min(FIRST, left - 4 * (needed - 1)) if i == 0 else left - 4 * (self.directions - 1 - i)
            direction = Direction(problem.weights, dict.fromkeys(problem.chosen), generator)
            quotient = losses.search(direction, step, good=GOOD, forwards=max(4, min(left, spare)))
            if math.isfinite(quotient.error):
                step = quotient.step
            measured.directions.append(direction)
            measured.quotients.append(quotient)
            coarse = 1e-3 * abs(quotient.value)
            kinks += quotient.jump + quotient.truncation > max(quotient.rounding, coarse)
            many = kinks > self.directions // 4 and _goes_beside(needed, left - 4)
            if many or (i == 0 and quotient.jump > coarse):  # the rest is better spent beside these weights
                break
        return measured

    def condition(self, problem: Problem, scale: float, claim: Claim, eps: float) -> float:
        """How far the gradient moves when the weights move by their rounding in a dtype of machine epsilon ``eps``."""
        near = problem.copied(moved=eps * scale, seed=self.seed).claim()
        return _distance(near.tensors or (), claim.tensors or ())

    def rounded(
        self, problem: Problem, scale: float, found: Judgement, narrow: Claim, claim: Claim, same: bool
    ) -> Judgement:
        """What to think of a gradient in low precision whose formula is right in float64."""
        if narrow.tensors is None or claim.tensors is None:
            return found
        off, dtype = _distance(narrow.tensors, claim.tensors), _dtype(self.problem)
        if off <= _tolerance(narrow) or off <= ROUNDED * self.condition(problem, scale, claim, narrow.eps):
            self.notes.append(f"the gradient in {dtype} is {off:.1g} from that in float64, which rounding explains.")
        elif same:
            return replace(found, verdict="wrong", error=off)
        else:
            self.notes.append(
                f"checked in float64 alone: the loss in {dtype} is another one (random numbers depend on the dtype)."
            )
        return found

    def wrong_in_narrow(self, found: Judgement, narrow: Claim, claim: Claim) -> CheckResult:
        ours, exact = narrow.tensors or (), claim.tensors or ()
        tolerance, parts = _tolerance(narrow) / math.sqrt(len(ours)), []
        for i in range(len(ours)):
            others = [t if j != i else ours[i] for j, t in enumerate(exact)]
            off = _distance(others, exact)
            parts.append(part_of(self.problem, narrow, i, "wrong" if off > tolerance else "right", error=off))
        reason = (
            f"in float64 the gradient is right, but in {_dtype(self.problem)} it is {_percent(found.error)} off, "
            "which is more than rounding."
        )
        return self.result("wrong", reason, found, parts)

    def beside(self, measured: _Measured, claim: Claim, found: Judgement) -> tuple[_Measured, Claim, Judgement]:
        """The same beside the given weights, where that tells more."""
        problem = measured.problem
        left = self.budget - problem.spent.forwards
        if any(p.dtype != torch.float64 for p in problem.weights.tensors) or not _goes_beside(measured.needed, left):
            return measured, claim, found
        try:
            copy = problem.copied(moved=measured.losses.scale / 100, seed=self.seed)
            losses, other = Losses(copy.objective), copy.claim()
        except Exception:  # whatever a model raises that cannot be copied
            return measured, claim, found
        moved = self.measure(copy, losses)
        again = moved.judge(other)
        if again.verdict == "cannot tell":
            return measured, claim, found
        why = "they stand on a kink of the loss" if found.kinked else "its slope is lost in rounding"
        self.notes.append(
            f"at the weights themselves there is no telling ({why}), so a copy was checked whose weights are moved by one "
            "per cent at random."
        )
        return moved, other, again

    def conclude(self, measured: _Measured, claim: Claim, found: Judgement) -> CheckResult:
        count = len(measured.quotients)
        if count < self.directions:
            self.notes.append(
                f"{count} of {self.directions} directions were taken, to keep to the forward passes allowed."
            )
        along = f"{count} random direction{'s' if count > 1 else ''}"
        chosen = self.problem.chosen
        if found.verdict == "right":
            silent = [self.problem.names[i] for i in chosen if claim.tensors is not None and _zero(claim.tensors[i])]
            if silent:
                self.notes.append(f"the gradient of {', '.join(silent)} is zero at these weights, and the loss agrees.")
            parts = [part_of(self.problem, claim, i, "right") for i in chosen]
            reason = f"the gradient agrees with slopes of the loss along {along} to {found.error:.1g} of them."
            return self.result("right", reason, found, parts)
        if found.verdict == "cannot tell":
            return self.result("cannot tell", self.why(measured, found), found)
        parts, causes = locate(measured.problem, measured.losses, claim, measured.step, self.seed)
        wrong = sum(part.verdict == "wrong" for part in parts)
        where = f"{wrong} of {len(parts)} tensors wrong" if wrong else "where, is not clear"
        off = f"is {_percent(found.error)} off" if math.isfinite(found.error) else "is not zero and the loss is flat"
        reason = f"the gradient {off} along {along}: {where}."
        return self.result("wrong", reason, found, parts, causes)

    def why(self, measured: _Measured, found: Judgement) -> str:
        """Why there is no telling."""
        if found.flat:
            return (
                "the gradient is zero and the loss is the same along every direction: at these weights there is nothing to "
                "compare. Check it at other weights, or after some steps of training."
            )
        best = f"the quotients are good to {found.resolution / 4:.1g} of the slope only"
        if not math.isfinite(found.resolution):
            return f"{best}: the loss is NaN or infinite beside the given weights."
        if found.kinked:
            return (
                f"{best}: the loss has kinks (ReLU, max-pooling, hinge) or noise around these weights at every step length. "
                "Check a smooth version of it, or fewer examples."
            )
        if measured.losses.eps > 1e-12:
            return (
                f"{best}: the loss is computed in low precision (machine epsilon {measured.losses.eps:.0e}). "
                "Let the model, the loss and what they capture work in float64 too."
            )
        return (
            f"{best}: the slope is small beside the loss itself ({measured.losses.here:.3g}), whose rounding hides it."
        )

    def not_deterministic(self, losses: Losses) -> CheckResult:
        again = losses.at(losses.objective.weights.tensors)
        return self.result(
            "cannot tell",
            f"the loss is not deterministic: at the same weights it was {losses.here:.17g} and {again:.17g}, although every "
            "evaluation starts from the same state of torch's random numbers. Draw from torch's global generator, or from "
            "one that the loss seeds itself.",
        )

    def result(
        self,
        verdict: Verdict,
        reason: str,
        found: Judgement | None = None,
        parts: Sequence[Part] = (),
        causes: Sequence[str] = (),
    ) -> CheckResult:
        spent, notes = self.problem.spent, tuple(dict.fromkeys(self.notes))
        error, resolution = (found.error, found.resolution) if found else (None, None)
        return CheckResult(
            verdict, reason, error, resolution, tuple(parts), spent.forwards, spent.backwards, tuple(causes), notes
        )


def _dtype(problem: Problem) -> str:
    return " and ".join(sorted({str(p.dtype).removeprefix("torch.") for p in problem.weights.tensors}))


def _zero(tensor: Tensor | None) -> bool:
    return tensor is None or not bool(tensor.any())


def _distance(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> float:
    """|a - b| / |b|; a missing tensor counts as zero."""
    squares = [0.0, 0.0]
    for x, y in zip(a, b, strict=True):
        wide = [t.double() if t is not None else 0.0 for t in (x, y)]
        squares[0] += float(torch.as_tensor(wide[0] - wide[1]).square().sum())
        squares[1] += float(torch.as_tensor(wide[1]).square().sum())
    return math.sqrt(squares[0] / squares[1]) if squares[1] else (math.inf if squares[0] else 0.0)


def _tolerance(claim: Claim) -> float:
    """How far rounding may take a gradient."""
    return 4 * math.sqrt(claim.eps)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
