"""One model trained in one way and evaluated in several: does what it learnt hold when it runs otherwise?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from dldw.compare.item import Identity, Item
from dldw.compare.records import Record
from dldw.learner import Descent
from dldw.sources.backprop import Backprop
from dldw.tasks.task import Task, seeded

WARM_UP, LEAST = 50, 0.02
"""Steps in which the learning rate rises, and what it falls to in the end, over its largest."""


@dataclass(frozen=True)
class Crossing(Item):
    """The model of a task trained in one of its ways by back-propagation and evaluated in all that are asked for.

    Attributes:
        trained: The way.
        steps: Of training.
        lr: The largest learning rate of Adam.
    """

    trained: str
    steps: int
    lr: float

    @property
    def weight(self) -> float:
        return self.seconds_of(3 * self.steps)

    @property
    def keys(self) -> list[Identity]:
        return [("crossed", self.task, self.trained, evaluated) for evaluated in self.loaded().asked]

    @property
    def what(self) -> str:
        return f"trained with {self.trained} and evaluated otherwise"

    def run(self) -> list[Record]:
        task = self.loaded()
        found = seeded(0, lambda: crossed(task, self.trained, steps=self.steps, lr=self.lr))
        paper = dict(zip(task.asked, task.published.get(self.trained, ()), strict=False))
        records: list[Any] = [
            {
                "kind": "crossed",
                "task": self.task,
                "trained": self.trained,
                "evaluated": evaluated,
                "steps": self.steps,
                "accuracy": accuracy,
                "published": None if evaluated not in paper else paper[evaluated] / 100,
            }
            for evaluated, accuracy in found.items()
        ]
        return cast(list[Record], records)


def crossed(
    task: Task,
    trained: str,
    *,
    steps: int,
    lr: float,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> dict[str, float]:
    """The accuracy in every way asked for, after so many steps of Adam in one way; draws from the global random state.

    Args:
        task: One that has ways.
        trained: The way of training.
        steps: How many.
        lr: The largest learning rate; it rises in the first 50 steps and falls along a cosine.
        seed: Of the weights and batches.
        progress: Called with the number of every step, 1 at first, and its loss.
    """
    model = task.model(seed)
    task.choose(model, trained)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARM_UP, LEAST + (1 - LEAST) * (1 + math.cos(math.pi * s / steps)) / 2)
    )
    learner, batches = Descent(model, Backprop(task.loss), optimizer), task.batches(seed)
    for step in range(1, steps + 1):
        loss = learner.step(next(batches))
        schedule.step()
        if progress:
            progress(step, float(loss))
    found = {}
    for evaluated in task.asked:
        task.choose(model, evaluated)
        found[evaluated] = task.evaluate(model)["accuracy"]
    return found
