"""The digits with a deep reversible network: the same gradient by three ways of storing less."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from dldw.nn import ReversibleBlock, ReversibleSequential
from dldw.tasks.digits import Digits
from dldw.tasks.task import seeded


class Deep(Digits):
    """A chain of 8 reversible blocks between two linear layers, on the digits; set to plain autograd.

    So ``backprop`` stores every activation, ``backprop[checkpoint=true]`` the input of each block, and
    ``backprop[reversible=true]`` nothing but the output. What that takes in memory and time is measured at 8 to 128 blocks of
    more units and on more rows, where activations weigh more than the bookkeeping.
    """

    name = "deep"
    summary = "8 x 8 handwritten digits (scikit-learn), 8 reversible blocks of 2 x 16 units, batches of 128."
    target = 0.90
    width = 32
    companion = None
    wider = None
    methods: ClassVar[tuple[str, ...]] = ("backprop", "backprop[checkpoint=true]", "backprop[reversible=true]")
    depths: ClassVar[tuple[int, ...]] = (8, 16, 32, 64, 128)
    blocks, deep_width, deep_rows = 8, 128, 2048

    def network(self, width: int) -> nn.Module:
        return _network(width, self.blocks)

    def deeper(self, depth: int) -> tuple[nn.Module, Any]:
        x, y = self.train
        rows = torch.arange(self.deep_rows) % len(y)
        return seeded(0, lambda: _network(self.deep_width, depth)), (x[rows], y[rows])


def _network(width: int, depth: int) -> nn.Module:
    half = width // 2
    blocks = (ReversibleBlock(_branch(half, depth), _branch(half, depth)) for _ in range(depth))
    chain = ReversibleSequential(*blocks, backward="plain")
    return nn.Sequential(nn.Linear(64, 2 * half), chain, nn.LayerNorm(2 * half), nn.Linear(2 * half, 10))


def _branch(width: int, depth: int) -> nn.Module:
    """What all branches add stays of one size at every depth, as is usual in deep residual networks."""
    last = nn.Linear(width, width)
    with torch.no_grad():
        last.weight.mul_(depth**-0.5)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), last)
