"""Losses of one batch at many weights: with common random numbers, one by one or batched, the model left as it was."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dldw.batched import population_map
from dldw.errors import DldwError, NonFiniteLossError
from dldw.weights import Weights

if TYPE_CHECKING:
    from dldw.source import Batch, Loss

Mode = Literal["auto", "sequential", "batched"]
_log = logging.getLogger("dldw")


class Candidates(Protocol):
    """Rows of weights to evaluate; each row holds ``width`` members (the two sides of a difference, say)."""

    width: int

    def __len__(self) -> int: ...

    def member(self, row: int, column: int) -> Sequence[Tensor]:
        """One set of weights, a tensor for each parameter (the parameter itself where it is unchanged)."""
        ...

    def stack(self, start: int, stop: int) -> Sequence[Tensor]:
        """Rows ``start`` to ``stop``, tensors [width * (stop - start), *shape], column after column.

        A parameter that no member changes is given as itself.
        """
        ...


class Objective:
    """The loss of one batch as a function of the weights alone; callers turn gradients off or on.

    Every evaluation starts from the same random state (dropout sees the same mask) and the same buffers. In the end the
    model's buffers and the global random state are as one forward pass at the model's own weights leaves them.

    Args:
        model: The model whose weights are stood in for.
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        batch: Handed to ``loss`` as it is.
        weights: The trainable weights of ``model``.
    """

    def __init__(self, model: nn.Module, loss: Loss, batch: Batch, weights: Weights) -> None:
        self.model, self.loss, self.batch, self.weights = model, loss, batch, weights
        self._random = _RandomState(weights.device)
        self._originals: list[Tensor] = []
        self._scratch: list[Tensor] = []
        self._updates_buffers = False
        self.plain_loss: float | None = None
        self._shape: torch.Size | None = None
        self._dtype: torch.dtype | None = None

    def at(self, tensors: Sequence[Tensor]) -> Tensor:
        """The loss as the user's function returns it, at these weights, without touching the model."""
        self._random.rewind()
        try:
            if self.weights.buffers:
                self._put_scratch_buffers()
            self.weights.put(tensors)
            return self._call()
        finally:
            self.weights.restore()
            if self.weights.buffers:
                self._restore_buffers()

    def mean_at(self, tensors: Sequence[Tensor]) -> float:
        """The mean loss at these weights."""
        return self.mean(self.at(tensors), "at the perturbed weights")

    def any_mean_at(self, tensors: Sequence[Tensor]) -> float:
        """The mean loss at these weights, NaN and infinity included."""
        return self._mean(self.at(tensors))

    def plain(self) -> float:
        """The mean loss at the model's own weights; buffers and the random state move on as in any forward pass."""
        if self.plain_loss is None:
            self._random.rewind()
            self.plain_loss = self.mean(self._call(), "at the model's own weights")
        return self.plain_loss

    def with_graph(self) -> Tensor:
        """The loss at the model's own weights as the user's function returns it, for autograd to follow."""
        return self._call()

    def jvp(self, tangents: Sequence[Tensor], *, plain: bool) -> tuple[float, float]:
        """The mean loss at the model's own weights and its exact derivative along ``tangents``, by forward mode.

        Args:
            tangents: One tensor for each weight.
            plain: Whether this pass is the one that updates the model's buffers.
        """
        self._random.rewind()
        scratch = bool(self.weights.buffers) and not plain
        with _forward_mode_kernels(self.model), forward_ad.dual_level():
            try:
                if scratch:
                    self._put_scratch_buffers()
                duals = zip(self.weights.tensors, tangents, strict=True)
                self.weights.put([forward_ad.make_dual(p.detach(), t) for p, t in duals])
                value = self._call()
            finally:
                self.weights.restore()
                if scratch:
                    self._restore_buffers()
            self.check(value)
            primal, tangent = forward_ad.unpack_dual(value)
        if tangent is None:
            raise DldwError(_INDEPENDENT.format(how="forward mode found no path from the weights to the loss"))
        loss = self.mean(primal, "at the model's own weights")
        if plain:
            self.plain_loss = loss
        return loss, self.mean(tangent, "in its derivative at the model's own weights")

    def finish(self) -> None:
        """Leaves the buffers as one plain forward pass would."""
        if self._updates_buffers:
            self.plain()

    def mean(self, value: Tensor, where: str) -> float:
        """The mean of a loss [] or [B] as a float, summed in float64."""
        mean = self._mean(value)
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the loss is {mean} {where}, so there is no slope to follow; .grad is as it was. "
                "Lower the learning rate or sigma, clip the gradient, or check the batch for NaN."
            )
        return mean

    def require_finite(self, losses: np.ndarray) -> None:
        """Raises ``NonFiniteLossError`` unless all ``losses`` are finite."""
        bad = losses[~np.isfinite(losses)]
        if bad.size:
            raise NonFiniteLossError(
                f"the loss is {bad[0]} at {bad.size} of {losses.size} perturbed weights, so there is no slope to follow; "
                ".grad is as it was. Lower sigma or the learning rate, or check the batch for NaN."
            )

    def _mean(self, value: Tensor) -> float:
        if self._shape is None or getattr(value, "shape", None) != self._shape:
            self.check(value)
        count = value.numel()
        if count <= 256:  # a short list is summed in float64 in less time than a reduction is launched
            return sum(value.tolist()) / count if value.ndim else float(value.detach())
        total: float = value.sum(dtype=torch.float64).item()
        return total / count

    def check(self, value: Tensor) -> None:
        """Raises ``DldwError`` unless ``value`` is a scalar or [B]."""
        if not isinstance(value, Tensor) or value.ndim > 1 or value.numel() == 0 or value.is_complex():
            found = f"shape {list(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise DldwError(
                f"the loss must be a real scalar or one value per example [B], got {found}: its mean is what is minimised. "
                "Reduce every other dimension in the loss function, e.g. losses.flatten(1).mean(1)."
            )
        if self._dtype is None:
            self._shape = value.shape
            self._dtype = value.dtype if value.is_floating_point() else torch.float32

    def tensor(self, loss: float) -> Tensor:
        """A mean loss as a detached scalar in the dtype and on the device of the loss."""
        return torch.scalar_tensor(loss, dtype=self._dtype, device=self.weights.device)

    def require_dependence(self) -> None:
        """Raises ``DldwError`` when the loss is the same at unrelated weights too, of which a few are tried.

        One would not do: the error rate of a small batch takes few values, and two of them are easily equal.
        """
        generator = torch.Generator(self.weights.device).manual_seed(0)
        here = self.at(self.weights.tensors)
        for _ in range(16):
            other = [
                torch.empty_like(p).normal_(generator=generator).mul_(1 + p.detach().abs().max())
                for p in self.weights.tensors
            ]
            if not torch.equal(self.at(other), here):
                return
        raise DldwError(_INDEPENDENT.format(how="it is the same at unrelated weights"))

    def signature(self) -> tuple[Any, ...]:
        """What decides how much memory one evaluation takes: the model and the shapes in the batch."""
        return id(self.model), *(t.shape for t in tree_leaves(self.batch) if isinstance(t, Tensor))

    def rewind(self) -> None:
        """Back to the random state every evaluation starts from."""
        self._random.rewind()

    def _call(self) -> Tensor:
        try:
            return self.loss(self.model, self.batch)
        except RuntimeError as error:
            elsewhere = {t.device for t in tree_leaves(self.batch) if isinstance(t, Tensor)} - {self.weights.device}
            if elsewhere:
                raise DldwError(
                    f"the batch is on {', '.join(sorted(map(str, elsewhere)))} but the model is on {self.weights.device}. "
                    "Move one to the other's device first, e.g. batch.to(device)."
                ) from error
            raise

    def _put_scratch_buffers(self) -> None:
        """Lets the next forward pass update copies, all starting from the same values."""
        slots = self.weights.buffers
        if not self._originals:
            self._originals = [container[key] for container, key in slots]
            self._scratch = [b.clone() for b in self._originals]
        for (container, key), scratch in zip(slots, self._scratch, strict=True):
            container[key] = scratch

    def _restore_buffers(self) -> None:
        for i, ((container, key), original) in enumerate(zip(self.weights.buffers, self._originals, strict=True)):
            if container[key] is not self._scratch[i] or self._scratch[i]._version:
                self._updates_buffers = True
                self._scratch[i] = original.clone()
            container[key] = original


