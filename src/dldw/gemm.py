"""Matrix products where no gradient is followed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: input [.., k] times weight [m, k] transposed, of any strides, plus ``bias`` [m]: [.., m].

    Large ones of float32 on the CPU go to oneDNN, by the operation that ``torch.compile`` makes of a linear layer: its
    kernels are made for the processor at hand, where torch's own take twice the time on those that MKL is not written for.
    """
    single = input.is_cpu and input.dtype == weight.dtype == torch.float32 and input.ndim > 1
    many = single and input.numel() * len(weight) >= _MANY
    if many and all(_is_plain(t) for t in (input, weight, bias)) and _onednn_may():
        out: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return out
    return F.linear(input, weight, bias)


def product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [m, k] times columns [k, n], of any strides, plus ``bias`` [n] in each row: [m, n]. See ``linear``."""
    return linear(rows, columns.mT, bias)


def product_beside(rows: Tensor, columns: Tensor, bias: Tensor | None, thin: Tensor, factor: Tensor) -> Tensor:
    """rows [.., k] times columns [k, n], plus thin [.., r] times factor [.., r, n], plus ``bias``: [.., n], all in 16 bits.

    The large product is added to the thin one: it reads its output anyway, as it does for a bias, and what is small is
    rounded while it is small.
    """
    if thin.shape[-1] == 1:
        out = thin * factor if bias is None else torch.addcmul(bias, thin, factor)
    else:
        out = thin @ factor if bias is None else (thin @ factor).add_(bias)
    out.view(-1, columns.shape[1]).addmm_(rows.reshape(-1, rows.shape[-1]), columns)
    return out.view(*rows.shape[:-1], columns.shape[1])


_MANY = 1 << 20
"""Multiplications from which the choice of the kernel matters."""


def _is_plain(t: Tensor | None) -> bool:
    """Whether it is a tensor itself, none of vmap's or of another subclass, which have rules for ``F.linear``."""
    return t is None or (type(t) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(t))


def _onednn_may() -> bool:
    """Whether oneDNN is there and switched on, and neither autograd nor autocast, for which it has no rule, watches."""
    onednn = torch.backends.mkldnn
    watched = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return bool(onednn.is_available() and onednn.enabled) and not watched
