"""The first concept: a source of dL/dw."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dldw.card import Card
from dldw.errors import AccumulationError, DldwError
from dldw.weights import Weights

Batch = Any
Loss = Callable[[nn.Module, Batch], Tensor]
"""``loss(model, batch)`` returns a scalar or one value per example, shape [B]; what is minimised is the mean."""


def repeatable(device: torch.device) -> torch.Generator:
    """A generator for who gives none, seeded with ``torch.initial_seed()``: ``torch.manual_seed`` makes runs repeat."""
    return torch.Generator(device).manual_seed(torch.initial_seed())


class GradientSource(ABC):
    """Estimates dL/dw and adds the estimate to ``.grad``, as ``loss(model, batch).mean().backward()`` would.

    Any optimizer, schedule, clipping and (where ``card.additive``) gradient accumulation of ``torch.optim`` then works.

    Args:
        loss: ``loss(model, batch) -> Tensor``, a scalar or one value per example [B]; a source whose card says that it needs
            no loss is made without.
        generator: Where the method draws its own randomness from; it must be on the device of the weights. By default one
            is made on first use and seeded with ``torch.initial_seed()``, so that ``torch.manual_seed`` makes runs repeat.
            The global random state is never drawn from; the model's own dropout advances it as one forward pass does.
    """

    card: Card
    per_example = False
    """Whether the method reads one loss for each example, which must depend on that example alone."""
    chain = False
    """Whether the model must be a chain of layers, or name its blocks (see ``dldw.layers``)."""

    def __init__(self, loss: Loss | None = None, generator: torch.Generator | None = None) -> None:
        card: Card | None = getattr(self, "card", None)  # what is put together on the spot has none
        if card is None or card.needs != "no loss":
            if not callable(loss):
                raise DldwError(
                    f"loss must be a function loss(model, batch) -> Tensor, got {type(loss).__name__}. "
                    "Wrap a criterion: lambda model, batch: criterion(model(batch[0]), batch[1])."
                )
            self.loss = loss
        self.generator = generator

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Adds the estimate of dL/dw to each trainable parameter's ``.grad`` and returns the detached loss, shape [].

        Raises:
            NonFiniteLossError: The loss was NaN or infinite; ``.grad`` is as it was.
            AccumulationError: ``.grad`` holds a gradient already and this method's estimates do not add up.
            DldwError: Nothing can be trained, or model, batch and generator do not fit together.
        """

    def descend(self, model: nn.Module, batch: Batch, rate: float) -> Tensor:
        """w ← w - rate · ghat, which leaves ``.grad`` empty; returns and raises what a call does.

        A source that can change the weights without storing an estimate as large as they are does so here.
        """
        weights = Weights.of(model).tensors
        for p in weights:
            p.grad = None
        loss = self(model, batch)
        with torch.no_grad():
            for p in weights:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=rate)
                    p.grad = None
        return loss

    @property
    def additive(self) -> bool:
        """Whether estimates of micro-batches add up (see ``Card.additive``)."""
        return self.card.additive

    def forwards(self, d: int) -> float:
        """Cost of one step in forward-pass equivalents on a model of ``d`` trainable weights."""
        return self.card.count_forwards(vars(self), d)

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept for a run to continue bit for bit: the state of the generator."""
        return {"generator": None if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        if state["generator"] is not None:
            self.generator = self.generator or torch.Generator()
            self.generator.set_state(state["generator"])

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self.generator is None:
            self.generator = repeatable(device)
        elif self.generator.device.type != device.type:
            raise DldwError(
                f"the generator is on {self.generator.device} but the weights are on {device}, and random directions are "
                f"drawn where the weights are. Pass generator=torch.Generator({str(device)!r})."
            )
        return self.generator

    def _prepare(self, model: nn.Module) -> Weights:
        """The trainable weights of ``model``, after the checks that every source owes its user before it fills ``.grad``."""
        weights = self._checked(model)
        if weights.offloaded:
            weights.require_resident(type(self).__name__)
        return weights

    def _checked(self, model: nn.Module) -> Weights:
        """The trainable weights of ``model``, after the checks on what is estimated."""
        weights = Weights.of(model)
        if not weights.tensors:
            weights.require_trainable()
        device = weights.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            raise DldwError(
                f"{type(self).__name__} was called inside torch.autocast, which would round the perturbed weights (or the "
                "backward pass) to low precision. Call it outside, and put the autocast context inside the loss function."
            )
        if not self.additive and any(p.grad is not None and bool(p.grad.any()) for p in weights.tensors):
            raise AccumulationError(
                f"{type(self).__name__} ranks or standardises its losses, so its estimates have no common scale and those "
                "of micro-batches do not add up, but .grad already holds a gradient. Call optimizer.zero_grad() before "
                "each call, or use shaping='none' to accumulate."
            )
        return weights
