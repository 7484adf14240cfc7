"""Fine-tuning: a small transformer that read prose goes on with program text, under one bound of memory or of time."""

from __future__ import annotations

import copy
import difflib
import hashlib
import heapq
import inspect
import optparse
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from dldw.tasks.pretrained import one_cycle, pretrained
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
    target = 2.2
    companion = None
    width = None
    length, windows = 64, 32
    methods: ClassVar[tuple[str, ...]] = (
        "backprop", "backprop[checkpoint=true]", "backprop[optimizer=sgd]", "backprop[optimizer=sgd,checkpoint=true]",
        "lora", "lora[checkpoint=true]", "head-only[optimizer=sgd]", "forward-gradient",
        "mezo[optimizer=forward-only,evaluate=sequential]", "sparse-mezo[optimizer=forward-only,evaluate=sequential]",
        "low-rank-evolution[optimizer=forward-only,population=4]",
        "one-sided-batch[optimizer=forward-only,evaluate=sequential]",
        "per-example-perturbation[optimizer=forward-only]", "spsa", "weight-perturbation",
    )  # fmt: skip
    keeps = True
    heft = 64.0
    rows: ClassVar[tuple[int, ...]] = (2, 4, 8, 16, 32)
    memory_bound: ClassVar[int | None] = 2 << 20
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
        model, reader = seeded(0, lambda: self.network(64)), copy.copy(self)
        reader.train, reader.batch_size = documentation(), 16
        read = hashlib.sha256(reader.train.numpy().tobytes()).hexdigest()
        recipe = f"{read}, {self.pretraining} steps, {sum(p.numel() for p in model.parameters())} weights"
        steps = partial(one_cycle, model, self.loss, reader.batches(0), self.pretraining)
        model.load_state_dict(pretrained(recipe, steps, self.data))
        return model
