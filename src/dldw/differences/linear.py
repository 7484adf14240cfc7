"""What is linear in a tensor, or in each of two: the change goes through the operation itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dldw.differences.changes import Change, Column, Entry, Unit
from dldw.differences.tensor import Difference, Each, NoDifference, Run, base, rule

Operand = Any
"""A tensor with changes, one without, or a number."""


def spread(change: Tensor, ndim: int) -> Tensor:
    """A change [n, *shape] that lines up with a tensor of ``ndim`` dimensions."""
    return change.view(len(change), *[1] * (ndim + 1 - change.ndim), *change.shape[1:])


def keeps_apart(shape: torch.Size, *given: Operand) -> bool:
    """Whether groups that are apart in what was given are so in a result of this shape that is made number by number."""
    return all(t.apart and t.shape == shape for t in given if isinstance(t, Difference))


def added(changes: list[Change | None], shape: torch.Size) -> Change:
    """The sum of some changes of a tensor of this shape."""
    some = [c for c in changes if c is not None]
    first = some[0]
    if len(some) == 1:
        return first
    columns = [c for c in some if isinstance(c, Column)]
    alike = isinstance(first, Column) and all(c.dim == first.dim and c.index is first.index for c in columns)
    if isinstance(first, Column) and alike and len(columns) == len(some):
        return Column(first.dim, first.index, torch.stack([c.values for c in columns]).sum(0))
    dense = [c if isinstance(c, Tensor) else c.dense(shape) for c in some if not isinstance(c, Unit)]
    return sum(dense[1:], dense[0])


def _carried(run: Run, value: Tensor, change: Change, x: Difference, apart: bool, factor: Any = None) -> Difference:
    each = x.each
    if each is not None and (value.ndim or (isinstance(factor, Tensor) and factor.ndim)):
        each = None
    if each is not None and factor is not None:
        each = each * factor
    return Difference(value, change, run, apart=apart, each=each)


@rule("add", "sub", "rsub")
def _add(run: Run, func: Any, a: Operand, b: Operand, alpha: float = 1) -> Any:
    value = func(base(a), base(b), alpha=alpha)
    signs = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[func._schema.name.removeprefix("aten::")]
    parts: list[Change | None] = []
    for t, sign in zip((a, b), signs, strict=True):
        if not isinstance(t, Difference):
            parts.append(None)
        elif isinstance(t.change, Column) and t.shape == value.shape:
            parts.append(t.change if sign == 1 else Column(t.change.dim, t.change.index, sign * t.change.values))
        elif isinstance(t.change, Entry) and t.ndim == 1 and value.shape[-1] == t.shape[0]:  # a bias
            run.used_whole = True
            step = sign * t.change.step.view(-1, *[1] * (value.ndim - 1))
            parts.append(Column(value.ndim - 1, t.change.offset, step.expand(-1, *value.shape[:-1])))
        else:
            dense = spread(t.dense, value.ndim)
            dense = dense if sign == 1 else sign * dense
            parts.append(dense if t.shape == value.shape else dense.expand(run.members, *value.shape))
    apart = keeps_apart(value.shape, a, b)
    if isinstance(a, Difference) and isinstance(b, Difference):
        return Difference(value, added(parts, value.shape), run, apart=apart)
    x, sign = (a, signs[0]) if isinstance(a, Difference) else (b, signs[1])
    return _carried(run, value, added(parts, value.shape), x, apart, sign)


@rule("mul")
def _mul(run: Run, func: Any, a: Operand, b: Operand) -> Any:
    value = func(base(a), base(b))
    apart = keeps_apart(value.shape, a, b)
    if isinstance(a, Difference) and isinstance(b, Difference):
        da, db = (spread(t.dense, value.ndim) for t in (a, b))
        return Difference(value, da * (b.base + db) + a.base * db, run, apart=apart)
    x, factor = (a, b) if isinstance(a, Difference) else (b, a)
    return _carried(run, value, _scaled(x, factor, value.shape), x, apart, factor)


@rule("div")
def _div(run: Run, func: Any, a: Operand, b: Operand, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        return NotImplemented
    value = func(base(a), base(b))
    apart = keeps_apart(value.shape, a, b)
    if not isinstance(b, Difference):
        factor = b.to(value.dtype).reciprocal() if isinstance(b, Tensor) else 1 / b
        return _carried(run, value, _scaled(a, factor, value.shape), a, apart, factor)
    db = spread(b.dense, value.ndim)
    da = spread(a.dense, value.ndim) if isinstance(a, Difference) else 0.0
    return Difference(value, (da - value * db) / (b.base + db), run, apart=apart)


def _scaled(x: Difference, factor: Any, shape: torch.Size) -> Change:
    if isinstance(x.change, Column) and x.shape == shape:
        if isinstance(factor, Tensor) and factor.ndim:
            factor = x.change.of(factor.expand(shape))
        return Column(x.change.dim, x.change.index, x.change.values * factor)
    scaled: Tensor = spread(x.dense, len(shape)) * factor
    return scaled


# --- shapes and sums ----------------------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape")
def _view(run: Run, func: Any, x: Difference, size: Any) -> Any:
    value, change = func(x.base, size), x.change
    if isinstance(change, Entry) and value.shape[-len(change.shape) :] == change.shape:
        return Difference(value, change, run)
    if isinstance(change, Column) and change.dim == x.ndim - 1 and value.shape[-1:] == x.shape[-1:]:
        values = change.values.reshape(run.members, *value.shape[:-1])
        return Difference(value, Column(value.ndim - 1, change.index, values), run, apart=x.apart)
    return Difference(value, x.dense.reshape(run.members, *value.shape), run, apart=x.apart)


@rule("t", "transpose", "permute")
def _permute(run: Run, func: Any, x: Difference, *dims: Any) -> Any:
    value = func(x.base, *dims)
    if isinstance(x.change, Entry | Unit) and x.ndim == 2 and value.shape == x.shape[::-1]:
        return Difference(value, x.change.transposed() if isinstance(x.change, Entry) else x.change, run)
    order = list(range(x.ndim))
    if func.overloadpacket is torch.ops.aten.permute:
        order = [d % x.ndim for d in dims[0]]
    elif x.ndim > 1:
        i, j = dims or (0, 1)
        order[i], order[j] = order[j], order[i]
    change = x.dense.permute(0, *[d + 1 for d in order])
    moved = [d for i, d in enumerate(order) if i != d]
    out = Difference(value, change, run, apart=x.lies_behind(*moved))
    first = x.of_groups
    out.parts_apart = first is not None and order[1 : first + 1] == list(range(first))
    return out


@rule("expand")
def _expand(run: Run, func: Any, x: Difference, size: Any, **kwargs: Any) -> Any:
    value = func(x.base, size, **kwargs)
    if isinstance(x.change, Entry) and value.shape[-len(x.change.shape) :] == x.change.shape:
        return Difference(value, x.change, run)
    change = spread(x.dense, value.ndim).expand(run.members, *value.shape)
    return Difference(value, change, run, apart=x.apart and value.shape == x.shape)


@rule("sum", "mean")
def _total(run: Run, func: Any, x: Difference, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    arguments = () if dim is None else (dim, keepdim)
    value = func(x.base, *arguments, **kwargs)
    dims = sorted(d % x.ndim for d in (dim or range(x.ndim))) if x.ndim else []
    share = value.new_tensor(
        1.0 if func.overloadpacket is torch.ops.aten.sum else 1 / max(1, x.numel() // value.numel())
    )
    if x.apart and value.ndim == 0:
        each = x.by_group * share
        return Difference(value, each.sum(1), run, each=each)
    if isinstance(x.change, Column) and dims == [x.change.dim]:
        change = x.change.values.unsqueeze(x.change.dim + 1) if keepdim else x.change.values
    else:
        change = x.dense.sum([d + 1 for d in dims], keepdim) if dims else x.dense
    return Difference(value, change * share, run, apart=x.lies_behind(*dims))


@rule("cat", "stack")
def _cat(run: Run, func: Any, tensors: Any, dim: int = 0) -> Any:
    value = func(base(tensors), dim)
    parts = [
        t.dense if isinstance(t, Difference) else torch.zeros_like(t).expand(run.members, *t.shape) for t in tensors
    ]
    moving = [t for t in tensors if isinstance(t, Difference)]
    apart = len(moving) == len(tensors) and all(t.lies_behind(dim) for t in moving) and value.ndim == tensors[0].ndim
    return Difference(value, func(parts, dim + 1 if dim >= 0 else dim), run, apart=apart)


@rule("where")
def _where(run: Run, func: Any, condition: Any, a: Operand, b: Operand) -> Any:
    if isinstance(condition, Difference):
        return NotImplemented
    value = func(condition, *base((a, b)))
    da, db = (spread(t.dense, value.ndim) if isinstance(t, Difference) else value.new_zeros(()) for t in (a, b))
    change: Tensor = torch.where(condition, da, db)
    return Difference(value, change.expand(run.members, *value.shape), run, apart=keeps_apart(value.shape, a, b))


@rule("masked_fill")
def _masked_fill(run: Run, func: Any, x: Difference, mask: Any, value: Any) -> Any:
    if isinstance(mask, Difference) or isinstance(value, Difference):
        return NotImplemented
    out = func(x.base, mask, value)
    change = spread(x.dense, out.ndim).masked_fill(mask, 0)
    return Difference(out, change.expand(run.members, *out.shape), run, apart=keeps_apart(out.shape, x))


@rule("native_dropout")
def _dropout(run: Run, func: Any, x: Difference, p: float, train: bool | None) -> Any:
    value, mask = func(x.base, p, train)
    scale = 1 / (1 - p) if train and p < 1 else 1.0
    return Difference(value, x.dense * (mask * scale), run, apart=x.apart), mask


@rule("_to_copy")
def _copied(run: Run, func: Any, x: Difference, **kwargs: Any) -> Any:
    value = func(x.base, **kwargs)
    if not value.is_floating_point():
        return NotImplemented
    if torch.finfo(value.dtype).bits < 32:
        raise NoDifference(f"{value.dtype} is too coarse for changes")
    return Difference(value, x.dense.to(value), run, apart=x.apart)


_POOLS = "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d"
_AT_DIM = {"select": 0, "slice": 0, "unbind": 0, "unsqueeze": 0, "split": 1, "split_with_sizes": 1, "unsafe_split": 1}
"""Operations along one dimension, and which argument names it."""
_OTHER = (
    "clone alias detach squeeze index_select gather index flip roll constant_pad_nd reflection_pad1d reflection_pad2d "
    "replication_pad1d replication_pad2d cumsum tril triu im2col unfold diagonal repeat upsample_nearest2d "
    "upsample_bilinear2d"
)


@rule(*_POOLS.split(), *_AT_DIM, *_OTHER.split())
def _linear(run: Run, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Any other linear function of one tensor."""
    name = func._schema.name.removeprefix("aten::")
    if not isinstance(x, Difference) or any(isinstance(a, Difference) for a in args):
        return NotImplemented
    if name in ("alias", "detach"):
        return Difference(func(x.base), x.change, run, apart=x.apart, each=x.each)
    if name == "clone":
        return Difference(func(x.base, **kwargs), x.dense.contiguous(), run, apart=x.apart, each=x.each)
    here = func(x.base, *args, **kwargs)
    rest = (args[0],) if name == "constant_pad_nd" else args  # a change is padded with zeros
    there = run.mapped(func, (Each(x.dense), *rest), kwargs)
    apart = False
    if name in _AT_DIM:
        at = _AT_DIM[name]
        dim = args[at] if len(args) > at else 0
        apart = x.lies_behind(dim) if name != "unsqueeze" else x.apart
        if name in ("select", "unbind") and dim % x.ndim == 0:
            apart = x.parts_apart
    elif name in _POOLS.split():
        apart = x.lies_behind(1)
    if isinstance(here, Tensor):
        return Difference(here, there, run, apart=apart)
    return type(here)(Difference(value, change, run, apart=apart) for value, change in zip(here, there, strict=True))


_MADE = "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty"


@rule(*_MADE.split())
def _like(run: Run, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """What is made in the shape of a tensor."""
    return func(*base((x, *args)), **kwargs)
