"""Position embeddings for long sequences out of a few small tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dldw.errors import DldwError


class AxialPositions(nn.Module):
    """Positions as cells of a grid: the embedding of one is those of its coordinates, side by side.

    n1 · n2 positions cost n1 · d1 + n2 · d2 weights, where d1 + d2 is the width.

    Source: Ho et al. 2019, arXiv 1912.12180; Kitaev, Kaiser & Levskaya 2020, arXiv 2001.04451.

    Args:
        shape: Cells along each axis; the product is the largest length.
        widths: Features of each axis, or the width as one number, which is shared out evenly.

    Raises:
        DldwError: As many widths as axes are needed; in forward, positions beyond the grid.

    Example:
        >>> import dldw.nn
        >>> dldw.nn.AxialPositions((64, 128), 256)(5000).shape
        torch.Size([5000, 256])
    """

    def __init__(self, shape: Sequence[int], widths: int | Sequence[int]) -> None:
        super().__init__()
        if isinstance(widths, int):
            each, more = divmod(widths, len(shape))
            widths = [each + (i < more) for i in range(len(shape))]
        if len(widths) != len(shape):
            raise DldwError(
                f"shape has {len(shape)} axes and widths {len(widths)}: each axis needs its own number of features."
            )
        self.shape = tuple(shape)
        sizes = [[n if i == axis else 1 for i in range(len(shape))] for axis, n in enumerate(shape)]
        self.weights = nn.ParameterList(torch.randn(*s, d) for s, d in zip(sizes, widths, strict=True))

    @property
    def length(self) -> int:
        """How many positions there are."""
        return math.prod(self.shape)

    def forward(self, length: int, start: int = 0) -> Tensor:
        """The embeddings of positions ``start`` to ``start + length``, [length, width]."""
        if start + length > self.length:
            grid = " x ".join(map(str, self.shape))
            raise DldwError(
                f"position {start + length - 1} lies beyond the {self.length} positions of a grid of {grid}. Shorten the "
                "input, or make the grid larger."
            )
        at = torch.arange(start, start + length, device=self.weights[0].device)
        parts, cells = [], 1
        for n, weight in zip(reversed(self.shape), reversed(list(self.weights)), strict=True):
            parts.append(weight.view(n, -1).index_select(0, at // cells % n))
            cells *= n
        return torch.cat(parts[::-1], -1)
