"""The loss of one batch as a function of the weights: common random numbers, scratch buffers, the model left as it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dldw.compiled import as_written, met_one_by_one
from dldw.errors import DldwError, NonFiniteLossError
from dldw.weights import Weights

if TYPE_CHECKING:
    from dldw.source import Batch, Loss


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
        self._random = RandomState(weights.device)
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
            if met_one_by_one(tensors):
                with as_written(self.model):
                    return self._call()
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

    def of_examples(self, tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """The loss of some examples at these weights, one value for each; the batch is put back.

        Args:
            tensors: The weights.
            values: What takes the place of the tensors of the batch.
        """
        leaves, structure = tree_flatten(self.batch)
        batch, rest = self.batch, iter(values)
        self.batch = tree_unflatten([next(rest) if isinstance(t, Tensor) else t for t in leaves], structure)
        try:
            value = self.at(tensors)
        finally:
            self.batch = batch
        self.check(value)
        self.require_examples(value)
        return value

    def require_examples(self, value: Tensor) -> None:
        """Raises ``DldwError`` unless ``value`` is one loss for each example."""
        if value.ndim != 1:
            raise DldwError(
                "a direction for each example reads one loss for each example [B], and the loss is a scalar. Leave the "
                "mean out of the loss function (reduction='none')."
            )

    def with_graph(self) -> Tensor:
        """The loss at the model's own weights as the user's function returns it, for autograd to follow."""
        self._random.rewind()
        return self._call()

    def backward(self, losses: Tensor) -> float:
        """Back-propagates the mean of ``losses``, which it returns, into ``.grad``."""
        loss = self.mean(losses, "at the model's own weights")
        self.require_graph(losses)
        losses.mean().backward()
        return loss

    def require_graph(self, losses: Tensor) -> None:
        """Raises ``DldwError`` where autograd cannot follow ``losses``."""
        if not losses.requires_grad:
            raise DldwError(
                "the loss does not depend on the model's trainable weights in a way autograd can follow: it carries no "
                "graph. Use the model the loss function is given, do not detach its output; for a loss with no "
                "gradient use a method that needs loss values alone, such as dldw.SPSA."
            )

    def jvp(self, tangents: Sequence[Tensor], *, plain: bool) -> tuple[float, float]:
        """The mean loss at the model's own weights and its exact derivative along ``tangents``, by forward mode.

        Args:
            tangents: One tensor for each weight.
            plain: Whether this pass is the one that updates the model's buffers.
        """
        primal, tangent = self.dual(tangents, plain=plain)
        loss = self.mean(primal, "at the model's own weights")
        if plain:
            self.plain_loss = loss
        return loss, self.mean(tangent, "in its derivative at the model's own weights")

    def dual(self, tangents: Sequence[Tensor | None], *, plain: bool) -> tuple[Tensor, Tensor]:
        """Like ``jvp``, but the loss and its derivative are as the user's function returns them, a scalar or [B].

        A weight whose tangent is None stays as it is; what a layer adds to its output is followed too.
        """
        self._random.rewind()
        scratch = bool(self.weights.buffers) and not plain
        with as_written(self.model), plain_kernels(self.model), forward_ad.dual_level():
            try:
                if scratch:
                    self._put_scratch_buffers()
                duals = zip(self.weights.tensors, tangents, strict=True)
                self.weights.put([p if t is None else forward_ad.make_dual(p.detach(), t) for p, t in duals])
                value = self._call()
            finally:
                self.weights.restore()
                if scratch:
                    self._restore_buffers()
            return self.unpacked(value)

    def unpacked(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """A loss and its derivative, out of forward mode.

        Raises:
            DldwError: It has none.
        """
        self.check(value)
        primal, tangent = forward_ad.unpack_dual(value)
        if tangent is None:
            raise DldwError(_INDEPENDENT.format(how="forward mode found no path from the weights to the loss"))
        return primal, tangent

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
        except RuntimeError:
            require_same_device(self.batch, self.weights.device)
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
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Inside, attention and recurrent layers run as the operations they consist of; fused kernels have no rules."""
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


def require_same_device(batch: Batch, device: torch.device) -> None:
    """Raises ``DldwError`` where a tensor of the batch is not on the device of the model."""
    elsewhere = {t.device for t in tree_leaves(batch) if isinstance(t, Tensor)} - {device}
    if elsewhere:
        raise DldwError(
            f"the batch is on {', '.join(sorted(map(str, elsewhere)))} but the model is on {device}. "
            "Move one to the other's device first, e.g. batch.to(device)."
        )


class RandomState:
    """The global random state of the CPU and of one device, to start every evaluation from."""

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._states = [g.get_state() for g in self._generators]
        self._fresh = True

    def rewind(self) -> None:
        """Back to the state at the beginning; the first call finds it there."""
        if self._fresh:
            self._fresh = False
            return
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
