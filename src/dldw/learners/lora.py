"""LoRA: back-propagation into a few numbers beside the frozen weights, what fine-tuning in little memory usually is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.learner import Descent, OptimizerName, optimizer_over
from dldw.nn.adapter import adapt
from dldw.source import Batch, Loss, repeatable
from dldw.sources.backprop import Backprop


class LoRA:
    """A low-rank adapter for each matrix, trained by back-propagation; the weights themselves stay as they are.

        y = x (W + A Bᵀ)ᵀ,     (A, B) ← (A, B) - lr · dL/d(A, B),     A = 0 and B Gaussian at first

    There is no gradient and no optimizer state of the size of the model. Activations are kept as in any backward pass. The
    adapters become part of the model: it goes on predicting with them, and its state holds them by name. Layers that read a
    weight in an operation without a rule, as PyTorch's own attention does, make the sum W + A Bᵀ, one matrix at a time.

    Cost: 3 forward-equivalents, or less: no gradients of the weights are made.

    Source: Hu et al. 2021, arXiv 2106.09685.

    Args:
        model: The model to fine-tune; linear, convolution and attention layers get adapters, all else is frozen.
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B].
        rank: Columns of A and B.
        lr: Learning rate.
        optimizer: ``sgd`` or ``adam``.
        checkpoint: As that of ``Backprop``.
        generator: Where B is drawn from; by default seeded with ``torch.initial_seed()``.

    Raises:
        DldwError: There is no layer to adapt.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> learner = dldw.LoRA(model, loss=lambda m, x: m(x).square().sum(1), rank=1)
        >>> bool(learner.step(torch.ones(4, 2)) > learner.step(torch.ones(4, 2)))
        True
    """

    card = Card(
        summary="Back-propagation into a low-rank adapter of each matrix; the weights are frozen.",
        claim="biased",
        needs="autograd",
        forwards="4 if checkpoint else 3",
        memory="a + (m + n) rank numbers, their gradients and moments, for each m x n weight",
        paper="Hu et al. 2021, arXiv 2106.09685",
        space={"lr": Float(1e-4, 1.0), "rank": Choice((2, 4, 8)), "optimizer": Choice(("sgd", "adam"))},
        note="Exact in the adapters, which are all that is trained. A reverse pass makes no gradients of the weights.",
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        rank: int = 4,
        lr: float = 1e-2,
        optimizer: OptimizerName = "adam",
        checkpoint: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.rank = model, rank
        drawn = generator or repeatable(next(model.parameters(), torch.empty(0)).device)
        factors = adapt(model, rank, drawn)
        self._descent = Descent(
            model, Backprop(loss, checkpoint=checkpoint), optimizer_over(list(factors), lr=lr, optimizer=optimizer)
        )

    def step(self, batch: Batch) -> Tensor:
        """One step of all adapters; returns the detached loss before it, shape []."""
        return self._descent.step(batch)

    def state_dict(self) -> dict[str, Any]:
        """The states of the model, its adapters included, and of the optimizer."""
        return self._descent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self._descent.load_state_dict(state)
