"""Fine-tuning: a small transformer that read prose goes on with program text, under one bound of memory or of time."""

from __future__ import annotations

import difflib
import hashlib
import heapq
import inspect
import optparse
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from dldw.tasks.pretrained import pretrained
from dldw.tasks.task import seeded
from dldw.tasks.text import Text, documentation
from dldw.tasks.text_transformer import Transformer


def programs() -> list[Tensor]:
    """Three modules of the standard library that are the same, byte for byte, from Python 3.11 to 3.13; bytes [n] each."""
    sources = [inspect.getsource(module) for module in (difflib, heapq, optparse)]
    return [torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) for text in sources]


class FinetuneTiny(Text):
    """Pretrained by back-propagation on CPython's language reference; fine-tuned on ``difflib``, ``heapq``, ``optparse``.

    The last tenth of each module is the test split, the tenth before it the validation split. Every seed begins with the same
    weights, and decides the batches and what a method draws. They are trained when they are first asked for, in seconds, and
    kept in the directory ``data``: that of the results, in a comparison.

    Args:
        data: Where the pretrained weights are kept.
    """

    name = "finetune-tiny"
    summary = "A transformer of 3 x 64 units, pretrained on CPython's language reference, goes on with library modules."
    target = 2.0
    companion = None
    width = None
    length, windows = 64, 64
    methods: ClassVar[tuple[str, ...]] = (
        "backprop", "backprop[checkpoint=true]", "lora", "head-only", "forward-gradient",
        "mezo[optimizer=forward-only,directions=1]", "sparse-mezo[optimizer=forward-only,directions=1]",
        "low-rank-evolution[optimizer=forward-only,population=4]",
        "one-sided-batch[optimizer=forward-only,evaluate=sequential]",
        "per-example-perturbation[optimizer=forward-only]", "spsa", "evolution-strategy",
    )  # fmt: skip
    keeps = True
    heft = 26.0
    rows: ClassVar[tuple[int, ...]] = (2, 4, 8, 16, 32)
    memory_bound: ClassVar[int | None] = 3 << 20
    pretraining = 500

    def __init__(self, data: Path | None = None) -> None:
        self.data, texts = data, programs()
        tenths = [len(text) // 10 for text in texts]
        held = torch.cat([text[-2 * n : -n] for text, n in zip(texts, tenths, strict=True)])
        self.splits = {"test": torch.cat([t[-n:] for t, n in zip(texts, tenths, strict=True)]), "validation": held}
        self.train = torch.cat([*(t[: -2 * n] for t, n in zip(texts, tenths, strict=True)), held])
        self.train_examples, self.test_examples = len(self.train) // self.length, self.windows

    def network(self, width: int) -> nn.Module:
        return Transformer(width, layers=3, hidden=4 * width, length=self.length)

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        model = seeded(0, lambda: self.network(64))
        read = documentation()
        recipe = f"{hashlib.sha256(read.numpy()).hexdigest()} {self.pretraining} {sum(p.numel() for p in model.parameters())}"
        model.load_state_dict(pretrained(recipe, lambda: self._pretrain(model, read), self.data))
        return model

    def _pretrain(self, model: nn.Module, text: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=self.pretraining)
        for _ in range(self.pretraining):
            starts = torch.randint(len(text) - self.length, (16, 1), generator=generator)
            optimizer.zero_grad()
            self.loss(model, text[starts + torch.arange(self.length + 1)].long()).mean().backward()
            optimizer.step()
            schedule.step()
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
