"""Forward-Forward: two forward passes in the place of one forward and one backward."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.card import Card, Choice, Float, Published
from dldw.errors import DldwError, NonFiniteLossError
from dldw.learner import OptimizerName
from dldw.learners.blockwise import BlockOptimizers
from dldw.learners.goodness import ByGoodness, goodness, inputs_and_labels, with_label
from dldw.source import Batch, repeatable
from dldw.weights import Weights

LocalLoss = Literal["goodness", "symba"]


class ForwardForward:
    """Each layer learns to be active on examples with their own label and quiet on those with a wrong one.

    The label is written over the first inputs of an example, one of C, the right one in positive and a random wrong one in
    negative data. With the goodness G of a layer, the mean square of its outputs, each block steps down

        goodness:   softplus(θ - G⁺) + softplus(G⁻ - θ)
        symba:      softplus(α (G⁻ - G⁺)),     G⁺ and G⁻ of the same example

    and hands on its outputs divided by their root mean square, so that the next one cannot read the goodness off their
    length. Each block has an optimizer of its own and steps before the next block runs; no graph goes beyond a block. The
    ``model`` that predicts scores every label by the sum of the goodness of all layers, in C forwards.

    Cost: 4 forward-equivalents, for positive and negative data each 2; activations and gradients of one block.

    Source: Hinton 2022, arXiv 2212.13345; symba: Lee & Song 2023, arXiv 2303.08418.

    Args:
        layers: A chain of layers from inputs [B, ..] on, or a model that names its blocks in ``dldw_blocks``. What it puts
            out is the last layer, not scores.
        loss: ``goodness`` or ``symba``.
        threshold: θ of ``goodness``.
        alpha: α of ``symba``.
        classes: C; by default the last dimension of what ``layers`` put out.
        lr: Learning rate of every block.
        optimizer: ``sgd`` or ``adam``, one for each block.
        generator: Where wrong labels are drawn from; by default seeded with ``torch.initial_seed()``.

    Example:
        >>> import torch, dldw
        >>> layers = torch.nn.Sequential(torch.nn.Linear(8, 9), torch.nn.ReLU(), torch.nn.Linear(9, 9), torch.nn.ReLU())
        >>> learner = dldw.ForwardForward(layers, classes=3)
        >>> loss = learner.step((torch.rand(4, 8), torch.tensor([0, 1, 2, 0])))
        >>> learner.model(torch.rand(5, 8)).shape
        torch.Size([5, 3])
    """

    card = Card(
        summary="Each layer is made active on examples with their label and quiet on those with a wrong one.",
        claim="biased",
        needs="no loss",
        forwards="4",
        memory="a/layers + d/layers, and the optimizers' state",
        paper="Hinton 2022, arXiv 2212.13345; Lee & Song 2023, arXiv 2303.08418",
        space={
            "lr": Float(1e-4, 0.3),
            "threshold": Float(0.1, 10.0),
            "alpha": Float(1.0, 30.0),
            "loss": Choice(("goodness", "symba")),
            "optimizer": Choice(("sgd", "adam")),
        },
        note="Other objective: the goodness of each layer, not the loss. Batches are (inputs, labels), of at least as many "
        "inputs as classes; a prediction takes a forward for each class. Needs a chain of layers, or dldw_blocks.",
        published=(
            Published(
                settings={},
                accuracy=98.64,
                backprop=None,
                data="MNIST",
                network="four layers of 2,000",
                source="Hinton 2022, arXiv 2212.13345",
            ),
        ),
    )

    def __init__(
        self,
        layers: nn.Module,
        *,
        loss: LocalLoss = "symba",
        threshold: float = 1.0,
        alpha: float = 8.0,
        classes: int | None = None,
        lr: float = 0.003,
        optimizer: OptimizerName = "adam",
        generator: torch.Generator | None = None,
    ) -> None:
        if loss not in ("goodness", "symba"):
            raise DldwError(f"loss must be goodness or symba, got {loss!r}: what each layer steps down.")
        if not (threshold > 0 and alpha > 0):
            raise DldwError(
                f"threshold and alpha must be positive, got {threshold} and {alpha}: goodness is a mean square."
            )
        weights = Weights.of(layers)
        weights.require_trainable()
        self.loss, self.threshold, self.alpha, self.lr, self.optimizer = loss, threshold, alpha, lr, optimizer
        self.model = ByGoodness(layers, classes)
        self.generator = generator or repeatable(weights.device)
        self._optimizers = BlockOptimizers(lr, optimizer)

    def step(self, batch: Batch) -> Tensor:
        """Learns from ``batch``, (inputs, labels), block after block; returns the sum of the blocks' losses, shape [].

        Raises:
            DldwError: The batch is not inputs [B, ..] and whole labels [B].
            NonFiniteLossError: The loss of a block is; the blocks below have learnt already.
        """
        x, labels = inputs_and_labels(batch)
        weights = Weights.of(self.model.layers)
        classes = self.model.count(x)
        shift = torch.randint(1, classes, labels.shape, generator=self.generator, device=labels.device)
        both = torch.cat([with_label(x, labels, classes), with_label(x, (labels + shift) % classes, classes)])
        losses: list[Tensor] = []

        def learn(number: int, h: Tensor) -> None:
            local = self._loss(*goodness(h).chunk(2))
            if not local.isfinite():
                raise NonFiniteLossError(
                    f"the loss of layer {number + 1} is {float(local.detach())}, so it has no gradient to follow. Lower "
                    "the learning rate, or check the batch for NaN."
                )
            if local.requires_grad:
                local.backward()
            self._optimizers.step(number, weights)
            losses.append(local.detach())

        for p in weights.tensors:
            p.grad = None
        with torch.enable_grad():
            self.model.run(both, learn)
        return torch.stack(losses).sum()

    def _loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        if self.loss == "symba":
            return F.softplus(self.alpha * (negative - positive)).mean()
        return (F.softplus(self.threshold - positive) + F.softplus(negative - self.threshold)).mean()

    def state_dict(self) -> dict[str, Any]:
        """The states of layers, optimizers and generator."""
        layers, optimizers = self.model.layers.state_dict(), self._optimizers.state_dict()
        return {"layers": layers, "optimizers": optimizers, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.layers.load_state_dict(state["layers"])
        self._optimizers.load_state_dict(state["optimizers"], Weights.of(self.model.layers), [])
        self.generator.set_state(state["generator"])
