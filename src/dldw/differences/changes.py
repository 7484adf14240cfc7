"""How a tensor changes for each of n members, as little of it as there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Entry:
    """One entry of a weight changes, for each member its own.

    Attributes:
        shape: Of the weight; a tensor that repeats the weight along leading dimensions may have this change, too.
        offset: Which entry, in logical order [n].
        step: By how much [n].
    """

    shape: tuple[int, ...]
    offset: Tensor
    step: Tensor

    @property
    def at(self) -> tuple[Tensor, Tensor]:
        """Row and column of a matrix's entry [n]."""
        return self.offset // self.shape[1], self.offset % self.shape[1]

    def transposed(self) -> Entry:
        """The same entry of the transposed matrix."""
        row, column = self.at
        return Entry((self.shape[1], self.shape[0]), column * self.shape[0] + row, self.step)

    def dense(self, shape: torch.Size) -> Tensor:
        n, size = len(self.offset), torch.Size(self.shape).numel()
        out = self.step.new_zeros(n, size).scatter_(1, self.offset.unsqueeze(1), self.step.unsqueeze(1))
        return out.view(n, *[1] * (len(shape) - len(self.shape)), *self.shape).expand(n, *shape)


@dataclass
class Unit:
    """The output of one unit of a linear layer changes, for each member its own, as much as any one of its weights does it.

    In every row b by scale times the largest |x_bj|, which is what a step of this length on a weight of the unit can do.

    Attributes:
        row: Which unit [n]; None for a bias, which is a weight whose x is 1.
        scale: Of the change [n].
        spots: How many consecutive rows make a group.
        spot: Which row of every group changes [n]; all rows where it is None.
        of_lookup: Whether the layer is an embedding, whose x is 1 for the row that is looked up and 0 elsewhere.
    """

    row: Tensor | None
    scale: Tensor
    spots: int = 1
    spot: Tensor | None = None
    of_lookup: bool = False


@dataclass
class Column:
    """One index of one dimension changes, for each member its own.

    Attributes:
        dim: The dimension.
        index: Which index [n].
        values: The change there [n, *shape without dim].
    """

    dim: int
    index: Tensor
    values: Tensor

    def of(self, base: Tensor) -> Tensor:
        """The part of ``base`` that changes, [n, *shape without dim]."""
        return base.movedim(self.dim, 0)[self.index]

    def dense(self, shape: torch.Size) -> Tensor:
        out = self.values.new_zeros(len(self.index), shape[self.dim], *self.values.shape[1:])
        out[torch.arange(len(self.index), device=self.index.device), self.index] = self.values
        return out.movedim(1, self.dim + 1)


Change = Tensor | Entry | Unit | Column
"""What changes; a tensor [n, *shape] where all of it may."""
