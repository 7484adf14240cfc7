"""The Reformer: hashed attention in reversible layers, for sequences of tens of thousands of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.nn.axial import AxialPositions
from dldw.nn.feed_forward import ChunkedFeedForward, chunked_cross_entropy
from dldw.nn.generation import Caches, generate
from dldw.nn.local_attention import LocalAttention
from dldw.nn.lsh_attention import LSHAttention, Memo
from dldw.nn.reversible import Backward, ReversibleBlock, ReversibleSequential
from dldw.nn.sorted_attention import Reach


@dataclass(frozen=True)
class ReformerConfig:
    """The shape of a Reformer.

    Attributes:
        vocabulary: Different tokens.
        width: Of the embeddings and of each of the two streams.
        layers: ``lsh`` or ``local`` for each layer, first to last.
        heads, head_width: Of every attention layer; the head width is ``width / heads`` by default.
        hidden: Width of the hidden layer of the feed-forward layers.
        positions: Grid of the axial positions; its product is the largest length.
        position_widths: Features of each axis; shared out evenly by default.
        hashes, chunk, buckets, reach: See ``LSHAttention``.
        local_chunk: Tokens in a chunk of local attention; ``chunk`` by default.
        causal: Whether a token sees only what comes before it.
        tokens_at_once: Tokens that feed-forward layers and the loss take at a time; None for all.
        activation: Of the feed-forward layers: ``gelu``, ``relu`` or ``silu``.
        dropout: On embeddings and on what each branch adds.
        tied: Whether the output layer has the weights of the embedding, once for each stream.
        epsilon: Of the layer norms.
    """

    vocabulary: int
    width: int = 256
    layers: tuple[Literal["lsh", "local"], ...] = ("local", "lsh") * 3
    heads: int = 4
    head_width: int | None = None
    hidden: int = 1024
    positions: tuple[int, ...] = (64, 64)
    position_widths: tuple[int, ...] | None = None
    hashes: int | None = 4
    chunk: int = 64
    local_chunk: int | None = None
    buckets: int | tuple[int, ...] | None = None
    reach: Reach | None = None
    causal: bool = True
    tokens_at_once: int | None = 4096
    activation: str = "gelu"
    dropout: float = 0.0
    tied: bool = False
    epsilon: float = 1e-5

    def attention(self, kind: str) -> LSHAttention | LocalAttention:
        """The attention of a layer."""
        same: dict[str, Any] = {"heads": self.heads, "head_width": self.head_width, "causal": self.causal}
        if kind == "local":
            return LocalAttention(self.width, chunk=self.local_chunk or self.chunk, **same)
        if kind == "lsh":
            same |= {"hashes": self.hashes, "chunk": self.chunk, "buckets": self.buckets, "reach": self.reach}
            return LSHAttention(self.width, **same)
        raise DldwError(f"a layer must be lsh or local, got {kind!r}.")


class Reformer(nn.Module):
    """A language model of hashed and local attention in reversible layers, with axial positions and chunked feed-forward.

        y1 = x1 + attention(norm(x2)),  y2 = x2 + feed_forward(norm(y1));   logits = head(norm([y1; y2]))

    Memory of a training step: two streams, one layer's buffers, and each layer's buckets, two bytes for a token, head and
    round; nothing else grows with depth. Time: L log L for a fixed chunk.

    Source: Kitaev, Kaiser & Levskaya 2020, arXiv 2001.04451.

    Args:
        config: The shape, or the size of the vocabulary alone.
        backward: ``reversible``, ``checkpoint`` or ``plain``; see ``ReversibleBlock``.

    Raises:
        DldwError: The configuration does not fit together; in forward, the input is longer than the grid of positions.

    Example:
        >>> import torch, dldw.nn
        >>> config = dldw.nn.ReformerConfig(vocabulary=256, width=32, layers=("local", "lsh"), positions=(16, 16))
        >>> model = dldw.nn.Reformer(config)
        >>> bytes_read = torch.randint(256, (1, 200))
        >>> model.loss(bytes_read).mean().backward()
        >>> model.hashes = 8  # more rounds at evaluation
        >>> model.generate(bytes_read, 3).shape
        torch.Size([1, 203])
    """

    def __init__(self, config: ReformerConfig | int, *, backward: Backward = "reversible") -> None:
        super().__init__()
        self.config = c = ReformerConfig(config) if isinstance(config, int) else config
        self.embedding = nn.Embedding(c.vocabulary, c.width)
        nn.init.normal_(self.embedding.weight, std=c.width**-0.5)
        self.positions = AxialPositions(c.positions, c.position_widths or c.width)
        if sum(w.shape[-1] for w in self.positions.weights) != c.width:
            raise DldwError(f"position_widths {c.position_widths} must add up to the width, {c.width}.")
        blocks = [ReversibleBlock(_Attention(c, kind), _FeedForward(c), dim=-1) for kind in c.layers]
        self.blocks = ReversibleSequential(*blocks, dim=-1, backward=backward)
        self.norm, self.dropout = nn.LayerNorm(2 * c.width, eps=c.epsilon), nn.Dropout(c.dropout)
        self.head = None if c.tied else nn.Linear(2 * c.width, c.vocabulary)

    @property
    def hashes(self) -> int | None:
        """Rounds of hashing in every layer, None for full attention; can be set at any time."""
        return next((layer.hashes for layer in self.hashed()), None)

    @hashes.setter
    def hashes(self, rounds: int | None) -> None:
        for layer in self.hashed():
            layer.hashes = rounds

    def attention(self) -> list[LSHAttention | LocalAttention]:
        """The attention layers, first to last."""
        return [cast(_Attention, block.f).attention for block in self.blocks]

    def hashed(self) -> Iterator[LSHAttention]:
        """Those of hashed attention."""
        return (layer for layer in self.attention() if isinstance(layer, LSHAttention))

    def forward(
        self, tokens: Tensor, *, padding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits of what comes next, [batch, length, vocabulary].

        Args:
            tokens: [batch, length], integers.
            padding: True where there is no token, [batch, length].
            generator: Where rotations are drawn from; by default the global random state, as dropout is.
        """
        weight, bias = self.output()
        return F.linear(self.encode(tokens, padding=padding, generator=generator), weight, bias)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        padding: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The cross-entropy of each sequence, a mean over its tokens, [batch]; logits are never whole.

        Args:
            tokens: [batch, length].
            targets: What comes next, [batch, length], -100 where it does not count; by default ``tokens`` shifted by one.
            padding: As in ``forward``; predictions at padding, and of it, do not count.
            generator: As in ``forward``.
        """
        if targets is None:
            targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
            if padding is not None:
                targets = targets.masked_fill(padding | F.pad(padding[:, 1:], (0, 1)), -100)
        hidden = self.encode(tokens, padding=padding, generator=generator)
        weight, bias = self.output()
        at_once = self.config.tokens_at_once or tokens.shape[1]
        losses = chunked_cross_entropy(hidden, weight, targets, bias=bias, tokens=at_once)
        return losses.sum(1) / (targets != -100).sum(1).clamp_min(1)

    def generate(
        self,
        tokens: Tensor,
        new: int,
        *,
        temperature: float = 1.0,
        top: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``tokens`` [batch, length] and ``new`` more that follow, each drawn from what the model expects next.

        Hashes, keys and values of earlier tokens are kept, so a token costs the same however many came before; with
        ``reach`` other than ``bucket`` the whole sequence goes through the model for every token. Dropout is off.

        Args:
            tokens: To start from, at least one.
            new: How many to add; all must fit the grid of positions.
            temperature: Logits are divided by it; 0 always takes the likeliest token.
            top: Only so many of the likeliest tokens are drawn from.
            generator: Where rotations and tokens are drawn from.
        """
        return torch.cat((tokens, torch.stack(list(self.stream(tokens, new, temperature, top, generator)), 1)), 1)

    def stream(
        self,
        tokens: Tensor,
        new: int,
        temperature: float = 1.0,
        top: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """The new tokens of ``generate`` one after the other, each [batch]."""
        if not self.config.causal:
            raise DldwError(
                "a model with causal=False has seen what comes after every token, so it cannot tell what comes next. Train "
                "one with causal=True to generate."
            )
        return generate(self, tokens, new, temperature=temperature, top=top, generator=generator)

    def encode(
        self,
        tokens: Tensor,
        *,
        padding: Tensor | None = None,
        generator: torch.Generator | None = None,
        caches: Caches | None = None,
        start: int = 0,
    ) -> Tensor:
        """What logits are a linear function of, [batch, length, 2 width]; with caches, of tokens from ``start`` on."""
        memo = Memo() if caches else self.draw(tokens.shape[1], generator)
        x = self.dropout(self.embedding(tokens) * self.config.width**0.5) + self.positions(tokens.shape[1], start)
        y1, y2 = self.blocks((x, x), f_kwargs={"padding": padding, "memo": memo, "caches": caches})
        hidden: Tensor = self.dropout(self.norm(torch.cat((y1, y2), -1)))
        return hidden

    def draw(self, length: int, generator: torch.Generator | None = None) -> Memo:
        """Rotations for every layer of hashed attention, for one pass over sequences of this length."""
        memo, device = Memo(), self.embedding.weight.device
        for layer in self.hashed():
            if layer.hashes is not None:
                memo.rotations[layer] = layer.draw(length, device, generator)
        return memo

    def output(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the output layer."""
        if self.head is None:
            return torch.cat((self.embedding.weight,) * 2, 1), None
        return self.head.weight, self.head.bias


class _Attention(nn.Module):
    """norm, attention, dropout: the branch f."""

    def __init__(self, config: ReformerConfig, kind: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.epsilon)
        self.attention = config.attention(kind)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *, padding: Tensor | None, memo: Memo, caches: Caches | None) -> Tensor:
        x = self.norm(x)
        if caches is not None:
            return caches[self.attention](x)
        own = {"memo": memo} if isinstance(self.attention, LSHAttention) else {}
        out: Tensor = self.dropout(self.attention(x, padding=padding, **own))
        return out


class _FeedForward(nn.Module):
    """norm, feed-forward, dropout: the branch g."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.epsilon)
        self.layers = ChunkedFeedForward(
            config.width, config.hidden, tokens=config.tokens_at_once, activation=config.activation
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.layers(self.norm(x)))
        return out
