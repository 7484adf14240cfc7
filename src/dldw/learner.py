"""The third concept: something that learns from one batch at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from dldw.errors import DldwError, NonFiniteLossError
from dldw.evaluate import Evaluator, Mode
from dldw.moved import Stacked
from dldw.objective import Objective
from dldw.searcher import Proposals, Searcher
from dldw.source import Batch, GradientSource, Loss
from dldw.weights import Weights

_log = logging.getLogger("dldw")


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
        optimizer: Any optimizer of ``torch.optim`` over the model's parameters; or a learning rate, for plain descent without
            an optimizer, which leaves ``.grad`` empty (``GradientSource.descend``).

    Raises:
        DldwError: A learning rate that is not positive and finite.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> source = dldw.Backprop(lambda m, x: m(x).square().sum(1))
        >>> learner = dldw.Descent(model, source, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> bool(learner.step(torch.ones(4, 2)) > learner.step(torch.ones(4, 2)))
        True
    """

    def __init__(self, model: nn.Module, source: GradientSource, optimizer: torch.optim.Optimizer | float) -> None:
        if isinstance(optimizer, float | int) and not 0 < optimizer < math.inf:
            raise DldwError(f"a learning rate must be positive and finite, got {optimizer}; 0.01 is a usual start.")
        self.model, self.source, self.optimizer = model, source, optimizer

    def step(self, batch: Batch) -> Tensor:
        """One gradient estimate and one step along it; returns the detached loss, shape []."""
        if isinstance(self.optimizer, float | int):
            return self.source.descend(self.model, batch, self.optimizer)
        self.optimizer.zero_grad()
        loss = self.source(self.model, batch)
        self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of model, optimizer (or the learning rate) and source."""
        rate = self.optimizer
        return {
            "model": self.model.state_dict(),
            "optimizer": rate if isinstance(rate, float | int) else rate.state_dict(),
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        if isinstance(self.optimizer, float | int):
            self.optimizer = state["optimizer"]
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        self.source.load_state_dict(state["source"])


class Search:
    """A searcher that trains a model: each step asks for candidates, evaluates them on the batch and tells their losses.

    The model always holds the best candidate, or the mean of the search distribution where the method has one. An old
    lucky minibatch must not keep a candidate for ever, so what the searcher remembers losses of is evaluated again on
    every batch (``Searcher.remembered``), and the best gives way to any candidate that does better *there*.

    Args:
        model: The model to train; its trainable weights are where the search starts.
        loss: ``loss(model, batch)``, a scalar or one value per example [B]; NaN and infinity count as the worst loss.
        searcher: Any searcher.
        evaluate: ``auto``, ``sequential`` or ``batched``; see ``dldw.evaluate.Evaluator``.
        hold: Whether the model holds the ``best`` candidate or the ``mean``.

    Raises:
        DldwError: The model has no trainable weights, or the searcher no mean to hold; from ``step``, the loss does not
            depend on the weights, or is NaN or infinite at every candidate and at the weights that the model holds.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        searcher: Searcher,
        *,
        evaluate: Mode | Evaluator = "auto",
        hold: Literal["best", "mean"] = "best",
    ) -> None:
        self.model, self.loss, self.searcher, self.hold = model, loss, searcher, hold
        self._evaluate = evaluate if isinstance(evaluate, Evaluator) else Evaluator(evaluate)
        self._depends = False
        weights = Weights.of(model)
        weights.require_trainable()
        if hold not in ("best", "mean"):
            raise DldwError(f"hold must be best or mean, got {hold!r}.")
        searcher.reset(weights.flat())
        if hold == "mean" and searcher.mean is None:
            raise DldwError(f"{type(searcher).__name__} has no mean that the model could hold. Use hold='best'.")

    @torch.no_grad()
    def step(self, batch: Batch) -> Tensor:
        """One generation; returns the loss on ``batch``, shape []: the new best's, or that of the mean before the step."""
        weights = Weights.of(self.model)
        objective = Objective(self.model, self.loss, batch, weights)
        candidates = self.searcher.waiting  # those of a step that an exception or Ctrl-C cut short
        if candidates is None:
            candidates = self.searcher.propose()
        n, remembered = len(candidates), self.searcher.remembered()
        again = remembered[1:] if self.hold == "best" else remembered  # the plain forward is that of the best
        losses = np.array(self._evaluate.losses(objective, _Rows(weights, candidates, again)))[:, 0]
        try:
            held = objective.plain()
        except NonFiniteLossError:
            held = np.inf
        losses = np.where(np.isfinite(losses), losses, np.inf)
        if not self._depends:
            if (losses == held).all():
                objective.require_dependence()
            self._depends = True
        told, retold = losses[:n], losses[n:] if self.hold == "mean" else np.append(held, losses[n:])
        self.searcher.retell(torch.from_numpy(retold))
        self.searcher.tell(torch.from_numpy(told))
        if not np.isfinite(losses).any() and not np.isfinite(held):
            raise DldwError(
                f"the loss of all {n} candidates is NaN or infinite, and so it is at the weights that the model holds: none "
                "can be preferred. Lower the searcher's sigma, or check the batch and the loss for NaN."
            )
        if not np.isfinite(told).any():
            _log.warning("the loss of all %d candidates is NaN or infinite; lower the searcher's sigma", n)
        if self.hold == "mean":
            self._put(weights, self.searcher.mean)
            return objective.tensor(held)
        best, loss = self.searcher.best
        self._put(weights, best)
        return objective.tensor(loss)

    def _put(self, weights: Weights, vector: Tensor | None) -> None:
        if vector is not None:
            for p, value in zip(weights.tensors, weights.split(vector), strict=True):
                p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The states of model and searcher."""
        return {"model": self.model.state_dict(), "searcher": self.searcher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self.searcher.load_state_dict(state["searcher"])


class _Rows:
    """Candidate vectors [n, d] as weights, and after them others [k, d]."""

    width = 1

    def __init__(self, weights: Weights, vectors: Proposals, others: Tensor) -> None:
        self.weights, self.vectors, self.others = weights, vectors, others

    @property
    def member_bytes(self) -> int:
        return 2 * self.weights.bytes

    def __len__(self) -> int:
        return len(self.vectors) + len(self.others)

    def member(self, row: int, column: int) -> list[Tensor]:
        n = len(self.vectors)
        return self.weights.split(self.vectors[row] if row < n else self.others[row - n])

    def stack(self, start: int, stop: int) -> Sequence[Stacked]:
        n = len(self.vectors)
        if stop <= n:
            return self.weights.split(self.vectors[start:stop])
        others = self.weights.split(self.others[max(start - n, 0) : stop - n])
        if start >= n:
            return others
        return [torch.cat(parts) for parts in zip(self.weights.split(self.vectors[start:n]), others, strict=True)]


OptimizerName = Literal["sgd", "adam"]


def make_optimizer(
    model: nn.Module, *, lr: float, optimizer: OptimizerName = "sgd", momentum: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer over the trainable weights, by name: what the command line and the integrations build."""
    return optimizer_over(
        [p for p in model.parameters() if p.requires_grad], lr=lr, optimizer=optimizer, momentum=momentum
    )


def optimizer_over(
    parameters: list[Tensor], *, lr: float, optimizer: OptimizerName = "sgd", momentum: float = 0.0
) -> torch.optim.Optimizer:
    """An optimizer over these tensors, by name."""
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr)
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    raise DldwError(f"optimizer must be sgd or adam, got {optimizer!r}.")
