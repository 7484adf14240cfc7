"""Byte by byte through CPython's own documentation, with a Reformer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.nn.reformer import Reformer, ReformerConfig
from dldw.tasks.task import Task, seeded


def documentation() -> Tensor:
    """The language reference that ``help()`` prints, as every Python brings it along, bytes [n]."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


class Text(Task):
    """Windows of 256 bytes out of the language reference; the loss is in nats for a byte.

    The last tenth of the text is the test split, the tenth before it the validation split. ``text-transformer`` is a plain
    transformer of equal size beside.
    """

    name = "text"
    summary = "CPython's language reference byte by byte, windows of 256; a Reformer of two layers (local, hashed)."
    metric = "loss"
    target = 2.0
    companion: ClassVar[str | None] = "text-transformer"
    width: int | None = 64
    methods: ClassVar[tuple[str, ...]] = ("backprop", "spsa", "low-rank-evolution", "forward-gradient")
    heft = 24.0
    batch_size = 8
    length = 256
    windows = 32

    def __init__(self) -> None:
        text = documentation()
        tenth = len(text) // 10
        self.train, self.splits = text[:-tenth], {"test": text[-tenth:], "validation": text[-2 * tenth : -tenth]}
        self.train_examples, self.test_examples = len(self.train) // self.length, self.windows

    def network(self, width: int) -> nn.Module:
        """The network at a width, with weights from the global random state."""
        config = ReformerConfig(256, width, ("local", "lsh"), hidden=4 * width, positions=(16, 16), chunk=32)
        return Reformer(config)

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        return seeded(seed, lambda: self.network(width or self.width or 64))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        logits: Tensor = model(batch[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").mean(1)

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Tensor]:
        """Windows [batch, length + 1] that start anywhere in the training split."""
        generator = torch.Generator().manual_seed(seed)
        text = self.train[: -len(self.splits["validation"])] if tuning else self.train
        while True:
            starts = torch.randint(len(text) - self.length, (self.batch_size, 1), generator=generator)
            yield text[starts + torch.arange(self.length + 1)].long()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """The loss on windows spread evenly over the split; the rotations are the same every time."""
        text = self.splits[split]
        starts = torch.linspace(0, len(text) - self.length - 1, self.windows).long().unsqueeze(1)
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            losses = self.loss(model, text[starts + torch.arange(self.length + 1)].long())
        model.train(was_training)
        return {"loss": float(losses.mean())}
