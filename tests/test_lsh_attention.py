"""Hashed and local attention: against a plain loop over pairs, full attention and Hugging Face's masks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dldw.nn
from dldw.errors import DldwError
from dldw.nn import sorted_attention
from dldw.nn.lsh_attention import Memo, bucket_factors, full_attention, hash_buckets, lsh_attention

KINDS = [("bucket", True), ("chunk", True), ("chunk", False), ("ring", True), ("ring", False)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(batch: int, heads: int, length: int, width: int = 6) -> tuple[Tensor, Tensor]:
    qk, v = torch.randn(2, batch, heads, length, width, dtype=torch.float64, generator=seeded())
    return qk.requires_grad_(), v.requires_grad_()


def some_buckets(rounds: int, batch: int, heads: int, length: int, count: int) -> Tensor:
    return torch.randint(count, (rounds, batch, heads, length), generator=seeded(1))


def by_hand(
    qk: Tensor, v: Tensor, buckets: Tensor, chunk: int, reach: str, causal: bool, padding: Tensor | None
) -> Tensor:
    """The sets of the definition, pair by pair, and one softmax over their union (in a ring, with multiplicity)."""
    batch, heads, length, width = qk.shape
    rounds, padded = len(buckets), length + -length % chunk
    k = qk / (qk.square().mean(-1, keepdim=True) + 1e-6).sqrt() / math.sqrt(width)
    outs = []
    for b in range(batch):
        absent = [t >= length or (padding is not None and bool(padding[b, t])) for t in range(padded)]
        for h in range(heads):
            last = 1 + max(int(buckets[..., t].max()) for t in range(length))
            bucket = [[last if absent[t] else int(buckets[r, b, h, t]) for t in range(padded)] for r in range(rounds)]
            orders = [sorted(range(padded), key=lambda t, own=own: (own[t], t)) for own in bucket]
            times = torch.zeros(length, padded)
            for r, order in enumerate(orders):
                rank = {t: s for s, t in enumerate(order)}
                before = orders[r - 1][-chunk:]
                for i in range(length):
                    own = rank[i] // chunk
                    for j in range(padded):
                        if reach == "bucket":
                            found = int(bucket[r][i] == bucket[r][j] and 0 <= rank[i] - rank[j] <= chunk)
                        else:
                            found = int(0 <= own - rank[j] // chunk <= 1)
                        if reach == "ring":
                            found += int(own == 0 and j in before)
                        times[i, j] += found
            times = times[:, :length]
            if reach != "ring":
                times = times.clamp_max(1)
            if causal:
                times = times.tril()
            times[:, [t for t in range(length) if absent[t]]] = 0
            logits = qk[b, h] @ k[b, h].T + times.log().masked_fill(times == 0, -1e9)
            selves = torch.tensor([[-1e5 if i == j else 0.0 for j in range(length)] for i in range(length)])
            outs.append((logits.masked_fill(selves < 0, 0) + selves).softmax(-1) @ v[b, h])
    return torch.stack(outs).view(batch, heads, length, width)


@pytest.mark.parametrize(("reach", "causal"), KINDS)
@pytest.mark.parametrize(("rounds", "length", "chunk", "count"), [(1, 16, 4, 4), (3, 21, 4, 6), (2, 8, 8, 2), (4, 33, 2, 3)])
@pytest.mark.parametrize("cached", [1 << 18, 32])
def test_values_and_gradients_are_those_of_one_softmax_over_the_union_of_all_rounds(
    reach: str, causal: bool, rounds: int, length: int, chunk: int, count: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sorted_attention, "_CACHED", cached)  # in one block, and in many
    monkeypatch.setattr(sorted_attention, "_COPIED", cached)
    qk, v = vectors(2, 2, length)
    buckets = some_buckets(rounds, 2, 2, length, count)
    padding = torch.zeros(2, length, dtype=torch.bool)
    padding[0, -3:] = True
    for absent in (None, padding):
        out = lsh_attention(qk, v, buckets, chunk, reach=reach, causal=causal, padding=absent)
        wanted = by_hand(qk, v, buckets, chunk, reach, causal, absent)
        real = torch.ones(2, 1, length, 1) if absent is None else (~absent).view(2, 1, -1, 1)
        assert torch.allclose(out * real, wanted * real, atol=1e-12)
        push = torch.randn(out.shape, dtype=torch.float64, generator=seeded(2)) * real
        for found, right in zip(
            torch.autograd.grad(out, (qk, v), push), torch.autograd.grad(wanted, (qk, v), push), strict=True
        ):
            assert torch.allclose(found, right, atol=1e-10)
