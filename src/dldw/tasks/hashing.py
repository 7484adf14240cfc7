"""What tasks share whose model attends by hashing: it can be trained with some rounds and evaluated with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

from torch import nn

from dldw.nn.reformer import Reformer
from dldw.tasks.task import Task


class Hashing(Task):
    """Full attention or rounds of hashing, as in table 2 of the Reformer's paper (Kitaev et al. 2020, arXiv 2001.04451).

    With fewer rounds it is trained for longer: as many hashings in all.
    """

    ways: ClassVar[Mapping[str, float]] = {"full": 1.0, "4": 1.0, "2": 2.0, "1": 4.0}
    asked: ClassVar[tuple[str, ...]] = ("full", "8", "4", "2", "1")
    published: ClassVar[Mapping[str, tuple[float, ...]]] = {
        "full": (100, 94.8, 92.5, 76.9, 52.5),
        "4": (0.8, 100, 99.9, 99.4, 91.9),
        "2": (0.8, 100, 99.9, 98.1, 86.8),
        "1": (0.8, 99.9, 99.6, 94.8, 77.9),
    }

    def choose(self, model: nn.Module, way: str) -> None:
        cast(Reformer, model).hashes = None if way == "full" else int(way)
