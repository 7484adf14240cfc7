"""A piece of work: what a comparison is made of, and what it resumes by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from dldw.compare.records import Record
from dldw.compare.spec import Spec
from dldw.tasks import load_task, task_class
from dldw.tasks.task import Task

Identity = tuple[Any, ...]
SECONDS_PER_FORWARD = 1.3e-4
"""About what a forward-equivalent takes on the digits, everything included: for the time left, and to count other work in."""

_IDENTITY: dict[str, tuple[str, ...]] = {
    "run": (),
    "method": ("method",),
    "task": ("task",),
    "evaluation": ("study", "task", "method", "seed", "width", "factor", "step"),
    "end": ("study", "task", "method", "seed", "width", "factor"),
    "cost": ("task", "method", "width"),
    "depth": ("task", "method", "depth"),
    "fit": ("task", "method"),
    "estimate": ("task", "method", "seed", "width"),
    "sigma": ("task", "width"),
    "displacement": ("task", "method", "seed"),
    "bias": ("task", "nudge"),
    "landscape": ("task",),
    "path": ("task", "method"),
    "inside": ("task", "method", "seed"),
    "sampling": ("task", "step", "estimator"),
    "crossed": ("task", "trained", "evaluated"),
    "tuning": ("task", "method", "trial"),
    "note": ("text",),
    "done": (),
}


def identity(record: Mapping[str, Any]) -> Identity:
    """What no two records of one run share."""
    return (record["kind"], *(record[field] for field in _IDENTITY[record["kind"]]))


@dataclass(frozen=True)
class Item(ABC):
    """One piece of work: picklable, independent of all others, and the same wherever and whenever it runs.

    Attributes:
        task: Name of the task.
        data: Directory of the task's data.
    """

    task: str
    data: Path | None

    @property
    @abstractmethod
    def weight(self) -> float:
        """About how many seconds it takes, by the card: for the time left."""

    @property
    def counted(self) -> float:
        """The same in forward-pass equivalents: what the total of a budget is compared with."""
        return self.weight / SECONDS_PER_FORWARD

    def seconds_of(self, forwards: float) -> float:
        """About how long so many forward passes of the task take."""
        return forwards * SECONDS_PER_FORWARD * task_class(self.task).heft

    @property
    @abstractmethod
    def keys(self) -> list[Identity]:
        """The identities of the records without which it is not done."""

    @property
    @abstractmethod
    def what(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def run(self) -> list[Record]:
        """Does it."""

    def loaded(self) -> Task:
        """The task, loaded once in each process."""
        return _loaded(self.task, self.data)


@dataclass(frozen=True)
class MethodItem(Item):
    """A piece of work on one method.

    Attributes:
        spec: The method.
        settings: What it is built with.
    """

    spec: Spec
    settings: tuple[tuple[str, Any], ...]

    @property
    def label(self) -> str:
        """The method's name in the records."""
        return self.spec.label


def note(text: str) -> Record:
    """A note record."""
    return cast(Record, {"kind": "note", "text": text})


@lru_cache(maxsize=8)
def _loaded(task: str, data: Path | None) -> Task:
    return load_task(task, data)
