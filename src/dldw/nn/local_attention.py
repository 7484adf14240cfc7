"""Attention to near positions only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError


class LocalAttention(nn.Module):
    """Attention within chunks of consecutive tokens: to its own chunk and the one before, and after where not causal.

    Cost: 2 · chunk products of queries and keys for each token (3 · chunk where not causal).

    Source: Liu et al. 2018, arXiv 1801.10198; a layer of the Reformer (arXiv 2001.04451) as it is used on text.

    Args:
        width: Of the input and the output.
        heads: Attention heads.
        head_width: Features of a head; ``width / heads`` by default.
        chunk: Tokens in a chunk.
        causal: Whether a token sees only itself and what comes before it.

    Raises:
        DldwError: The width is not so many equal heads.

    Example:
        >>> import torch, dldw.nn
        >>> attention = dldw.nn.LocalAttention(32, heads=4, chunk=16)
        >>> attention(torch.randn(2, 100, 32)).shape
        torch.Size([2, 100, 32])
    """

    def __init__(
        self, width: int, *, heads: int = 8, head_width: int | None = None, chunk: int = 64, causal: bool = True
    ) -> None:
        super().__init__()
        if head_width is None and width % heads:
            raise DldwError(f"a width of {width} is not {heads} equal heads. Change one of them, or give head_width.")
        self.heads, self.head_width, self.chunk, self.causal = heads, head_width or width // heads, chunk, causal
        inner = self.heads * self.head_width
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, *, padding: Tensor | None = None) -> Tensor:
        """What each token attends to, [batch, length, width].

        Args:
            x: [batch, length, width], of any length.
            padding: True where a token is no key, [batch, length].
        """
        length, c = x.shape[1], self.chunk
        extra = -length % c
        x = F.pad(x, (0, 0, 0, extra))
        q, k, v = (self._chunks(project(x)) for project in self.projections())
        mask = _mask(length, c, self.causal, x.device)
        if padding is not None:
            absent = F.pad(padding, (0, extra), value=True).view(len(x), 1, -1, c, 1)
            mask = mask & ~self._windows(absent).transpose(-1, -2).repeat_interleave(self.heads, 0)[:, 0]
        mask = mask | torch.eye(c, mask.shape[-1], dtype=torch.bool, device=x.device).roll(c, 1)  # itself at least
        q, k, v = (t.flatten(0, 1) for t in (q, self._windows(k), self._windows(v)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # chunks stand where heads do
        joined = out.view(len(x), self.heads, -1, self.head_width)[:, :, :length].transpose(1, 2).flatten(2)
        projected: Tensor = self.output(joined)
        return projected

    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        """What makes queries, keys and values."""
        return self.query, self.key, self.value

    def _chunks(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1, self.chunk, self.heads, self.head_width).permute(0, 3, 1, 2, 4)

    def _windows(self, x: Tensor) -> Tensor:
        """[..., chunks, chunk, features] beside their neighbours'; beyond the ends, those of the other end, masked."""
        before = x.roll(1, 2)
        return torch.cat((before, x) if self.causal else (before, x, x.roll(-1, 2)), 3)


def _mask(length: int, c: int, causal: bool, device: torch.device) -> Tensor:
    """Which pairs attend, [1, chunks, c, 2 c or 3 c]."""
    chunks = -(-length // c)
    query = torch.arange(chunks * c, device=device).view(chunks, c, 1)
    key = torch.arange(-c, c if causal else 2 * c, device=device) + c * torch.arange(chunks, device=device).view(
        -1, 1, 1
    )
    return ((key >= 0) & (key < length) & ((key <= query) | (not causal))).unsqueeze(0)
