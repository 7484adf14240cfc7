"""A function that everybody in black-box optimisation knows, as a task: what can be shown without a network or data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from dldw.tasks.landscapes import landscape
from dldw.tasks.quadratic import Point
from dldw.tasks.task import Task, seeded


class Function(Task):
    """A point w [d] is the model and the function its loss; width is d, 2 to 1,000 or more. There are no data."""

    summary: ClassVar[str]
    metric = "loss"
    target = 1e-8
    width = 10
    batch_size = train_examples = 1
    test_examples = 0

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        return seeded(seed, lambda: Point(width or self.width).double())

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        w: Tensor = model()
        return landscape(self.name, w.numel())(w[None]).expand(len(batch))

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Tensor]:
        """The one example there is, which says nothing."""
        while True:
            yield torch.zeros(1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        return {"loss": float(self.loss(model, torch.zeros(1)))}


class Sphere(Function):
    """sum_j z_j^2, z = R (w - optimum)."""

    name = "sphere"
    summary = "The sphere in 10 dimensions, shifted; no data."


class Ellipsoid(Function):
    """sum_j a_j z_j^2, a from 1 to 1e6."""

    name = "ellipsoid"
    summary = "An ellipsoid in 10 dimensions, condition number 1e6, rotated and shifted; no data."


class Rosenbrock(Function):
    """A bent valley, in which each coordinate follows the square of the one before."""

    name = "rosenbrock"
    summary = "Rosenbrock's bent valley in 10 dimensions, rotated and shifted; no data."


class Rastrigin(Function):
    """A bowl with a local minimum about every whole number of each coordinate."""

    name = "rastrigin"
    summary = "Rastrigin's many local minima in 10 dimensions, rotated and shifted; no data."
