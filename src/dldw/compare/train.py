"""One training run: the harness owns clock, counting and evaluation; the method only steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dldw.compare.generation import generation
from dldw.compare.item import Identity, MethodItem
from dldw.compare.records import Record, Study
from dldw.compare.spec import Spec
from dldw.compare.statistics import log_spaced
from dldw.errors import DldwError, NonFiniteLossError
from dldw.learner import Descent, Learner
from dldw.tasks.task import Task
from dldw.tasks.userfile import where
from dldw.weights import Weights

DEFAULT_LR = 0.1
DIVERGED = 20
"""A run whose loss, above its least, is so many times that of the untrained model has diverged and ends."""
START = 0.2
"""Seconds a run takes beyond its forwards."""


@dataclass
class Curve:
    """A learning curve, and how it ended."""

    weights: int = 0
    points: list[dict[str, Any]] = field(default_factory=list)
    reason: Literal["budget", "target", "diverged", "error"] = "budget"
    error: str | None = None
    to_target: dict[str, Any] | None = None  # the first point at the target or beyond


def train(
    task: Task,
    spec: Spec,
    settings: Mapping[str, Any],
    seed: int,
    *,
    forwards: float,
    width: int | None = None,
    per_decade: int = 20,
    stop_at_target: bool = False,
    tuning: bool = False,
    model: nn.Module | None = None,
    progress: Callable[[dict[str, Any], Learner], None] | None = None,
) -> Curve:
    """Trains a fresh model until the budget is spent.

    The seed decides initial weights and batches, the same for every method, and what the method itself draws.

    Args:
        task: The task; the size of its batches decides what a step counts (see ``Task.resized``).
        spec: The method.
        settings: What it is built with.
        seed: Which run.
        forwards: Budget in forward-pass equivalents by the method's card; never exceeded, not even by the first step.
        width: Of the model; the task's own by default.
        per_decade: Evaluations in each factor of ten, evenly on a logarithmic scale.
        stop_at_target: End at the first evaluation that reaches the task's target.
        tuning: Train without the validation split and evaluate on it.
        model: Trained in place of a fresh one.
        progress: Called with each point of the curve, and the learner that is there.
    """
    model = task.model(seed, width) if model is None else model
    curve = Curve(weights=Weights(model).size)
    unit = forwards_per_step(spec, settings, curve.weights) * task.passes
    stops = log_spaced(forwards, unit, per_decade)
    last: Tensor | None = None
    step, seconds, before = 0, 0.0, task.interactions
    try:
        learner = spec.method.build(model, task.loss, torch.Generator().manual_seed(10_000 + seed), **settings)
        falling = _falling(learner, stops[-1]) if task.anneals else None
        batches = task.batches(seed, tuning=True) if tuning else task.batches(seed)
        for stop in stops:
            while step < stop:
                batch = next(batches)
                start = time.perf_counter()
                last = learner.step(batch)
                seconds += time.perf_counter() - start
                step += 1
                if falling:
                    falling.step()
            figures = task.evaluate(learner.model, "validation" if tuning else "test")
            point = {
                "step": step,
                "forwards": step * unit,
                "examples": step * task.batch_size,
                "seconds": seconds,
                "train_loss": None if last is None else _finite(float(last)),
                "loss": _finite(figures["loss"]),
                "accuracy": _finite(figures.get("accuracy")),
                "interactions": None if before is None else (task.interactions or 0) - before,
                task.metric: _finite(figures[task.metric]),
                **generation(learner),
            }
            curve.points.append(point)
            if progress:
                progress(point, learner)
            value = point[task.metric]
            if value is None or _error(task, point) > DIVERGED * (abs(_error(task, curve.points[0])) or math.inf):
                curve.reason, curve.error = "diverged", f"the loss is {figures['loss']:.3g} after step {step}"
                break
            if curve.to_target is None and reached(task, value):
                curve.to_target = point
                if stop_at_target:
                    curve.reason = "target"
                    break
    except NonFiniteLossError as error:
        curve.reason, curve.error = "diverged", str(error)
    except DldwError as error:
        curve.reason, curve.error = "error", str(error)
    except Exception as error:
        curve.reason, curve.error = "error", f"{where(error)} raised {type(error).__name__}: {error}"
    return curve


def _falling(learner: Learner, steps: int) -> torch.optim.lr_scheduler.LRScheduler | None:
    """The learning rate of a gradient source's optimizer falls along a cosine to nothing at the last step."""
    if not isinstance(learner, Descent) or isinstance(learner.optimizer, float | int) or not steps:
        return None
    return torch.optim.lr_scheduler.LambdaLR(learner.optimizer, lambda s: (1 + math.cos(math.pi * s / steps)) / 2)


def reached(task: Task, value: float) -> bool:
    """Whether ``value`` of the task's metric counts as solved."""
    return value >= task.target if task.rises else value <= task.target


def forwards_per_step(spec: Spec, settings: Mapping[str, Any], d: int) -> float:
    """What one step costs by the method's card, in forward-pass equivalents."""
    method = spec.method
    return method.card.count_forwards({**method.settings, **settings}, d)


@dataclass(frozen=True)
class Training(MethodItem):
    """One training run of a study.

    Attributes:
        rows: Examples in a batch; as many as the task has by default.
    """

    study: Study
    seed: int
    width: int | None
    factor: float
    forwards: float
    per_decade: int
    stop_at_target: bool
    rows: int | None = None

    @property
    def weight(self) -> float:
        return START + self.seconds_of(self.forwards) * (0.5 if self.stop_at_target else 1.0)

    @property
    def keys(self) -> list[Identity]:
        return [("end", self.study, self.task, self.label, self.seed, self.width, self.factor)]

    @property
    def what(self) -> str:
        return f"{self.study}: {self.label} on {self.task}, seed {self.seed}"

    def run(self) -> list[Record]:
        task = self.loaded().resized(self.rows)
        settings = dict(self.settings)
        if self.factor != 1.0:
            settings["lr"] = settings.get("lr", DEFAULT_LR) * self.factor
        curve = train(
            task, self.spec, settings, self.seed, forwards=self.forwards, width=self.width,
            per_decade=self.per_decade, stop_at_target=self.stop_at_target,
        )  # fmt: skip
        same: dict[str, Any] = {
            "study": self.study, "task": self.task, "method": self.label, "seed": self.seed,
            "width": self.width, "factor": self.factor,
        }  # fmt: skip
        values = [p[task.metric] for p in curve.points if p[task.metric] is not None]
        best = (max if task.rises else min)(values, default=None)
        end = {
            "kind": "end",
            **same,
            "weights": curve.weights,
            "lr": settings.get("lr", DEFAULT_LR) if self.spec.method.is_source else None,
            "reason": curve.reason,
            "failed": curve.to_target is None,
            "forwards_to_target": curve.to_target and curve.to_target["forwards"],
            "seconds_to_target": curve.to_target and curve.to_target["seconds"],
            "interactions_to_target": curve.to_target and curve.to_target["interactions"],
            "forwards": curve.points[-1]["forwards"] if curve.points else 0.0,
            "metric": curve.points[-1][task.metric] if curve.points else None,
            "best": best,
            "error": curve.error,
        }
        points: Sequence[dict[str, Any]] = [{"kind": "evaluation", **same, **p} for p in curve.points]
        return cast(list[Record], [*points, end])


def _error(task: Task, point: Mapping[str, Any]) -> float:
    return 0.0 if point["loss"] is None else float(point["loss"]) - task.lowest


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
