"""Matrix products where no gradient is followed."""

from __future__ import annotations

import torch
from torch import Tensor


def product(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [m, k] times columns [k, n], of any strides, plus ``bias`` [n] in each row: [m, n].

    Large ones of float32 on the CPU go to oneDNN, by the operation that ``torch.compile`` makes of a linear layer: its
    kernels are made for the processor at hand, where ``torch.mm`` takes twice the time on those that MKL is not written for.
    """
    many = rows.is_cpu and rows.dtype == columns.dtype == torch.float32 and rows.numel() * columns.shape[1] >= _MANY
    onednn = torch.backends.mkldnn
    if many and onednn.is_available() and onednn.enabled and not torch.is_autocast_enabled("cpu"):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, columns.mT, bias, "none", [], "")
        return out
    return torch.mm(rows, columns) if bias is None else torch.addmm(bias, rows, columns)


_MANY = 1 << 20
"""Multiplications from which the choice of the kernel matters."""
