"""Duplication: repeat a sequence of symbols that came long before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.nn.reformer import Reformer, ReformerConfig
from dldw.tasks.hashing import Hashing
from dldw.tasks.task import seeded


class Duplication(Hashing):
    """Sequences 0w0w, w random symbols; what is predicted is the second w (Kitaev et al. 2020, arXiv 2001.04451, table 2).

    A Reformer of one layer has to attend exactly ``half - 1`` tokens back. Its hashes may be changed before it is evaluated.

    Args:
        half: Length of 0w; the paper has 512.
        hashes: Rounds of hashing that the model is trained with; None for full attention.
    """

    name = "duplication"
    summary = "Sequences 0w0w of 256 symbols, a Reformer of one layer with 4 rounds of hashing predicts the second w."
    target = 0.99
    width = 128
    methods = ("backprop", "spsa", "forward-gradient")
    heft = 64.0
    batch_size = 16
    train_examples = 16_384
    test_examples = 32
    symbols, heads, chunk = 64, 4, 32

    def __init__(self, half: int = 128, hashes: int | None = 4) -> None:
        self.half, self.hashes = half, hashes

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        width = width or self.width
        config = ReformerConfig(
            self.symbols, width=width, layers=("lsh",), heads=self.heads, hidden=width, positions=(2 * self.half,),
            hashes=self.hashes, chunk=self.chunk, tokens_at_once=None,
        )  # fmt: skip
        return seeded(seed, lambda: Reformer(config))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, targets = batch
        logits: Tensor = model(tokens)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1) / (targets >= 0).sum(1)

    def batches(self, seed: int, tuning: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Sequences are drawn afresh, so that no split has to be kept apart."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.draw(self.batch_size, generator)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences [count, 2 half] and what comes next, [count, 2 half], -100 where it cannot be known."""
        word = torch.randint(1, self.symbols, (count, self.half), generator=generator)
        word[:, 0] = 0
        tokens = word.repeat(1, 2)
        targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
        targets[:, : self.half] = -100
        return tokens, targets

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        """The loss, and the share of the second w's symbols with the highest logit; rotations are the same every time."""
        generator = torch.Generator().manual_seed(1 if split == "test" else 2)
        was_training = model.training
        model.eval()
        tokens, targets = self.draw(self.test_examples, generator)
        counted = targets >= 0
        logits = model(tokens, generator=generator)[counted]
        model.train(was_training)
        right = (logits.argmax(-1) == targets[counted]).float()
        return {"loss": float(F.cross_entropy(logits, targets[counted])), "accuracy": float(right.mean())}
