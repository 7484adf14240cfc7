"""What a wrong gradient looks like: the signatures of common mistakes, each tried against the measured slopes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dldw.checking.judge import DOUBT
from dldw.checking.problem import BackwardError, Claim, Gradient, Problem, twice
from dldw.checking.quotient import Direction, Losses, Quotient, Region
from dldw.checking.result import Part


class Probe(NamedTuple):
    """A direction and the slope along it."""

    direction: Direction
    quotient: Quotient


def looks(problem: Problem, claim: Claim, i: int, region: Region | None, probes: Sequence[Probe]) -> tuple[str, ...]:
    """What the gradient of weight ``i`` looks like inside ``region``, along ``probes`` that stay inside it."""
    g = None if claim.tensors is None else claim.tensors[i]
    slopes = [claim.along(direction) for direction, _ in probes]
    if isinstance(claim, Gradient) and claim.order is not None and i not in claim.order:
        return ("missing from the graph: autograd finds no path from the loss to it, though the loss depends on it",)
    if isinstance(claim, Gradient) and g is None:
        return ("missing: the backward pass returned None for it, though the loss depends on it",)
    if g is not None and not all(map(math.isfinite, slopes)):
        return (f"not finite: {int((~g.isfinite()).sum())} of {g.numel()} entries are NaN or infinite",)
    if not any(slopes):
        return ("zero",)
    if not any(quotient.value for _, quotient in probes):
        return (
            "not zero, though the loss does not change: a surrogate (straight-through), or terms that should cancel",
        )
    if (factor := _factor(slopes, probes)) is not None:
        return (_name(factor, problem),)
    if region is None and g is not None:
        for name, candidate in _rearranged(g):
            if _fits([direction.dot(_only(i, candidate, problem)) for direction, _ in probes], probes):
                return (name,)
    return ()


def _factor(slopes: Sequence[float], probes: Sequence[Probe]) -> float | None:
    """The constant that the slopes are of the measured ones, if there is one."""
    values = [quotient.value for _, quotient in probes]
    squares = sum(v * v for v in values)
    if not squares:
        return None
    factor = sum(p * v for p, v in zip(slopes, values, strict=True)) / squares
    off = [abs(p - factor * v) for p, v in zip(slopes, values, strict=True)]
    bounds = [max(DOUBT * max(1, abs(factor)) * q.error, 1e-3 * abs(factor - 1) * abs(q.value)) for _, q in probes]
    distinct = abs(factor - 1) * math.sqrt(squares) > 5 * DOUBT * max(q.error for _, q in probes)
    return factor if distinct and all(o <= b for o, b in zip(off, bounds, strict=True)) else None


def _name(factor: float, problem: Problem) -> str:
    def near(value: float) -> bool:
        return math.isclose(factor, value, rel_tol=1e-4)

    scaled = f"scaled by {factor:.6g}"
    if near(-1):
        return f"{scaled}: the sign is wrong"
    if near(2):
        return f"{scaled}: accumulated twice, or a factor 2 of a square"
    for size in sorted({t.shape[0] for t in tree_leaves(problem.batch) if isinstance(t, Tensor) and t.ndim}):
        if size > 1 and near(size):
            return f"{scaled}: a sum over the batch of {size} where the mean belongs"
        if size > 1 and near(1 / size):
            return f"{scaled}: a mean over the batch of {size} where the sum belongs, or a single example"
    return scaled


def _rearranged(g: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the gradient would be if its entries had been put in the wrong places, by the name of the mistake."""
    if g.ndim == 2:
        yield "transposed", g.reshape(g.shape[::-1]).t()
    for a, b in {(0, 1), (g.ndim - 2, g.ndim - 1)} if g.ndim > 2 else ():
        if g.shape[a] == g.shape[b]:
            yield f"transposed in dimensions {a} and {b}", g.transpose(a, b)
    for dim, length in enumerate(g.shape):
        if length > 2:
            yield f"off by one along dimension {dim}", g.roll(1, dim)
            yield f"off by one along dimension {dim}", g.roll(-1, dim)
        if length > 1:
            yield f"reversed along dimension {dim}", g.flip(dim)
    if g.ndim > 2:
        yield "flipped in the last two dimensions, as a kernel in a convolution is", g.flip(-1, -2)


def _only(i: int, tensor: Tensor, problem: Problem) -> list[Tensor | None]:
    return [tensor if j == i else None for j in range(len(problem.names))]


def _fits(slopes: Sequence[float], probes: Sequence[Probe]) -> bool:
    scale = max(abs(q.value) for _, q in probes)
    return all(abs(p - q.value) <= max(DOUBT * q.error, 1e-6 * scale) for p, (_, q) in zip(slopes, probes, strict=True))


