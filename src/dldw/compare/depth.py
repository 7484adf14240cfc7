"""What an exact gradient costs as the network gets deeper: memory and time against plain autograd. Runs alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, cast

import torch
from torch import nn

from dldw.compare.item import Identity, MethodItem, note
from dldw.compare.meter import peak_bytes
from dldw.compare.records import Record
from dldw.errors import DldwError
from dldw.source import GradientSource
from dldw.sources.backprop import Backprop
from dldw.tasks.task import Task
from dldw.weights import Weights

FEWEST = 3
"""Pairs of steps that are timed however long they take."""


@dataclass(frozen=True)
class Deepening(MethodItem):
    """The gradient of one method at one depth.

    Attributes:
        depth: Blocks.
        seconds: Time to spend.
    """

    depth: int
    seconds: float

    @property
    def weight(self) -> float:
        return 0.5 + self.seconds + 0.05 * self.depth

    @property
    def keys(self) -> list[Identity]:
        return [("depth", self.task, self.label, self.depth)]

    @property
    def what(self) -> str:
        return f"{self.depth} blocks: {self.label}"

    def run(self) -> list[Record]:
        task = self.loaded()
        source = self._source(task)
        model, batch = task.deeper(self.depth)
        exact = _gradient(Backprop(task.loss), copy.deepcopy(model).double(), batch)
        step, plain = _step(source, model, batch), _step(Backprop(task.loss), model, batch)
        try:
            found = _gradient(source, model, batch)
        except DldwError as error:
            return [note(f"{self.label} was not measured at {self.depth} blocks: {error}")]
        pairs: list[tuple[float, float]] = []
        deadline = time.perf_counter() + self.seconds
        while len(pairs) < FEWEST or time.perf_counter() < deadline:
            pairs.append((_timed(step), _timed(plain)))
        low, ratio, high = quantiles([a / b for a, b in pairs], n=4)
        record: dict[str, Any] = {
            "kind": "depth",
            "task": self.task,
            "method": self.label,
            "depth": self.depth,
            "weights": Weights(model).size,
            "step_seconds": median(a for a, _ in pairs),
            "time_ratio": ratio,
            "time_ratio_low": low,
            "time_ratio_high": high,
            "repeats": len(pairs),
            "peak_bytes": peak_bytes(step, model),
            "gradient_error": float((found - exact).norm() / exact.norm()),
        }
        return [cast(Record, record)]

    def _source(self, task: Task) -> GradientSource:
        known = self.spec.method.factory
        source: GradientSource = known(task.loss, **dict(self.spec.given))
        return source


def _gradient(source: GradientSource, model: nn.Module, batch: Any) -> torch.Tensor:
    """The gradient of all weights as one vector in float64; it stays in ``.grad``, so that later steps need not make it."""
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    source(model, tuple(b.to(dtype) if b.is_floating_point() else b for b in batch))
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def _step(source: GradientSource, model: nn.Module, batch: Any) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=False)
        source(model, batch)

    return step


def _timed(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
