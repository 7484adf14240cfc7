"""Local back-propagation: the exact gradient of a loss that each layer has of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.layers import Layout, cut_between_blocks
from dldw.objective import Objective
from dldw.readouts import Readouts, differentiable_loss_of, scores
from dldw.source import Batch, GradientSource, Loss


class LocalBackprop(GradientSource):
    """Greedy layer-wise training: no error passes from one layer to the one below.

        h_l = block_l(h_{l-1}),     ghat_l = d loss(R_l h_l) / dw_l     with h_{l-1} held fixed

    The loss is the user's own, given the scores R_l h_l of a fixed random readout in the place of the model's output; the
    last block gets the loss itself. A block is a Linear or Conv layer and what follows up to the next one; a model in which
    something bypasses a layer names its blocks in ``dldw_blocks``. It is the control for local rules: what they reach, or do
    not, by having local losses, before any estimate is made of the local gradients.

    Cost: 2 forward-equivalents and two products with each readout; activations of one block.

    Source: fixed random readouts: Mostafa, Ramesh & Cauwenberghs 2018, arXiv 1711.06756; greedy layer-wise: Belilovsky,
    Eickenberg & Oyallon 2019, arXiv 1812.11446.

    Args:
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B]; it calls the model once.
        generator: Where the readouts are drawn from, once; see ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> loss = dldw.LocalBackprop(lambda m, x: m(x).square().sum(1))(model, torch.ones(4, 2))
        >>> model[0].weight.grad.shape
        torch.Size([3, 2])
    """

    card = Card(
        summary="Each layer follows the exact gradient of a loss of its own, through a fixed random readout.",
        claim="biased",
        needs="autograd",
        forwards="2",
        memory="d + a/layers",
        paper="Mostafa et al. 2018, arXiv 1711.06756; Belilovsky et al. 2019, arXiv 1812.11446",
        space={"lr": Float(1e-3, 3.0), "optimizer": Choice(("sgd", "adam"))},
        note="Other objective: layers below the last follow losses of their own, not dL/dw. The readouts take "
        "2 outputs/width more forwards a step. Needs a chain of layers, or dldw_blocks.",
    )
    chain = True

    def __init__(self, loss: Loss, *, generator: torch.Generator | None = None) -> None:
        super().__init__(loss, generator)
        self._readouts = Readouts()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        generator = self._generator_on(weights.device)
        objective = Objective(model, self.loss, batch, weights)
        layout = Layout.of(objective)

        def learn(number: int, h: Tensor) -> Tensor:
            """The last use of a block's graph."""
            below = h.detach().requires_grad_()
            found = scores(below, *self._readouts.of(number, h, layout, generator), layout)
            local = differentiable_loss_of(objective, found, number)
            if h.requires_grad:
                h.backward(torch.autograd.grad(local.mean(), below)[0])
            return below.detach()

        with weights.gathered(), torch.enable_grad(), cut_between_blocks(model, weights, learn) as look:
            losses = objective.with_graph()
            objective.check(losses)
            objective.require_graph(losses)
            look(losses)
            return objective.tensor(objective.backward(losses))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "readouts": dict(self._readouts.matrices)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._readouts = Readouts(dict(state["readouts"]))
