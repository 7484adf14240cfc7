"""Scores of labels by how active a network is on examples that carry them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.layers import cut_between_blocks
from dldw.source import Batch
from dldw.weights import Weights


class ByGoodness(nn.Module):
    """Scores of every label [B, C]: how good all layers together find an example that has it.

    Args:
        layers: The layers.
        classes: C; by default the last dimension of what the layers put out.
    """

    def __init__(self, layers: nn.Module, classes: int | None = None) -> None:
        super().__init__()
        self.layers, self.classes = layers, classes

    def count(self, x: Tensor) -> int:
        """C."""
        if self.classes is None:
            with torch.no_grad():
                self.classes = int(self.layers(x[:1]).shape[-1])
        if self.classes < 2 or x[0].numel() < self.classes:
            raise DldwError(
                f"Forward-Forward writes the label over the first inputs, one of {self.classes}, and an example has "
                f"{x[0].numel()}. It takes at least 2 classes and as many inputs: pad the inputs, or give classes=."
            )
        return self.classes

    def run(self, x: Tensor, look: Callable[[int, Tensor], None]) -> None:
        """One forward pass in which ``look(number, h)`` is given what each block puts out, and the next its direction."""
        weights = Weights.of(self.layers)
        blocks = 0

        def cut(number: int, h: Tensor) -> Tensor:
            nonlocal blocks
            blocks = number + 1
            look(number, h)
            h = h.detach()
            return h * (goodness(h) + 1e-8).rsqrt().view(-1, *[1] * (h.ndim - 1))

        with cut_between_blocks(self.layers, weights, cut) as checked:
            out = self.layers(x)
            checked(out)
        look(blocks, out)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        classes = self.count(x)

        def score(label: int) -> Tensor:
            found: list[Tensor] = []
            labels = torch.full((len(x),), label, device=x.device)
            self.run(with_label(x, labels, classes), lambda _, h: found.append(goodness(h)))
            return torch.stack(found).sum(0)

        return torch.stack([score(label) for label in range(classes)], 1)


def goodness(h: Tensor) -> Tensor:
    """The mean square of what a layer puts out, of each example [B]."""
    return h.flatten(1).square().mean(1)


def with_label(x: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The examples with their labels, one of ``classes``, in the place of their first inputs."""
    flat = x.flatten(1)
    return torch.cat([F.one_hot(labels, classes).to(flat.dtype), flat[:, classes:]], 1).view(x.shape)


def inputs_and_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """The two parts of a batch, or a ``DldwError``."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch):
        x, labels = batch
        if x.is_floating_point() and not labels.is_floating_point() and labels.shape == x.shape[:1]:
            return x, labels
    raise DldwError(
        "Forward-Forward writes labels over inputs, so its batches must be (inputs, labels): floating-point inputs [B, ..] "
        "and one whole number for each. For other data use dldw.MonoForward or dldw.LocalBackprop, which take any loss."
    )
