"""The trainable weights of a model, and how other values stand in for them while a loss is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dldw.errors import DldwError

Slot = tuple[Any, Any]
"""A container and the key under which it holds a tensor that ``forward`` reads."""


class Weights:
    """The distinct trainable parameters of a model, each with every place where ``forward`` finds it.

    A tied parameter is one tensor with several slots; a frozen one is left out. Other tensors are put into the slots with
    ``swapped``; the parameters themselves are never written.

    Args:
        model: Any module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors: list[nn.Parameter] = []
        self.slots: list[list[Slot]] = []
        self.buffers: list[Slot] = []
        self._frozen: list[nn.Parameter] = []
        self._recurrent: list[nn.RNNBase] = []
        index: dict[int, int] = {}
        stack, seen = [model], {id(model)}
        while stack:
            module = stack.pop()
            for child in reversed(module._modules.values()):
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    stack.append(child)
            if module._parameters:
                self._collect(module, index)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    self.buffers.append((module._buffers, name))

    def _collect(self, module: nn.Module, index: dict[int, int]) -> None:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if not parameter.requires_grad:
                self._frozen.append(parameter)
                continue
            at = index.setdefault(id(parameter), len(self.tensors))
            if at == len(self.tensors):
                self.tensors.append(parameter)
                self.slots.append([])
            self.slots[at].append((module._parameters, name))
        if isinstance(module, nn.RNNBase):
            self._recurrent.append(module)

    @property
    def device(self) -> torch.device:
        """Where the first trainable weight is."""
        return self.tensors[0].device

    @property
    def size(self) -> int:
        """d, the number of trainable weights."""
        return sum(p.numel() for p in self.tensors)

    def require_trainable(self) -> None:
        """Raises ``DldwError`` where nothing can be trained, with the reason."""
        if not self.tensors:
            integers = [p for p in self._frozen if not p.is_floating_point()]
            why = "it has no parameters at all"
            if integers:
                why = f"its weights are of type {integers[0].dtype}, and integers have no derivative"
            elif self._frozen:
                why = f"all its {len(self._frozen)} parameters have requires_grad=False"
            remedy = "Train it with a search method, or make the weights floating point." if integers else (
                "Call requires_grad_() on the parameters to train, or pass the module that holds them."
            )
            raise DldwError(f"{type(self.model).__name__} has no trainable parameter: {why}. {remedy}")
        for p in self.tensors:
            if p.is_complex():
                raise DldwError(
                    f"a trainable parameter of {type(self.model).__name__} is complex ({p.dtype}); directions are real. "
                    "Hold its real and imaginary parts as two real parameters (torch.view_as_real)."
                )

    @contextmanager
    def swapped(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Inside this context ``forward`` reads ``tensors`` in place of the weights, one for each of ``self.tensors``."""
        changed = [(i, t) for i, t in enumerate(tensors) if t is not self.tensors[i]]
        try:
            for i, tensor in changed:
                for container, key in self.slots[i]:
                    container[key] = tensor
            yield
        finally:
            for i, _ in changed:
                for container, key in self.slots[i]:
                    container[key] = self.tensors[i]
            for module in self._recurrent:  # forward made a list of what it read, and would hold on to it
                module._update_flat_weights()

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cuts ``vector`` [..., d] into one tensor [..., *shape] for each weight, in the weight's dtype."""
        parts = vector.split([p.numel() for p in self.tensors], dim=-1)
        lead = vector.shape[:-1]
        return [part.reshape(lead + p.shape).to(p.dtype) for part, p in zip(parts, self.tensors, strict=True)]

    def flat(self) -> Tensor:
        """A copy of all weights as one vector [d], in the widest dtype among them."""
        dtype = self.tensors[0].dtype
        for p in self.tensors:
            dtype = torch.promote_types(dtype, p.dtype)
        return torch.cat([p.detach().reshape(-1).to(dtype) for p in self.tensors])

    def add_to_grad(self, estimates: Sequence[Tensor]) -> None:
        """Adds one tensor for each weight to its ``.grad``."""
        for p, estimate in zip(self.tensors, estimates, strict=True):
            if p.grad is None:
                p.grad = estimate.to(p.dtype)
            else:
                p.grad.add_(estimate)
