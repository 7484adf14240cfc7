"""Random directions over what layers put out, one for each example."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.layers import Call
from dldw.noise import normal
from dldw.weights import Weights, add_to_grad


@dataclass
class Probed:
    """The call of a layer and the noise on its output; ``call.input`` is what the layer was given without noise."""

    call: Call
    noise: Tensor

    def error(self, slopes: Tensor) -> Tensor:
        """The noise times the slope of each example [B], or one for all [1]."""
        return self.noise * slopes.to(self.noise.dtype).view(-1, *[1] * (self.noise.ndim - 1))


class Noise:
    """ξ ~ N(0, I) on the outputs of layers, of each example its own, and z ~ N(0, I) along all other weights.

    Args:
        weights: The trainable weights.
        on_nodes: Places of the weights and biases whose layers get noise on their outputs; the rest are moved along z.
        generator: Where the noise is drawn from.
    """

    def __init__(self, weights: Weights, on_nodes: Collection[int], generator: torch.Generator) -> None:
        self.weights, self.on_nodes, self.generator = weights, on_nodes, generator
        self.z = [None if i in on_nodes else self._drawn(p) for i, p in enumerate(weights.tensors)]
        self.probed: list[Probed] = []

    def drawn_for(self, call: Call, output: Tensor) -> Tensor:
        """Noise on the output of a call that is met for the first time."""
        self.probed.append(Probed(call, self._drawn(output)))
        return self.probed[-1].noise

    def again(self, call: Call, output: Tensor) -> Probed:
        """The same call in an earlier pass.

        Raises:
            DldwError: The model made other calls then.
        """
        if call.index >= len(self.probed) or self.probed[call.index].noise.shape != output.shape:
            raise DldwError(
                "the layers that the model runs changed between the two sides of a difference, so that there is no noise to "
                "put on them again. Let the model decide what it runs by its input alone, or use a method that nudges "
                "weights, such as dldw.SPSA."
            )
        return self.probed[call.index]

    def require_examples(self, losses: Tensor, method: str, remedy: str) -> None:
        """Raises ``DldwError`` unless there is one loss, and one row of every layer's output, for each example."""
        if losses.ndim == 0:
            raise DldwError(
                f"{method} reads one loss for each example [B], and the loss is a scalar. Leave the mean out "
                f"(reduction='none'){remedy}."
            )
        examples = len(losses)
        for probed in self.probed:
            if len(probed.noise) != examples:
                raise DldwError(
                    f"{method} gives each of the {examples} examples noise of its own, but a layer puts out "
                    f"{len(probed.noise)} rows, and whose they are cannot be told. Keep the examples in the first dimension"
                    f"{remedy}."
                )

    def accumulate(self, call: Call, error: Tensor) -> None:
        """Adds to ``.grad`` what an error at the output of a layer, slope times noise, makes of its input."""
        if self._is_on_nodes(call.weight):
            add_to_grad(call.weight, call.to_weight(error, call.input))
        if call.bias is not None and self._is_on_nodes(call.bias):
            add_to_grad(call.bias, call.to_bias(error).to(call.bias.dtype))

    def accumulate_along_weights(self, slope: float) -> None:
        """Adds what z says to ``.grad``."""
        for p, z in zip(self.weights.tensors, self.z, strict=True):
            if z is not None:
                add_to_grad(p, z * slope)

    def _is_on_nodes(self, tensor: Tensor) -> bool:
        return self.weights.places.get(id(tensor)) in self.on_nodes

    def _drawn(self, like: Tensor) -> Tensor:
        return normal(torch.empty_like(like, requires_grad=False), self.generator)
