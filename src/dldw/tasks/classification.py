"""What tasks that classify fixed-size examples share: splits, batches, cross-entropy, accuracy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.tasks.task import Task, seeded

Batch = tuple[Tensor, Tensor]


class Classification(Task):
    """Examples x [N, ...] with labels y [N]; a validation split lies inside the training split.

    Args:
        train: Examples and labels of the training split; the last ``validation`` of them are the validation split.
        test: Examples and labels of the test split.
        validation: Size of the validation split.
    """

    batch_size = 128
    rows_at_once = 2000

    def __init__(self, train: Batch, test: Batch, validation: int) -> None:
        self.train = train
        self.splits = {"test": test, "validation": (train[0][-validation:], train[1][-validation:])}
        self.train_examples, self.test_examples = len(train[1]), len(test[1])
        self._fitted = self.train_examples - validation

    @abstractmethod
    def network(self, width: int) -> nn.Module:
        """The network at a width, with weights from the global random state."""

    def prepare(self, x: Tensor) -> Tensor:
        """What the network is given for stored examples."""
        return x

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        return seeded(seed, lambda: self.network(width or self.width or 1))

    def examples(self, split: str) -> Batch:
        """The training examples stop before the validation split; ``rows_at_once`` of a split at most."""
        x, y = (t[: self._fitted] for t in self.train) if split == "train" else self.splits[split]
        return self.prepare(x[: self.rows_at_once]), y[: self.rows_at_once]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x), y, reduction="none")

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Batch]:
        """Every example once in each pass, in a new order; what does not fill a batch is left out of that pass."""
        generator = torch.Generator().manual_seed(seed)
        x, y = self.train
        count = self._fitted if tuning else self.train_examples
        size = min(self.batch_size, count)
        while True:
            order = torch.randperm(count, generator=generator)
            for start in range(0, count - size + 1, size):
                rows = order[start : start + size]
                yield self.prepare(x[rows]), y[rows]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        was_training = model.training
        model.eval()
        x, y = self.splits[split]
        loss, right = 0.0, 0
        for start in range(0, len(y), self.rows_at_once):
            labels = y[start : start + self.rows_at_once]
            logits = model(self.prepare(x[start : start + self.rows_at_once]))
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
        model.train(was_training)
        return {"loss": loss / len(y), "accuracy": right / len(y)}