_INDEPENDENT = (
    "the loss does not depend on the model's trainable weights: {how}. "
    "Use the model that the loss function is given, not one it captured, and do not detach its output."
)


@contextmanager
def _forward_mode_kernels(model: nn.Module) -> Iterator[None]:
    """Inside, attention and recurrent layers run on kernels with a forward-mode rule; the fused ones have none."""
    backends = torch.backends
    fused = backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        backends.mha.set_fastpath_enabled(False)
        stack.callback(backends.mha.set_fastpath_enabled, fused)
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(backends.mkldnn.flags(enabled=False))
            stack.enter_context(backends.cudnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


class _RandomState:
    """The global random state of the CPU and of one device, to start every evaluation from."""

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._states = [g.get_state() for g in self._generators]
        self._fresh = True

    def rewind(self) -> None:
        if self._fresh:
            self._fresh = False
            return
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)


class Evaluator:
    """Evaluates candidates one by one or under ``torch.func.vmap`` in chunks that keep to a memory bound.

    Args:
        mode: ``sequential``, ``batched`` (an error where vmap cannot go), or ``auto``: batched for small models, and
            sequential with a logged reason where vmap cannot go (training-mode batch norm, LSTM, data-dependent control).
        memory: Bound in bytes on what one chunk of candidates takes, weights and activations together.
    """

    def __init__(self, mode: Mode = "auto", memory: int = 256 << 20) -> None:
        if mode not in ("auto", "sequential", "batched"):
            raise DldwError(f"evaluate must be 'auto', 'sequential' or 'batched', got {mode!r}.")
        self.mode, self.memory = mode, memory
        self._cannot_batch: WeakSet[nn.Module] = WeakSet()
        self._footprints: dict[tuple[Any, ...], int] = {}

    def batches(self, objective: Objective, members: int) -> bool:
        """Whether ``members`` evaluations of this model are worth batching."""
        if self.mode != "auto":
            return self.mode == "batched"
        small = objective.weights.size <= _SMALL
        return members > 2 and small and objective.model not in self._cannot_batch

    def rows(self, objective: Objective, width: int, count: int) -> int:
        """How many of ``count`` rows of ``width`` members go into one chunk."""
        bytes_per_member = sum(p.numel() * p.element_size() for p in objective.weights.tensors)
        if self.batches(objective, width * count):
            bytes_per_member = 2 * bytes_per_member + self._footprint(objective)
        return max(1, min(count, self.memory // max(1, width * bytes_per_member)))

    def __call__(self, objective: Objective, candidates: Candidates) -> list[list[float]]:
        """The mean losses of all candidates, a list of ``width`` for each row.

        Raises:
            NonFiniteLossError: One of them is NaN or infinite.
            DldwError: ``mode`` is ``batched`` and vmap cannot go through the model.
        """
        return self._evaluate(objective, candidates, objective.mean_at, objective.require_finite)

    def losses(self, objective: Objective, candidates: Candidates) -> list[list[float]]:
        """Like calling, but NaN and infinite losses are returned, not raised."""
        return self._evaluate(objective, candidates, objective.any_mean_at, lambda losses: None)

    def _evaluate(
        self,
        objective: Objective,
        candidates: Candidates,
        mean_at: Callable[[Sequence[Tensor]], float],
        require: Callable[[np.ndarray], None],
    ) -> list[list[float]]:
        if self.batches(objective, len(candidates) * candidates.width):
            try:
                losses = self._batched(objective, candidates)
            except (RuntimeError, TypeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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
        rows = self.rows(objective, candidates.width, len(candidates))
        out = np.empty((len(candidates), candidates.width))
        for start in range(0, len(candidates), rows):
            stop = min(start + rows, len(candidates))
            value = _vmapped(objective, candidates.stack(start, stop))
            means = value.reshape(value.shape[0], -1).sum(1, dtype=torch.float64) / max(1, value[0].numel())
            out[start:stop] = means.cpu().numpy().reshape(candidates.width, stop - start).T
        return out

    def _footprint(self, objective: Objective) -> int:
        key = objective.signature()
        if key not in self._footprints:
            if len(self._footprints) > 64:
                self._footprints.clear()
            with _AllocatedBytes() as allocated:  # type: ignore[no-untyped-call]
                objective.at(objective.weights.tensors)
            self._footprints[key] = allocated.bytes
        return self._footprints[key]


_SMALL = 1 << 20
"""Weights up to which ``auto`` batches: beyond, one matrix product keeps the processor busy and stacking only copies."""


def _vmapped(objective: Objective, stacked: Sequence[Tensor]) -> Tensor:
    parameters = objective.weights.tensors
    changed = [i for i, (s, p) in enumerate(zip(stacked, parameters, strict=True)) if s is not p]

    def one(members: list[Tensor]) -> Tensor:
        tensors: list[Tensor] = list(parameters)
        for i, member in zip(changed, members, strict=True):
            tensors[i] = member
        value = objective.at(tensors)
        objective.check(value)
        return value

    return population_map(one, [stacked[i] for i in changed])


class _AllocatedBytes(TorchDispatchMode):
    """Sums the bytes of every tensor made inside: an upper bound on what one forward pass holds at a time."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in held:
                self.bytes += t.numel() * t.element_size()
        return out
