"""The digits with a network of two hidden layers: what local and random-feedback rules are compared on."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import nn

from dldw.tasks.digits import Digits


class Digits6464(Digits):
    """The digits, an MLP 64-64-64-10 with ReLU in batches of 64, and the rules that learn layer by layer."""

    name = "digits-64-64"
    summary = "8 x 8 handwritten digits (scikit-learn), MLP 64-64-64-10 with ReLU, batches of 64: for local rules."
    target = 0.95
    width = 64
    batch_size = 64
    anneals = True
    companion = None
    wider = None
    methods: ClassVar[tuple[str, ...]] = (
        "backprop", "mono-forward", "feedback-alignment[mode=direct]", "feedback-alignment[mode=random]",
        "feedback-alignment[mode=sign-symmetric]", "node-perturbation", "node-perturbation[per_example=false]",
        "local-backprop", "head-only", "forward-forward", "activity-forward-gradient",
    )  # fmt: skip

    def network(self, width: int) -> nn.Module:
        sizes = [64, width, width, 10]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(*layers[:-1])
