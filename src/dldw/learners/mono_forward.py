"""Mono-Forward: every layer learns to classify by itself, as the activations pass through it once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float, Published
from dldw.layers import Layout, cut_between_blocks
from dldw.learner import OptimizerName
from dldw.learners.blockwise import BlockOptimizers
from dldw.objective import Objective
from dldw.readouts import Readouts, differentiable_loss_of, scores
from dldw.source import Batch, Loss, repeatable
from dldw.weights import Weights


class MonoForward:
    """A projection of each layer to class scores, and a loss on them; layer and projection learn together, then the next.

        h_l = block_l(h_{l-1}),     G_l = h_l M_lᵀ,     W_l and M_l step down d loss(G_l) / d(W_l, M_l)

    with h_{l-1} held fixed. The loss is the user's own (cross-entropy, as a rule), given G_l in the place of the model's
    output; the last block has the loss itself, so the model predicts by itself. Each block has an optimizer of its own, which
    steps before the next block runs: no more than one block's activations and gradients exist at a time, however many
    there are. Where a loss is not finite, the blocks below have learnt already.

    Cost: 2 forward-equivalents, and three products with each projection; activations and gradients of one block.

    Source: Gong, Li & Abdulla 2025, arXiv 2501.09238.

    Args:
        model: A chain of layers, or one that names its blocks in ``dldw_blocks``.
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B]; it calls the model once.
        lr: Learning rate of every block.
        optimizer: ``sgd`` or ``adam``.
        generator: Where the projections are drawn from, once; by default seeded with ``torch.initial_seed()``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> learner = dldw.MonoForward(model, loss=lambda m, x: m(x).square().sum(1))
        >>> bool(learner.step(torch.ones(4, 2)) > learner.step(torch.ones(4, 2)))
        True
    """

    card = Card(
        summary="A projection of each layer to class scores; every layer has a loss and an optimizer of its own.",
        claim="biased",
        needs="autograd",
        forwards="2",
        memory="a/layers + d/layers, and the optimizers' state",
        paper="Gong, Li & Abdulla 2025, arXiv 2501.09238",
        space={"lr": Float(1e-4, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Other objective: layers below the last follow losses of their own, not dL/dw. The projections take "
        "3 outputs/width more forwards a step. Needs a chain of layers, or dldw_blocks.",
        published=(
            Published(
                settings={},
                accuracy=62.34,
                backprop=61.13,
                data="CIFAR-10",
                network="fully connected",
                source="Gong, Li & Abdulla 2025, arXiv 2501.09238",
            ),
        ),
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Loss,
        lr: float = 0.01,
        optimizer: OptimizerName = "adam",
        generator: torch.Generator | None = None,
    ) -> None:
        self.model, self.loss, self.lr, self.optimizer = model, loss, lr, optimizer
        weights = Weights.of(model)
        weights.require_trainable()
        self.generator = generator or repeatable(weights.device)
        self._projections, self._optimizers = Readouts(), BlockOptimizers(lr, optimizer)

    def step(self, batch: Batch) -> Tensor:
        """Learns from ``batch``, block after block; returns the loss at the model's output, detached, shape []."""
        weights = Weights.of(self.model)
        objective = Objective(self.model, self.loss, batch, weights)
        layout = Layout.of(objective)
        blocks = 0

        def learn(number: int, h: Tensor) -> Tensor:
            nonlocal blocks
            blocks = number + 1
            below = h.detach().requires_grad_()
            matrix, shared = self._projections.of(number, h, layout, self.generator)
            local = differentiable_loss_of(objective, scores(below, matrix.requires_grad_(), shared, layout), number)
            to_h, matrix.grad = torch.autograd.grad(local.mean(), (below, matrix))
            if h.requires_grad:
                h.backward(to_h)
            self._optimizers.step(number, weights, [matrix])
            return below.detach()

        for p in weights.tensors:
            p.grad = None
        with torch.enable_grad(), cut_between_blocks(self.model, weights, learn) as look:
            losses = objective.with_graph()
            objective.check(losses)
            objective.require_graph(losses)
            look(losses)
            loss = objective.backward(losses)
        self._optimizers.step(blocks, weights)
        return objective.tensor(loss)

    def state_dict(self) -> dict[str, Any]:
        """The states of model, projections, optimizers and generator."""
        return {
            "model": self.model.state_dict(),
            "projections": {key: m.detach() for key, m in self._projections.matrices.items()},
            "optimizers": self._optimizers.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self._projections = Readouts({key: m.clone() for key, m in state["projections"].items()})
        own = [[m.requires_grad_()] for m in self._projections.matrices.values()]
        self._optimizers.load_state_dict(state["optimizers"], Weights.of(self.model), own)
        self.generator.set_state(state["generator"])
