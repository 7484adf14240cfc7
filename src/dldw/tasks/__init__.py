"""Every task by name: one line each. A task of one's own is ``path/to/file.py:Name``."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dldw.errors import DldwError, UnknownNameError
from dldw.registry import unknown
from dldw.tasks.userfile import load_class, where

if TYPE_CHECKING:
    from dldw.tasks.task import Task

TASKS = {
    "digits": "dldw.tasks.digits:Digits",
    "digits-wide": "dldw.tasks.digits_wide:DigitsWide",
    "fashion-mnist": "dldw.tasks.fashion_mnist:FashionMnist",
    "digits-64-64": "dldw.tasks.digits_64_64:Digits6464",
    "step-digits": "dldw.tasks.step_digits:StepDigits",
    "error-rate": "dldw.tasks.error_rate:ErrorRate",
    "int8-digits": "dldw.tasks.int8_digits:Int8Digits",
    "deep": "dldw.tasks.deep:Deep",
    "quadratic": "dldw.tasks.quadratic:Quadratic",
    "sphere": "dldw.tasks.functions:Sphere",
    "ellipsoid": "dldw.tasks.functions:Ellipsoid",
    "rosenbrock": "dldw.tasks.functions:Rosenbrock",
    "rastrigin": "dldw.tasks.functions:Rastrigin",
    "separable": "dldw.tasks.separable:Separable",
    "cartpole": "dldw.tasks.cartpole:CartPole",
    "acrobot": "dldw.tasks.acrobot:Acrobot",
    "pendulum": "dldw.tasks.pendulum:Pendulum",
    "mountain-car-continuous": "dldw.tasks.mountain_car_continuous:MountainCarContinuous",
    "rbm-digits": "dldw.tasks.rbm_digits:RbmDigits",
    "two-bars": "dldw.tasks.two_bars:TwoBars",
    "duplication": "dldw.tasks.duplication:Duplication",
    "text": "dldw.tasks.text:Text",
    "text-transformer": "dldw.tasks.text_transformer:TextTransformer",
    "finetune-tiny": "dldw.tasks.finetune_tiny:FinetuneTiny",
}
NEEDED = ("name", "summary", "target", "batch_size", "train_examples", "test_examples")
"""What a task has to say of itself, beside its four methods."""


def task_class(name: str) -> type[Task]:
    """The class registered as ``name``, or ``Name`` out of ``path/to/file.py:Name``.

    Raises:
        UnknownNameError: There is none; the text has the list and the nearest match.
        DldwError: The file cannot be read, raises, or holds no such task.
    """
    if name in TASKS:
        module, _, attribute = TASKS[name].partition(":")
        found: type[Task] = getattr(import_module(module), attribute)
        return found
    if ".py:" not in name:
        raise UnknownNameError(unknown("task", name, TASKS) + " A task of your own is given as path/to/file.py:Name.")
    from dldw.tasks.task import Task

    found = load_class(name, "task")
    if not issubclass(found, Task):
        raise DldwError(
            f"{name} is no task: {found.__name__} does not derive from dldw.tasks.task.Task. Derive it from that."
        )
    return found


def load_task(name: str, data: Path | None = None) -> Task:
    """The task ``name``, its data loaded.

    Args:
        name: A registered name or ``path/to/file.py:Name``.
        data: Directory of the data, for tasks whose constructor takes ``data``.

    Raises:
        DldwError: As ``task_class``; the data are missing or torn; or the constructor raises.
    """
    found = task_class(name)
    takes_data = "data" in inspect.signature(found).parameters
    try:
        task = found(**({"data": data} if takes_data else {}))
    except (DldwError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise DldwError(f"task {name} cannot be made: {where(error)} raised {type(error).__name__}: {error}") from error
    if missing := [a for a in NEEDED if not hasattr(task, a)]:
        raise DldwError(
            f"task {name} lacks {', '.join(missing)}: set it on the class or in __init__; see dldw.tasks.task.Task."
        )
    return task
