"""Back-propagation, also with recomputed or reversed activations: the baseline nobody may leave out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.layers import forward_replaced
from dldw.nn.reversible import Invertible
from dldw.objective import Objective
from dldw.source import Batch, GradientSource, Loss


class Backprop(GradientSource):
    """The exact gradient by reverse-mode differentiation.

    With ``checkpoint``, the activations inside the repeated blocks of the model are dropped in the forward pass and computed
    again in the backward pass: one more forward in time, and the memory of one block in place of all. Repeated blocks are
    found by structure: composite modules of one class that stand side by side in a container. A ``Sequential`` of plain
    layers is cut into sqrt(n) segments. With ``reversible``, the reversible blocks of the model (``dldw.nn``) compute their
    inputs from their outputs, whatever mode they are set to otherwise.

    Cost: 3 forward-equivalents (one forward, and a backward of two), 4 with ``checkpoint`` or ``reversible``.

    Source: Rumelhart, Hinton & Williams 1986; checkpointing: Chen et al. 2016, arXiv 1604.06174; reversible
    blocks: Gomez et al. 2017, arXiv 1707.04585.

    Args:
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B].
        checkpoint: True, or the names of the submodules whose activations are computed again.
        reversible: Whether reversible blocks run in reverse; a model without any is an error.
        generator: Not drawn from; taken so that every source is built alike.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> loss = dldw.Backprop(lambda m, x: m(x).square().sum(1))(model, torch.ones(4, 2))
        >>> loss.requires_grad
        False
    """

    card = Card(
        summary="Reverse-mode differentiation: the exact gradient in one forward and one backward pass.",
        claim="exact",
        needs="autograd",
        forwards="4 if checkpoint or reversible else 3",
        memory="d + a; checkpointed: d + a/blocks + one tensor a block; reversible: d + a/blocks",
        paper="Rumelhart, Hinton & Williams 1986; Chen et al. 2016, arXiv 1604.06174",
        variance="0",
        space={"lr": Float(1e-3, 3.0), "optimizer": Choice(("sgd", "adam"))},
    )

    def __init__(
        self,
        loss: Loss,
        *,
        checkpoint: bool | Sequence[str] = False,
        reversible: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(loss, generator)
        if checkpoint and reversible:
            raise DldwError("checkpoint and reversible are two ways to the same memory: choose one of them.")
        self.checkpoint, self.reversible = checkpoint, reversible

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        weights = self._prepare(model)
        objective = Objective(model, self.loss, batch, weights)
        lean: AbstractContextManager[None] = nullcontext()
        if self.checkpoint:
            lean = _recomputed(model, self.checkpoint)
        elif self.reversible:
            lean = _reversed(model)
        with torch.enable_grad(), lean:
            loss = objective.backward(objective.with_graph())
        return objective.tensor(loss)


@contextmanager
def _reversed(model: nn.Module) -> Iterator[None]:
    """Inside, the reversible blocks keep no activations."""
    chains = [m for m in model.modules() if isinstance(m, Invertible)]
    if not chains:
        raise DldwError(
            f"reversible=True found no reversible blocks in {type(model).__name__}. Build it with "
            "dldw.nn.ReversibleSequential, or use checkpoint=True, which needs none."
        )
    modes = [chain.backward for chain in chains]
    try:
        for chain in chains:
            chain.backward = "reversible"
        yield
    finally:
        for chain, mode in zip(chains, modes, strict=True):
            chain.backward = mode


@contextmanager
def _recomputed(model: nn.Module, which: bool | Sequence[str]) -> Iterator[None]:
    """Inside, the chosen submodules keep no activations but their input."""
    with ExitStack() as stack:
        if which is True:
            blocks = list(_repeated_blocks(model))
            for block in blocks:
                stack.enter_context(forward_replaced(block, _checkpointed(block)))
            if not blocks:
                chains = [m for m in model.modules() if type(m) is nn.Sequential and len(m) > 1]
                if not chains:
                    raise DldwError(
                        f"checkpoint=True found no repeated blocks and no nn.Sequential in {type(model).__name__}, so there "
                        "is nothing to cut it at. Give the names of submodules: checkpoint=['encoder', 'decoder']."
                    )
                stack.enter_context(forward_replaced(chains[0], _segmented(chains[0])))
        else:
            names = dict(model.named_modules())
            for name in which if isinstance(which, Sequence) else ():
                if name not in names:
                    raise DldwError(
                        f"checkpoint names the submodule {name!r}, which {type(model).__name__} does not have. "
                        f"It has: {', '.join(n for n in names if n)}."
                    )
                stack.enter_context(forward_replaced(names[name], _checkpointed(names[name])))
        yield


def _repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    kinds = [type(c) for c in children if any(True for _ in c.children())]
    for child in children:
        if kinds.count(type(child)) > 1 and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _repeated_blocks(child)


def _checkpointed(module: nn.Module) -> Any:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_keep_buffers, module), **kwargs)

    return run


def _segmented(chain: nn.Sequential) -> Any:
    length = math.ceil(len(chain) / math.ceil(math.sqrt(len(chain))))
    segments = [chain[i : i + length] for i in range(0, len(chain), length)]

    def run(value: Any) -> Any:
        for segment in segments:
            value = checkpoint(segment, value, use_reentrant=False, context_fn=partial(_keep_buffers, segment))
        return value

    return run


def _keep_buffers(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The second pass over a block must not update its batch-norm statistics a second time."""

    @contextmanager
    def second() -> Iterator[None]:
        slots = [(m._buffers, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
        try:
            for container, name, buffer in slots:
                container[name] = buffer.clone()
            yield
        finally:
            for container, name, buffer in slots:
                container[name] = buffer

    return nullcontext(), second()
