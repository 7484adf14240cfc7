"""Digits with weights that are 8-bit integers: between two of them there is nothing, and so no derivative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.tasks.digits import Digits

STEP = 2.0**-5
"""The weight that the integer 1 stands for: a power of two, so that whole steps are exact in floating point."""


class Int8Linear(nn.Linear):
    """A linear layer that computes with the integers -128 .. 127 nearest to its parameters, in steps of ``STEP``.

    A parameter moved by ``STEP`` is an integer moved by one. Parameters start on integers and stay there under whole steps;
    a method that moves them by less finds the loss as it was until one of them crosses to the next integer.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(integers(p) * STEP)

    def forward(self, x: Tensor) -> Tensor:
        """Integers times integers, scaled once at the end."""
        return F.linear(x, integers(self.weight), integers(self.bias)) * STEP


def integers(parameter: Tensor) -> Tensor:
    """The 8-bit integers that ``parameter`` stands for, as floating-point numbers."""
    return (parameter / STEP).round().clamp(-128, 127)


class Int8Digits(Digits):
    """As ``digits``, with 8-bit integers for weights and biases. Rounding has the derivative zero: backprop stands still."""

    name = "int8-digits"
    summary = "8 x 8 handwritten digits (scikit-learn), MLP 64-32-10 with tanh; every weight is an 8-bit integer."
    target = 0.90
    companion = None
    wider = None

    def network(self, width: int) -> nn.Module:
        return nn.Sequential(Int8Linear(64, width), nn.Tanh(), Int8Linear(width, 10))
