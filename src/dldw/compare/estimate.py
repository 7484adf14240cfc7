"""How good an estimate of the gradient is: against the exact gradient of the same batch, at one point in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dldw.compare.item import Identity, Item, MethodItem, note
from dldw.compare.quality import measure
from dldw.compare.records import Record
from dldw.compare.sampled import trainable
from dldw.errors import DldwError
from dldw.source import GradientSource
from dldw.tasks.task import Task

WARM_UP = 30
LONGEST = 60_000
"""Forwards that one item may take; a method whose step costs more gets fewer draws, and two at least."""


def trained_point(task: Task, seed: int, width: int | None = None, steps: int = WARM_UP) -> tuple[nn.Module, Any]:
    """A model after some steps of plain gradient descent, and the next batch: neither start nor end of training."""
    model, batches = task.model(seed, width), task.batches(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 if task.metric == "accuracy" else 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(batches)).mean().backward()
        optimizer.step()
    return model, next(batches)


def exact_gradient(task: Task, model: nn.Module, batch: Any) -> Tensor:
    """dL/dw by autograd, [d]; zero where the loss does not depend on a weight."""
    tensors = list(trainable(model).values())
    found = torch.autograd.grad(task.loss(model, batch).mean(), tensors, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(tensors, found, strict=True)])


@dataclass(frozen=True)
class Estimating(MethodItem):
    """Cosine, variance and bias of one method's estimates."""

    seed: int
    width: int | None
    draws: int

    @property
    def weight(self) -> float:
        return 0.1 + self.seconds_of(min(self.draws * 3, LONGEST / 4))

    @property
    def keys(self) -> list[Identity]:
        return [("estimate", self.task, self.label, self.seed, self.width)]

    @property
    def what(self) -> str:
        return f"quality of the estimate: {self.label}, width {self.width}"

    def run(self) -> list[Record]:
        task, settings = self.loaded(), dict(self.settings)
        try:
            model, batch = trained_point(task, self.seed, self.width)
            g = exact_gradient(task, model, batch).double()
        except RuntimeError as error:
            return [note(f"Estimates on {self.task} have no exact gradient to be compared with: {error}")]
        generator = torch.Generator().manual_seed(20_000 + self.seed)
        learner: Any = self.spec.method.build(model, task.loss, generator, **settings)
        source: GradientSource = learner.source
        draws = max(2, min(self.draws, int(LONGEST // source.forwards(g.numel()))))
        try:
            found = measure(source, g, model, batch, draws=draws, narrow=0.0)
        except DldwError as error:
            return [note(f"The estimate of {self.label} could not be judged on {self.task}: {error}")]
        record: dict[str, Any] = {
            "kind": "estimate",
            "task": self.task,
            "method": self.label,
            "seed": self.seed,
            "width": self.width,
            "weights": found.weights,
            "draws": found.draws,
            "cosine": found.cosine,
            "cosine_low": found.cosine_interval[0],
            "cosine_high": found.cosine_interval[1],
            "relative_variance": found.variance,
            "relative_bias": None if found.bias_interval is None else found.bias_interval[0],
            "theory_variance": found.predicted_variance,
        }
        return [cast(Record, record)]


@dataclass(frozen=True)
class Nudging(Item):
    """The question's quotient (L(w + dw) - L(w)) / dw against the exact derivative of the same weight."""

    nudges: tuple[float, ...]
    count: int

    @property
    def weight(self) -> float:
        return self.seconds_of(len(self.nudges) * self.count)

    @property
    def keys(self) -> list[Identity]:
        return [("bias", self.task, nudge) for nudge in self.nudges]

    @property
    def what(self) -> str:
        return "bias of the difference quotient"

    def run(self) -> list[Record]:
        task = self.loaded()
        try:
            model, batch = trained_point(task, 0)
            g = exact_gradient(task, model, batch).double()
        except RuntimeError as error:
            return [
                note(f"The difference quotient on {self.task} has no exact derivative to be compared with: {error}")
            ]
        weights = trainable(model)
        alive = g.nonzero().flatten()  # a pixel that is always blank has weights that change nothing
        generator = torch.Generator().manual_seed(0)
        picks = alive[torch.randperm(len(alive), generator=generator)[: self.count]]
        signs = torch.randint(2, (len(picks),), generator=generator) * 2 - 1
        rms = float(g[alive].square().mean().sqrt())
        spots = [(p, i) for p in weights.values() for i in range(p.numel())]
        with torch.no_grad():
            plain = _mean_loss(task, model, batch)
            records = []
            for nudge in self.nudges:
                quotients = []
                for pick, sign in zip(picks.tolist(), signs.tolist(), strict=True):
                    p, i = spots[pick]
                    spot = p.view(-1)[i]
                    kept = spot.clone()
                    spot += sign * nudge
                    quotients.append((_mean_loss(task, model, batch) - plain) / (sign * nudge))
                    spot.copy_(kept)
                found = torch.tensor(quotients, dtype=torch.float64)
                errors = (found - g[picks]).abs() / rms
                low, middle, high = torch.quantile(
                    errors, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
                ).tolist()
                record: dict[str, Any] = {
                    "kind": "bias",
                    "task": self.task,
                    "nudge": nudge,
                    "weights_tried": len(picks),
                    "relative_error": middle,
                    "relative_error_low": low,
                    "relative_error_high": high,
                    "wrong_sign": float((found.sign() != g[picks].sign()).double().mean()),
                }
                records.append(cast(Record, record))
        return records


def _mean_loss(task: Task, model: nn.Module, batch: Any) -> float:
    losses = task.loss(model, batch)
    return float(losses.sum(dtype=torch.float64)) / losses.numel()
