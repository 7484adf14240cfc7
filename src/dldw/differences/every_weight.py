"""How the loss changes when each weight is nudged alone, up and down."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dldw.differences import elementwise, linear, normalised, products  # their rules
from dldw.differences.changes import Change, Entry, Unit
from dldw.differences.products import LookedUp
from dldw.differences.tensor import Difference, Inexact, NoDifference, Run, base
from dldw.memory import keep_freed_memory
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

    @property
    def path(self) -> str:
        """How they were found, in words."""
        return "differences" + (f", values of {', '.join(sorted(self.valued))}" if self.valued else "")


def nudged(
    objective: Objective,
    step: float,
    memory: int,
    *,
    exact: bool = False,
    odd_only: bool = False,
    picks: Sequence[Tensor] | None = None,
) -> Nudged:
    """How the loss changes with each weight alone; callers turn gradients off.

    Weights of a linear layer whose rows go their own ways to the loss are not nudged one by one. Whichever weight W[i, j]
    of unit i it is, row b of the batch feels a number: by how much unit i moves, h x_bj. So the loss of row b is measured as
    a function of that number, four times for each unit, and all weights of the unit follow by products with powers of x.
    Where four values do not show a smooth function (a kink, a long step), the weights of the unit are nudged one by one.
    Where rows of an example meet (attention), the number is a vector, one for each row of an example, and odd changes of so
    short a step are those of its numbers one by one.

    Args:
        objective: The loss.
        step: h.
        memory: Bound in bytes on what one pass holds.
        exact: Whether an operation without a rule is an error.
        odd_only: Whether the even changes are not asked for.
        picks: Of each parameter, which entries [k] by offset; all by default. The others come back as 0.

    Raises:
        Inexact: An operation has no rule, and ``exact`` asks for one.
        NoDifference: Changes cannot be followed through this model.
        NonFiniteLossError: The loss is NaN or infinite at the model's own weights, or at others.
    """
    keep_freed_memory()
    with plain_kernels(objective.model):
        return _Nudging(objective, step, memory, exact, odd_only).run(picks)


class _Nudging:
    def __init__(self, objective: Objective, step: float, memory: int, exact: bool, odd_only: bool) -> None:
        self.objective, self.step, self.exact, self.odd_only = objective, step, exact, odd_only
        self.tensors = objective.weights.tensors
        self.memory = memory
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
        if run.refused is not None:
            raise run.refused
        self.objective.check(value)
        self.loss = base(value)
        self.objective.mean(self.loss, "at the model's own weights")
        self.valued |= run.valued
        return run, value if isinstance(value, Difference) else None

    def _fitting(self, run: Run) -> int:
        """How many members fit into a pass, by what the last one took; an operation makes a few tensors for one it keeps."""
        bytes_of_one = max(1, (run.most + 4 * run.largest) // run.members)
        fitting = self.memory // bytes_of_one
        if self.objective.weights.device.type == "cpu":
            fitting = min(fitting, _CACHE * run.members // max(1, run.largest))
        return max(1, fitting)

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
        bias, p = self._bias_of(i), self.tensors[i]
        try:
            try:
                odd, even, rough = self._of_units(i, bias, len(p))
            except LookedUp:
                odd, even, rough = self._of_units(i, None, p.shape[1], of_lookup=True)
                self.odd[i], self.even[i] = odd.mT.contiguous(), even.mT.contiguous()
                left[i] = (torch.arange(len(p), device=p.device).unsqueeze(1) * p.shape[1] + rough).flatten()
                return
        except Inexact:
            raise
        except NoDifference as reason:
            _log.debug("weights of %s are nudged one by one: %s", tuple(p.shape), reason)
            return
        size = p.shape[1]
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

    def _of_units(
        self, i: int, bias: int | None, units: int, *, of_lookup: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Odd and even changes of the weights of each unit, the bias as a last column, and the units not to be trusted."""
        p = self.tensors[i]
        try:
            found, run = self._probed(i, bias, units, 1, _LENGTHS, of_lookup)
        except MixedRows as mixed:
            spots = self._spots(mixed.rows)
            if not 1 < spots < p.numel() // units:
                raise
            return self._of_spots(i, bias, units, spots, of_lookup)
        up, down, half_up, half_down = found
        odd, half_odd, even, half_even = up - down, half_up - half_down, up + down, half_up + half_down
        a, b = (8 * half_odd - odd) / 6, (16 * half_even - even) / 6
        c, d = odd / 2 - a, even / 2 - b
        tolerance = max(1e-6, 1024 * torch.finfo(p.dtype).eps) * a.abs().amax(1, keepdim=True)
        rough = ((c.abs() > tolerance) | (d.abs() > tolerance)).any(1).nonzero().squeeze(1)
        return *self._summed(run, bias, [a, b, c, d]), rough

    def _of_spots(
        self, i: int, bias: int | None, units: int, spots: int, of_lookup: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same where the rows of an example meet: each of them alone, and no even changes."""
        (up, down), run = self._probed(i, bias, units, spots, (1.0, -1.0), of_lookup)
        odd, even = ((up + sign * down).div_(2).view(units, spots, -1).mT.flatten(1) for sign in (-1, 1))
        rough = (even.abs() > 64 * self.step * odd.abs().amax(1, keepdim=True)).any(1).nonzero().squeeze(1)
        return *self._summed(run, bias, [odd]), rough

    def _summed(self, run: Run, bias: int | None, powers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The sums over rows of powers[k] [units, rows] times x^(k + 1), odd and even ones, the bias as a last column.

        x is the input in units of how far the units were moved.
        """
        if run.input is None or run.reach is None:
            raise NoDifference("the layer was not met")
        if not run.input.is_floating_point():  # rows that were looked up: x is 1 there and 0 elsewhere
            sums = [p.new_zeros(len(p), run.width).index_add_(1, run.input, p) for p in powers]
        else:
            sums = [p.new_zeros(len(p), run.width + (bias is not None)) for p in powers]
            rows = max(1, self.memory // (8 * sums[0].shape[1] * run.input.element_size()))
            for start in range(0, len(run.input), rows):
                some = slice(start, start + rows)
                x = run.input[some]
                x = (x if bias is None else torch.cat([x, torch.ones_like(x[:, :1])], 1)) / run.reach[some].unsqueeze(1)
                power = torch.ones_like(x)
                for total, p in zip(sums, powers, strict=True):
                    power = power * x
                    total.addmm_(p[:, some], power)
        odd, even = sums[::2], sums[1::2]
        return sum(odd[1:], odd[0]), sum(even[1:], even[0]) if even else torch.zeros_like(odd[0])

    def _spots(self, rows: int) -> int:
        """Rows that an example has in a layer, 0 where that is not known or changes do not simply add up."""
        if not self.odd_only or self.step**2 > max(torch.finfo(p.dtype).eps for p in self.tensors):
            return 0
        lengths = {t.shape[0] if t.ndim else 0 for t in tree_leaves(self.objective.batch) if isinstance(t, Tensor)}
        examples = lengths.pop() if len(lengths) == 1 else 0
        return rows // examples if examples and rows % examples == 0 else 0

    def _probed(
        self, i: int, bias: int | None, units: int, spots: int, lengths: Sequence[float], of_lookup: bool
    ) -> tuple[Tensor, Run]:
        """What every group of rows adds to the loss where a unit, and a spot, moves: [lengths, units * spots, groups]."""
        p, rows, parts, start = self.tensors[i], _FIRST, [], 0
        while start < units * spots:
            at = torch.arange(start, min(start + rows, units * spots), device=p.device)
            scale = torch.tensor(lengths, dtype=p.dtype, device=p.device).repeat_interleave(len(at)) * self.step
            at = at.repeat(len(lengths))
            change = Unit(at // spots, scale, spots, at % spots if spots > 1 else None, of_lookup)
            changes: dict[int, Change] = {i: change}
            if bias is not None:
                changes[bias] = Unit(None, scale)
            run, value = self._losses(changes, len(scale))
            if value is None or run.input is None:
                raise NoDifference("the weight is not that of a layer on the way to the loss")
            parts.append(_of_groups(value).view(len(lengths), -1, run.groups))
            start += rows
            rows = max(1, self._fitting(run) // len(lengths))
        return torch.cat(parts, 1), run


class MixedRows(NoDifference):
    """Rows of a layer's input do not go their own ways to the loss.

    Args:
        rows: How many there are.
    """

    def __init__(self, rows: int) -> None:
        super().__init__("the rows of its layer meet on the way to the loss")
        self.rows = rows


def _mean(value: Difference) -> Tensor:
    """The change of the mean loss of every member [n]."""
    change = value.dense.double()
    return change if change.ndim == 1 else change.mean(1)


def _of_groups(value: Difference) -> Tensor:
    """What each group adds to the change of the mean loss [n, groups]."""
    if value.ndim == 1 and value.apart:
        return value.by_group / len(value.base)
    if value.each is None:
        raise MixedRows(0 if value.run.input is None else len(value.run.input))
    return value.each


_LENGTHS = 1.0, -1.0, 0.5, -0.5

_FIRST = 4
"""Weights or units of the first pass, which shows what one takes."""

_CACHE = 3 << 20
"""Bytes that one change may take on the CPU, where what the next operation reads had better still be in the caches."""