def shared_once(problem: Problem, losses: Losses, claim: Claim, i: int, probes: Sequence[Probe]) -> tuple[str, ...]:
    """Whether the gradient of a shared weight is that of one of its places alone."""
    slots = problem.weights.slots[i]
    slopes = [claim.along(direction) for direction, _ in probes]
    if len(slots) < 2 or not any(slopes):
        return ()
    for container, key in slots:
        alone = []
        for direction, whole in probes:

            def at(step: float, direction: Direction = direction, slot: Any = (container, key)) -> float:
                kept, slot[0][slot[1]] = slot[0][slot[1]], direction.moved(step)[i]
                try:
                    return losses.at(problem.weights.tensors)
                finally:
                    slot[0][slot[1]] = kept

            alone.append(losses.between(at, whole.step))
        if _fits(slopes, [Probe(p.direction, q) for p, q in zip(probes, alone, strict=True)]):
            return (
                f"counted once: the weight is used in {len(slots)} places, and the gradient is that of one of them",
            )
    return ()


def stale(problem: Problem, claim: Claim) -> tuple[str, ...]:
    """Whether a second backward pass from the same weights gives another gradient."""
    if not isinstance(claim, Gradient) or claim.order is None:
        return ()
    try:
        again = twice(problem)
    except BackwardError as error:
        return (f"stale: a second backward pass raises: {error}",)
    for a, b in zip(claim.tensors, again.tensors, strict=True):
        x, y = (torch.zeros(()) if t is None else t.double() for t in (a, b))
        if float((x - y).norm()) > 1e-6 * float(y.norm()):
            return ("stale: a second backward pass from the same weights gives another gradient, so it keeps state",)
    return ()


def entry(problem: Problem, claim: Claim, parts: Sequence[Part]) -> tuple[str, ...]:
    """Between which uses of weights the error enters, if it spoils all that come before."""
    if not isinstance(claim, Gradient) or not claim.order:
        return ()
    parted = zip(problem.chosen, parts, strict=True)
    uses = sorted(((claim.order[i], part) for i, part in parted if i in claim.order), key=lambda use: use[0])
    wrong = [part.verdict == "wrong" for _, part in uses]
    count = sum(wrong)
    if not all(wrong[:count]) or count in (0, 1, len(wrong)) or any(part.causes for _, part in uses[:count]):
        return ()
    return (
        f"all that is used up to {uses[count - 1][1].name} is wrong, and nothing from {uses[count][1].name} on: look at the "
        "backward pass of what lies between them",
    )


class Uncut(NamedTuple):
    """A gradient from a graph whose cuts were undone, and where they were."""

    claim: Claim
    cuts: tuple[str, ...]


def uncut(problem: Problem) -> Uncut | None:
    """The claim once more, with ``detach``, ``data`` and ``no_grad`` undone; None where there are none."""
    undo = _Undo()
    try:
        with undo:
            claim = problem.claim()
    except (BackwardError, RuntimeError):
        return None
    return Uncut(claim, tuple(dict.fromkeys(undo.found))) if undo.found else None


class _Undo(TorchFunctionMode):
    """Inside, ``detach``, ``data`` and ``no_grad`` cut nothing off; what they would have is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        followed = any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves((args, kwargs)))
        place = _place(sys._getframe(1)) if followed else None
        if place is None:
            return func(*args, **kwargs)
        if func in _CUTS:
            self.found.append(f"{_CUTS[func]} in {place}")
            return args[0]
        if not torch.is_grad_enabled():
            with torch.enable_grad():
                out = func(*args, **kwargs)
            if any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(out)):
                self.found.append(f"no_grad in {place}")
            return out
        return func(*args, **kwargs)


_CUTS: dict[Any, str] = {Tensor.detach: "detach()", vars(torch._C.TensorBase)["data"].__get__: ".data"}


def _place(frame: FrameType | None) -> str | None:
    """``file, line`` of the innermost frame outside torch; None in dldw and in an ``autograd.Function``, which may detach."""
    torch_itself, own = str(Path(torch.__file__).parent), str(Path(__file__).parent.parent)
    place = None
    while frame is not None:
        file = frame.f_code.co_filename
        if any(isinstance(value, FunctionCtx) for value in frame.f_locals.values()):
            return None
        if place is None and file.startswith(own):
            return None
        if place is None and not file.startswith(torch_itself):
            place = f"{Path(file).name}, line {frame.f_lineno}"
        frame = frame.f_back
    return place
