"""``dldw check``: the gradient of a model, of an autograd.Function, or of all functions in a directory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from dldw.checking import CheckResult, check, check_function
from dldw.errors import DldwError, UnknownNameError
from dldw.registry import unknown
from dldw.tasks.task import Task
from dldw.tasks.userfile import load_module, own_classes, where

STATUS = {"right": 0, "cannot tell": 3, "wrong": 1}
"""The exit status of each verdict, the better ones first."""

SIDE = 4
"""Of the square matrices that stand in for the arguments of a function that gives no example."""


def check_target(target: str, *, directions: int, seed: int) -> int:
    """Checks what ``target`` names, prints what was found, and returns the exit status.

    Raises:
        DldwError: There is nothing to check, or the user's code raises; the text has the line.
    """
    path, colon, name = target.rpartition(":")
    if colon and not Path(target).exists():
        module = load_module(path, f"check {target}")
        found = own_classes(module)
        if name not in found:
            raise UnknownNameError(unknown("class", name, found, of=str(module.__file__)))
        result = _check(found[name], module, directions, seed)
        print(result.explain())
        return STATUS[result.verdict]
    worst = 0
    for label, function, module in _functions(target):
        result = _check(function, module, directions, seed)
        print(f"{label}: {result.explain() if result.verdict == 'wrong' else result.verdict + ': ' + result.reason}")
        worst = max(worst, STATUS[result.verdict], key=list(STATUS.values()).index)
    return worst


def _functions(target: str) -> Iterator[tuple[str, Any, ModuleType]]:
    """Every autograd.Function in a file or in the Python files below a directory."""
    place = Path(target).expanduser()
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    count = 0
    for file in files:
        module = load_module(str(file), f"check {file}")
        for name, found in own_classes(module).items():
            if issubclass(found, torch.autograd.Function):
                count += 1
                yield f"{file}:{name}", found, module
    if not count:
        raise DldwError(
            f"{place} holds no torch.autograd.Function, so there is nothing to check. Name a model as path/to/file.py:Model."
        )


def _check(found: type[Any], module: ModuleType, directions: int, seed: int) -> CheckResult:
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if issubclass(found, torch.autograd.Function):
                return _check_autograd_function(found, directions, seed)
            model, loss, batch = _parts(found, module, seed)
            return check(model, loss, batch, directions=directions, seed=seed)
    except DldwError:
        raise
    except Exception as error:
        at = where(error, Path(str(module.__file__)))
        raise DldwError(f"{found.__name__} cannot be checked: {at} raised {type(error).__name__}: {error}") from error


def _parts(
    found: type[Any], module: ModuleType, seed: int
) -> tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]:
    """Model, loss and batch: of a task its own, for a model what its file gives under the names loss and batch."""
    if issubclass(found, Task):
        task = found()
        return task.model(seed), task.loss, next(task.batches(seed))
    if not issubclass(found, nn.Module):
        raise DldwError(
            f"{found.__name__} is neither a torch.nn.Module, a torch.autograd.Function nor a dldw task, so it has no "
            "gradient to check."
        )
    missing = [name for name in ("batch", "loss") if not hasattr(module, name)]
    if missing:
        raise DldwError(
            f"{module.__file__} does not give {' and '.join(missing)}, which checking {found.__name__} needs: define "
            "batch() -> inputs and loss(model, batch) -> Tensor beside it."
        )
    batch = module.batch
    return found(), module.loss, batch() if callable(batch) else batch


def _check_autograd_function(found: Any, directions: int, seed: int) -> CheckResult:
    """With the arguments that its ``example()`` gives, or with random matrices for all that ``forward`` takes."""
    if hasattr(found, "example"):
        return check_function(found, "reverse", tuple(found.example()), directions=directions, seed=seed)
    parameters = list(inspect.signature(found.forward).parameters.values())
    new_style = found.setup_context is not torch.autograd.Function.setup_context
    wanted = [p for p in parameters[0 if new_style else 1 :] if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    x = tuple(torch.randn(SIDE, SIDE, dtype=torch.float64) for _ in wanted)
    try:
        return check_function(found, "reverse", x, directions=directions, seed=seed)
    except Exception as error:  # whatever it raises where matrices are not what it takes
        return CheckResult(
            "cannot tell",
            f"it gives no example, and with {len(x)} random {SIDE} x {SIDE} matrices it raises {type(error).__name__}: "
            f"{error}. Give it a static method example() that returns the arguments of forward.",
        )
