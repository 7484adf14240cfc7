"""Hashed and local attention: against a plain loop over pairs, full attention and Hugging Face's masks."""

from __future__ import annotations

import math

import pytest
import torch
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


def keys(qk: Tensor) -> Tensor:
    return qk / (qk.square().mean(-1, keepdim=True) + 1e-6).sqrt() / math.sqrt(qk.shape[-1])


def by_hand(
    qk: Tensor, v: Tensor, buckets: Tensor, chunk: int, reach: str, causal: bool, padding: Tensor | None
) -> Tensor:
    """The sets of the definition, pair by pair, and one softmax over their union (in a ring, with multiplicity)."""
    batch, heads, length, width = qk.shape
    rounds, padded = len(buckets), length + -length % chunk
    k = keys(qk)
    outs = []
    for b in range(batch):
        absent = [t >= length or (padding is not None and bool(padding[b, t])) for t in range(padded)]
        for h in range(heads):
            last = 1 + max(int(buckets[..., t].max()) for t in range(length))
            bucket = [[last if absent[t] else int(buckets[r, b, h, t]) for t in range(padded)] for r in range(rounds)]
            orders = [sorted(range(padded), key=lambda t, own=own: (own[t], t)) for own in bucket]
            times = torch.zeros(length, padded, dtype=torch.float64)
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
            logits = qk[b, h] @ k[b, h].T + times.clamp_min(1).log() + (times == 0) * -1e9
            selves = torch.tensor([[-1e5 if i == j else 0.0 for j in range(length)] for i in range(length)])
            outs.append((logits.masked_fill(selves < 0, 0) + selves).softmax(-1) @ v[b, h])
    return torch.stack(outs).view(batch, heads, length, width)


