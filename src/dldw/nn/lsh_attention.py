"""Attention to likely keys only: tokens are hashed, and attend within their bucket."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.nn.sorted_attention import ONLY_SELF, Reach, Sets, sorted_attention

Rotations = tuple[Tensor, ...]
"""One [heads, features, rounds, buckets / 2] for each factor of the number of buckets."""


class Memo:
    """What one forward pass drew and found, by layer: a backward pass that runs layers again finds the same buckets."""

    def __init__(self) -> None:
        self.rotations: dict[nn.Module, Rotations] = {}
        self.buckets: dict[nn.Module, Tensor] = {}


class LSHAttention(nn.Module):
    """Attention with one vector for query and key, to the keys that share a bucket in one of several rounds of hashing.

        k = q / |q|,   o_i = Σ_{j ∈ P_i} exp(q_i · k_j − z_i) v_j,   P_i = ∪_r P_i^(r)

    A bucket is argmax [xR; −xR] for random R. In every round tokens are sorted by (bucket, position), cut into chunks, and
    each chunk looks at itself and the one before. A pair found in several rounds counts once; a token attends to itself
    only if there is nothing else. ``reach`` says what P_i^(r) is:

    - ``bucket``: the latest ``chunk`` keys of the query's own bucket. No later token changes an output.
    - ``chunk``: all keys of the query's chunk and the one before, as in the paper. Later tokens are masked, but move the
      ends of chunks, and with them who is seen. The default where attention is not causal.
    - ``ring``: as trax and Hugging Face compute it: the chunk before the first is the last of the round before, and pairs
      count as often as they are found.

    Cost: L log L for a fixed chunk; 2 · rounds · chunk products of queries and keys for each token. The backward pass is
    exact for the buckets of the forward pass, and stores nothing but q, k, v, the output and the buckets.

    Source: Kitaev, Kaiser & Levskaya 2020, arXiv 2001.04451; hashing by Andoni et al. 2015, arXiv 1509.02897.

    Args:
        width: Of the input and the output.
        heads: Attention heads.
        head_width: Features of a head; ``width / heads`` by default.
        hashes: Rounds of hashing; None for full attention. May be changed at any time, at evaluation above all.
        chunk: Tokens in a chunk, a power of two.
        buckets: How many, an even number or a tuple of even factors; by default 2 · length / chunk rounded to a power of two.
        causal: Whether a token sees only what comes before it.
        reach: See above.

    Raises:
        DldwError: The arguments do not fit together.

    Example:
        >>> import torch, dldw.nn
        >>> attention = dldw.nn.LSHAttention(32, heads=4, hashes=2, chunk=16)
        >>> attention(torch.randn(2, 100, 32)).shape
        torch.Size([2, 100, 32])
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        head_width: int | None = None,
        hashes: int | None = 4,
        chunk: int = 64,
        buckets: int | Sequence[int] | None = None,
        causal: bool = True,
        reach: Reach | None = None,
    ) -> None:
        super().__init__()
        if head_width is None and width % heads:
            raise DldwError(f"a width of {width} is not {heads} equal heads. Change one of them, or give head_width.")
        reach = reach or ("bucket" if causal else "chunk")
        if reach == "bucket" and not causal:
            raise DldwError("reach='bucket' looks back only, so it needs causal=True. Use 'chunk' without.")
        if reach not in ("bucket", "chunk", "ring"):
            raise DldwError(f"reach must be bucket, chunk or ring, got {reach!r}.")
        if chunk < 2 or chunk & (chunk - 1):
            raise DldwError(
                f"chunk must be a power of two, got {chunk}. The nearest is {1 << max(1, round(math.log2(max(chunk, 2))))}."
            )
        factors = None if buckets is None else (buckets,) if isinstance(buckets, int) else tuple(buckets)
        if factors is not None and (not factors or any(f < 2 or f % 2 for f in factors)):
            raise DldwError(
                f"buckets must be even, got {buckets}: a rotation gives each direction and its opposite. Use an even number, "
                "or a tuple of even factors."
            )
        self.heads, self.head_width, self.chunk, self.factors = heads, head_width or width // heads, chunk, factors
        self.hashes, self.causal, self.reach = hashes, causal, reach
        inner = self.heads * self.head_width
        self.query_key, self.value = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    @property
    def hashes(self) -> int | None:
        return self._hashes

    @hashes.setter
    def hashes(self, rounds: int | None) -> None:
        if rounds is not None and rounds < 1:
            raise DldwError(f"hashes must be at least 1, or None for full attention, got {rounds}.")
        self._hashes = rounds

    def forward(
        self,
        x: Tensor,
        *,
        padding: Tensor | None = None,
        rotations: Rotations | None = None,
        memo: Memo | None = None,
    ) -> Tensor:
        """What each token attends to, [batch, length, width].

        Args:
            x: [batch, length, width], of any length.
            padding: True where a token is no key, [batch, length].
            rotations: To hash with, as ``draw`` gives them; by default drawn from the global random state, as dropout is.
            memo: Where rotations and buckets are kept and, if it has those of this layer already, taken from.
        """
        length = x.shape[1]
        qk, v = self.split(self.query_key(x)), self.split(self.value(x))
        if self.hashes is None or (length <= self.chunk and self.reach == "ring"):
            return self.join(full_attention(qk, v, self.causal, padding))
        rotations = rotations or (memo and memo.rotations.get(self)) or self.draw(length, x.device)
        buckets = memo.buckets.get(self) if memo else None
        if buckets is None:
            buckets = hash_buckets(qk.detach(), rotations)
            if memo:
                memo.buckets[self] = buckets
        return self.join(
            lsh_attention(qk, v, buckets, self.chunk, reach=self.reach, causal=self.causal, padding=padding)
        )

    def draw(
        self, length: int, device: torch.device | None = None, generator: torch.Generator | None = None
    ) -> Rotations:
        """Random rotations for inputs of this length."""
        shape = self.heads, self.head_width, self.hashes or 1
        factors = self.factors or bucket_factors(length, self.chunk)
        return tuple(torch.randn(*shape, f // 2, device=device, generator=generator) for f in factors)

    def split(self, x: Tensor) -> Tensor:
        """[batch, length, heads · head width] as [batch, heads, length, head width]."""
        heads: Tensor = x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)
        return heads

    def join(self, x: Tensor) -> Tensor:
        """The output for [batch, heads, length, head width]."""
        out: Tensor = self.output(x.transpose(1, 2).flatten(2))
        return out


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    chunk: int = 64,
    *,
    reach: Reach = "bucket",
    causal: bool = True,
    padding: Tensor | None = None,
) -> Tensor:
    """Attention by given buckets, [batch, heads, length, features]; see ``LSHAttention``.

    Args:
        qk: Vectors that are queries and, made unit vectors, keys, [batch, heads, length, features].
        v: Values, as ``qk``.
        buckets: [rounds, batch, heads, length], as ``hash_buckets`` gives them.
        chunk: Tokens in a chunk, a power of two.
        reach: See ``LSHAttention``.
        causal: Whether a token sees only what comes before it.
        padding: True where a token is no key, [batch, length].
    """
    batch, heads, length, _ = qk.shape
    extra = -length % chunk
    absent = padding if padding is None or not extra else F.pad(padding, (0, extra), value=True)
    if absent is None and extra:
        absent = torch.arange(length + extra, device=qk.device).expand(batch, -1) >= length
    count = int(buckets.max()) + 2
    if extra:
        buckets = F.pad(buckets, (0, extra), value=count - 1)
    if absent is not None:  # in a bucket of their own, so that they take no place in a chunk
        buckets = buckets.masked_fill(absent.unsqueeze(1), count - 1)
    q, k, v = (F.pad(x, (0, 0, 0, extra)).flatten(0, 1) for x in (qk, unit(qk), v))
    rows = None if absent is None else absent.unsqueeze(1).expand(-1, heads, -1).flatten(0, 1)
    sets = Sets(buckets.flatten(1, 2), count, chunk, reach, causal, rows)
    out: Tensor = sorted_attention(q, k, v, sets)[:, :length].unflatten(0, (batch, heads))
    return out


