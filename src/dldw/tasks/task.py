"""What a task is: data, a model, a loss, a metric and a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Settings = dict[str, dict[str, Any]]


class Task(ABC):
    """One problem that every method can be tried on; a file of its own, or ``path/to/file.py:Name`` of the user's.

    Attributes:
        name: As the command line has it.
        summary: One sentence.
        metric: ``accuracy`` (rises) or ``loss`` (falls).
        target: The value of the metric that counts as solved.
        batch_size: Examples in one batch.
        width: Hidden units of the model ``model()`` makes by default, or None where the task has no width.
        train_examples, test_examples: Sizes of the splits, in examples.
        settings: Tuned settings by method name: what ``dldw compare`` uses where none are given.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[float]
    batch_size: int
    width: int | None = None
    train_examples: int
    test_examples: int
    settings: Settings

    @abstractmethod
    def model(self, seed: int, width: int | None = None) -> nn.Module:
        """A fresh model; the same ``seed`` gives the same weights, whatever the global random state."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of each example, [B]."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Any]:
        """Training batches without end; the same ``seed`` gives the same sequence."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """``loss`` and, where there is one, ``accuracy``, on ``test`` or ``validation``, with the model in eval mode."""


def seeded(seed: int, make: Any) -> nn.Module:
    """Runs ``make()`` under ``seed`` and puts the global random state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = make()
    return model