@pytest.mark.parametrize(("reach", "causal"), KINDS)
@pytest.mark.parametrize(("rounds", "length", "chunk", "count"), [(1, 12, 4, 4), (3, 13, 4, 6), (2, 7, 8, 2)])
@pytest.mark.parametrize("cached", [1 << 18, 32])
def test_values_and_gradients_are_those_of_one_softmax_over_the_union_of_all_rounds(
    reach: str,
    causal: bool,
    rounds: int,
    length: int,
    chunk: int,
    count: int,
    cached: int,
    monkeypatch: pytest.MonkeyPatch,
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


def test_with_all_in_one_bucket_it_is_full_attention() -> None:
    qk, v = vectors(2, 3, 50)
    one = torch.zeros(1, 2, 3, 50, dtype=torch.int64)
    for causal in (True, False):
        mask = torch.full((50, 50), -math.inf, dtype=torch.float64).triu(1) if causal else torch.zeros(50, 50).double()
        mask.fill_diagonal_(-1e5)
        full = (qk @ keys(qk).transpose(2, 3) + mask).softmax(-1) @ v
        out = lsh_attention(qk, v, one, 64, reach="bucket" if causal else "chunk", causal=causal)
        assert torch.allclose(out, full, atol=1e-6)
        assert torch.allclose(full_attention(qk, v, causal, None), full, atol=1e-6)


def test_rounds_that_cover_all_pairs_give_full_attention() -> None:
    qk, v = vectors(1, 1, 24)
    rounds = torch.stack([(torch.arange(24) + r) // 8 % 3 for r in range(24)] + [torch.arange(24) % 3, torch.zeros(24)])
    seen = torch.zeros(24, 24, dtype=torch.bool)
    for own in rounds[:, None]:
        seen |= own == own.T
    assert seen.all()  # the last round alone has every pair in a bucket, but its window is shorter than the sequence
    out = lsh_attention(qk, v, rounds.long().view(-1, 1, 1, 24), 32)
    assert torch.allclose(out, full_attention(qk, v, True, None), atol=1e-6)


@pytest.mark.parametrize("length", [40, 47])
def test_no_later_token_changes_an_output(length: int) -> None:
    attention = dldw.nn.LSHAttention(12, heads=2, hashes=3, chunk=4).double()
    x = torch.randn(2, length, 12, dtype=torch.float64, generator=seeded())
    rotations = attention.draw(length, generator=seeded())
    before = attention(x, rotations=rotations)
    for t in (0, 13, length - 2):
        other = x.clone()
        other[:, t + 1 :] = torch.randn(2, length - t - 1, 12, dtype=torch.float64, generator=seeded(t + 1))
        after = attention(other, rotations=rotations)
        assert torch.allclose(after[:, : t + 1], before[:, : t + 1], atol=1e-12)
        assert not torch.allclose(after[:, t + 1 :], before[:, t + 1 :], atol=1e-3)


def test_in_the_papers_chunks_a_later_token_moves_who_is_seen() -> None:
    attention = dldw.nn.LSHAttention(12, heads=2, hashes=1, chunk=4, reach="chunk").double()
    x = torch.randn(2, 40, 12, dtype=torch.float64, generator=seeded())
    rotations = attention.draw(40, generator=seeded())
    other = x.clone()
    other[:, 20:] = torch.randn(2, 20, 12, dtype=torch.float64, generator=seeded(1))
    moved = (attention(x, rotations=rotations) - attention(other, rotations=rotations))[:, :20].abs().max()
    assert moved > 1e-3  # its values are masked; the ends of chunks are not


@pytest.mark.parametrize(("reach", "causal"), KINDS)
def test_what_padding_holds_changes_no_output_of_a_real_token(reach: str, causal: bool) -> None:
    attention = dldw.nn.LSHAttention(12, heads=2, hashes=2, chunk=4, causal=causal, reach=reach).double()
    x = torch.randn(2, 30, 12, dtype=torch.float64, generator=seeded())
    padding = torch.zeros(2, 30, dtype=torch.bool)
    padding[0, 22:] = padding[1, :5] = True
    rotations = attention.draw(30, generator=seeded())
    other = torch.where(padding.unsqueeze(-1), torch.randn(2, 30, 12, dtype=torch.float64, generator=seeded(1)), x)
    one, two = (attention(t, padding=padding, rotations=rotations)[~padding] for t in (x, other))
    assert torch.allclose(one, two, atol=1e-12)


def test_a_memo_makes_a_second_pass_use_the_buckets_of_the_first() -> None:
    attention = dldw.nn.LSHAttention(12, heads=2, hashes=2, chunk=4).double()
    x = torch.randn(1, 32, 12, dtype=torch.float64, generator=seeded())
    memo = Memo()
    first = attention(x, memo=memo)
    found = memo.buckets[attention].clone()
    assert torch.equal(attention(x, memo=memo), first)
    attention(-x, memo=memo)
    assert torch.equal(memo.buckets[attention], found)
    assert not torch.equal(attention(x), first)


def test_a_bucket_is_the_nearest_of_the_rotated_axes_and_their_opposites() -> None:
    x = torch.randn(2, 3, 10, 6, generator=seeded())
    rotations = tuple(torch.randn(3, 6, 4, n, generator=seeded(n)) for n in (2, 3))
    found = hash_buckets(x, rotations)
    for r, b, h, t in [(0, 0, 0, 0), (3, 1, 2, 9), (1, 0, 1, 4), (2, 1, 0, 7)]:
        low, high = (x[b, h, t] @ rotation[h, :, r] for rotation in rotations)
        parts = [int(torch.cat((part, -part)).argmax()) for part in (low, high)]
        assert int(found[r, b, h, t]) == parts[0] + 4 * parts[1]
    assert torch.equal(hash_buckets(7 * x, rotations), found)  # length does not matter


def test_there_are_about_twice_as_many_buckets_as_chunks_and_one_where_all_fits_a_chunk() -> None:
    assert [bucket_factors(n, 64) for n in (50, 64, 100, 1024, 4096, 65_536)] == [
        (), (), (4,), (32,), (8, 16), (32, 64),
    ]  # fmt: skip


def test_more_hashes_come_closer_to_full_attention() -> None:
    attention = dldw.nn.LSHAttention(32, heads=2, chunk=16)
    with torch.no_grad():  # sharp attention, which hashing is made for
        attention.query_key.weight *= 8
    x = torch.randn(2, 256, 32, generator=seeded())
    attention.hashes = None
    with torch.no_grad():
        full, off = attention(x), []
        for hashes in (1, 4, 16):
            attention.hashes = hashes
            rotations = attention.draw(256, generator=seeded())
            off.append(float((attention(x, rotations=rotations) - full).square().mean()))
    assert off[0] > off[1] > off[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_stays_near_double(dtype: torch.dtype) -> None:
    qk, v = vectors(1, 2, 40)
    buckets = some_buckets(2, 1, 2, 40, 5)
    exact = lsh_attention(qk, v, buckets, 8)
    out = lsh_attention(qk.detach().to(dtype), v.detach().to(dtype), buckets, 8)
    assert out.dtype == dtype
    assert (out - exact).abs().max() < 20 * torch.finfo(dtype).eps


def test_a_second_derivative_is_refused_not_wrong() -> None:
    qk, v = vectors(1, 1, 16)
    out = lsh_attention(qk, v, some_buckets(1, 1, 1, 16, 2), 4)
    with pytest.raises(DldwError, match=r"second derivative through hashed attention .* Set hashes = None"):
        torch.autograd.grad(out.sum(), v, create_graph=True)


@pytest.mark.parametrize(("reach", "causal"), KINDS)
def test_forward_mode_gives_the_derivative_along_a_direction(reach: str, causal: bool) -> None:
    qk, v = (x.detach() for x in vectors(1, 2, 21))
    along = torch.randn(2, *qk.shape, dtype=torch.float64, generator=seeded(3))
    buckets = some_buckets(3, 1, 2, 21, 4)

    def attend(qk: Tensor, v: Tensor) -> Tensor:
        return lsh_attention(qk, v, buckets, 4, reach=reach, causal=causal)

    _, found = torch.func.jvp(attend, (qk, v), tuple(along))
    ahead, behind = (attend(qk + s * along[0], v + s * along[1]) for s in (1e-5, -1e-5))
    assert torch.allclose(found, (ahead - behind) / 2e-5, atol=1e-7)


@pytest.mark.parametrize(("length", "causal"), [(5, True), (37, True), (37, False), (16, False)])
def test_local_attention_is_full_attention_behind_a_mask_of_near_chunks(length: int, causal: bool) -> None:
    attention = dldw.nn.LocalAttention(12, heads=3, chunk=8, causal=causal).double()
    x = torch.randn(2, length, 12, dtype=torch.float64, generator=seeded())
    padding = torch.zeros(2, length, dtype=torch.bool)
    padding[1, :2] = True
    q, k, v = (project(x).view(2, length, 3, 4).transpose(1, 2) for project in attention.projections())
    own = torch.arange(length) // 8
    apart = own.view(-1, 1) - own
    near = ((apart >= 0) & (apart <= 1)) if causal else apart.abs() <= 1
    seen = (near.tril() if causal else near) & ~padding[:, None, None]
    seen |= torch.eye(length, dtype=torch.bool)
    logits = (q @ k.transpose(2, 3) / 2).masked_fill(~seen, -math.inf)
    wanted = attention.output((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(attention(x, padding=padding), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"heads": 5}, r"width of 12 is not 5 equal heads. Change one of them, or give head_width"),
        ({"chunk": 48}, r"chunk must be a power of two, got 48. The nearest is 64"),
        ({"hashes": 0}, r"hashes must be at least 1, or None for full attention, got 0"),
        ({"buckets": 7}, r"buckets must be even, got 7: .*a tuple of even factors"),
        ({"reach": "far"}, r"reach must be bucket, chunk or ring, got 'far'"),
        ({"reach": "bucket", "causal": False}, r"looks back only, so it needs causal=True. Use 'chunk' without"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(arguments: dict, text: str) -> None:
    with pytest.raises(DldwError, match=text):
        dldw.nn.LSHAttention(12, **{"heads": 2, **arguments})
