"""The visible units of a restricted Boltzmann machine: what their energy is, and how they are drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError
from dldw.noise import draw_words


class Units(nn.Module, ABC):
    """Visible units v with the joint energy E(v, h) = energy(v, b) - c·h - hᵀ W scaled(v).

    The conditional distribution of v depends on h through the field b + Wᵀh alone.
    """

    @abstractmethod
    def scaled(self, v: Tensor) -> Tensor:
        """What W is multiplied with, [..., visible]."""

    @abstractmethod
    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        """The part of the energy that the hidden units have no share in, [...]."""

    @abstractmethod
    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        """log of the sum, or integral, of exp(-energy(v, bias) + (field - bias)·scaled(v)) over all v, [...]."""

    @abstractmethod
    def mean_(self, field: Tensor) -> Tensor:
        """Puts E[v | h] in the place of the field."""

    @abstractmethod
    def draw(self, mean: Tensor, generator: torch.Generator | None, *, out: Tensor | None = None) -> Tensor:
        """A draw from p(v | h) with ``mean`` = E[v | h], into ``out`` where it is given, which may be ``mean`` itself."""

    @abstractmethod
    def bias_of(self, mean: Tensor) -> Tensor:
        """The bias with which independent units have about this mean, [visible]."""

    def check(self, low: float, high: float) -> None:
        """Raises ``DldwError`` where values from ``low`` to ``high`` are not all what such units can be."""


class BernoulliUnits(Units):
    """v in {0, 1}, or the probability of 1."""

    def scaled(self, v: Tensor) -> Tensor:
        return v

    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        return -(v @ bias)

    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        return F.softplus(field).sum(-1)

    def mean_(self, field: Tensor) -> Tensor:
        return field.sigmoid_()

    def draw(self, mean: Tensor, generator: torch.Generator | None, *, out: Tensor | None = None) -> Tensor:
        return bernoulli(mean, generator, out=out)

    def bias_of(self, mean: Tensor) -> Tensor:
        return mean.clamp(0.01, 0.99).logit()

    def check(self, low: float, high: float) -> None:
        if low < 0 or high > 1:
            raise DldwError(
                f"Bernoulli units are 0 or 1, or a probability between, and got values from {low:.3g} to {high:.3g}. "
                "Scale them to [0, 1], or use visible_units='gaussian' on standardised data."
            )


class GaussianUnits(Units):
    """v ~ N(b + Wᵀh, σ²), with one variance for each unit; scaled(v) = v / σ² (Cho, Ilin & Raiko 2011).

    Args:
        count: How many.
        variance: σ² of every unit at first.
        learned: Whether it is trained.
    """

    def __init__(self, count: int, variance: float, learned: bool) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.full((count,), math.log(variance)), requires_grad=learned)

    def scaled(self, v: Tensor) -> Tensor:
        return v * torch.exp(-self.log_variance)

    def energy(self, v: Tensor, bias: Tensor) -> Tensor:
        return (v - bias).square() @ torch.exp(-self.log_variance) / 2

    def log_integral(self, field: Tensor, bias: Tensor) -> Tensor:
        squares = (field.square() - bias.square()) * torch.exp(-self.log_variance)
        return (squares + self.log_variance + math.log(2 * math.pi)).sum(-1) / 2

    def mean_(self, field: Tensor) -> Tensor:
        return field

    def draw(self, mean: Tensor, generator: torch.Generator | None, *, out: Tensor | None = None) -> Tensor:
        noise = torch.empty_like(mean).normal_(generator=generator)
        return torch.addcmul(mean, noise, torch.exp(self.log_variance / 2), out=out)

    def bias_of(self, mean: Tensor) -> Tensor:
        return mean


def bernoulli(p: Tensor, generator: torch.Generator | None = None, *, out: Tensor | None = None) -> Tensor:
    """Draws that are 1 with probability ``p``, into ``out`` where it is given, which may be ``p`` itself.

    Random bits cost as much as the matrix products around them, so each draw takes 16, and the 8 below these are drawn once
    for all. So each draw is 1 with probability p to 24 bits, as with ``torch.rand(()) < p`` in float32, and draws depend on
    each other only where their 16 bits decide nothing, which has probability 2^-16.
    """
    if p.dtype in (torch.bfloat16, torch.float16):
        drawn = bernoulli(p.float(), generator).to(p.dtype)
        return drawn if out is None else out.copy_(drawn)
    words = draw_words(p.numel() // 4 + 2, p.device, generator)
    below = p.new_full((), -(2**15) - (int(words[-1]) & 255) / 256)
    bits = words.view(torch.int16)[: p.numel()].view(p.shape)
    out = torch.add(below, p, alpha=2**16, out=out)
    return torch.lt(bits, out, out=out)
