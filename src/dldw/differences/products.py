"""Products with a weight: one changed entry changes one column of the output, and one changed column is of rank one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dldw.differences.changes import Change, Column, Entry, Unit
from dldw.differences.linear import Operand, added
from dldw.differences.tensor import Difference, NoDifference, Run, base, rule


@rule("addmm")
def _addmm(run: Run, func: Any, bias: Operand, x: Operand, w: Operand, *, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1 or bias.ndim != 1:
        return NotImplemented
    value = func(*base((bias, x, w)))
    parts = [_product(run, x, w, with_bias=isinstance(bias, Difference))]
    if isinstance(bias, Difference):
        change = bias.change
        if isinstance(change, Entry):
            parts.append(Column(1, change.offset, change.step.unsqueeze(1).expand(-1, len(value))))
        elif not isinstance(change, Unit):
            parts.append(bias.dense.unsqueeze(1).expand(-1, *value.shape))
        elif run.reach is None:
            run.refuse(NoDifference("a bias belongs to another layer than the weight"))
            parts.append(bias.base.new_zeros(()).expand(run.members, *value.shape))
    apart = not isinstance(x, Difference) or x.lies_behind(1)
    return Difference(value, added(parts, value.shape), run, apart=apart)


@rule("mm", "bmm")
def _matmul(run: Run, func: Any, x: Operand, w: Operand) -> Any:
    value = func(*base((x, w)))
    apart = not isinstance(x, Difference) or x.lies_behind(x.ndim - 1 if w.ndim == 2 else x.ndim - 2)
    apart = apart and (not isinstance(w, Difference) or isinstance(w.change, Unit) or w.lies_behind(w.ndim - 2))
    return Difference(value, added([_product(run, x, w)], value.shape), run, apart=apart)


def _product(run: Run, x: Operand, w: Operand, *, with_bias: bool = False) -> Change | None:
    """The change of x @ w, [.., k] times [.., k, m]."""
    dx, dw = (t.change if isinstance(t, Difference) else None for t in (x, w))
    if isinstance(dw, Unit):
        if run.input is not None or isinstance(x, Difference) or x.ndim != 2 or dw.row is None or dw.of_lookup:
            run.refuse(NoDifference("a layer is used more than once, or on more than rows"))
            still: Tensor = w.base.new_zeros(()).expand(run.members, *x.shape[:-1], w.shape[-1])
            return still
        run.input, run.width, reach = x, x.shape[1], x.abs().amax(1)
        reach = reach.clamp(min=1) if with_bias else reach.masked_fill(reach == 0, 1)
        return Column(1, dw.row, _of_unit(run, dw, reach))
    if isinstance(dx, Entry | Unit):
        dx = x.dense
    from_x: Change | None = None
    if isinstance(dx, Column) and dx.dim == x.ndim - 1 and w.ndim == 2:
        from_x = dx.values.unsqueeze(-1) * base(w)[dx.index].unsqueeze(1)
    elif dx is not None:
        dx = x.dense
        rows = dx.flatten(0, -2) if w.ndim == 2 else dx
        from_x = (rows @ base(w)).view(*dx.shape[:-1], w.shape[-1])
    if dw is None:
        return from_x
    if isinstance(dw, Entry):
        run.used_whole = True
        k, column = dw.at
        picked = base(x).movedim(-1, 0)[k]
        if dx is not None:
            picked = picked + x.dense.movedim(-1, 1)[torch.arange(run.members, device=k.device), k]
        from_w: Change = Column(x.ndim - 1, column, picked * dw.step.view(-1, *[1] * (x.ndim - 1)))
    else:
        from_w = torch.matmul(base(x) if dx is None else x.moved, w.dense)
    return from_w if from_x is None else added([from_x, from_w], torch.Size((*x.shape[:-1], w.shape[-1])))


def _of_unit(run: Run, change: Unit, reach: Tensor) -> Tensor:
    """How far a unit moves in every row of the input [n, rows]."""
    run.groups, run.reach = len(reach) // change.spots, reach
    values = change.scale.unsqueeze(1) * reach
    if change.spot is None:
        return values
    spots = torch.arange(len(reach), device=reach.device) % change.spots
    return values.where(spots == change.spot.unsqueeze(1), 0)


class LookedUp(NoDifference):
    """The weight is that of an embedding."""


@rule("convolution")
def _convolution(run: Run, func: Any, x: Operand, w: Operand, bias: Operand, *options: Any) -> Any:
    stride, padding, dilation, transposed, _, groups = options
    value = func(*base((x, w, bias)), *options)
    parts: list[Change | None] = []
    if isinstance(x, Difference):
        if isinstance(w, Difference):
            return NotImplemented
        flat = func(x.dense.flatten(0, 1), w, None, *options)
        parts.append(flat.view(run.members, *value.shape))
    if isinstance(w, Difference):
        if transposed or not isinstance(w.change, Entry):
            return NotImplemented
        run.used_whole = True
        parts.append(_convolved_with_entry(x, w.change, value.shape, stride, padding, dilation, groups))
    if isinstance(bias, Difference):
        change = bias.change
        if not isinstance(change, Entry):
            return NotImplemented
        positions = (len(value), *value.shape[2:])
        step = change.step.view(-1, *[1] * len(positions)).expand(-1, *positions)
        parts.append(Column(1, change.offset, step))
    return Difference(value, added(parts, value.shape), run, apart=not isinstance(x, Difference) or x.lies_behind(1))


def _convolved_with_entry(
    x: Tensor, entry: Entry, shape: torch.Size, stride: Any, padding: Any, dilation: Any, groups: int
) -> Column:
    """One tap of one kernel gives its channel the input, shifted."""
    x = F.pad(x, [side for p in reversed(padding) for side in (p, p)])
    out_channels, in_channels, *size = entry.shape
    position = entry.offset
    taps = []
    for extent in reversed(size):
        taps.append((position % extent).tolist())
        position = position // extent
    out, channel = position // in_channels, position % in_channels
    channels = (channel + out // (out_channels // groups) * in_channels).tolist()
    moved = []
    for member, c in enumerate(channels):
        part = x[:, c]
        for dim, tap in enumerate(reversed(taps)):
            start = tap[member] * dilation[dim]
            stop = start + (shape[2 + dim] - 1) * stride[dim] + 1
            part = part[(slice(None), *[slice(None)] * dim, slice(start, stop, stride[dim]))]
        moved.append(part)
    steps = entry.step.view(-1, *[1] * (x.ndim - 1))
    return Column(1, out, torch.stack(moved) * steps)


@rule("embedding")
def _embedding(run: Run, func: Any, weight: Difference, index: Tensor, *args: Any, **kwargs: Any) -> Any:
    value, change = func(weight.base, index, *args, **kwargs), weight.change
    if isinstance(change, Unit) and change.of_lookup and change.row is not None and run.input is None:
        run.input, run.width = index.flatten(), len(weight)
        moved = _of_unit(run, change, value.new_ones(index.numel()))
        return Difference(value, Column(index.ndim, change.row, moved.view(-1, *index.shape)), run, apart=True)
    if isinstance(change, Unit) and not change.of_lookup:
        run.refuse(LookedUp("rows of the weight are looked up"))
    if not isinstance(change, Entry):
        return Difference(value, weight.dense[:, index], run)
    run.picked.append(index)
    row, column = change.at
    hit = index == row.view(-1, *[1] * index.ndim)
    return Difference(value, Column(index.ndim, column, hit * change.step.view(-1, *[1] * index.ndim)), run)
