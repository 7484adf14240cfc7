"""Debugging a backward pass written by hand: three mistakes, one after the other, each printed with where it is.

    python examples/wrong_backward.py

The operation is SwiGLU, (x W) * silu(x V), with the backward pass that saves memory by keeping its inputs alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dldw


class SwiGLU(torch.autograd.Function):
    """(x W) * silu(x V); ``mistake`` says which line of the backward pass is wrong."""

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, v: Tensor, mistake: str) -> Tensor:
        ctx.save_for_backward(x, w, v)
        ctx.mistake = mistake
        a, b = x @ w, x @ v
        return a * b * b.sigmoid()

    @staticmethod
    def backward(ctx, g: Tensor):
        x, w, v = ctx.saved_tensors
        a, b = x @ w, x @ v
        s = b.sigmoid()
        slope = s if ctx.mistake == "product rule" else s + b * s * (1 - s)
        ga, gb = g * b * s, g * a * slope
        gw, gv = x.T @ ga, x.T @ gb
        if ctx.mistake == "last column":
            gw[:, -1] = 0  # a kernel whose last block of columns is never written
        gx = ga @ w.T + (gb @ v.T if ctx.mistake != "sum" else 0)
        return gx, gw, gv, None


class Model(nn.Module):
    """An embedding of the inputs and one gated layer."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.embed, self.mistake = nn.Linear(6, 8), mistake
        self.w, self.v = nn.Parameter(torch.randn(8, 16) / 3), nn.Parameter(torch.randn(8, 16) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return SwiGLU.apply(self.embed(x), self.w, self.v, self.mistake)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """One value per example."""
    return model(x).square().mean(1)


def main() -> None:
    """Prints what ``dldw.check`` finds for each mistake, and for none."""
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    for mistake in ("last column", "product rule", "sum", "none"):
        print(f"--- mistake: {mistake}")
        print(dldw.check(Model(mistake), loss, x).explain(), end="\n\n")


if __name__ == "__main__":
    main()
