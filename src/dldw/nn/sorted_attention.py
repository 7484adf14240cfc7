"""Attention within sets that change from round to round: sort by bucket, cut into chunks, look one chunk back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from dldw.errors import DldwError

Reach = Literal["bucket", "chunk", "ring"]
"""Which keys a query attends to in a round; see ``LSHAttention``."""

NOTHING, ONLY_SELF = -1e9, -1e5
"""Logits of pairs that do not attend, and of a token with itself, which counts where there is nothing else."""


class Sets(NamedTuple):
    """Everything that decides who attends to whom.

    Attributes:
        buckets: The bucket of every token in every round, [rounds, rows, tokens], integers; padding in the last one.
        bucket_count: Buckets in all, the one of the padding included.
        chunk: Tokens in a chunk, a power of two that divides the number of tokens.
        reach: ``bucket``, ``chunk`` or ``ring``.
        causal: Whether later tokens are out of reach.
        padding: Which tokens are no keys, [rows, tokens]; None where none is.
    """

    buckets: Tensor
    bucket_count: int
    chunk: int
    reach: Reach
    causal: bool
    padding: Tensor | None

    def rows(self, start: int, stop: int) -> Sets:
        """The same of some rows."""
        padding = None if self.padding is None else self.padding[start:stop]
        return self._replace(buckets=self.buckets[:, start:stop], padding=padding)


def sorted_attention(q: Tensor, k: Tensor, v: Tensor, sets: Sets) -> Tensor:
    """softmax over the union of a query's sets in all rounds, each pair counted once (in a ring as often as it occurs).

    Rounds are joined by their logsumexp, so the backward pass needs the output and one number for each token, makes the
    logits again, and is exact. Neither pass holds more logits than fit the processor's cache.

    Args:
        q: Queries [rows, tokens, features].
        k: Keys, scaled, as ``q``.
        v: Values, as ``q``.
        sets: Who attends to whom.
    """
    with torch.autocast(q.device.type, enabled=False):  # both passes in the precision of q
        out: Tensor = cast(Any, _Attention).apply(q, k.to(q.dtype), v.to(q.dtype), sets)[0]
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, sets: Sets) -> tuple[Tensor, Tensor]:
        out, total = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=_exact(q))
        for start, stop in _groups(q, sets):
            rows = slice(start, stop)
            out[rows], total[rows] = _forward(q[rows], k[rows], v[rows], _Sorted(sets.rows(start, stop)))
        return out, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *given, ctx.sets = inputs
        ctx.save_for_backward(*given, *output)
        ctx.save_for_forward(*given, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise DldwError(
                "a second derivative through hashed attention was asked for (create_graph=True), and its backward pass "
                "leaves no graph to differentiate. Set hashes = None, which is full attention, where you need it."
            )
        q, k, v, out, total = ctx.saved_tensors
        delta = (grad * out).sum(-1, dtype=total.dtype)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for start, stop in _groups(q, ctx.sets):
            s = slice(start, stop)
            own = _Sorted(ctx.sets.rows(start, stop))
            for to, g in zip(grads, _backward(q[s], k[s], v[s], grad[s], total[s], delta[s], own), strict=True):
                to[s] = g
        return *grads, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, None]:
        q, k, v, out, total = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(q) if t is None else t for t in tangents[:3])
        change = torch.empty_like(out)
        for start, stop in _groups(q, ctx.sets):
            s = slice(start, stop)
            given = [x[s].reshape(-1, x.shape[-1]) for x in (q, k, v, dq, dk, dv, out)]
            change[s] = _tangent(given, total[s].reshape(-1), _Sorted(ctx.sets.rows(start, stop))).view_as(out[s])
        return change, None


class _Sorted:
    """Rows sorted in every round; both passes build it from the same buckets.

    Each row is S chunks behind a front slot, which is what its first chunk looks back on. A *window* is two adjacent
    slots: keys and values of both, queries of the second. Those of a front slot are computed and never read.
    """

    def __init__(self, sets: Sets) -> None:
        rounds, rows, tokens = sets.buckets.shape
        chunk, device = sets.chunk, sets.buckets.device
        self.sets, self.rounds, self.chunk, self.slots = sets, rounds, chunk, tokens // chunk + 1
        self.windows = rows * self.slots - 1
        row = torch.arange(rounds * rows, device=device, dtype=torch.int32).view(rounds, rows, 1)
        order = torch.sort((sets.buckets + row * sets.bucket_count).flatten(), stable=True).indices
        rank = torch.arange(tokens, device=device)
        token = order.view(rounds, rows, -1, chunk) - (row - row % rows).unsqueeze(-1).long() * tokens
        self.index = torch.empty(rounds, rows, self.slots, chunk, dtype=torch.int64, device=device)
        self.index[:, :, 1:] = token
        self.index[:, :, 0] = token[:, :, -1].roll(1, 0) if sets.reach == "ring" else token[:, :, 0]
        self.index = self.index.view(rounds, -1)
        place = row.long() * self.slots * chunk + chunk + rank
        self.place = torch.empty_like(order)
        self.place[order] = place.flatten()
        self.tests: Tensor | None = None
        ranks = torch.empty_like(order)
        ranks[order] = rank.repeat(rounds * rows)
        if sets.reach == "bucket":  # s + chunk · bucket: within a chunk's length behind means of the same bucket too
            self.tests = (ranks.view_as(sets.buckets) + sets.buckets.long() * chunk).int().view(rounds, -1)
        elif sets.reach == "chunk":
            self.tests = (ranks // chunk).int().view(rounds, -1)
        self.position = rank.int().repeat(rows)
        self.key_rank = self.position if sets.causal else torch.zeros_like(self.position)
        if sets.padding is not None:
            self.key_rank = self.key_rank.masked_fill(sets.padding.reshape(-1), _FAR)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Round, first and last window of every block of windows whose logits fit the cache."""
        device = self.index.device.type
        at_once = max(1, (_CACHED if device == "cpu" else 64 * _CACHED) // (2 * self.chunk**2))
        count = -(-self.windows // at_once)
        step = -(-self.windows // count)
        for r in range(self.rounds):
            for start in range(0, self.windows, step):
                yield r, start, min(start + step, self.windows)

    def take(self, r: int, start: int, stop: int) -> Tensor:
        """The tokens of the slots of some windows."""
        return self.index[r, start * self.chunk : (stop + 1) * self.chunk]

    def front(self, start: int, by_slot: Tensor) -> Tensor:
        """Of what belongs to slots ``start`` and up, [slots, ...], that of the front slots."""
        return by_slot[-start % self.slots :: self.slots]

    def logits(self, r: int, start: int, q: Tensor, k: Tensor, index: Tensor) -> Tensor:
        """q · k in every window, [windows, chunk, 2 chunk]; pairs that do not attend are far below all that do."""
        sets, c = self.sets, self.chunk
        logits = torch.bmm(q, k.transpose(1, 2)).to(_exact(q))
        apart: Tensor | None = None  # 0 for a pair that attends, else 1 or more: sums of integers, as booleans are slow
        if self.tests is not None:
            tests = self.tests[: r + 1].index_select(1, index)
            self.front(start, tests[r].view(-1, c)).fill_(-_FAR)
            apart = self._beyond_reach(tests[r]).clamp_max_(1)
            if r:
                seen = self._beyond_reach(tests[0])
                for earlier in tests[1:r]:
                    torch.minimum(seen, self._beyond_reach(earlier), out=seen)
                apart.add_(1).sub_(seen.clamp_max_(1))
        if sets.reach != "bucket" and (sets.causal or sets.padding is not None):
            ranks = self.key_rank.index_select(0, index)
            limit = self.position.index_select(0, index[c:]).view(-1, c, 1) if sets.causal else _FAR
            late = (_pairs(ranks, c) - (limit - 1)).clamp_(0, 1)
            apart = late if apart is None else apart + late
        if apart is not None:
            logits.add_(apart.to(logits.dtype), alpha=NOTHING)
        if sets.reach == "ring":
            own = self.position.index_select(0, index)
            logits.masked_fill_(_pairs(own, c) == own[c:].view(-1, c, 1), ONLY_SELF)
        else:
            logits.diagonal(c, 1, 2).fill_(NOTHING if r else ONLY_SELF)
        return logits

    def _beyond_reach(self, test: Tensor) -> Tensor:
        """0 for the pairs of a window that one round puts within reach of each other, above 0 for the others."""
        c = self.chunk
        behind, span = (1, c) if self.sets.reach == "bucket" else (0, 2)
        distance = (test[c:] - behind).view(-1, c, 1) - _pairs(test, c)
        return distance.bitwise_and_(2 * _FAR - span)  # 0 where 0 <= distance < span, a power of two


def _pairs(x: Tensor, c: int) -> Tensor:
    """[(windows + 1) · c, ...] seen as the keys of every window, [windows, 1 or 2 c, ...], without a copy."""
    windows = x.shape[0] // c - 1
    if x.ndim == 1:
        return x.as_strided((windows, 1, 2 * c), (c, c, 1), x.storage_offset())
    return x.as_strided((windows, 2 * c, x.shape[1]), (c * x.stride(0), x.stride(0), 1), x.storage_offset())


def _forward(q: Tensor, k: Tensor, v: Tensor, own: _Sorted) -> tuple[Tensor, Tensor]:
    """Outputs and, for every token, the logsumexp of its logits over all rounds."""
    c, d = own.chunk, q.shape[-1]
    shape, (q, k, v) = q.shape, (x.reshape(-1, d) for x in (q, k, v))
    outs = q.new_empty(own.rounds, own.index.shape[1], d)
    totals = q.new_empty(outs.shape[:2], dtype=_exact(q))
    for r, start, stop in own.blocks():
        index = own.take(r, start, stop)
        keys, values = (_pairs(x.index_select(0, index), c) for x in (k, v))
        p = own.logits(r, start, q.index_select(0, index[c:]).view(-1, c, d), keys, index)
        top = p.amax(-1, keepdim=True)
        p.sub_(top).clamp_min_(_LEAST).exp_()
        mass = p.sum(-1, keepdim=True)
        slots = slice((start + 1) * c, (stop + 1) * c)
        outs[r, slots] = torch.bmm(p.to(v.dtype), values).div_(mass).view(-1, d)
        totals[r, slots] = mass.log_().add_(top).view(-1)
    out = outs.view(-1, d).index_select(0, own.place).view(own.rounds, *shape)
    total = totals.view(-1).index_select(0, own.place).view(own.rounds, *shape[:2])
    if own.rounds == 1:
        return out[0], total[0]
    joined = total.logsumexp(0)
    return out.mul_((total - joined).exp_().unsqueeze(-1)).sum(0), joined


def _backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, total: Tensor, delta: Tensor, own: _Sorted
) -> tuple[Tensor, ...]:
    """Gradients of queries, keys and values: with P = exp(logits - total), that of the logits is P (grad · v - delta)."""
    c, d = own.chunk, q.shape[-1]
    shape, (q, k, v, grad) = q.shape, (x.reshape(-1, d) for x in (q, k, v, grad))
    total, delta = total.reshape(-1), delta.reshape(-1)
    sums = [q.new_zeros(own.rounds, own.index.shape[1], d) for _ in range(3)]
    to_q, to_k, to_v = sums
    for r, start, stop in own.blocks():
        index = own.take(r, start, stop)
        keys, values = (_pairs(x.index_select(0, index), c) for x in (k, v))
        queries, grads = (x.index_select(0, index[c:]).view(-1, c, d) for x in (q, grad))
        shift = total.index_select(0, index[c:]).view(-1, c, 1)
        mean = delta.index_select(0, index[c:]).view(-1, c, 1)
        for x in (grads, mean):
            own.front(start + 1, x).zero_()
        p = own.logits(r, start, queries, keys, index).sub_(shift).clamp_min_(_LEAST).exp_()
        ds = torch.bmm(grads, values.transpose(1, 2)).to(p.dtype).sub_(mean).mul_(p)
        p, ds = p.to(v.dtype), ds.to(v.dtype)
        before, here = slice(start * c, stop * c), slice((start + 1) * c, (stop + 1) * c)
        to_q[r, here] = torch.bmm(ds, keys).view(-1, d)
        for to, g in ((to_k, torch.bmm(ds.transpose(1, 2), queries)), (to_v, torch.bmm(p.transpose(1, 2), grads))):
            to[r, before].view(-1, c, d).add_(g[:, :c])
            to[r, here].view(-1, c, d).add_(g[:, c:])
    if own.sets.reach == "ring":  # a front slot is the last chunk of the round before
        for to in (to_k, to_v):
            slots = to.view(own.rounds, -1, own.slots, c, d)
            slots[:, :, -1] += slots[:, :, 0].roll(-1, 0)
    return tuple(x.view(-1, d).index_select(0, own.place).view(own.rounds, *shape).sum(0) for x in sums)


def _tangent(given: Sequence[Tensor], total: Tensor, own: _Sorted) -> Tensor:
    """The change of the outputs: with t that of the logits, P (t (v - out) + dv) summed over rounds and keys."""
    q, k, v, dq, dk, dv, out = given
    c, d = own.chunk, q.shape[-1]
    sums = q.new_empty(own.rounds, own.index.shape[1], d)
    for r, start, stop in own.blocks():
        index = own.take(r, start, stop)
        keys, values, key_changes, value_changes = (_pairs(x.index_select(0, index), c) for x in (k, v, dk, dv))
        queries, query_changes, outs = (x.index_select(0, index[c:]).view(-1, c, d) for x in (q, dq, out))
        shift = total.index_select(0, index[c:]).view(-1, c, 1)
        p = own.logits(r, start, queries, keys, index).sub_(shift).clamp_min_(_LEAST).exp_()
        t = torch.bmm(query_changes, keys.transpose(1, 2)) + torch.bmm(queries, key_changes.transpose(1, 2))
        t = t.to(p.dtype).mul_(p)
        change = torch.bmm(t.to(v.dtype), values) + torch.bmm(p.to(v.dtype), value_changes)
        sums[r, (start + 1) * c : (stop + 1) * c] = (change - t.sum(-1, keepdim=True) * outs).view(-1, d)
    return sums.view(-1, d).index_select(0, own.place).view(own.rounds, -1, d).sum(0)


def _groups(q: Tensor, sets: Sets) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose copies, one for each round, stay within a bound."""
    rounds, rows, tokens = sets.buckets.shape
    step = max(1, _COPIED // (rounds * tokens * q.shape[-1]))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _exact(x: Tensor) -> torch.dtype:
    """What exponentials are taken and summed in."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


_CACHED = 1 << 18
"""Logits held at a time on the CPU: what leaves them, and what is made of them, in the second-level cache."""
_COPIED = 1 << 24
"""Elements of each sorted copy held at a time."""
_FAR = 1 << 29
"""Further than any two tokens, and twice that still an int32."""
_LEAST = -60.0
"""Exponents below are raised to it: exp(-60) is nothing beside 1, and underflow is slow."""
