"""What a task is: data, a model, a loss, a metric and a target."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from typing import Any, ClassVar, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.source import Loss
from dldw.tasks.picture import Picture

Settings = dict[str, dict[str, Any]]
Made = TypeVar("Made")


class Tuned(TypedDict):
    """What ``dldw compare --tune`` found, and how: a file of ``tasks/settings``."""

    task: str
    trials: int  # for each method
    forwards: float  # budget of one trial, in forward-pass equivalents
    settings: Settings  # the best by method name
    record: list[dict[str, Any]]  # every trial; empty where the settings were chosen by hand


class Task(ABC):
    """One problem that every method can be tried on; a file of its own, or ``path/to/file.py:Name`` of the user's.

    Attributes:
        name: As the command line has it.
        summary: One sentence.
        metric: What ``evaluate`` measures success by: ``accuracy``, ``loss``, or another name it gives.
        rises: Whether the metric is better the higher it is; all do but ``loss``.
        target: The value of the metric that counts as solved.
        lowest: The least value the loss can have: what is above it is error.
        companion: A second task whose learning curves belong to a comparison on this one, if any.
        wider: The same task at another width, whose step costs are measured too, if any.
        methods: What a comparison takes where no methods are named; all registered ones where this is empty.
        depths: Numbers of blocks at which the cost of exact gradients is measured (see ``deeper``), if any.
        memory_bound: Bytes above the loaded model within which methods are compared once more, if any.
        rows: Batch sizes among which ``--tune`` chooses for each method; all have that of the task where there are none.
        heft: How many times fewer forward passes than on the digits named budgets have, because each takes longer: as many
            times as long as one of theirs, evaluation and all, or less where a comparison may take longer too.
        keeps: Whether it makes data of its own and keeps them in the directory ``data``, by default that of the results.
        anneals: Whether learning rates fall along a cosine over the budget of a run, where an optimizer follows the method:
            without, the noise of an estimate decides where a run ends.
        ways: Ways the model can be trained in, to be evaluated in all of ``asked`` (see ``choose``), if any; for each, how
            long it is trained, over what a budget has for it.
        asked: Ways it is evaluated in.
        published: Of each way of training, the published accuracies in ``asked``, in per cent.
        batch_size: Examples in one batch.
        passes: A forward pass on its batch, in those on a batch of the task's usual size (see ``resized``).
        width: Hidden units of the model ``model()`` makes by default, or None where the task has no width.
        train_examples, test_examples: Sizes of the splits, in examples.
        settings: Tuned settings by method name: what ``dldw compare`` uses where none are given.
        interactions: Steps of a simulator that the loss has taken so far; None where it runs none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    target: ClassVar[float]
    lowest: ClassVar[float] = 0.0
    companion: ClassVar[str | None] = None
    wider: ClassVar[str | None] = None
    methods: ClassVar[tuple[str, ...]] = ()
    depths: ClassVar[tuple[int, ...]] = ()
    memory_bound: ClassVar[int | None] = None
    rows: ClassVar[tuple[int, ...]] = ()
    heft: ClassVar[float] = 1.0
    keeps: ClassVar[bool] = False
    anneals: ClassVar[bool] = False
    ways: ClassVar[Mapping[str, float]] = {}
    asked: ClassVar[tuple[str, ...]] = ()
    published: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    batch_size: int
    passes: float = 1.0
    width: int | None = None
    train_examples: int
    test_examples: int

    @property
    def rises(self) -> bool:
        return self.metric != "loss"

    @property
    def interactions(self) -> int | None:
        return None

    @property
    def settings(self) -> Settings:
        return tuned(self.name)["settings"]

    @abstractmethod
    def model(self, seed: int, width: int | None = None) -> nn.Module:
        """A fresh model; the same ``seed`` gives the same weights, whatever the global random state."""

    @property
    @abstractmethod
    def loss(self) -> Loss:
        """The loss of each example, [B], of a model and a batch: a method, or an object that is called."""

    @abstractmethod
    def batches(self, seed: int, tuning: bool = False) -> Iterator[Any]:
        """Training batches without end; the same ``seed`` gives the same sequence.

        With ``tuning``, the examples of the validation split are left out.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """``loss`` and the metric, where it is another, on ``test`` or ``validation``, with the model in eval mode."""

    def resized(self, rows: int | None) -> Task:
        """The same task, its data shared, with batches of so many examples; its own size where there is none given."""
        if rows is None:
            return self
        other = copy.copy(self)
        other.batch_size, other.passes = rows, self.passes * rows / self.batch_size
        return other

    def deeper(self, depth: int) -> tuple[nn.Module, Any]:
        """A network of ``depth`` blocks, one of ``depths``, and a batch that is large enough for its activations to count."""
        raise DldwError(
            f"{self.name} has one depth: there is no network of {depth} blocks. Name a task that has depths."
        )

    def choose(self, model: nn.Module, way: str) -> None:
        """Sets a model to one of ``ways`` or ``asked``: what it computes changes, its weights do not."""
        raise DldwError(f"{self.name} has one way to run its model: there is no {way!r}. Name a task that has ways.")

    def examples(self, split: str) -> tuple[Tensor, Tensor] | None:
        """Inputs as the network takes them and their labels, of ``train`` or ``test``; None where nothing is classified."""
        return None

    def enumerable(self) -> tuple[nn.Module, Tensor] | None:
        """A Boltzmann machine small enough for the exact gradient of its likelihood, and its data; None without one."""
        return None

    def pictures(self, model: nn.Module, generator: torch.Generator) -> list[Picture]:
        """Images of what a model has learnt; none where there is nothing to see."""
        return []


def tuned(task: str) -> Tuned:
    """The tuned settings that ship with a built-in task, and the record of the search; empty for other tasks."""
    file = files("dldw.tasks") / "settings" / f"{task}.json"
    if not file.is_file():
        return Tuned(task=task, trials=0, forwards=0.0, settings={}, record=[])
    found: Tuned = json.loads(file.read_text(encoding="utf-8"))
    return found


def seeded(seed: int, make: Callable[[], Made]) -> Made:
    """Runs ``make()`` under ``seed`` and puts the global random state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
