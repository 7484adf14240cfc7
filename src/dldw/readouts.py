"""Readouts: what gives a layer a loss of its own, scores in the place of the model's output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.layers import Layout, forward_replaced
from dldw.objective import Objective


@dataclass
class Readouts:
    """One matrix for each block, from the block's output to scores of the shape of the model's output.

    Entries are Gaussian, of variance 1 / features, drawn when a block is first met. Dimensions that a block's output and
    the model's have both at the front (examples, and positions in a sequence) share one readout.

    Attributes:
        matrices: By number of the block, outputs and features.
    """

    matrices: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)

    def of(self, number: int, h: Tensor, layout: Layout, generator: torch.Generator) -> tuple[Tensor, int]:
        """The readout of a block [outputs, features], and how many dimensions at the front are shared.

        Args:
            number: Of the block.
            h: Its output [B, ..].
            layout: Of the model.
            generator: Where a new one is drawn from.

        Raises:
            DldwError: The model's output is not one tensor.
        """
        if layout.output is None:
            raise DldwError(
                "a readout of each layer gives scores in the place of the model's output, so the loss has to call the model "
                "once and the model to return one tensor. Return the tensor alone, or use dldw.Backprop."
            )
        shape, shared = (len(h), *layout.output[1:]), 1
        while shared < min(len(shape), h.ndim) - 1 and shape[shared] == h.shape[shared]:
            shared += 1
        features, outputs = math.prod(h.shape[shared:]), math.prod(shape[shared:])
        key = number, outputs, features
        if key not in self.matrices:
            drawn = torch.empty(outputs, features, dtype=h.dtype, device=h.device).normal_(generator=generator)
            self.matrices[key] = drawn.div_(features**0.5)
        return self.matrices[key], shared


def scores(h: Tensor, matrix: Tensor, shared: int, layout: Layout) -> Tensor:
    """What the readout ``matrix`` makes of a block's output."""
    flat = h.reshape(*h.shape[:shared], -1) @ matrix.mT.to(h.dtype)
    return flat if layout.output is None else flat.reshape(*h.shape[:shared], *layout.output[shared:])


def loss_of(objective: Objective, scores: Tensor) -> Tensor:
    """The user's loss, were ``scores`` the output of the model."""
    with forward_replaced(objective.model, lambda *args, **kwargs: scores):
        return objective.loss(objective.model, objective.batch)


def differentiable_loss_of(objective: Objective, scores: Tensor, number: int) -> Tensor:
    """``loss_of`` of block ``number``, finite and with a graph."""
    own = loss_of(objective, scores)
    objective.mean(own, f"that layer {number + 1} has of its own")
    objective.require_graph(own)
    return own
