"""The third concept: something that learns from one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from dldw.errors import DldwError, NonFiniteLossError
from dldw.evaluate import Evaluator, Mode
from dldw.objective import Objective
from dldw.population import Stacked
from dldw.searcher import Searcher
from dldw.source import Batch, GradientSource, Loss
from dldw.weights import Weights


@runtime_checkable
class Learner(Protocol):
    """One step from one batch, and a state that a run resumes from bit for bit."""

    model: nn.Module

    def step(self, batch: Batch) -> Tensor:
        """Learns from ``batch`` and returns the detached loss, shape []."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what later steps do."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        ...


class Descent:
    """A gradient source and an optimizer as a learner.

    Args:
        model: The model to train.
        source: Where dL/dw comes from.
        optimizer: Any optimizer of ``torch.optim`` over the model's parameters.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> source = dldw.Backprop(lambda m, x: m(x).square().sum(1))
        >>> learner = dldw.Descent(model, source, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> bool(learner.step(torch.ones(4, 2)) > learner.step(torch.ones(4, 2)))
        True
    """

    def __init__(self, model: nn.Module, source: GradientSource, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.source, self.optimizer = model, source, optimizer

    def step(self, batch: Batch) -> Tensor:
        """One gradient estimate and one optimizer step; returns the detached loss, shape []."""
        self.optimizer.zero_grad()
        loss = self.source(self.model, batch)
        self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of model, optimizer and source."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.source.load_state_dict(state["source"])


class Search:
    """A searcher that trains a model: each step asks for candidates, evaluates them on the batch and tells their losses.

    The model always holds the incumbent, the best candidate so far. An old lucky minibatch must not keep an incumbent for
    ever, so the incumbent is evaluated again on every batch and gives way to any candidate that does better *there*.

    Args:
        model: The model to train; its trainable weights are where the search starts.
        loss: ``loss(model, batch)``, a scalar or one value per example [B]; NaN and infinity count as the worst loss.
        searcher: Any searcher.
        evaluate: ``auto``, ``sequential`` or ``batched``; see ``dldw.evaluate.Evaluator``.

    Raises:
        DldwError: The model has no trainable weights, or (from ``step``) the loss does not depend on them, or every
            candidate's loss is NaN or infinite.
    """

    def __init__(self, model: nn.Module, loss: Loss, searcher: Searcher, *, evaluate: Mode = "auto") -> None:
        self.model, self.loss, self.searcher = model, loss, searcher
        self._evaluate = Evaluator(evaluate)
        self._depends = False
        weights = Weights.of(model)
        weights.require_trainable()
        searcher.reset(weights.flat())

    @torch.no_grad()
    def step(self, batch: Batch) -> Tensor:
        """One generation; returns the incumbent's loss on ``batch``, shape []."""
        weights = Weights.of(self.model)
        objective = Objective(self.model, self.loss, batch, weights)
        candidates = self.searcher.waiting  # those of a step that an exception or Ctrl-C cut short
        if candidates is None:
            candidates = self.searcher.ask()
        losses = np.array(self._evaluate.losses(objective, _Rows(weights, candidates)))[:, 0]
        try:
            incumbent = objective.plain()
        except NonFiniteLossError:
            incumbent = np.inf
        losses = np.where(np.isfinite(losses), losses, np.inf)
        if not self._depends:
            if (losses == incumbent).all():
                objective.require_dependence()
            self._depends = True
        self.searcher.tell(torch.from_numpy(losses).to(candidates.dtype))
        if not np.isfinite(losses).any():
            raise DldwError(
                f"the loss of all {len(losses)} candidates is NaN or infinite, so none can be preferred. "
                "Lower the searcher's sigma, or check the batch and the loss for NaN."
            )
        best = int(losses.argmin())
        if losses[best] < incumbent:
            incumbent = float(losses[best])
            for p, value in zip(weights.tensors, weights.split(candidates[best]), strict=True):
                p.copy_(value)
        return objective.tensor(incumbent)

    def state_dict(self) -> dict[str, Any]:
        """The states of model and searcher."""
        return {"model": self.model.state_dict(), "searcher": self.searcher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self.searcher.load_state_dict(state["searcher"])


class _Rows:
    """Candidate vectors [n, d] as weights."""

    width = 1

    def __init__(self, weights: Weights, vectors: Tensor) -> None:
        self.weights, self.vectors = weights, vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def member(self, row: int, column: int) -> list[Tensor]:
        return self.weights.split(self.vectors[row])

    def stack(self, start: int, stop: int) -> Sequence[Stacked]:
        return self.weights.split(self.vectors[start:stop])


OptimizerName = Literal["sgd", "adam"]


def make_optimizer(
    model: nn.Module, *, lr: float, optimizer: OptimizerName = "sgd", momentum: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer over the trainable weights, by name: what the command line and the integrations build."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    raise DldwError(f"optimizer must be sgd or adam, got {optimizer!r}.")
