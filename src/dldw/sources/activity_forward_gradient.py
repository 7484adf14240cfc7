"""Activity forward gradients: exact slopes along noise on activations, of losses that are local."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from dldw.card import Card, Choice, Float, Published
from dldw.errors import DldwError
from dldw.layers import Call, Layers, Layout, cut_between_blocks, require_independent_examples, require_layers
from dldw.nodes import Noise, Probed
from dldw.objective import Objective
from dldw.readouts import Readouts, loss_of, scores
from dldw.source import Batch, GradientSource, Loss


class ActivityForwardGradient(GradientSource):
    """Forward-mode slopes along random directions over the outputs of layers, times the layers' inputs.

        global:  ghat_l = 1/B · sum_i (∇_a L_i · ξ_i) ξ_il x_ilᵀ,                     a: the outputs of all layers
        local:   ghat_l = 1/B · sum_i sum_g (∇_a,g loss(R_l h_l)_i · ξ_ig) ξ_ig x_ilᵀ,     g: groups of channels of layer l

    with ξ ~ N(0, I). Globally it is node perturbation with exact slopes: unbiased, of a variance that grows with all nodes. A
    local loss, the user's own given the scores of a fixed random readout in the place of the model's output, has a slope for
    each group of channels, through its part of the scores: the variance grows with the size of a group.

    Cost: 2 forward-equivalents and the readouts (global: 3), twice a forward's memory; no backward pass.

    Source: Ren, Kornblith, Liao & Hinton 2022, arXiv 2210.03310 (with readouts that learn; here they stay as drawn).

    Args:
        loss: ``loss(model, batch)``, differentiable, one value per example [B].
        local: Whether each layer has a loss of its own; the last has the model's.
        groups: How many groups the channels of a layer are cut into.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> source = dldw.ActivityForwardGradient(lambda m, x: m(x).square().sum(1), groups=3)
        >>> loss = source(model, torch.ones(4, 2))
        >>> model[0].weight.grad.shape
        torch.Size([3, 2])
    """

    card = Card(
        summary="The exact slope of each layer's own loss along noise on its outputs, group by group of its channels.",
        claim="biased",
        needs="forward mode",
        forwards="2 if local else 3",
        memory="2 a: the layers' inputs and noise on their outputs",
        paper="Ren et al. 2022, arXiv 2210.03310",
        space={"lr": Float(1e-4, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Other objective: layers below the last follow losses of their own, not dL/dw; local=False is unbiased. "
        "Readouts take 2 outputs/width more forwards.",
        published=(
            Published(
                settings={},
                accuracy=97.45,
                backprop=97.59,
                data="MNIST",
                network="LocalMixer",
                source="Ren et al. 2022, arXiv 2210.03310",
            ),
            Published(
                settings={},
                accuracy=69.32,
                backprop=66.38,
                data="CIFAR-10",
                network="LocalMixer",
                source="Ren et al. 2022, arXiv 2210.03310",
            ),
        ),
    )
    per_example = True

    def __init__(
        self, loss: Loss, *, local: bool = True, groups: int = 8, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(loss, generator)
        if groups < 1:
            raise DldwError(f"groups must be at least 1, got {groups}: each is a part of a layer's channels.")
        self.local, self.groups = local, groups
        self._readouts = Readouts()
        if not local:
            note = "Unbiased; the slopes are exact. Variance grows with the number of nodes."
            self.card = replace(self.card, claim="unbiased", note=note)

    @torch.no_grad()
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        require_independent_examples(model, type(self).__name__, "")
        generator = self._generator_on(weights.device)
        objective = Objective(model, self.loss, batch, weights)
        layout = Layout.of(objective)
        noise = Noise(weights, {place for layer in layout.nodes for place in layer}, generator)
        errors: list[Tensor] = []
        along_weights = 0.0  # the slope along z, on which weights outside layers are moved

        def probed(call: Call) -> Tensor:
            x, tangent = forward_ad.unpack_dual(call.input)
            call = replace(call, input=x)
            out = call.output()
            moved = noise.drawn_for(call, out)
            if tangent is not None:  # forward mode would multiply the weights' tangent, which is zero, too
                moved = moved + replace(call, input=tangent, bias=None).output()
            dual: Tensor = forward_ad.make_dual(out, moved)
            return dual

        def cut(number: int, h: Tensor) -> Tensor:
            nonlocal along_weights
            (h, tangent), block = forward_ad.unpack_dual(h), noise.probed[len(errors) :]
            if tangent is None:  # a block without layers
                return h
            matrix, shared = self._readouts.of(number, h, layout, generator)
            made, found = scores(h, matrix, shared, layout), [torch.zeros_like(p.noise) for p in block]
            flat = tangent.reshape(*h.shape[:shared], -1)
            for features, channels in _groups(block, flat.shape[-1], shared, self.groups):
                moved = scores(flat[..., features], matrix[:, features], shared, layout)
                value, slopes = objective.unpacked(loss_of(objective, forward_ad.make_dual(made, moved)))
                noise.require_examples(value, type(self).__name__, "")
                objective.mean(value, f"that layer {number + 1} has of its own")
                along_weights += objective.mean(slopes, f"in its derivative at layer {number + 1}")
                for p, error in zip(block, found, strict=True):
                    at = (slice(None), channels) if p.call.channels == 1 else (..., channels)
                    error[at] = p.error(slopes / len(slopes))[at]
            errors.extend(found)
            return h

        run = cut_between_blocks(model, weights, cut, probed) if self.local else Layers(weights, probed)
        with run:
            losses, slopes = objective.dual(noise.z, plain=True)
        require_layers(len(noise.probed), model)
        noise.require_examples(losses, type(self).__name__, "")
        loss = objective.mean(losses, "at the model's own weights")
        along_weights += objective.mean(slopes, "in its derivative at the model's own weights")
        errors.extend(p.error(slopes / len(slopes)) for p in noise.probed[len(errors) :])
        for p, error in zip(noise.probed, errors, strict=True):
            noise.accumulate(p.call, error)
        noise.accumulate_along_weights(along_weights)
        return objective.tensor(loss)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "readouts": dict(self._readouts.matrices)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._readouts = Readouts(dict(state["readouts"]))


def _groups(block: list[Probed], features: int, shared: int, groups: int) -> list[tuple[slice, slice]]:
    """The features of a block's output that each group of its layer's channels makes, and the channels.

    One group of all where the block has several layers, or its features are not laid out by channel.
    """
    if len(block) == 1:
        noise, at = block[0].noise, block[0].call.channels
        channels = noise.shape[at]
        by_channel = (
            shared == 1 and features % channels == 0 if at == 1 else shared == noise.ndim - 1 and features == channels
        )
        if by_channel:
            width, cuts = features // channels, [channels * i // groups for i in range(groups + 1)]
            return [(slice(a * width, b * width), slice(a, b)) for a, b in pairwise(cuts) if a < b]
    return [(slice(None), slice(None))]
