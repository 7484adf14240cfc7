"""Weights that a task begins with: trained once, and kept in a file where there is a directory for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dldw.errors import DldwError

NAME = "pretrained.safetensors"
Tensors = dict[str, Tensor]

_made: dict[str, Tensors] = {}


def pretrained(recipe: str, make: Callable[[], Tensors], directory: Path | None) -> Tensors:
    """The weights that ``make`` trains; not trained again in this process, nor where ``directory`` has them.

    Args:
        recipe: What decides them, data included: weights of another recipe are made anew.
        make: Trains them.
        directory: Where they are kept, for other processes and for a run that goes on; in memory alone by default.

    Raises:
        DldwError: They cannot be written there.
    """
    if recipe not in _made:
        found = None if directory is None else _read(directory / NAME, recipe)
        _made[recipe] = make() if found is None else found
    if directory is not None and _read(directory / NAME, recipe) is None:
        _write(directory / NAME, recipe, _made[recipe])
    return _made[recipe]


def _read(path: Path, recipe: str) -> Tensors | None:
    """The weights of a file; nothing where it is of another recipe, torn, or not there."""
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]  # safetensors left it untyped
            if (file.metadata() or {}).get("recipe") == recipe:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError):
        pass
    return None


def _write(path: Path, recipe: str, weights: Tensors) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, part, metadata={"recipe": recipe})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise DldwError(
            f"the pretrained weights cannot be kept as {path}: {error}. Give another directory with --out, or --data."
        ) from error
