"""How the loss changes when each weight is nudged alone, up and down."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dldw.differences import elementwise, linear, normalised, products  # their rules
from dldw.differences.changes import Change, Entry, Unit
from dldw.differences.tensor import Difference, Inexact, NoDifference, Run, base
from dldw.objective import Objective, plain_kernels

_log = logging.getLogger("dldw")
_RULED = elementwise, linear, normalised, products


class Nudged(NamedTuple):
    """Changes of the mean loss L for a step h on each weight alone, one tensor for each parameter.

    Attributes:
        loss: The loss as the user's function returns it, at the model's own weights.
        odd: (L(w + h e) - L(w - h e)) / 2.
        even: (L(w + h e) + L(w - h e)) / 2 - L(w).
        valued: Operations that have no rule, so that values of theirs were subtracted.
    """

    loss: Tensor
    odd: list[Tensor]
    even: list[Tensor]
    valued: set[str]


def nudged(
    objective: Objective,
    step: float,
    memory: int,
    *,
    exact: bool = False,
    picks: Sequence[Tensor] | None = None,
) -> Nudged:
    """How the loss changes with each weight alone; callers turn gradients off.

    Weights of a linear layer whose rows go their own ways to the loss are not nudged one by one. Whichever weight W[i, j]
    of unit i it is, row b of the batch feels a number: by how much unit i moves, h x_bj. So the loss of row b is measured as
    a function of that number, four times for each unit, and all weights of the unit follow by products with powers of x.
    Where four values do not show a smooth function (a kink, a long step), the weights of the unit are nudged one by one.

    Args:
        objective: The loss.
        step: h.
        memory: Bound in bytes on what one pass holds.
        exact: Whether an operation without a rule is an error.
        picks: Of each parameter, which entries [k] by offset; all by default. The others come back as 0.

    Raises:
        Inexact: An operation has no rule, and ``exact`` asks for one.
        NoDifference: Changes cannot be followed through this model.
        NonFiniteLossError: The loss is NaN or infinite at the model's own weights, or at others.
    """
    with plain_kernels(objective.model):
        return _Nudging(objective, step, memory, exact).run(picks)


class _Nudging:
    def __init__(self, objective: Objective, step: float, memory: int, exact: bool) -> None:
        self.objective, self.step, self.exact = objective, step, exact
        self.tensors = objective.weights.tensors
        on_cpu = objective.weights.device.type == "cpu"
        self.bound = min(memory // 2, _CACHE) if on_cpu else memory // 2
        self.valued: set[str] = set()
        self.loss = torch.empty(0)
        wide = [torch.promote_types(p.dtype, torch.float32) for p in self.tensors]
        self.odd, self.even = (
            [torch.zeros(p.shape, dtype=dtype, device=p.device) for p, dtype in zip(self.tensors, wide, strict=True)]
            for _ in range(2)
        )

    def run(self, picks: Sequence[Tensor] | None) -> Nudged:
        whole = [torch.arange(p.numel(), device=p.device) for p in self.tensors] if picks is None else picks
        left = list(whole)
        if picks is None:
            for i, p in enumerate(self.tensors):
                if p.ndim == 2 and len(left[i]):
                    self._by_units(i, left)
        for i, offsets in enumerate(left):
            self._by_entries(i, offsets)
        if not self.loss.numel():
            self._losses({}, 1)
        changes = np.array([float(t.abs().max()) if t.numel() else 0.0 for t in (*self.odd, *self.even)])
        self.objective.require_finite(changes)
        return Nudged(self.loss, self.odd, self.even, self.valued)

    def _losses(self, changes: Mapping[int, Change], members: int) -> tuple[Run, Difference | None]:
        """The loss with its changes; None where it does not depend on what changes."""
        run = Run(members, exact=self.exact)
        tensors: list[Tensor] = list(self.tensors)
        for i, change in changes.items():
            tensors[i] = Difference(self.tensors[i].detach(), change, run)
        value = self.objective.at(tensors)
        self.objective.check(value)
        self.loss = base(value)
        self.objective.mean(self.loss, "at the model's own weights")
        self.valued |= run.valued
        return run, value if isinstance(value, Difference) else None

    def _fitting(self, run: Run) -> int:
        """How many members fit into a pass, by what the last one took; an operation makes two tensors for one it keeps."""
        return max(1, self.bound // max(1, 3 * run.bytes // run.members))

    def _by_entries(self, i: int, offsets: Tensor) -> None:
        p, rows = self.tensors[i], _FIRST
        odd, even = self.odd[i].view(-1), self.even[i].view(-1)
        while len(offsets):
            some, offsets = offsets[:rows], offsets[rows:]
            steps = torch.full((2, len(some)), self.step, dtype=p.dtype, device=p.device)
            steps[1].neg_()
            change = Entry(tuple(p.shape), some.repeat(2), steps.view(-1))
            run, value = self._losses({i: change}, 2 * len(some))
            if value is None:
                return
            up, down = _mean(value).to(odd.dtype).view(2, -1)
            odd[some], even[some] = (up - down) / 2, (up + down) / 2
            rows = max(1, self._fitting(run) // 2)
            if run.picked and not run.used_whole:  # entries of an embedding that no index looks up change nothing
                looked_up = torch.cat([index.reshape(-1) for index in run.picked]).unique()
                offsets = offsets[torch.isin(offsets // p.shape[1], looked_up)]

    def _by_units(self, i: int, left: list[Tensor]) -> None:
        """Takes weights off those that are left, and their bias with them."""
        bias = self._bias_of(i)
        try:
            found = self._of_units(i, bias)
        except Inexact:
            raise
        except NoDifference as reason:
            _log.debug("weights of %s are nudged one by one: %s", tuple(self.tensors[i].shape), reason)
            return
        odd, even, rough = found
        size = self.tensors[i].shape[1]
        self.odd[i], self.even[i] = odd[:, :size].contiguous(), even[:, :size].contiguous()
        left[i] = (rough.unsqueeze(1) * size + torch.arange(size, device=rough.device)).flatten()
        if bias is not None:
            self.odd[bias], self.even[bias], left[bias] = odd[:, size].contiguous(), even[:, size].contiguous(), rough

    def _bias_of(self, i: int) -> int | None:
        """The bias beside a weight, where both are held by one module alone."""
        slots = self.objective.weights.slots
        beside = slots[i][0][0].get("bias") if len(slots[i]) == 1 else None
        at = self.objective.weights.places.get(id(beside))
        fits = at is not None and len(slots[at]) == 1 and self.tensors[at].shape == self.tensors[i].shape[:1]
        return at if fits else None

    def _of_units(self, i: int, bias: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Odd and even changes of the weights of each unit, the bias as a last column, and the units not to be trusted."""
        p = self.tensors[i]
        units, rows, fitted = len(p), _FIRST, []
        start = 0
        while start < units:
            unit = torch.arange(start, min(start + rows, units), device=p.device)
            scale = torch.tensor(_LENGTHS, dtype=p.dtype, device=p.device).repeat_interleave(len(unit)) * self.step
            changes: dict[int, Change] = {i: Unit(unit.repeat(len(_LENGTHS)), scale)}
            if bias is not None:
                changes[bias] = Unit(None, scale)
            run, value = self._losses(changes, len(scale))
            if value is None or run.reach is None or run.input is None:
                raise NoDifference("the weight is not that of a layer on the way to the loss")
            fitted.append(_fit(_rows(value).view(len(_LENGTHS), len(unit), -1)))
            start += rows
            rows = max(1, self._fitting(run) // len(_LENGTHS))
        a, b, c, d = (torch.cat(parts) for parts in zip(*fitted, strict=True))
        tolerance = max(1e-6, 1024 * torch.finfo(p.dtype).eps) * a.abs().amax(1, keepdim=True)
        rough = ((c.abs() > tolerance) | (d.abs() > tolerance)).any(1).nonzero().squeeze(1)
        x = run.input if bias is None else torch.cat([run.input, torch.ones_like(run.input[:, :1])], 1)
        x = x / run.reach.unsqueeze(1)
        square = x * x
        return a @ x + c @ (square * x), b @ square + d @ (square * square), rough


def _mean(value: Difference) -> Tensor:
    """The change of the mean loss of every member [n]."""
    change = value.dense.double()
    return change if change.ndim == 1 else change.mean(1)


def _rows(value: Difference) -> Tensor:
    """What each row adds to the change of the mean loss [n, B]."""
    if value.ndim == 1 and value.apart:
        return value.dense / len(value.base)
    if value.each is None:
        raise NoDifference("the loss mixes rows")
    return value.each


_LENGTHS = 1.0, -1.0, 0.5, -0.5


def _fit(losses: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, b, c, d of a t + b t² + c t³ + d t⁴ from the values at t in ``_LENGTHS``."""
    up, down, half_up, half_down = losses
    odd, half_odd, even, half_even = (up - down) / 2, (half_up - half_down) / 2, (up + down) / 2, (half_up + half_down) / 2
    a, b = (8 * half_odd - odd) / 3, (16 * half_even - even) / 3
    return a, b, odd - a, even - b


_FIRST = 4
"""Weights or units of the first pass, which shows what one takes."""

_CACHE = 32 << 20
"""Bytes that the changes of one pass may take on the CPU, which is about what stays in its caches."""
