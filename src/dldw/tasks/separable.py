"""Two classes with a known gap between them: where the perceptron's theorem says how many mistakes there can be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.tasks.classification import Batch, Classification

HALF = 256
"""Mirrored pairs of the training split without its validation split; each other split has half as many."""


class Separable(Classification):
    """Unit vectors x in 20 dimensions, of class 1 where w·x >= 0.1 and 0 where w·x <= -0.1, for one unit vector w.

    The margin of a linear layer W is the least lead of the own score over all examples, divided by ‖W‖; the sign says whether
    all are right. It is largest, γ = 0.1·√2, for the rows (-w, w)/√2: every example x comes with the one of the same w·x and
    the rest mirrored, and some with w·x = ± 0.1, so that no other W does better on both. What is reported is the margin over
    γ: 1 is the best there can be. With R = √2 the perceptron, taken through the examples one by one, makes at most (R/γ)² =
    100 mistakes in all. The loss is max(0, 1 - lead), of which ``perceptron[margin=1]`` is an exact subgradient.
    """

    name = "separable"
    summary = (
        "Two classes of unit vectors in 20 dimensions, 0.1 away from a plane at least; one linear layer, batches of 32."
    )
    metric = "margin"
    target = 0.5
    batch_size = 32
    dimensions = 20
    gap = 0.1

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.truth = self._unit(torch.randn(1, self.dimensions, generator=generator))[0]
        parts = [self._examples(pairs, generator) for pairs in (HALF, HALF // 2, HALF // 2)]
        (x, y), (x_held, y_held), test = parts
        super().__init__((torch.cat([x, x_held]), torch.cat([y, y_held])), test, validation=len(y_held))

    def _examples(self, pairs: int, generator: torch.Generator) -> Batch:
        """As many pairs, the first at the gap, in an order of their own: x [2 pairs, d] and y [2 pairs]."""
        along = self.gap + 0.15 * torch.randn(pairs, 1, generator=generator).abs()
        along[0] = self.gap
        y = torch.randint(2, (pairs,), generator=generator)
        beside = torch.randn(pairs, self.dimensions, generator=generator)
        beside = self._unit(beside - (beside @ self.truth)[:, None] * self.truth) * (1 - along.square()).sqrt()
        signed = (2 * y - 1)[:, None] * along * self.truth
        order = torch.randperm(2 * pairs, generator=generator)
        return torch.cat([signed + beside, signed - beside])[order], torch.cat([y, y])[order]

    @staticmethod
    def _unit(x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=1)

    def network(self, width: int) -> nn.Module:
        return nn.Linear(self.dimensions, 2, bias=False)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (1 - lead(model, batch)).clamp(min=0)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """The loss, accuracy and margin on a split, and how many of its examples a perceptron would call mistakes."""
        found = lead(model, self.splits[split])
        norm = max(float(torch.cat([p.flatten() for p in model.parameters()]).norm()), 1e-30)
        return {
            "loss": float((1 - found).clamp(min=0).mean()),
            "accuracy": float((found > 0).float().mean()),
            "margin": float(found.min()) / norm / (self.gap * 2**0.5),
            "mistakes": float((found <= 0).sum()),
        }


def lead(model: nn.Module, batch: Batch) -> Tensor:
    """By how much the score of the own class is above that of the other, [B]."""
    x, y = batch
    scores: Tensor = model(x)
    return (2 * y - 1) * (scores[:, 1] - scores[:, 0])
