"""Node perturbation: noise on what layers put out, in the place of noise on their weights."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.layers import Call, Layers, Layout, require_independent_examples
from dldw.nodes import Noise
from dldw.objective import Objective
from dldw.source import Batch, GradientSource, Loss

Where = Literal["auto", "nodes", "weights"]


class NodePerturbation(GradientSource):
    """Slopes along random noise on the pre-activations, of each example on its own, times the layers' inputs.

        s_i = (L_i(a + σ ξ_i) - L_i(a - σ ξ_i)) / 2σ,     ghat = 1/B · sum_i s_i ξ_i x_iᵀ,     ξ_i ~ N(0, I)

    over the outputs a = W x of all layers at once. On a loss that is linear in them the relative variance
    E‖ghat - g‖²/‖g‖² is (nodes + 1) · mean‖g_i‖² / (B ‖g‖²): it grows with the nodes, not the weights, and falls with the
    batch. Where only the mean loss is known, one slope serves all examples and the second advantage is lost.

    A convolution has many nodes (positions x channels) and few weights. With ``layers="auto"`` each layer is perturbed in
    whichever of the two it has fewer of; weights outside Linear and Conv layers, tied ones included, are always perturbed
    themselves.

    Cost: 2 forwards and the products s ξ xᵀ, as many as a third takes; the layers' inputs and noise are kept.

    Source: Williams 1992, Machine Learning 8; Fiete & Seung 2006, Physical Review Letters 97; per example: Hiratani et al.
    2022 (NeurIPS).

    Args:
        loss: ``loss(model, batch)``, one value per example [B]; with ``per_example=False`` a scalar will do.
        sigma: Standard deviation of the noise, in units of the pre-activations.
        per_example: Whether each example's own loss is read.
        layers: ``auto``, or ``nodes`` or ``weights`` of every layer.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> loss = dldw.NodePerturbation(lambda m, x: m(x).square().sum(1))(model, torch.ones(4, 2))
        >>> bool(model.weight.grad[0, 0] == model.weight.grad[0, 1])     # equal inputs, equal gradients
        True
    """

    card = Card(
        summary="Noise on the pre-activations, forth and back; each example's slope times the layer's input.",
        claim="unbiased",
        needs="layers",
        forwards="2 if layers == 'weights' else 3",
        memory="a, twice: the layers' inputs and noise on their outputs",
        paper="Williams 1992; Fiete & Seung 2006; Hiratani et al. 2022",
        space={"lr": Float(1e-4, 0.1), "optimizer": Choice(("sgd", "adam"))},  # slopes hardly depend on sigma
        note="Unbiased up to O(sigma²), exactly on a linear loss. Variance grows with the number of nodes.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-2,
        per_example: bool = True,
        layers: Where = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(loss, generator)
        if not (sigma > 0 and math.isfinite(sigma)):
            raise DldwError(
                f"sigma (the noise on pre-activations) must be positive and finite, got {sigma}: the slope is a difference "
                "of losses divided by it. The usual value is 1e-2."
            )
        if layers not in ("auto", "nodes", "weights"):
            raise DldwError(f"layers must be auto, nodes or weights, got {layers!r}.")
        self.sigma, self.layers = sigma, layers
        self.per_example = per_example and layers != "weights"  # noise on weights is all examples' alike

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        if self.per_example:
            require_independent_examples(model, "NodePerturbation", " or per_example=False")
        generator = self._generator_on(weights.device)
        objective = Objective(model, self.loss, batch, weights)
        noise = Noise(weights, self._on_nodes(objective), generator)
        losses = [self._side(objective, noise, side) for side in (1.0, -1.0)]
        for loss in losses:
            objective.check(loss)
        if not self.per_example:
            losses = [torch.stack([loss.mean()]) for loss in losses]
        else:
            noise.require_examples(losses[0], "NodePerturbation", ", or use per_example=False")
        means = [
            objective.mean(loss, f"at pre-activations moved by {side}") for loss, side in zip(losses, "+-", strict=True)
        ]
        if means[0] == means[1]:
            objective.require_dependence()
        objective.finish()
        slopes = (losses[0] - losses[1]) / (2 * self.sigma)
        for probed in noise.probed:
            noise.accumulate(probed.call, probed.error(slopes / len(slopes)))
        noise.accumulate_along_weights((means[0] - means[1]) / (2 * self.sigma))
        return objective.tensor(fmean(means))

    def _on_nodes(self, objective: Objective) -> set[int]:
        """The places of the weights whose layers get the noise on their outputs."""
        layout = Layout.of(objective)
        if self.layers == "weights":
            return set()
        sizes = [p.numel() for p in objective.weights.tensors]
        return {
            place
            for layer, nodes in layout.nodes.items()
            if self.layers == "nodes" or nodes <= sum(sizes[i] for i in layer)
            for place in layer
        }

    def _side(self, objective: Objective, noise: Noise, side: float) -> Tensor:
        """The losses at the outputs moved by ``side`` times sigma."""
        step = side * self.sigma

        def moved(call: Call) -> Tensor:
            out = call.output()
            if side > 0:
                return out.add(noise.drawn_for(call, out), alpha=step)
            probed = noise.again(call, out)
            probed.call = replace(call, input=(probed.call.input + call.input) / 2)  # without noise, up to O(sigma²)
            return out.add(probed.noise, alpha=step)

        own = objective.weights.tensors
        with Layers(objective.weights, moved):
            return objective.at([p if z is None else p.add(z, alpha=step) for p, z in zip(own, noise.z, strict=True)])
