"""Losses of one batch at many weights, one by one or batched within a memory bound."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dldw.errors import DldwError
from dldw.memory import keep_freed_memory
from dldw.moved import Scales, Stacked
from dldw.objective import Objective
from dldw.population import population_losses
from dldw.ranks import Ranks
from dldw.weights import Weights

Mode = Literal["auto", "sequential", "batched"]
_log = logging.getLogger("dldw")


class Candidates(Protocol):
    """Rows of weights to evaluate; each row holds ``width`` members (the two sides of a difference, say)."""

    width: int

    @property
    def member_bytes(self) -> int:
        """What the weights of one member take in a stack."""
        ...

    def __len__(self) -> int: ...

    def member(self, row: int, column: int) -> Sequence[Tensor]:
        """One set of weights, a tensor for each parameter (the parameter itself where it is unchanged)."""
        ...

    def stack(self, start: int, stop: int) -> Sequence[Stacked]:
        """Rows ``start`` to ``stop`` of every weight, column after column.

        A parameter that no member changes is given as itself.
        """
        ...


class Movable(Protocol):
    """Directions, as ``dldw.directions.Drawn`` has them."""

    def perturbed(self, weights: Weights, row: int, scale: float) -> Sequence[Tensor]: ...

    def stacked(self, weights: Weights, start: int, scales: Scales) -> Sequence[Stacked]: ...


class Evaluator:
    """Evaluates candidates one by one or under ``torch.func.vmap`` in chunks that keep to a memory bound.

    Args:
        mode: ``sequential``, ``batched`` (an error where vmap cannot go), or ``auto``: batched for small models, and
            sequential with a logged reason where vmap cannot go (training-mode batch norm, LSTM, data-dependent control).
        memory: Bound in bytes on what one chunk of candidates takes, weights and activations together.
        ranks: Processes to share the evaluations with.
    """

    def __init__(self, mode: Mode = "auto", memory: int = 256 << 20, *, ranks: Ranks | None = None) -> None:
        if mode not in ("auto", "sequential", "batched"):
            raise DldwError(f"evaluate must be 'auto', 'sequential' or 'batched', got {mode!r}.")
        self.mode, self.memory, self.ranks = mode, memory, ranks
        self._cannot_batch: WeakSet[nn.Module] = WeakSet()
        self._footprints: dict[tuple[Any, ...], int] = {}

    def batches(self, objective: Objective, members: int) -> bool:
        """Whether ``members`` evaluations of this model are worth batching."""
        if self.mode != "auto":
            return self.mode == "batched"
        worth = members > _FEW and objective.weights.size <= _SMALL
        return worth and objective.model not in self._cannot_batch

    def held(self, bytes_per_direction: int, count: int) -> int:
        """How many of ``count`` directions are held at a time: half the memory is theirs, whatever is evaluated how."""
        return max(1, min(count, self.memory // (2 * bytes_per_direction)))

    def __call__(self, objective: Objective, candidates: Candidates) -> list[list[float]]:
        """The mean losses of all candidates, a list of ``width`` for each row.

        Raises:
            NonFiniteLossError: One of them is NaN or infinite.
            DldwError: ``mode`` is ``batched`` and vmap cannot go through the model.
        """
        if self.ranks is not None:
            losses = self._shared(objective, candidates, self.ranks)
            objective.require_finite(np.array(losses))
            return losses
        return self._evaluate(objective, candidates, objective.mean_at, objective.require_finite)

    def losses(self, objective: Objective, candidates: Candidates) -> list[list[float]]:
        """Like calling, but NaN and infinite losses are returned, not raised."""
        if self.ranks is not None:
            return self._shared(objective, candidates, self.ranks)
        return self._evaluate(objective, candidates, objective.any_mean_at, lambda losses: None)

    def plain(self, objective: Objective) -> float:
        """The mean loss at the model's own weights, over the examples of all ranks."""
        own = objective.plain()
        if self.ranks is None or self.ranks.share == "directions":
            return own
        objective.plain_loss = float(self.ranks.mean(np.array([own]))[0])
        return objective.plain_loss

    def _shared(self, objective: Objective, candidates: Candidates, ranks: Ranks) -> list[list[float]]:
        """The losses of all candidates, of which this process evaluates its share; NaN and infinity included."""
        if ranks.share == "examples":
            own = self._evaluate(objective, candidates, objective.any_mean_at, lambda losses: None)
            averaged: list[list[float]] = ranks.mean(np.array(own)).tolist()
            return averaged
        count, width = len(candidates), candidates.width
        losses = np.zeros((count * width, 1))
        for at in filter(ranks.mine, range(count * width)):
            losses[at] = objective.any_mean_at(candidates.member(at // width, at % width))
        completed: list[list[float]] = ranks.complete(losses).reshape(count, width).tolist()
        return completed

    def each(self, objective: Objective, movable: Movable, steps: list[float]) -> Tensor:
        """The loss of each example at weights that moved along a direction of its own, [B] in float64.

        In one pass, as rows of the batch, where vmap can go through the model; else one example after the other, at the same
        count of operations.

        Args:
            objective: The loss; all tensors of its batch are [B, ...].
            movable: B directions.
            steps: How far to move along each.
        """
        tensors = [t for t in tree_leaves(objective.batch) if isinstance(t, Tensor)]
        weights, count = objective.weights, len(steps)
        if self.mode != "sequential" and objective.model not in self._cannot_batch:
            stacked = movable.stacked(weights, 0, [steps])
            each = [t.unsqueeze(1) for t in tensors]  # a batch of one example

            def at(values: list[Tensor]) -> Tensor:
                return objective.of_examples(values[: len(stacked)], values[len(stacked) :])

            try:
                return population_losses(at, [*stacked, *each], count, "different").double().view(count)
            except (RuntimeError, TypeError, ValueError) as error:
                if isinstance(error, DldwError):
                    raise
                self._cannot_batch.add(objective.model)
                _log.info("%s is evaluated one by one: %s", type(objective.model).__name__, first_line(error))
        losses = [
            objective.of_examples(movable.perturbed(weights, row, steps[row]), [t[row : row + 1] for t in tensors])
            for row in range(count)
        ]
        return torch.cat(losses).double()

    def _evaluate(
        self,
        objective: Objective,
        candidates: Candidates,
        mean_at: Callable[[Sequence[Tensor]], float],
        require: Callable[[np.ndarray], None],
    ) -> list[list[float]]:
        if self.batches(objective, len(candidates) * candidates.width) and self._worth(objective, candidates):
            try:
                losses = self._batched(objective, candidates)
            except (RuntimeError, TypeError, ValueError) as error:
                reason = first_line(error)
                if self.mode == "batched":
                    if isinstance(error, DldwError):
                        raise
                    raise DldwError(
                        f"evaluate='batched' cannot run {type(objective.model).__name__} under torch.func.vmap: {reason} "
                        "Use evaluate='auto', which then evaluates one by one."
                    ) from error
                self._cannot_batch.add(objective.model)
                _log.info("%s is evaluated one by one: %s", type(objective.model).__name__, reason)
            else:
                require(losses)
                batched: list[list[float]] = losses.tolist()
                return batched
        columns = range(candidates.width)
        return [[mean_at(candidates.member(row, column)) for column in columns] for row in range(len(candidates))]

    def _batched(self, objective: Objective, candidates: Candidates) -> np.ndarray:
        count, width = len(candidates), candidates.width
        rows = self._rows(objective, candidates)
        keep_freed_memory()
        out = np.empty((count, width))
        for start in range(0, count, rows):
            stop = min(start + rows, count)
            value = _losses(objective, candidates.stack(start, stop), width * (stop - start))
            means = value.sum(1, dtype=torch.float64) / value.shape[1] if value.ndim > 1 else value.double()
            out[start:stop] = means.cpu().numpy().reshape(width, stop - start).T
        return out

    def _worth(self, objective: Objective, candidates: Candidates) -> bool:
        """Whether enough of what is asked for goes through the model at a time."""
        return self.mode == "batched" or self._rows(objective, candidates) * candidates.width > _FEW

    def _rows(self, objective: Objective, candidates: Candidates) -> int:
        """How many rows of members go through the model at a time.

        As many as leave what they make in the processor's cache, where the weights fit into it, too; else, and on other
        devices, as the memory bound allows.
        """
        weights, bound = objective.weights, self.memory // 2
        if weights.device.type == "cpu" and weights.size * weights.dtype.itemsize <= _CACHE:
            bound = min(bound, _CACHE)
        member = candidates.member_bytes + self._footprint(objective)
        return max(1, min(len(candidates), bound // max(1, candidates.width * member)))

    def _footprint(self, objective: Objective) -> int:
        key = objective.signature()
        if key not in self._footprints:
            if len(self._footprints) > 64:
                self._footprints.clear()
            with _AllocatedBytes() as allocated:
                objective.at(objective.weights.tensors)
            self._footprints[key] = allocated.bytes // getattr(objective.loss, "time_steps", 1)
        return self._footprints[key]


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_FEW = 4
"""Members up to which ``auto`` evaluates one by one: a pass of many costs about as much as four alone."""

_SMALL = 1 << 20
"""Weights up to which ``auto`` batches: beyond, one matrix product keeps the processor busy and stacking only copies."""

_CACHE = 32 << 20
"""Bytes that the members of one pass may take on the CPU, which is about what stays in its caches."""


def _losses(objective: Objective, stacked: Sequence[Stacked], members: int) -> Tensor:
    parameters = objective.weights.tensors
    changed = [i for i, (s, p) in enumerate(zip(stacked, parameters, strict=True)) if s is not p]

    def at(weights: list[Tensor]) -> Tensor:
        tensors: list[Tensor] = list(parameters)
        for i, weight in zip(changed, weights, strict=True):
            tensors[i] = weight
        value = objective.at(tensors)
        objective.check(value)
        return value

    return population_losses(at, [stacked[i] for i in changed], members)


class _AllocatedBytes(TorchDispatchMode):
    """Sums the bytes of every tensor made inside: an upper bound on what one forward pass holds at a time."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in held:
                self.bytes += t.numel() * t.element_size()
        return out
