"""Training the last layer alone: the control that shows what random features are good for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.layers import Call, Layers, Layout, require_layers
from dldw.objective import Objective
from dldw.source import Batch, GradientSource, Loss


class HeadOnly(GradientSource):
    """The exact gradient of the last layer, and zero for all others.

        ghat_L = dL/dw_L,     ghat_l = 0 for l < L

    The last layer is the Linear or Conv layer that runs last, with what follows it. A rule for hidden layers that does not do
    better than this has taught them nothing.

    Cost: 1 forward, and what the last layer takes of a backward pass; activations of the last layer.

    Source: random features: Rahimi & Recht 2007 (NeurIPS 20); extreme learning machines: Huang et al. 2006.

    Args:
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B].
        generator: Not drawn from; taken so that every source is built alike.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> loss = dldw.HeadOnly(lambda m, x: m(x).square().sum(1))(model, torch.ones(4, 2))
        >>> bool(model[0].weight.grad.any()), bool(model[2].weight.grad.any())
        (False, True)
    """

    card = Card(
        summary="The exact gradient of the last layer; all others stay as they were drawn.",
        claim="biased",
        needs="autograd",
        forwards="1",
        memory="d + the activations of one layer",
        paper="Rahimi & Recht 2007; Huang et al. 2006",
        space={"lr": Float(1e-3, 3.0), "optimizer": Choice(("sgd", "adam"))},
        note="Other objective: only the last layer is trained. Takes the last layer's share of a forward more.",
    )

    def __init__(self, loss: Loss, *, generator: torch.Generator | None = None) -> None:
        super().__init__(loss, generator)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        objective = Objective(model, self.loss, batch, weights)
        last = Layout.of(objective).calls - 1

        def layer(call: Call) -> Tensor:
            torch.set_grad_enabled(call.index >= last)  # from here on
            return call.output()

        with weights.gathered(), torch.no_grad(), Layers(weights, layer) as layers:
            losses = objective.with_graph()
            require_layers(layers.calls, model)
            loss = objective.backward(losses)
            for p in weights.tensors:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        return objective.tensor(loss)
