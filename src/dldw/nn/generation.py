"""Token after token: what attention has to remember of earlier tokens, and sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.nn.local_attention import LocalAttention
from dldw.nn.lsh_attention import LSHAttention, Rotations, full_attention, hash_buckets, lsh_attention, unit
from dldw.nn.sorted_attention import ONLY_SELF

if TYPE_CHECKING:
    from dldw.nn.reformer import Reformer


class HashCache:
    """Keys and values of the tokens so far, and which of them each bucket of each round holds, the latest ``chunk``.

    A new token is hashed and looks into its bucket of each round: rounds · chunk keys, however many tokens there are. With
    the same rotations the outputs are those of attention over the whole sequence.

    Args:
        attention: The layer.
        rotations: What it hashes with; None for full attention.
        length: Tokens there will be at most.
    """

    def __init__(self, attention: LSHAttention, rotations: Rotations | None, length: int) -> None:
        self.attention, self.rotations, self.length = attention, rotations, length
        self.tokens = 0

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output for the tokens that come next, [batch, 1, width]; the first time any number of them."""
        layer, new = self.attention, x.shape[1]
        qk, v = layer.split(layer.query_key(x)), layer.split(layer.value(x))
        buckets = None if self.rotations is None else hash_buckets(qk, self.rotations)
        if self.tokens == 0:
            self._start(qk, buckets)
            if buckets is None:
                out = full_attention(qk, v, True, None)
            else:
                out = lsh_attention(qk, v, buckets, layer.chunk)
        else:
            out = self._step(qk, v, buckets)
        self._keep(qk, v, buckets)
        self.tokens += new
        return layer.join(out)

    def _start(self, qk: Tensor, buckets: Tensor | None) -> None:
        batch, heads, _, features = qk.shape
        self.keys, self.values = qk.new_empty(2, batch, heads, self.length, features)
        if buckets is not None and self.rotations is not None:
            count = math.prod(2 * r.shape[3] for r in self.rotations)
            shape = buckets.shape[0], batch, heads, count
            self.held = torch.full((*shape, self.attention.chunk), -1, device=qk.device)  # positions by bucket
            self.counts = torch.zeros(shape, dtype=torch.int64, device=qk.device)

    def _keep(self, qk: Tensor, v: Tensor, buckets: Tensor | None) -> None:
        new = slice(self.tokens, self.tokens + qk.shape[2])
        self.keys[:, :, new], self.values[:, :, new] = unit(qk), v
        if buckets is None:
            return
        chunk, sorted_buckets = self.attention.chunk, buckets.long().sort(dim=-1, stable=True)
        bucket, order = sorted_buckets
        more = torch.zeros_like(self.counts).scatter_add_(-1, bucket, torch.ones_like(bucket))
        first = more.cumsum(-1) - more
        within = torch.arange(bucket.shape[-1], device=qk.device) - first.gather(-1, bucket)
        slot = (self.counts.gather(-1, bucket) + within) % chunk
        latest = within >= more.gather(-1, bucket) - chunk
        rows = torch.arange(bucket[..., 0].numel(), device=qk.device).view(*bucket.shape[:-1], 1).expand_as(bucket)
        cell = (rows * more.shape[-1] + bucket) * chunk + slot
        self.held.view(-1)[cell[latest]] = order[latest] + self.tokens
        self.counts += more

    def _step(self, qk: Tensor, v: Tensor, buckets: Tensor | None) -> Tensor:
        batch, heads, _, features = qk.shape
        if buckets is None:
            at = torch.arange(self.tokens, device=qk.device).expand(batch, heads, -1)
            twice = torch.zeros_like(at, dtype=torch.bool)
        else:
            cells = buckets.long().unsqueeze(-1).expand(*buckets.shape, self.attention.chunk)
            at = self.held.gather(3, cells).squeeze(3).permute(1, 2, 0, 3).flatten(2).sort(-1).values
            twice = F.pad(at[..., 1:] == at[..., :-1], (1, 0)) | (at < 0)  # found in two rounds, or nothing there
        cells = at.clamp_min(0).unsqueeze(-1).expand(-1, -1, -1, features)
        keys, values = self.keys.gather(2, cells), self.values.gather(2, cells)
        logits = (qk @ keys.transpose(2, 3)).masked_fill(twice.unsqueeze(2), -torch.inf)
        alone = torch.full_like(logits[..., :1], ONLY_SELF)
        return torch.cat((logits, alone), -1).softmax(-1) @ torch.cat((values, v), 2)


class LocalCache:
    """Keys and values of the tokens so far; a new token looks at those of its own chunk and the one before.

    Args:
        attention: The layer.
        length: Tokens there will be at most.
    """

    def __init__(self, attention: LocalAttention, length: int) -> None:
        self.attention, self.length, self.tokens = attention, length, 0

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output for the tokens that come next, [batch, 1, width]; the first time any number of them."""
        layer = self.attention
        q, k, v = (project(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for project in layer.projections())
        if self.tokens == 0:
            self.keys, self.values = q.new_empty(2, *q.shape[:2], self.length, q.shape[3])
        new, stop = self.tokens, self.tokens + x.shape[1]
        self.keys[:, :, new:stop], self.values[:, :, new:stop] = k, v
        self.tokens = stop
        if new == 0:
            first: Tensor = layer(x)
            return first
        seen = slice(max(0, new // layer.chunk - 1) * layer.chunk, stop)
        out = F.scaled_dot_product_attention(q, self.keys[:, :, seen], self.values[:, :, seen])
        projected: Tensor = layer.output(out.transpose(1, 2).flatten(2))
        return projected


Caches = Mapping[nn.Module, HashCache | LocalCache]


@torch.no_grad()
def generate(
    model: Reformer,
    tokens: Tensor,
    new: int,
    *,
    temperature: float = 1.0,
    top: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yields ``new`` tokens [batch] that follow ``tokens`` [batch, length], one by one; see ``Reformer.generate``."""
    length = tokens.shape[1] + new
    rotations = model.draw(length, generator).rotations
    cached = all(layer.reach == "bucket" for layer in model.hashed())
    caches: dict[nn.Module, HashCache | LocalCache] = {
        layer: LocalCache(layer, length)
        if isinstance(layer, LocalAttention)
        else HashCache(layer, rotations.get(layer), length)
        for layer in model.attention()
    }
    was_training = model.training
    model.eval()
    try:
        given = tokens
        for _ in range(new):
            if cached:
                hidden = model.encode(given, caches=caches, start=tokens.shape[1] - given.shape[1])
            else:  # chunks end elsewhere with every token
                hidden = model.encode(tokens, generator=generator)
            given = _sample(F.linear(hidden[:, -1], *model.output()), temperature, top, generator)
            tokens = torch.cat((tokens, given), 1)
            yield given[:, 0]
    finally:
        model.train(was_training)


def _sample(logits: Tensor, temperature: float, top: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top is not None:
        least = logits.topk(min(top, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
