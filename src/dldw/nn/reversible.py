"""Reversible residual layers: the exact gradient, with memory that does not grow with depth."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.memory import keep_freed_memory
from dldw.nn.replay import autocast_enabled
from dldw.nn.tape import Streams, Tape

Backward = Literal["reversible", "checkpoint", "plain"]
Kwargs = Mapping[str, Any]


class Invertible(nn.Module):
    """A chain of reversible blocks, or one: what both have in common.

    Args:
        dim: A single tensor is split in two along this dimension.
        backward: How the backward pass gets at what the forward pass computed.
    """

    keep_last = False
    anchor_every: int | None = None
    drift_check: float | None = None

    def __init__(self, dim: int, backward: Backward) -> None:
        super().__init__()
        self.dim = dim
        self.backward = backward

    @property
    def backward(self) -> Backward:
        """``reversible``, ``checkpoint`` or ``plain``; can be set at any time."""
        return self._backward

    @backward.setter
    def backward(self, mode: Backward) -> None:
        if mode not in get_args(Backward):
            raise DldwError(f"backward must be one of {', '.join(get_args(Backward))}, got {mode!r}.")
        self._backward = mode

    @abstractmethod
    def chain(self) -> list[ReversibleBlock]:
        """The blocks, first to last."""

    @abstractmethod
    def _through(self, tape: Tape, streams: Streams, f_kwargs: Kwargs | None, g_kwargs: Kwargs | None) -> Streams:
        """What the blocks make of the streams."""

    def inverse(self, y: Tensor | Streams, *, f_kwargs: Kwargs | None = None, g_kwargs: Kwargs | None = None) -> Any:
        """The input whose output is ``y``, in the form that ``y`` has; an ordinary function that autograd follows."""
        streams = self._streams(y)
        for block in reversed(self.chain()):
            streams = block.uncoupled(*streams, f_kwargs or {}, g_kwargs or {})
        return torch.cat(streams, self.dim) if isinstance(y, Tensor) else streams

    def _run(self, x: Tensor | Streams, f_kwargs: Kwargs | None, g_kwargs: Kwargs | None) -> Any:
        keep_freed_memory()
        first, second = self._streams(x)
        if autocast_enabled(first.device.type):  # low precision is for the branches: sums would lose what they add
            first, second = (s.float() if s.dtype in (torch.float16, torch.bfloat16) else s for s in (first, second))
        tape = Tape(
            len(self.chain()), checkpoint=self.backward == "checkpoint", plain=self.backward == "plain",
            keep_last=self.keep_last, anchor_every=self.anchor_every, drift_check=self.drift_check,
            join=self.dim if isinstance(x, Tensor) else None,
        )  # fmt: skip
        streams = self._through(tape, (first, second), f_kwargs, g_kwargs)
        return tape.joined(*streams) if isinstance(x, Tensor) else streams

    def _streams(self, x: Tensor | Streams) -> Streams:
        if isinstance(x, Tensor):
            if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] % 2:
                raise DldwError(
                    f"an input of shape {list(x.shape)} cannot be split in two equal streams along dimension {self.dim}. "
                    "Choose another dim, or give the streams as a pair: block((x1, x2))."
                )
            first, second = x.chunk(2, self.dim)
            return first, second
        if not isinstance(x, tuple | list) or len(x) != 2 or not all(isinstance(s, Tensor) for s in x):
            raise DldwError(f"a reversible block takes one tensor or a pair of tensors, got {type(x).__name__}.")
        return x[0], x[1]


class ReversibleBlock(Invertible):
    """Two residual branches whose input is recomputed from their output, so that nothing is stored for the backward pass.

    y1 = x1 + f(x2),  y2 = x2 + g(y1);  inverse: x2 = y2 − g(y1),  x1 = y1 − f(x2).

    Cost: a training step computes f and g twice and differentiates them once, 4/3 of plain autograd. Memory: the streams and
    one branch, whatever the depth. Dropout, batch norm, autocast and gradient hooks end as with plain autograd; forward hooks
    inside f and g run once more, as the branches do. Where nothing requires a gradient, under ``torch.func`` transforms and
    inside a compiled graph the block is plain; compile f and g instead.

    Source: Gomez, Ren, Urtasun & Grosse 2017, arXiv 1707.04585. Momentum residual networks (Sander et al. 2021, arXiv
    2102.07870) are ``ReversibleBlock(f, nn.Identity(), keep=(gamma, 1.0))``, where f has the factor 1 − gamma inside.

    Args:
        f: Maps the second stream to a tensor of the first stream's shape.
        g: Maps the first stream to a tensor of the second stream's shape.
        dim: A single tensor is split in two along this dimension, and the output joined along it.
        backward: ``reversible``; ``checkpoint``, which stores the block's input; ``plain`` autograd, which stores everything.
            Same weights and same gradients; can be set at any time.
        keep: Factors of x1 and x2 in the sums above, not zero. The inverse divides by them, and its rounding error too.

    Raises:
        DldwError: f or g is no module, ``keep`` has a zero or ``backward`` is unknown; in forward, the input cannot be split,
            or a branch changes the shape or the dtype of its stream; in backward, a second derivative is asked for, or a
            gradient would be lost.

    Example:
        >>> import torch, dldw.nn
        >>> block = dldw.nn.ReversibleBlock(torch.nn.Linear(4, 4), torch.nn.Tanh())
        >>> x = torch.randn(3, 8)
        >>> torch.allclose(block.inverse(block(x)), x, atol=1e-6)
        True
    """

    def __init__(
        self,
        f: nn.Module,
        g: nn.Module,
        *,
        dim: int = 1,
        backward: Backward = "reversible",
        keep: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(dim, backward)
        for name, branch in (("f", f), ("g", g)):
            if not isinstance(branch, nn.Module):
                raise DldwError(
                    f"{name} must be an nn.Module, got {type(branch).__name__}: a block has to know which parameters its "
                    "branches read. Put the function into the forward of a module that holds them."
                )
        if not all(keep):
            raise DldwError(
                f"keep must not be zero, got {keep}: the inverse divides by it. The usual value is (1.0, 1.0)."
            )
        self.f, self.g, self.keep = f, g, keep
        self.followed = False
        """Whether a backward pass has seen that the branches depend on nothing that it would lose the gradient of."""

    def chain(self) -> list[ReversibleBlock]:
        return [self]

    def forward(
        self,
        x: Tensor | Streams,
        *,
        f_kwargs: Kwargs | None = None,
        g_kwargs: Kwargs | None = None,
        place: tuple[Tape, int] | None = None,
    ) -> Any:
        """One tensor in, one out; or a pair of streams in, a pair out.

        Args:
            x: The input; where it is a pair, the streams, which may differ in shape.
            f_kwargs: Keyword arguments of f, such as masks; tensors among them get their gradients too.
            g_kwargs: Keyword arguments of g.
            place: Set by the chain that the block is in.
        """
        if place is None:
            return self._run(x, f_kwargs, g_kwargs)
        tape, at = place
        return tape.step(at, self, *self._streams(x), f_kwargs or {}, g_kwargs or {})

    def _through(self, tape: Tape, streams: Streams, f_kwargs: Kwargs | None, g_kwargs: Kwargs | None) -> Streams:
        return tape.step(0, self, *streams, f_kwargs or {}, g_kwargs or {})

    def coupled(self, x1: Tensor, x2: Tensor, f_kwargs: Kwargs, g_kwargs: Kwargs) -> Streams:
        """(y1, y2), as plain code."""
        y1 = self.added(0, x1, self.f(x2, **f_kwargs))
        return y1, self.added(1, x2, self.g(y1, **g_kwargs))

    def uncoupled(self, y1: Tensor, y2: Tensor, f_kwargs: Kwargs, g_kwargs: Kwargs) -> Streams:
        """(x1, x2), as plain code."""
        x2 = self.taken(1, y2, self.g(y1, **g_kwargs))
        return self.taken(0, y1, self.f(x2, **f_kwargs)), x2

    def added(self, which: int, stream: Tensor, change: Tensor) -> Tensor:
        """The stream after f (0) or g (1) gave ``change``."""
        if not isinstance(change, Tensor) or change.shape != stream.shape or not change.is_floating_point():
            found = (
                f"{change.dtype} of shape {list(change.shape)}" if isinstance(change, Tensor) else type(change).__name__
            )
            raise DldwError(
                f"{'fg'[which]} of a reversible block must give a floating-point tensor of its stream's shape "
                f"{list(stream.shape)}, got {found}: what it gives is added, and subtracted again. Wrap it in a module that "
                "returns such a tensor; change shapes between chains of reversible blocks, not inside."
            )
        keep = self.keep[which]
        out = stream + change if keep == 1 else torch.add(change, stream, alpha=keep)
        if out.dtype != stream.dtype:
            raise DldwError(
                f"{'fg'[which]} of a reversible block gives {change.dtype}, which would widen its stream of {stream.dtype} "
                f"and could not be undone. Give the block streams of {out.dtype}, or convert inside the branch."
            )
        return out

    def taken(self, which: int, stream: Tensor, change: Tensor) -> Tensor:
        """The stream before f (0) or g (1) gave ``change``."""
        out = stream - change
        return out if self.keep[which] == 1 else out / self.keep[which]


class ReversibleSequential(Invertible):
    """A chain of reversible blocks that share one tape, where each block's backward pass finds its output.

    Args:
        *blocks: Blocks; the settings here stand in for their own ``dim`` and ``backward``.
        dim: As in ``ReversibleBlock``.
        backward: As in ``ReversibleBlock``.
        keep_last: The last block is plain: its activations are needed first, so nothing is computed twice for it.
        anchor_every: Stores the output of every k-th block. The inverse starts anew from there, so that rounding errors, in
            low precision or with ``keep`` below 1, add up over k blocks only.
        drift_check: Warns where a recomputed stream is off by more than this share, in root mean square. To compare with, the
            input of the chain is stored; anchors are compared as well.

    Raises:
        DldwError: As ``ReversibleBlock``; or something is no block, or ``anchor_every`` is less than 1.

    Example:
        >>> import torch, dldw.nn
        >>> blocks = [dldw.nn.ReversibleBlock(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)) for _ in range(8)]
        >>> chain = dldw.nn.ReversibleSequential(*blocks)
        >>> chain(torch.randn(3, 8)).sum().backward()
        >>> chain.backward = "plain"  # the same weights, to compare
    """

    def __init__(
        self,
        *blocks: ReversibleBlock,
        dim: int = 1,
        backward: Backward = "reversible",
        keep_last: bool = False,
        anchor_every: int | None = None,
        drift_check: float | None = None,
    ) -> None:
        super().__init__(dim, backward)
        if not blocks or not all(isinstance(block, ReversibleBlock) for block in blocks):
            kinds = ", ".join(dict.fromkeys(type(block).__name__ for block in blocks)) or "nothing"
            raise DldwError(
                f"ReversibleSequential takes ReversibleBlocks, got {kinds}. Other modules, such as those that change the "
                "shape, go between two chains: nn.Sequential(chain, module, chain)."
            )
        if anchor_every is not None and anchor_every < 1:
            raise DldwError(f"anchor_every must be at least 1, got {anchor_every}; None stores no anchors.")
        self.blocks = nn.ModuleList(blocks)
        self.keep_last, self.anchor_every, self.drift_check = keep_last, anchor_every, drift_check

    def chain(self) -> list[ReversibleBlock]:
        return cast("list[ReversibleBlock]", list(self.blocks))

    def forward(self, x: Tensor | Streams, *, f_kwargs: Kwargs | None = None, g_kwargs: Kwargs | None = None) -> Any:
        """As ``ReversibleBlock.forward``; every block gets the same keyword arguments."""
        return self._run(x, f_kwargs, g_kwargs)

    def _through(self, tape: Tape, streams: Streams, f_kwargs: Kwargs | None, g_kwargs: Kwargs | None) -> Streams:
        for at, block in enumerate(self.chain()):
            streams = block(streams, f_kwargs=f_kwargs, g_kwargs=g_kwargs, place=(tape, at))
        return streams

    def __iter__(self) -> Iterator[ReversibleBlock]:
        return iter(self.chain())

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, at: int) -> ReversibleBlock:
        return self.chain()[at]
