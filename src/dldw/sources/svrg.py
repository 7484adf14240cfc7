"""A control variate: the noise that an estimate shares with one at older weights is taken out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice, repeat
from typing import Any

import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.objective import RandomState
from dldw.source import Batch, GradientSource
from dldw.weights import Weights


class SVRG(GradientSource):
    """Stochastic variance-reduced estimates: less the same estimate at a snapshot, plus the snapshot's mean.

        ghat = g(w; z, batch) - g(w̃; z, batch) + mu,      mu = mean of g(w̃; z', batch') over many z' and batches

    Both estimates use the same directions and the same batch, so what they share of noise cancels; the nearer w is to the
    snapshot w̃, the more. E[ghat] = E[g(w)], as the other two have the same mean. The snapshot is a copy of the model, never
    an alias.

    Cost: twice the source's, and ``draws`` times the source's at each snapshot; a copy of the model and two of its gradient.

    Source: Johnson & Zhang 2013 (NeurIPS); of differences along directions: Liu et al. 2018, arXiv 1805.10367.

    Args:
        source: Any source with a generator: ``SPSA``, ``MeZO``, ``NodePerturbation``, ``WeightPerturbation``, ...
        every: Steps from one snapshot to the next.
        draws: Estimates that make up mu.
        batches: Gives the batches for mu; by default it is taken on the batch of the step, and then what the noise of the
            batches adds stays.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> source = dldw.SVRG(dldw.SPSA(lambda m, x: m(x).square().sum(1)), every=10)
        >>> source(model, torch.ones(4, 2)).shape
        torch.Size([])
    """

    def __init__(
        self,
        source: GradientSource,
        every: int = 50,
        *,
        draws: int = 16,
        batches: Callable[[], Iterable[Batch]] | None = None,
    ) -> None:
        if every < 1 or draws < 1:
            raise DldwError(f"every and draws must be at least 1, got {every} and {draws}.")
        if not source.additive:
            raise DldwError(
                f"SVRG adds and subtracts estimates, and those of {type(source).__name__} have no common scale: it ranks or "
                "standardises its losses. Use shaping='none'."
            )
        super().__init__(source.loss, source.generator)
        self.card = replace(
            source.card, forwards=f"2 * ({source.card.forwards})", memory="2 d, and a copy of the model"
        )
        self.per_example = source.per_example
        self.source, self.every, self.draws, self.batches = source, every, draws, batches
        self.steps = 0
        self._snapshot: nn.Module | None = None
        self._kept: dict[str, Any] | None = None
        self._mean: list[Tensor] = []

    def forwards(self, d: int) -> float:
        return (2 + self.draws / self.every) * self.source.forwards(d)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        self.source.generator = generator = self._generator_on(weights.device)
        snapshot = self._at_snapshot(model, batch)
        state, random = generator.get_state(), RandomState(weights.device)
        random.rewind()
        loss = self.source(model, batch)
        after = RandomState(weights.device)
        after.rewind()
        generator.set_state(state)
        random.rewind()
        _forget(snapshot)
        self.source(snapshot, batch)
        after.rewind()
        for p, old, mean in zip(weights.tensors, Weights.of(snapshot).tensors, self._mean, strict=True):
            if p.grad is not None and old.grad is not None:
                p.grad.add_(mean - old.grad)
        self.steps += 1
        return loss

    def _at_snapshot(self, model: nn.Module, batch: Batch) -> nn.Module:
        """The model with the weights of the snapshot, which is taken when it is time."""
        snapshot, due = self._snapshot, self.steps % self.every == 0
        if snapshot is None or due:
            snapshot = self._snapshot = copy.deepcopy(model)
            if due:
                self._mean = self._mean_at(snapshot, batch)
            elif self._kept is not None:  # that of a run that goes on
                snapshot.load_state_dict(self._kept)
            self._kept = None
        return snapshot

    def _mean_at(self, snapshot: nn.Module, batch: Batch) -> list[Tensor]:
        _forget(snapshot)
        tensors = Weights.of(snapshot).tensors
        random, taken = RandomState(tensors[0].device), 0
        random.rewind()
        for each in islice(self.batches() if self.batches else repeat(batch), self.draws):
            self.source(snapshot, each)
            taken += 1
        random.rewind()
        if not taken:
            raise DldwError("batches gave no batch to take the snapshot's mean on. It must give at least one.")
        return [torch.zeros_like(p) if p.grad is None else p.grad / taken for p in tensors]

    def state_dict(self) -> dict[str, Any]:
        """The states of the source and of the snapshot."""
        kept = self._kept if self._snapshot is None else self._snapshot.state_dict()
        return {
            **super().state_dict(),
            "source": self.source.state_dict(),
            "steps": self.steps,
            "snapshot": kept,
            "mean": self._mean,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        super().load_state_dict(state)
        self.source.load_state_dict(state["source"])
        self.source.generator = self.generator
        self.steps, self._snapshot, self._kept, self._mean = state["steps"], None, state["snapshot"], state["mean"]


def _forget(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None
