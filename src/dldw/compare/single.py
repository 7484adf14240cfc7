"""``dldw train`` and ``dldw replay``: the weights of one model, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import save_file, save_model

from dldw.compare.budget import parse_budget
from dldw.compare.spec import parse
from dldw.compare.terminal import plain
from dldw.compare.train import train
from dldw.errors import DldwError
from dldw.files import replaced
from dldw.learner import Learner
from dldw.learners.forward_only import replay
from dldw.runlog import digest, read
from dldw.tasks import load_task


def train_and_save(target: str, method: str, out: Path, *, seed: int, budget: str, data: Path | None) -> None:
    """Trains, tells how it goes, and saves the weights; nothing is saved when training fails.

    Raises:
        DldwError: Task, method or budget do not exist; training failed; or ``out`` cannot be written.
    """
    spec, spending = parse(method), parse_budget(budget)
    _require_file(out)
    task = load_task(target, data)
    console = Console()

    def say(point: dict[str, Any], learner: Learner) -> None:
        value = (
            f"{task.metric} {point[task.metric]:.4f}" if point[task.metric] is not None else f"{task.metric} not finite"
        )
        plain(console, f"{point['forwards']:>12,.0f} forwards  {point['seconds']:>7.1f} s  {value}")

    model = task.model(seed)
    settings = spec.settings(task.settings)
    curve = train(task, spec, settings, seed, forwards=spending.forwards, per_decade=5, model=model, progress=say)
    if curve.reason in ("diverged", "error"):
        raise DldwError(f"training with {spec.label} failed, so nothing was saved: {curve.error}")
    metadata = {"task": target, "method": spec.label, "seed": str(seed)}
    _save(out, lambda part: save_model(model, str(part), metadata=metadata))
    plain(console, f"Weights: {out}")


def replay_and_save(base: Path, log: Path, out: Path) -> None:
    """Makes the trained weights from the first ones and the log of ``ForwardOnly``, and tells their digest.

    Raises:
        DldwError: The log does not fit the weights, or one of the files cannot be read or written.
    """
    _require_file(out)
    weights = replay(base / "model.safetensors" if base.is_dir() else base, log)
    _save(out, lambda part: save_file(weights, part, metadata={"format": "pt"}))  # which transformers asks for
    head, steps = read(log)
    console = Console()
    plain(console, f"Steps: {len(steps):,}")
    plain(console, f"Digest: {digest({name: weights[name] for name in head['weights']})}")
    plain(console, f"Weights: {out}")


def _require_file(out: Path) -> None:
    if not out.parent.is_dir() or out.is_dir():
        raise DldwError(f"weights cannot be saved as {out}: it must be a file in a directory that exists.")


def _save(out: Path, write: Callable[[Path], object]) -> None:
    try:
        replaced(out, write)
    except Exception as error:  # safetensors raises its own kind, which derives from Exception alone
        raise DldwError(f"weights cannot be saved as {out}: {error}. Make room or choose another place.") from error
