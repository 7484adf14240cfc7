"""Matrix products where no gradient is followed."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: input [.., k] times weight [m, k] transposed, of any strides, plus ``bias`` [m]: [.., m].

    Large ones of float32 on the CPU go to oneDNN, by the operation that ``torch.compile`` makes of a linear layer, unless the
    processor is one that MKL is written for: on others torch's own products, which are MKL's, take twice the time.
    """
    return (_by_onednn if _is_onednns(input, weight, bias) else F.linear)(input, weight, bias)


def product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [m, k] times columns [k, n], of any strides, plus ``bias`` [n] in each row: [m, n]. See ``linear``."""
    return linear(rows, columns.mT, bias)


def product_beside(rows: Tensor, columns: Tensor, bias: Tensor | None, thin: Tensor, factor: Tensor) -> Tensor:
    """rows [.., k] times columns [k, n], plus thin [.., r] times factor [.., r, n], plus ``bias`` [n] or [.., 1, n]: [.., n].

    Tensors are of one dtype, and neither autograd nor autocast watches. The large product is added to the thin one: it reads
    its output anyway, as it does for a bias, and in 16 bits what is small is rounded while it is small.
    """
    if _is_onednns(rows, columns.mT, bias):  # which adds to nothing that is there
        if bias is not None and bias.ndim > 1:
            thin = torch.cat([thin, thin.new_ones(*thin.shape[:-1], 1)], -1)
            factor, bias = torch.cat([factor, bias], -2), None
        out = _by_onednn(rows, columns.mT, bias)
        if thin.shape[-1] == 1:
            return out.addcmul_(thin, factor)
        if factor.ndim > 2:
            return out.baddbmm_(thin, factor)
        _matrix(out).addmm_(_matrix(thin), factor)
        return out
    if bias is None:
        out = thin @ factor
    elif thin.shape[-1] == 1:
        out = torch.addcmul(bias, thin, factor)
    else:
        out = (thin @ factor).add_(bias)
    matrix = _matrix(out)
    _add_by_torch(matrix, _matrix(rows), columns)
    return out.view(*rows.shape[:-1], columns.shape[1])


def add_product(out: Tensor, rows: Tensor, columns: Tensor, alpha: float) -> None:
    """Adds ``alpha`` times rows [m, k] times columns [k, n] to ``out`` [m, n]; neither autograd nor autocast watches."""
    if _is_onednns(rows, columns.mT, None):
        out.add_(_by_onednn(rows, columns.mT, None), alpha=alpha)
    else:
        _add_by_torch(out, rows, columns, alpha)


def _add_by_torch(out: Tensor, rows: Tensor, columns: Tensor, alpha: float = 1.0) -> None:
    torch.addmm(out, rows, columns, alpha=alpha, out=out)  # torch counts its operations, but not those of addmm_


def add_outer(out: Tensor, column: Tensor, row: Tensor, value: float) -> None:
    """Adds ``value`` times column [m, 1] times row [1, n] to ``out`` [m, n], rounded once, whatever the precision."""
    if out.is_cpu and out.dtype == torch.bfloat16 and out.numel() >= _MANY and _onednn_has_bfloat16():
        whole = value * row.float()  # in two parts of 8 bits: as ``alpha``, zero would go to a kernel 40 times as slow
        high = whole.bfloat16()
        out.addmm_(column.expand(-1, 2), torch.cat([high, whole.sub_(high).bfloat16()]))  # half the time of addcmul_
    else:
        out.addcmul_(column, row, value=value)


_MANY = 1 << 20
"""Multiplications from which the choice of the kernel matters."""


def _matrix(t: Tensor) -> Tensor:
    return t.flatten(0, -2) if t.ndim > 1 else t.unsqueeze(0)


def _is_onednns(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the product of these goes to oneDNN."""
    if mkl_is_at_home():  # first, as small products pay for every question
        return False
    single = input.is_cpu and input.dtype == weight.dtype == torch.float32 and input.ndim > 1
    many = single and input.numel() * len(weight) >= _MANY
    return many and all(_is_plain(t) for t in (input, weight, bias)) and _onednn_may()


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return out


def _is_plain(t: Tensor | None) -> bool:
    """Whether it is a tensor itself, none of vmap's or of another subclass, which have rules for ``F.linear``."""
    return t is None or (type(t) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(t))


def _onednn_may() -> bool:
    """Whether oneDNN is there and on, and neither autograd nor autocast, for which it has no rule, watches."""
    watched = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return _onednn_is_on() and not watched


def _onednn_has_bfloat16() -> bool:
    """Whether oneDNN is there, on, and multiplies in bfloat16 on this processor."""
    return _onednn_is_on() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _onednn_is_on() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


@cache
def mkl_is_at_home() -> bool:
    """Whether torch has MKL, and the processor is of the maker that MKL is written for."""
    if not torch.backends.mkl.is_available():
        return False
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        processor = platform.processor()
    return "GenuineIntel" in processor
