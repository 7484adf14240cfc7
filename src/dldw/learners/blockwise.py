"""An optimizer for each block of a model, which steps as soon as the block has its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.learner import OptimizerName, optimizer_over
from dldw.weights import Weights


class BlockOptimizers:
    """Makes a block's optimizer when the block first has gradients, over the weights that have them.

    Gradients are let go after every step, so that no more than one block's exist at a time.

    Args:
        lr: Learning rate.
        optimizer: ``sgd`` or ``adam``.
    """

    def __init__(self, lr: float, optimizer: OptimizerName) -> None:
        self._lr, self._name = lr, optimizer
        optimizer_over([torch.zeros(1)], lr=lr, optimizer=optimizer)  # settings that it cannot have are errors at once
        self._optimizers: list[torch.optim.Optimizer] = []
        self._members: list[list[int]] = []

    def step(self, number: int, weights: Weights, own: Sequence[Tensor] = ()) -> None:
        """One step of block ``number``; ``own`` are the tensors it has beside the model's."""
        if number == len(self._optimizers):
            members = [i for i, p in enumerate(weights.tensors) if p.grad is not None]
            self._add(members, weights, own)
        self._optimizers[number].step()
        self._optimizers[number].zero_grad()

    def _add(self, members: list[int], weights: Weights, own: Sequence[Tensor]) -> None:
        tensors = [*(weights.tensors[i] for i in members), *own]
        if not tensors:
            raise DldwError(
                f"layer {len(self._members) + 1} has no weights that its own loss can move, as nothing of it has a gradient "
                "(a hard step does not). Use a method that needs loss values alone, such as dldw.SPSA."
            )
        self._members.append(members)
        self._optimizers.append(optimizer_over(tensors, lr=self._lr, optimizer=self._name))

    def state_dict(self) -> dict[str, Any]:
        """Which weights each block has, and the states of the optimizers."""
        return {"members": list(self._members), "optimizers": [o.state_dict() for o in self._optimizers]}

    def load_state_dict(self, state: dict[str, Any], weights: Weights, own: Sequence[Sequence[Tensor]]) -> None:
        """Restores what ``state_dict`` gave; ``own`` are the tensors of each block beside the model's."""
        self._members, self._optimizers = [], []
        for number, (members, saved) in enumerate(zip(state["members"], state["optimizers"], strict=True)):
            self._add(members, weights, own[number] if number < len(own) else ())
            self._optimizers[number].load_state_dict(saved)
