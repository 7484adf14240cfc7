"""Norms, softmax, pooling and losses: the changes of what looks at many numbers at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dldw.differences.changes import Change, Column, Entry
from dldw.differences.elementwise import growth, softplus
from dldw.differences.linear import added
from dldw.differences.tensor import Difference, Run, base, rule


def standardised(a: Tensor, d: Tensor, eps: float) -> Tensor:
    """How (a - mean) / sqrt(variance + eps) over the last dimension changes."""
    c, dc = a - a.mean(-1, keepdim=True), d - d.mean(-1, keepdim=True)
    v = c.square().mean(-1, keepdim=True) + eps
    dv = (dc + 2 * c).mul_(dc).mean(-1, keepdim=True)
    r, moved = v.rsqrt(), v + dv
    dr = -r * dv / (moved + (moved * v).sqrt())
    return torch.addcmul(c * dr, dc, r + dr)


def _affine(
    run: Run, out: Tensor, normal: Tensor, change: Tensor | None, w: Any, b: Any, dim: int, apart: bool
) -> Difference:
    """The change of normal · w + b, where w and b count the last dimensions from ``dim`` on, or the channels in it."""

    def spread(t: Tensor) -> Tensor:
        return t if dim != 1 or out.ndim == 2 else t.reshape(*t.shape, *[1] * (out.ndim - 2))

    parts: list[Change | None] = []
    if change is not None:
        parts.append(change if w is None else change * spread(w.moved.unsqueeze(1) if _moves(w) else w))
    for t, factor in ((w, normal), (b, None)):
        if not _moves(t):
            continue
        if isinstance(t.change, Entry) and t.ndim == 1:
            t.run.used_whole = True
            step = t.change.step.view(-1, *[1] * (out.ndim - 1))
            index = t.change.offset
            shape = [s for i, s in enumerate(out.shape) if i != dim]
            values = step.expand(-1, *shape) if factor is None else factor.movedim(dim, 0)[index] * step
            parts.append(Column(dim, index, values))
        else:
            dense = spread(t.dense)
            dense = dense.view(len(dense), *[1] * (out.ndim + 1 - dense.ndim), *dense.shape[1:])
            parts.append((dense if factor is None else factor * dense).expand(-1, *out.shape))
    return Difference(out, added(parts, out.shape), run, apart=apart)


def _moves(t: Any) -> bool:
    return isinstance(t, Difference)


@rule("native_layer_norm")
def _layer_norm(run: Run, func: Any, x: Any, shape: Any, w: Any, b: Any, eps: float) -> Any:
    out, mean, rstd = func(base(x), shape, base(w), base(b), eps)
    if len(shape) > 1 and (_moves(w) or _moves(b)):
        return NotImplemented
    change = None
    if _moves(x):
        lead = x.shape[: x.ndim - len(shape)]
        moved = standardised(x.base.reshape(*lead, -1), x.dense.reshape(run.members, *lead, -1), eps)
        change = moved.view(run.members, *x.shape)
    apart = not _moves(x) or x.lies_behind(*range(x.ndim - len(shape), x.ndim))
    return _affine(run, out, (base(x) - mean) * rstd, change, w, b, out.ndim - 1, apart), mean, rstd


@rule("native_group_norm")
def _group_norm(run: Run, func: Any, x: Any, w: Any, b: Any, n: int, c: int, size: int, groups: int, eps: float) -> Any:
    out, mean, rstd = func(*base((x, w, b)), n, c, size, groups, eps)
    grouped = base(x).reshape(n, groups, -1)
    normal = ((grouped - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)).view(base(x).shape)
    change = None
    if _moves(x):
        change = standardised(grouped, x.dense.reshape(run.members, n, groups, -1), eps).view(run.members, *x.shape)
    return _affine(run, out, normal, change, w, b, 1, not _moves(x) or x.lies_behind(1)), mean, rstd


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(run: Run, func: Any, x: Any, w: Any, b: Any, mean: Any, var: Any, *rest: Any) -> Any:
    named = "no_training" in func._schema.name
    if (not named and rest[0]) or _moves(mean) or _moves(var):
        return NotImplemented
    out, *others = func(*base((x, w, b)), mean, var, *rest)
    shape = (-1, *[1] * (out.ndim - 2))
    scale = (var + rest[-1 if named or isinstance(rest[-1], float) else -2]).rsqrt().view(shape)
    normal = (base(x) - mean.view(shape)) * scale
    change = x.dense * scale if _moves(x) else None
    return _affine(run, out, normal, change, w, b, 1, not _moves(x) or x.apart), *others


# --- softmax ----------------------------------------------------------------------------------------------------------


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(run: Run, func: Any, x: Difference, dim: int, *rest: Any, **kwargs: Any) -> Any:
    value = func(x.base, dim, *rest, **kwargs)
    if value.dtype != x.dtype:
        return NotImplemented
    log = func.overloadpacket is torch.ops.aten._log_softmax
    p = value.exp() if log else value
    dim, apart = dim % x.ndim, x.lies_behind(dim)
    if log and isinstance(x.change, Column) and x.change.dim == dim:
        shift = torch.log1p(x.change.of(p) * growth(x.change.values))
        change = x.dense - shift.unsqueeze(dim + 1)
        return Difference(value, change, run, apart=apart)
    change = x.dense
    grown = growth(change).mul_(p)
    total = grown.sum(dim + 1, keepdim=True)
    change = change - total.log1p_() if log else grown.sub_(p * total).div_(1 + total)
    return Difference(value, change, run, apart=apart)


@rule("logsumexp")
def _logsumexp(run: Run, func: Any, x: Difference, dim: Any, keepdim: bool = False) -> Any:
    dims = [d % x.ndim for d in dim]
    p = (x.base - torch.logsumexp(x.base, dims, keepdim=True)).exp()
    change = torch.log1p(growth(x.dense).mul_(p).sum([d + 1 for d in dims], keepdim))
    return Difference(func(x.base, dim, keepdim), change, run, apart=x.lies_behind(*dims))


# --- pooling ------------------------------------------------------------------------------------------------------------


@rule("max_pool2d_with_indices")
def _max_pool(run: Run, func: Any, x: Difference, *args: Any, **kwargs: Any) -> Any:
    out, index = func(x.base, *args, **kwargs)
    column = x.change if isinstance(x.change, Column) and x.change.dim == x.ndim - 3 else None
    a = x.base.expand(run.members, *x.shape) if column is None else column.of(x.base)
    held = out.expand(run.members, *out.shape) if column is None else column.of(out)
    d = x.dense if column is None else column.values
    _, chosen = func((a + d).reshape(-1, 1, *a.shape[-2:]), *args, **kwargs)
    chosen = chosen.view(*held.shape[:-2], -1)
    moved = a.flatten(-2).gather(-1, chosen) - held.flatten(-2) + d.flatten(-2).gather(-1, chosen)
    moved = moved.view(held.shape)
    change: Change = moved if column is None else Column(column.dim, column.index, moved)
    return Difference(out, change, run, apart=x.lies_behind(1)), index


# --- losses -------------------------------------------------------------------------------------------------------------


def _reduced(run: Run, value: Tensor, change: Tensor, reduction: int, share: Any, apart: bool) -> Difference:
    """A loss whose unreduced change this is [n, B, ..]; 0 keeps it, 1 is the mean, 2 the sum."""
    if reduction == 0:
        return Difference(value, change, run, apart=apart)
    each = change.reshape(run.members, run.groups if apart else 1, -1).sum(2)
    if reduction == 1:
        each = each * share
    return Difference(value, each.sum(1), run, each=each if apart else None)


@rule("nll_loss_forward", "nll_loss2d_forward")
def _nll_loss(run: Run, func: Any, x: Any, target: Any, weight: Any, reduction: int, ignore: int) -> Any:
    if not isinstance(x, Difference) or isinstance(target, Difference) or isinstance(weight, Difference) or x.ndim < 2:
        return NotImplemented
    value, total = func(x.base, target, weight, reduction, ignore)
    kept = target != ignore
    index = target.where(kept, 0)
    factor = -kept.to(x.dtype) if weight is None else -(kept * weight[index])
    picked = x.dense.gather(2, index.unsqueeze(1).expand(run.members, *index.shape[:1], 1, *index.shape[1:])).squeeze(2)
    return _reduced(run, value, picked * factor, reduction, 1 / total if reduction == 1 else 1, x.lies_behind(1)), total


@rule("mse_loss")
def _mse_loss(run: Run, func: Any, x: Any, y: Any, reduction: int = 1) -> Any:
    value = func(*base((x, y)), reduction)
    difference = base(x) - base(y)
    parts = [
        t.dense * sign for t, sign in ((x, 1), (y, -1)) if isinstance(t, Difference) and t.shape == difference.shape
    ]
    if len(parts) != sum(isinstance(t, Difference) for t in (x, y)):
        return NotImplemented
    d = sum(parts[1:], parts[0])
    apart = all(t.apart for t in (x, y) if isinstance(t, Difference))
    return _reduced(run, value, d * (2 * difference + d), reduction, 1 / difference.numel(), apart)


@rule("binary_cross_entropy_with_logits")
def _binary_cross_entropy(
    run: Run, func: Any, x: Any, y: Any, weight: Any = None, pos: Any = None, reduction: int = 1
) -> Any:
    if not isinstance(x, Difference) or isinstance(y, Difference) or weight is not None or pos is not None:
        return NotImplemented
    value = func(x.base, y, None, None, reduction)
    change = softplus(x.base, x.dense, threshold=float("inf")) - y * x.dense
    return _reduced(run, value, change, reduction, 1 / x.numel(), x.apart)
