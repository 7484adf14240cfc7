"""How good an estimate of the gradient is: against the exact gradient of the same batch, at one point in training."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dldw.compare.item import Identity, Item, MethodItem, note
from dldw.compare.quality import measure
from dldw.compare.records import Record
from dldw.compare.sampled import trainable
from dldw.compare.sigma import sweep
from dldw.errors import DldwError
from dldw.source import GradientSource
from dldw.sources.spsa import SPSA
from dldw.tasks.task import Task

WARM_UP = 30
LONGEST = 60_000
"""Forwards that one item may take; a method whose step costs more gets fewer draws, and two at least."""

SECONDS_PER_WEIGHT = 1.2e-8
"""About what a forward-equivalent takes for each weight of a network that is too large for the processor's cache."""

SWEPT, FAR = 4, 500_000
"""Directions along which sigma is swept; the number of weights from which every second sigma is left out."""


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
    """Cosine, variance and bias of one method's estimates, and at the task's own width what a step along one buys.

    Attributes:
        seed: Which point in training.
        width: Hidden units.
        draws: Estimates.
        size: About how many weights, where the width is far from the task's own: then the point is where training begins,
            and no step is tried.
    """

    seed: int
    width: int | None
    draws: int
    size: int = 0

    @property
    def weight(self) -> float:
        each = max(self.seconds_of(1), self.size * SECONDS_PER_WEIGHT)
        return 0.1 + min(self.draws * 3, LONGEST / 4) * each

    @property
    def keys(self) -> list[Identity]:
        return [("estimate", self.task, self.label, self.seed, self.width)]

    @property
    def what(self) -> str:
        return f"quality of the estimate: {self.label}, width {self.width}"

    def run(self) -> list[Record]:
        task, settings = self.loaded(), dict(self.settings)
        try:
            model, batch = trained_point(task, self.seed, self.width, steps=0 if self.size else WARM_UP)
            g = exact_gradient(task, model, batch).double()
        except RuntimeError as error:
            return [note(f"Estimates on {self.task} have no exact gradient to be compared with: {error}")]
        point = f"{self.label} {self.width} {self.seed}"  # one seed for all would repeat the same chance at every point
        generator = torch.Generator().manual_seed(zlib.crc32(point.encode()))
        learner: Any = self.spec.method.build(model, task.loss, generator, **settings)
        source: GradientSource = learner.source
        draws = max(2, min(self.draws, int(LONGEST // source.forwards(g.numel()))))
        try:
            loss = task.loss if self.width == task.width and not self.size else None
            found = measure(source, g, model, batch, draws=draws, narrow=0.0, loss=loss)
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
            "cosine_rms": abs(found.cosine) if found.cosine_rms is None else found.cosine_rms,
            "relative_variance": found.variance,
            "variance_low": None if found.variance_interval is None else found.variance_interval[0],
            "variance_high": None if found.variance_interval is None else found.variance_interval[1],
            "relative_bias": None if found.bias_interval is None else found.bias_interval[0],
            "bias": found.bias,
            "bias_high": _finite(found.bias_interval[1]) if found.bias_interval is not None else None,
            "relative_error": found.error,
            "theory_variance": found.predicted_variance,
            "forwards": found.forwards,
            "seconds": found.seconds,
            "decrease": _finite(found.decrease),
            "decrease_low": None if found.decrease_interval is None else _finite(found.decrease_interval[0]),
            "decrease_high": None if found.decrease_interval is None else _finite(found.decrease_interval[1]),
        }
        return [cast(Record, record)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Sweeping(Item):
    """The error of slopes along random directions against sigma, at one width.

    Attributes:
        width: Hidden units.
        size: As that of ``Estimating``.
    """

    width: int | None
    size: int = 0

    @property
    def weight(self) -> float:
        each = max(self.seconds_of(1), self.size * SECONDS_PER_WEIGHT)
        return 0.1 + 2 * SWEPT * len(self._sigma) * each

    @property
    def keys(self) -> list[Identity]:
        return [("sigma", self.task, self.width)]

    @property
    def what(self) -> str:
        return f"sigma, width {self.width}"

    @property
    def _sigma(self) -> list[float]:
        return [4.0**power for power in range(-11, 2, 2 if self.size >= FAR else 1)]

    def run(self) -> list[Record]:
        task = self.loaded()
        try:
            model, batch = trained_point(task, 0, self.width, steps=0 if self.size else WARM_UP)
            g = exact_gradient(task, model, batch).double()
        except RuntimeError as error:
            return [note(f"Slopes on {self.task} have no exact derivative to be compared with: {error}")]
        try:
            found = sweep(SPSA(task.loss), g, model, batch, self._sigma, directions=SWEPT)
        except DldwError as error:
            return [note(f"Sigma was not swept on {self.task}: {error}")]
        record: dict[str, Any] = {
            "kind": "sigma",
            "task": self.task,
            "width": self.width,
            "weights": g.numel(),
            "dtype": str(next(iter(trainable(model).values())).dtype).removeprefix("torch."),
            "sigma": list(found.sigma),
            "error": [_finite(error) for error in found.error],
            "recommended": found.recommended,
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
        if not len(alive):
            return [
                note(
                    f"The difference quotient on {self.task} has nothing to be compared with: the exact derivative is zero."
                )
            ]
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
