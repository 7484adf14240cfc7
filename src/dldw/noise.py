"""Noise by counter: the same numbers for the same key and counter, in any order and as often as asked for, never stored."""

from __future__ import annotations

from functools import cache
from types import EllipsisType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Distribution = Literal["rademacher", "gaussian"]
Key = tuple[int, int]
"""128 bits, as two numbers below 2^63, that make the noise of one direction its own."""

TILE = 1 << 20
"""Numbers made at a time: enough for a product to run at full speed, few beside any model that needs to be streamed."""

Rows = slice | EllipsisType
"""Rows of a weight; a weight without dimensions is one piece."""


def tiles(p: Tensor, numbers: int | None = None) -> list[Rows]:
    """The rows of a weight, as many at a time as make a tile, or so many numbers: the same for every weight of that shape."""
    if not p.ndim:
        return [...]
    height = max(1, (numbers or TILE) * len(p) // max(1, p.numel()))
    return [slice(start, min(start + height, len(p))) for start in range(0, len(p), height)]


def draw_keys(generator: torch.Generator, count: int) -> list[Key]:
    """Keys from ``generator``, the same for the same state."""
    words = torch.empty((count, 2), dtype=torch.int64, device=generator.device).random_(generator=generator)
    return [(first, second) for first, second in words.tolist()]


def fill(out: Tensor, distribution: Distribution, key: Key, *counter: int) -> Tensor:
    """Fills ``out``, contiguous, with independent numbers of mean 0 and variance 1.

    Args:
        out: Any floating dtype and device. The numbers are the same on devices of one kind.
        distribution: ``rademacher`` (signs) or ``gaussian`` (on the CPU as ``normal`` has many).
        key: Whose noise.
        counter: Which part of it, up to three numbers below 2^63.
    """
    if distribution == "rademacher":
        return _unpack(words((out.numel() + 63) // 64, out.device, key, *counter), out)
    if out.is_cpu:
        return _quantiles(words((out.numel() + 3) // 4, out.device, key, *counter), out)
    generator = torch.Generator(out.device)
    wind(generator, key, *counter)
    return out.normal_(generator=generator)


def words(count: int, device: torch.device, key: Key, *counter: int) -> Tensor:
    """Random words of 64 bits, int64 [count]."""
    if device.type == "cpu":
        philox = _philox(key, counter)
        return _stream(philox.random_raw(3), count) if count >= _MANY else _signed(philox.random_raw(count))
    generator = torch.Generator(device)
    wind(generator, key, *counter)
    return torch.empty(count, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)


def wind(generator: torch.Generator, key: Key, *counter: int) -> None:
    """Puts ``generator`` into a state that belongs to ``key`` and ``counter`` alone.

    A seed would not do on the CPU: torch takes 32 bits of it, so among the draws of a long run some would be the same.
    """
    philox = _philox(key, counter)
    generator.manual_seed(int(philox.random_raw()) >> 1)
    if generator.device.type == "cpu":
        state = generator.get_state()
        state.view(torch.int64)[_TWISTER] = torch.from_numpy(philox.random_raw(312).view(np.uint32).astype(np.int64))
        generator.set_state(state)


_TWISTER = slice(3, 627)
"""Where the state of a CPU generator, as 64-bit words, has the 624 words of the Mersenne Twister."""


def _philox(key: Key, counter: tuple[int, ...]) -> np.random.Philox:
    """A stream of 64-bit words for each key and counter (Salmon et al. 2011); the lowest word counts within it."""
    return np.random.Philox(key=key, counter=(0, *counter, *[0] * (3 - len(counter))))


def draw_words(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Random words of 64 bits from ``generator``, int64 [count], the same for the same state.

    Many on the CPU are a stream of SFC64 that the generator seeds: half the time of its own, the Mersenne Twister's.
    """
    own = 3 if device.type == "cpu" and count >= _MANY else count
    drawn = torch.empty(own, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return drawn if own == count else _stream(drawn.numpy().view(np.uint64), count)


_MANY = 4096
"""Words from which a stream of their own takes less time, seed and all."""


def _stream(seed: NDArray[np.uint64], count: int) -> Tensor:
    return _signed(np.random.SFC64(seed).random_raw(count))


def _signed(words: NDArray[np.uint64]) -> Tensor:
    return torch.from_numpy(words.view(np.int64))


def normal(out: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fills ``out`` with independent numbers of a normal distribution.

    Many on the CPU are one of 65,536 quantiles each, in two thirds of the time: mean 0 and variance 1, kurtosis 3 to 2e-4,
    none beyond 4.4. Unlike logarithms and cosines these are the same on every processor.
    """
    count = (out.numel() + 3) // 4
    if out.is_cpu and count >= _MANY:
        return _quantiles(draw_words(count, out.device, generator), out)
    return out.normal_(generator=generator)


def _quantiles(words: Tensor, out: Tensor) -> Tensor:
    """Of a normal distribution, one for each 16 bits of ``words``."""
    table, at, size = _normal_table(out.dtype), words.view(torch.uint16).int()[: out.numel()], out.numel()
    if out.is_contiguous():
        torch.index_select(table, 0, at, out=out.view(size))
        return out
    return out.copy_(torch.index_select(table, 0, at).view(out.shape))


@cache
def _normal_table(dtype: torch.dtype) -> Tensor:
    """The mean of each of 65,536 equally likely parts of a normal distribution, scaled to a variance of 1."""
    edges = torch.special.ndtri(torch.arange(2**16 + 1, dtype=torch.float64) / 2**16)
    means = (-edges.square() / 2).exp().diff().neg()
    table: Tensor = (means / means.square().mean().sqrt()).to(dtype)
    return table


def signs(out: Tensor, generator: torch.Generator) -> Tensor:
    """Fills ``out`` with random signs, 64 to each random word, as ``bernoulli_`` takes a draw for each."""
    return _unpack(draw_words((out.numel() + 63) // 64, out.device, generator), out)


def _unpack(words: Tensor, out: Tensor) -> Tensor:
    """The bits of ``words`` as signs, by a table of what each byte stands for: a quarter of the time of shifting them."""
    table, octets, size = _table(out.dtype, out.device), words.view(torch.uint8).int(), out.numel()
    if size % 8 == 0 and out.is_contiguous():
        torch.index_select(table, 0, octets[: size // 8], out=out.view(-1, 8))
        return out
    return out.copy_(torch.index_select(table, 0, octets).view(-1)[:size].view(out.shape))


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device) & 1
    return (1 - 2 * bits).to(dtype)
