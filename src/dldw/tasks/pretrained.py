"""Weights that a task begins with: trained once, and kept in a file where there is a directory for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.files import replaced
from dldw.source import Loss

NAME = "pretrained.safetensors"
Tensors = dict[str, Tensor]

_made: dict[str, Tensors] = {}
_kept: set[tuple[str, Path]] = set()
"""Weights of this process, and the files that are known to hold them."""


def pretrained(recipe: str, make: Callable[[], Tensors], directory: Path | None) -> Tensors:
    """The weights that ``make`` trains; not trained again in this process, nor where ``directory`` has them.

    Args:
        recipe: What decides them, data included: weights of another recipe are made anew.
        make: Trains them.
        directory: Where they are kept, for other processes and for a run that goes on; in memory alone by default.

    Raises:
        DldwError: They cannot be written there.
    """
    path = None if directory is None else directory / NAME
    found = None if path is None or (recipe, path) in _kept else _read(path, recipe)
    if recipe not in _made:
        _made[recipe] = make() if found is None else found
    if path is not None and (recipe, path) not in _kept:
        if found is None:
            _write(path, recipe, _made[recipe])
        _kept.add((recipe, path))
    return _made[recipe]


def one_cycle(model: nn.Module, loss: Loss, batches: Iterator[Any], steps: int) -> Tensors:
    """Trains by back-propagation with Adam, the rate rising to 0.005 and falling again; returns the weights, copied."""
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for batch in islice(batches, steps):
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
        schedule.step()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _read(path: Path, recipe: str) -> Tensors | None:
    """The weights of a file; nothing where it is of another recipe, torn, or not there."""
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("recipe") == recipe:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        pass
    return None


def _write(path: Path, recipe: str, weights: Tensors) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replaced(path, lambda part: save_file(weights, part, metadata={"recipe": recipe}))
    except (OSError, SafetensorError) as error:
        raise DldwError(
            f"the pretrained weights cannot be kept as {path}: {error}. Give another directory with --out, or --data."
        ) from error
