"""Byte by byte through CPython's own documentation, with a plain transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.tasks.text import Text


class Transformer(nn.Module):
    """A causal transformer, norms first: what a Reformer is without hashing and reversible layers.

    Args:
        width: Of the one stream.
        layers: How many.
        hidden: Width of the hidden layer of the feed-forward layers.
        length: Largest length.
    """

    def __init__(self, width: int, layers: int, hidden: int, length: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(256, width), nn.Parameter(torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of what comes next, [batch, length, 256]."""
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, tokens.device)
        x = self.embedding(tokens) + self.positions[:length]
        logits: Tensor = self.head(self.layers(x, mask=mask, is_causal=True))
        return logits


class TextTransformer(Text):
    """As ``text``, with a transformer that has as many weights as the Reformer, to half a percent at its own width."""

    name = "text-transformer"
    summary = "CPython's language reference byte by byte, windows of 256; a plain transformer as large as the Reformer."
    companion = None
    heft = 8.0

    def network(self, width: int) -> nn.Module:
        # A Reformer has no separate keys, two streams into its last layer, and positions of 16 + 16 half rows.
        return Transformer(width, layers=2, hidden=4 * width - width // 4, length=self.length)