@torch.no_grad()
def hash_buckets(x: Tensor, rotations: Rotations) -> Tensor:
    """The buckets [rounds, batch, heads, length] of vectors [batch, heads, length, features]; integers."""
    if not rotations:  # one bucket needs no hashing
        return torch.zeros(1, *x.shape[:-1], dtype=torch.int16, device=x.device)
    batch, heads, length, _ = x.shape
    rounds = rotations[0].shape[2]
    count = math.prod(2 * r.shape[3] for r in rotations)
    found = torch.zeros(
        rounds, batch, heads, length, dtype=torch.int16 if count < 1 << 15 else torch.int32, device=x.device
    )
    size = 1
    for rotation in rotations:
        half = rotation.shape[3]
        matrix = rotation.flatten(2).to(x.dtype)
        step = max(1, _AT_ONCE // (batch * heads * rounds * half))
        for start in range(0, length, step):
            rotated = (x[:, :, start : start + step] @ matrix).unflatten(-1, (rounds, half))
            which = rotated.abs().argmax(-1, keepdim=True)
            bucket = which + half * (rotated.gather(-1, which) < 0)
            found[..., start : start + step] += (size * bucket).squeeze(-1).movedim(-1, 0).to(found.dtype)
        size *= 2 * half
    return found


def bucket_factors(length: int, chunk: int) -> tuple[int, ...]:
    """Buckets for a length: twice as many as chunks, a power of two; in two factors where one would be dear."""
    chunks = -(-length // chunk)
    if chunks == 1:
        return ()
    bits = (2 * chunks).bit_length() - 1
    return (1 << bits,) if bits <= _ONE_FACTOR else (1 << bits // 2, 1 << bits - bits // 2)


def full_attention(qk: Tensor, v: Tensor, causal: bool, padding: Tensor | None) -> Tensor:
    """The same with every pair within reach: L × L logits."""
    length = qk.shape[2]
    mask = torch.zeros(length, length, dtype=qk.dtype, device=qk.device)
    if causal:
        mask.masked_fill_(torch.ones_like(mask, dtype=torch.bool).triu_(1), -torch.inf)
    if padding is not None:
        mask = mask.expand(len(qk), 1, -1, -1).masked_fill(padding[:, None, None], -torch.inf)
    mask.diagonal(dim1=-2, dim2=-1).fill_(ONLY_SELF)
    return F.scaled_dot_product_attention(qk, unit(qk).to(qk.dtype), v, attn_mask=mask, scale=1.0)


def unit(x: Tensor) -> Tensor:
    """Unit vectors; zero stays zero."""
    norm: Tensor = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() / x.shape[-1] ** 0.5
    return x * norm


_AT_ONCE = 1 << 20
"""Rotated coordinates held at a time."""
_ONE_FACTOR = 5
"""Up to so many bits one rotation gives the bucket; two of half the bits cost less beyond."""
