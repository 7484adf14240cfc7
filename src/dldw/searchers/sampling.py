"""What several searchers draw and how they keep to bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.noise import draw_words, normal

Bounds = tuple[float | Sequence[float] | Tensor, float | Sequence[float] | Tensor]
"""Lower and upper bound, each one number or one for each of the d coordinates."""

Crossover = Literal["uniform", "one-point", "blend"]


def around(x0: Tensor, n: int, sigma: float, generator: torch.Generator) -> Tensor:
    """The point x0 [d] itself and n - 1 Gaussian points around it [n, d]."""
    points = normal(x0.new_empty((n, x0.numel())), generator).mul_(sigma)
    points[0] = 0
    return points.add_(x0)


def random_bytes(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform bytes in the shape of ``like`` [n, d], ``count`` times [count, n, d], eight to each random word.

    (byte + 1/2) / 256 stands for a uniform fraction at a seventh of the cost of drawing floats. Its mean is exactly 1/2 and
    its variance 1/12 within 2e-5: enough to weigh two points against each other, not to draw a coordinate from.
    """
    total = count * like.numel()
    drawn = draw_words((total + 7) // 8, like.device, generator).view(torch.uint8)[:total]
    return drawn.view(count, *like.shape)


def coins(p: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent ones with probability ``p``, to sixteen bits, and zeros in the shape and type of ``like`` [n, d]."""
    drawn = draw_words((like.numel() + 3) // 4, like.device, generator).view(torch.int16)[: like.numel()]
    return (drawn.to(torch.int32) < round(p * 65536) - 32768).view(like.shape).to(like.dtype)


def thinned(z: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """``z`` [..] with each entry kept with probability ``rate`` and zero otherwise, in place; at 1 nothing is drawn."""
    return z if rate == 1 else z.mul_(coins(rate, z, generator))


def share_of_the_father(crossover: Crossover, like: Tensor, generator: torch.Generator) -> Tensor:
    """What share of each coordinate of a child is its father's, in the shape and type of ``like`` [n, d]."""
    n, d = like.shape
    if crossover == "blend":
        return torch.empty_like(like).uniform_(-0.5, 1.5, generator=generator)
    if crossover == "uniform":
        return coins(0.5, like, generator)
    cut = torch.randint(1, max(2, d), (n, 1), generator=generator, device=like.device)
    return (torch.arange(d, device=like.device) >= cut).to(like.dtype)


def others(n: int, count: int, generator: torch.Generator) -> list[Tensor]:
    """For each of n rows, ``count`` distinct other rows: a list of index tensors [n]."""
    taken = [torch.arange(n, device=generator.device)]
    for already in range(1, count + 1):
        pick = torch.randint(n - already, (n,), generator=generator, device=generator.device)
        for t in torch.stack(taken).sort(0).values:  # skips the rows taken, from the lowest up
            pick += pick >= t
        taken.append(pick)
    return taken[1:]


class Box:
    """The box low <= x <= high, or all of space.

    Args:
        bounds: See ``Bounds``; None for no bounds.
        x0: The start point [d], which has to lie within.

    Raises:
        DldwError: A bound has the wrong length, the lower is not below the upper, or the start point lies outside.
    """

    def __init__(self, bounds: Bounds | None, x0: Tensor) -> None:
        self.bounded = bounds is not None
        low, high = bounds if bounds is not None else (-torch.inf, torch.inf)
        self.low, self.high = (torch.as_tensor(b, dtype=x0.dtype, device=x0.device) for b in (low, high))
        for b in (self.low, self.high):
            if b.shape not in ((), x0.shape):
                raise DldwError(
                    f"a bound must be one number or one for each of the {len(x0)} coordinates, got shape {list(b.shape)}."
                )
        if self.bounded and not ((self.low < self.high) & self.width.isfinite()).all():
            raise DldwError(
                "each bound must be finite and the lower below the upper. Leave a coordinate that is fixed out of the search."
            )
        if not ((self.low <= x0) & (x0 <= self.high)).all():
            raise DldwError("the start point lies outside the bounds, where no candidate may be. Move it inside.")

    @property
    def width(self) -> Tensor:
        """Upper bound less lower bound, [] or [d]."""
        return self.high - self.low

    def population(self, x0: Tensor, n: int, sigma: float | None, generator: torch.Generator) -> Tensor:
        """A first population [n, d]: Gaussian around x0, itself included; or, where sigma is None, even over the box.

        Over a box the start point is no member: one that is far better than all others makes copies of itself of them.
        """
        if sigma is None:
            return x0.new_empty((n, x0.numel())).uniform_(generator=generator).mul_(self.width).add_(self.low)
        return self.reflect(around(x0, n, sigma, generator))

    def reflect(self, x: Tensor) -> Tensor:
        """Mirrors ``x`` [n, d] at the walls, in place, as often as it takes."""
        if self.bounded:
            period = 2 * self.width
            x.sub_(self.low).remainder_(period)
            torch.minimum(x, period - x, out=x).add_(self.low)
            torch.minimum(torch.maximum(x, self.low, out=x), self.high, out=x)  # rounding may step over a wall
        return x

    def redraw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draws what lies outside anew within the bounds, in place."""
        if self.bounded:
            inside = (x >= self.low) & (x <= self.high)
            drawn = torch.empty_like(x).uniform_(generator=generator).mul_(self.width).add_(self.low)
            x.copy_(torch.where(inside, x, drawn))
        return x
