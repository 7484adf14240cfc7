"""Digits through hidden units whose derivative is zero: there is no gradient to follow behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.tasks.digits import Digits


class Step(nn.Module):
    """-1 below zero and 1 above it; the derivative is zero wherever it exists."""

    def forward(self, x: Tensor) -> Tensor:
        """The sign of ``x``, elementwise."""
        return torch.sign(x)


class StepDigits(Digits):
    """As ``digits``, with a hard step for tanh and 16 hidden units.

    The exact gradient of the first layer is zero, so whatever follows it trains the last layer alone, on 16 fixed random
    features; that is why the layer is narrow and the target is above what random features give.
    """

    name = "step-digits"
    summary = (
        "8 x 8 handwritten digits (scikit-learn), MLP 64-16-10 with a hard step: the hidden weights get no gradient."
    )
    target = 0.80
    width = 16
    companion = None
    wider = None

    def network(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), Step(), nn.Linear(width, 10))
