"""Bars and stripes: a density small enough that everything about a Boltzmann machine can be summed up exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from dldw.nn.likelihood import exact_log_partition
from dldw.nn.rbm import RBM
from dldw.tasks.task import Task, seeded

SIDE = 3


def patterns() -> Tensor:
    """Every image of 3 x 3 with whole rows lit, or whole columns, [14, 9]."""
    lines = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * SIDE)
    images: Tensor = torch.cat([lines.repeat_interleave(SIDE, 1), lines.repeat(1, SIDE)]).unique(dim=0)
    return images


class TwoBars(Task):
    """An RBM of 9 visible units learns 14 images that are equally likely; the loss is the exact -log p(v) in nats.

    The least loss any density can have is log 14. Every example is in every split, since the density is what is learnt.
    """

    name = "two-bars"
    summary = "Bars and stripes of 3 x 3, an RBM of 9 + 8 units; the loss is the exact negative log-likelihood."
    metric = "loss"
    target = 3.3
    lowest = math.log(14)
    width = 8
    batch_size = 28
    train_examples = 14
    test_examples = 14

    def __init__(self) -> None:
        self.images = patterns()

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        return seeded(seed, lambda: RBM(SIDE * SIDE, width or 8))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        rbm = cast(RBM, model)
        return rbm.free_energy(batch) + exact_log_partition(rbm)

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Tensor]:
        """Images drawn one by one, each as likely as any other."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.images[torch.randint(len(self.images), (self.batch_size,), generator=generator)]

    def enumerable(self) -> tuple[nn.Module, Tensor]:
        return self.model(0), self.images

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        return {"loss": float(self.loss(model, self.images).mean())}
