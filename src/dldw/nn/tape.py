"""The backward pass of a chain of reversible blocks: one autograd node for each, and one tape that they share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.nn.replay import Replay, require_known

if TYPE_CHECKING:
    from dldw.nn.reversible import ReversibleBlock

Streams = tuple[Tensor, Tensor]


class Tape:
    """One pass through a chain; the nodes of its blocks hand the recomputed streams on here, from the last to the first.

    What is stored is stored by autograd, in the node it belongs to: so a change in place is noticed, ``retain_graph`` works,
    and two passes know nothing of each other.

    Args:
        length: How many blocks.
        checkpoint: Store the input of each block and invert nothing.
        plain: Store everything.
        keep_last: Store everything of the last block.
        anchor_every: Store the output of every k-th block.
        drift_check: Largest share by which a recomputed stream may be off without a warning.
        join: The dimension along which the output will be joined, if it will.
    """

    def __init__(
        self,
        length: int,
        *,
        checkpoint: bool,
        plain: bool,
        keep_last: bool,
        anchor_every: int | None,
        drift_check: float | None,
        join: int | None,
    ) -> None:
        self.checkpoint, self.drift_check, self.join = checkpoint, drift_check, join
        self._graph = torch.is_grad_enabled() and not plain and not torch.compiler.is_compiling()
        self._end = length - 1 - keep_last  # the last block with a node of its own
        self._join_saves = join is not None and not keep_last
        self._anchor_every = anchor_every
        self._handed: dict[int, tuple[Any, ...]] = {}
        self._at = -1
        self._streams: Streams | None = None

    def step(
        self,
        at: int,
        block: ReversibleBlock,
        x1: Tensor,
        x2: Tensor,
        f_kwargs: Mapping[str, Any],
        g_kwargs: Mapping[str, Any],
    ) -> Streams:
        """The output of the block at place ``at``."""
        if self._graph and at <= self._end and not (x1.is_meta or torch._C._are_functorch_transforms_active()):
            f, g = Replay(block.f, f_kwargs), Replay(block.g, g_kwargs)
            if any(t.requires_grad for t in (x1, x2, *f.tensors, *g.tensors)):
                self._require_handed_on(at, x1, x2)
                out = cast(Streams, cast(Any, _Node).apply(self, at, block, f, g, x1, x2, *f.tensors, *g.tensors))
                self._handed[at] = _fingerprint(*out)
                return out
        return block.coupled(x1, x2, f_kwargs, g_kwargs)

    def joined(self, y1: Tensor, y2: Tensor) -> Tensor:
        """The output as one tensor."""
        dim = cast(int, self.join)
        if self._end in self._handed and self._join_saves and not self.checkpoint:
            self._require_handed_on(self._end + 1, y1, y2)
            return cast(Tensor, cast(Any, _Join).apply(self, dim, y1, y2))
        return torch.cat((y1, y2), dim)

    def stores_output(self, at: int) -> bool:
        """Whether the node at this place stores its output."""
        if at == self._end:
            return not self._join_saves
        return self._anchor_every is not None and (at + 1) % self._anchor_every == 0

    def put(self, at: int, streams: Streams) -> None:
        """Leaves the output of the block at ``at`` for its node."""
        if at >= 0 and (self.drift_check is not None or not self.stores_output(at)):
            self._at, self._streams = at, streams

    def take(self, at: int, stored: Sequence[Tensor]) -> Streams:
        """The output of the block at ``at``: what its node stored, if anything, or what the node after it left here."""
        found, self._streams = self._streams if self._at == at else None, None
        if stored:
            if found is not None:
                self.compare(found, stored, f"the output of block {at}")
            return stored[0], stored[1]
        if found is None:
            raise DldwError(
                f"the gradient reached block {at} of a reversible chain, but not by way of the blocks after it: an output "
                "inside the chain, such as a hook can keep, was used alone. Use the output of the chain as well, or set "
                "backward='checkpoint'."
            )
        return found

    def compare(self, found: Sequence[Tensor], stored: Sequence[Tensor], what: str) -> None:
        """Warns where what was recomputed differs by too much from what was stored."""
        if self.drift_check is None:
            return
        off, size = (float(sum(t.double().square().sum() for t in ts)) for ts in (_differences(found, stored), stored))
        share = (off / size) ** 0.5 if size else off
        if not share <= self.drift_check:
            warnings.warn(
                f"{what} of a reversible chain was recomputed with a relative error of {share:.1e}, more than the "
                f"{self.drift_check:.1e} of drift_check: gradients are off by about as much. Set anchor_every to a few "
                "blocks, keep the streams in float32, or set backward='checkpoint'.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _require_handed_on(self, at: int, x1: Tensor, x2: Tensor) -> None:
        handed = None if self.checkpoint else self._handed.get(at - 1)
        if handed is not None and _fingerprint(x1, x2) != handed:
            raise DldwError(
                f"the input of block {at} of a reversible chain is not the output of block {at - 1}: a forward hook changed "
                "it, so it could not be recomputed. Put the change between two chains, or set backward='checkpoint'."
            )


class _Node(torch.autograd.Function):
    """A block as one node: its inputs are the streams and every tensor that the branches read."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: Tape,
        at: int,
        block: ReversibleBlock,
        f: Replay,
        g: Replay,
        x1: Tensor,
        x2: Tensor,
        *tensors: Tensor,
    ) -> Streams:
        y1 = block.added(0, x1, f.first(x2))
        y2 = block.added(1, x2, g.first(y1))
        ctx.tape, ctx.at, ctx.block, ctx.f, ctx.g = tape, at, block, f, g
        outputs = not tape.checkpoint and tape.stores_output(at)
        inputs = tape.checkpoint or (at == 0 and tape.drift_check is not None)
        ctx.stored = 2 * outputs, 2 * inputs
        ctx.save_for_backward(*((y1, y2) if outputs else ()), *((x1, x2) if inputs else ()), *tensors)
        return y1, y2

    @staticmethod
    def backward(ctx: Any, dy1: Tensor, dy2: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DldwError(
                "a second derivative through a reversible block was asked for (create_graph=True), and its backward pass "
                "leaves no graph to differentiate. Set backward='plain' on the block or chain where you need it."
            )
        tape, block, f, g = ctx.tape, ctx.block, ctx.f, ctx.g
        saved, sizes = ctx.saved_tensors, (*ctx.stored, len(f.tensors), len(g.tensors))
        outputs, inputs, f_tensors, g_tensors = _cut(saved, sizes)
        need_x1, need_x2 = ctx.needs_input_grad[5:7]
        need_f, need_g = _cut(ctx.needs_input_grad[7:], sizes[2:])
        need_y1 = need_x1 or need_x2 or any(need_f)
        del saved
        if tape.checkpoint:
            x1, x2 = inputs
            f_again = _Again(f, x2, need_x2, f_tensors, need_f)
            y1 = block.added(0, x1, f_again.change)
            g_again = _Again(g, y1, need_y1, g_tensors, need_g)
        else:
            y1, y2 = tape.take(ctx.at, outputs)
            g_again = _Again(g, y1, need_y1, g_tensors, need_g)
            x2 = block.taken(1, y2, g_again.change)
            del y2
        d1, g_gradients = g_again.gradients(dy2, block.followed)
        del g_again
        d1 = dy1 if d1 is None else dy1 + d1
        if not tape.checkpoint:
            f_again = _Again(f, x2, need_x2, f_tensors, need_f)
            x1 = block.taken(0, y1, f_again.change)
            del y1
            tape.put(ctx.at - 1, (x1, x2))
            if inputs:
                tape.compare((x1, x2), inputs, "the input")
            del x1, x2
        d2, f_gradients = f_again.gradients(d1, block.followed)
        block.followed = True
        keep1, keep2 = block.keep
        dx1 = d1 if keep1 == 1 else keep1 * d1
        dx2 = dy2 if keep2 == 1 else keep2 * dy2
        dx2 = dx2 if d2 is None else dx2 + d2
        return (None,) * 5 + (dx1 if need_x1 else None, dx2 if need_x2 else None, *f_gradients, *g_gradients)


class _Again:
    """A branch computed again, with a graph from copies of what it reads: hooks of the originals are not theirs."""

    def __init__(
        self, replay: Replay, x: Tensor, need_x: bool, tensors: Sequence[Tensor], need: Sequence[bool]
    ) -> None:
        self._module = replay.module
        self._inputs = [t.detach().requires_grad_(n) for t, n in zip((x, *tensors), (need_x, *need), strict=True)]
        with torch.enable_grad():
            self._out = replay.again(self._inputs[0], self._inputs[1:])

    @property
    def change(self) -> Tensor:
        """What the branch gives."""
        return self._out.detach()

    def gradients(self, gradient: Tensor, known: bool) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of the argument and of the other tensors, given that of the output; once."""
        wanted = [t for t in self._inputs if t.requires_grad]
        if not self._out.requires_grad or not wanted:
            return None, [None] * (len(self._inputs) - 1)
        if not known:
            require_known(self._out, self._inputs, self._module)
        out, self._out = self._out, self._out.detach()
        torch.autograd.backward((out,), (gradient.to(out.dtype),), inputs=wanted)
        first, *rest = [t.grad for t in self._inputs]
        return first, rest


class _Join(torch.autograd.Function):
    """The end of a chain whose output is one tensor: that is stored, so that the streams need not be."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, dim: int, y1: Tensor, y2: Tensor) -> Tensor:
        y = torch.cat((y1, y2), dim)
        ctx.tape, ctx.dim, ctx.at, ctx.size = tape, dim, tape._end, y1.shape[dim]
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            (y,) = ctx.saved_tensors
            ctx.tape.put(ctx.at, y.tensor_split((ctx.size,), ctx.dim))
        return None, None, *dy.tensor_split((ctx.size,), ctx.dim)


def _cut(items: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    ends = list(accumulate(sizes))
    return [items[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _fingerprint(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple((t.data_ptr(), t.shape, t._version) for t in tensors)


def _differences(found: Sequence[Tensor], stored: Sequence[Tensor]) -> list[Tensor]:
    return [a - b for a, b in zip(found, stored, strict=True)]
