"""What somebody else may have written, a task or a method, tried once before any work: its errors come at once."""

from __future__ import annotations

import torch

from dldw.compare.spec import Spec
from dldw.compare.train import forwards_per_step
from dldw.errors import DldwError
from dldw.tasks.task import Task
from dldw.tasks.userfile import where
from dldw.weights import Weights


def unable(task: Task, spec: Spec) -> str:
    """Why a method cannot make a step on this task, or nothing where it can.

    One that needs loss values alone is only built: the probe of the task took a loss, and its step may be a long one.
    """
    try:
        learner = spec.method.build(task.model(0), task.loss, torch.Generator(), **spec.settings(task.settings))
        if spec.method.card.needs != "loss values":
            learner.step(next(task.batches(0)))
    except DldwError as error:
        return str(error)
    return ""


def probe(target: str, task: Task) -> None:
    """Runs what the user may have written once, so that its errors come at once and with their place."""
    try:
        model = task.model(0)
        batch = next(task.batches(0))
        loss = task.loss(model, batch)
        figures = task.evaluate(model)
    except DldwError:
        raise
    except Exception as error:
        raise DldwError(
            f"task {target} cannot be used: {where(error)} raised {type(error).__name__}: {error}"
        ) from error
    if task.metric not in figures or "loss" not in figures:
        raise DldwError(
            f"task {target}: evaluate must return 'loss' and the task's metric {task.metric!r}, and returned "
            f"{sorted(figures)}. Add what is missing, or set metric to 'loss'."
        )
    if loss.ndim != 1:
        raise DldwError(
            f"task {target}: loss must return one value per example, shape [B], and returned shape {list(loss.shape)}. "
            "Leave the mean out (reduction='none'): methods that need per-example losses cannot do without."
        )
    Weights(model).require_trainable()


def build(task: Task, spec: Spec) -> None:
    """Builds a method once, so that settings it cannot have are found before any work."""
    try:
        spec.method.build(task.model(0), task.loss, None, **spec.settings(task.settings))
        forwards_per_step(spec, spec.settings(task.settings), 1)
    except DldwError as error:
        raise type(error)(f"{spec.label}: {error}") from error
    except Exception as error:
        at = f" at {where(error)[:-1]}" if ".py:" in spec.target else ""
        raise DldwError(f"{spec.label} cannot be built{at}: {type(error).__name__}: {error}") from error
