"""Widths at which a task's network has so many weights, far from its own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from dldw.compare.meter import flops
from dldw.tasks.classification import Classification
from dldw.tasks.task import Task
from dldw.weights import Weights

EASY = 100_000
"""Weights up to which as many estimates are drawn as at the task's own width; beyond, the more weights, the fewer."""

FEWEST = 8
"""Estimates below which their spread would say nothing."""


def widths_of(task: Task, sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Pairs (width, size): hidden units that give the network about ``size`` weights.

    A network whose weights each take part in many products for an example, as those of a convolution do, takes longer at the
    same size. What would take longer than an MLP of the largest size is left out, and so are tasks that do not classify
    fixed-size examples: their batches need not suit other widths, nor need a forward pass take longer for its weights.
    """
    wanted, own = sorted(sizes), task.width
    if own is None or not wanted or not isinstance(task, Classification):
        return []
    widths = [max(1, own // 2), max(2, own), 2 * max(2, own)]
    counts = [Weights(task.model(0, width)).size for width in widths]
    square, linear, rest = np.polyfit(widths, counts, 2)  # a layer's weights grow with its width or with its square
    if linear <= 0 and square <= 0:
        return []
    products = _products(task) / counts[1]
    found = []
    for size in wanted:
        if size * max(1.0, products) > wanted[-1]:
            break
        if abs(square) < 1e-6 * linear:
            root = (size - rest) / linear
        else:
            root = (-linear + max(0.0, linear**2 + 4 * square * (size - rest)) ** 0.5) / (2 * square)
        found.append(
            (2 * round(root / 2) if root > own else max(1, round(root)), size)
        )  # halves and heads want an even one
    return found


def draws_at(size: int, draws: int) -> int:
    """How many estimates are drawn at ``size`` weights, where ``draws`` are at the task's own width."""
    return max(FEWEST, int(draws * min(1.0, EASY / size)))


def _products(task: Task) -> float:
    """Products of a weight and a number that one example takes in a forward pass."""
    model, batch = task.model(0), next(task.batches(0))
    with torch.no_grad():
        losses: list[Tensor] = []
        count = flops(lambda: losses.append(task.loss(model, batch)))
    return count / (2 * losses[0].numel())
