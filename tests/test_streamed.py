"""Noise by counter is the same whenever it is made, and a weight that is never made in full gives what the sum gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dldw
from dldw import noise
from dldw.directional import Directional
from dldw.noise import draw_keys, fill, wind
from dldw.slopes import Central
from dldw.streamed import Moving, Noise, Streamed
from dldw.weights import Weights
from tests.harness import Made

DISTRIBUTIONS = pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + seed))


# --- noise by counter ----------------------------------------------------------------------------------------------


@DISTRIBUTIONS
def test_noise_has_mean_zero_variance_one_and_its_fourth_moment(distribution):
    z = fill(torch.empty(1 << 20, dtype=torch.float64), distribution, (1, 2), 3, 4)
    n, fourth = len(z), 1 if distribution == "rademacher" else 3
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - fourth) < 5 * math.sqrt(96 / n)


@DISTRIBUTIONS
def test_noise_of_another_key_or_counter_is_independent(distribution):
    places = [((k, k2), c, t) for k in (0, 1, 2**40) for k2 in (0, 7) for c in (0, 1, 2**33) for t in (0, 1)]
    rows = torch.stack([fill(torch.empty(1 << 14), distribution, key, c, t) for key, c, t in places])
    correlation = rows @ rows.T / rows.shape[1] - torch.eye(len(rows))
    assert correlation.fill_diagonal_(0).abs().max() < 6 / math.sqrt(rows.shape[1])


@DISTRIBUTIONS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_noise_is_the_same_in_any_order(distribution, dtype):
    def part(counter):
        return fill(torch.empty(1000, dtype=dtype), distribution, (5, 6), counter)

    first, second = part(1), part(2)
    assert torch.equal(part(2), second)
    assert torch.equal(part(1), first)
    assert not torch.equal(first, second)


def test_states_differ_where_seeds_of_32_bits_would_be_equal():
    """torch's generator on the CPU looks at 32 bits of a seed, so that 2^16 draws would do for two equal ones."""
    a, b = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1 + 2**32)
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b))
    first = set()
    for counter in range(1 << 10):
        wind(a, (1, 2), counter)
        first.add(tuple(a.get_state().view(torch.int64)[3:627].tolist()))
        wind(b, (1, 2), counter)
        assert torch.equal(torch.randn(20, generator=a), torch.randn(20, generator=b))
    assert len(first) == 1 << 10


@pytest.mark.parametrize("count", [100, 1 << 18])
def test_normal_numbers_follow_their_distribution(count):
    z = noise.normal(torch.empty(count, dtype=torch.float64), torch.Generator().manual_seed(0)).sort().values
    distance = (torch.special.ndtr(z) - (torch.arange(count) + 0.5) / count).abs().max()  # Kolmogorov and Smirnov's
    assert distance < 2 / math.sqrt(count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_table_of_normal_numbers_has_their_moments(dtype):
    table, fine = noise._normal_table(dtype).double(), torch.finfo(dtype).eps
    assert torch.equal(table, -table.flip(0))
    assert table.square().mean() == pytest.approx(1, abs=fine)
    assert (table**4).mean() == pytest.approx(3, abs=3e-4 + fine)


@pytest.mark.parametrize("shape", [(1 << 16,), (3, 30_001)], ids=str)
def test_what_is_drawn_is_the_same_for_the_same_state_wherever_it_is_written(shape):
    def drawn(out):
        generator = torch.Generator().manual_seed(7)
        return noise.normal(out, generator).clone(), noise.draw_words(out.numel(), out.device, generator)

    (z, words), (spread, same) = drawn(torch.empty(shape)), drawn(torch.empty(*shape, 2)[..., 0])
    assert torch.equal(z, spread)
    assert torch.equal(words, same)
    generator = torch.Generator().manual_seed(7)
    first, second = (noise.normal(torch.empty(shape), generator) for _ in range(2))
    assert torch.equal(first, z)
    assert not torch.equal(first, second)


def test_all_bits_of_drawn_words_are_fair():
    for count in (noise._MANY - 1, noise._MANY):
        bits = np.unpackbits(
            noise.draw_words(count, torch.device("cpu"), torch.Generator().manual_seed(3)).numpy().view(np.uint8)
        )
        ones = bits.reshape(count, 64).mean(0)
        assert abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(count)


def test_signs_are_the_bits_of_the_words():
    words = torch.tensor([0b1011, -1], dtype=torch.int64)
    assert noise._unpack(words, torch.empty(3)).tolist() == [-1.0, -1.0, 1.0]
    assert noise._unpack(words, torch.empty(128)).tolist() == [-1.0, -1.0, 1.0, -1.0] + [1.0] * 60 + [-1.0] * 64
    assert noise._unpack(words, torch.empty(2, 4).T).flatten().tolist() == [-1.0, -1.0, 1.0, -1.0] + [1.0] * 4


def test_keys_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first = draw_keys(torch.Generator().manual_seed(0), 3)
    assert first == draw_keys(torch.Generator().manual_seed(0), 3)
    assert len({part for key in first for part in key}) == 6
    assert torch.equal(torch.get_rng_state(), state)


# --- the stand-in --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(noise, "TILE", 12)


def stand_in(*shape, distribution="gaussian"):
    return Moving(Noise(normal(*shape), distribution, (1, 2), 0), 0.1)


@pytest.mark.usefixtures("small_tiles")
@DISTRIBUTIONS
def test_operations_on_tiles_give_what_the_sum_gives(distribution):
    w = stand_in(7, 4, distribution=distribution)
    x, y, bias, out = normal(5, 4), normal(2, 3, 7), normal(7), normal(4)
    indices = torch.tensor([[0, 2, 2], [6, 1, 0]])
    for operation in (
        lambda w: F.linear(x, w, bias),
        lambda w: F.linear(normal(2, 3, 4), w),
        lambda w: F.linear(normal(4), w, bias),
        lambda w: y @ w,
        lambda w: torch.mm(y[0], w),
        lambda w: torch.addmm(out, y[0], w),
        lambda w: torch.addmm(out, normal(1, 7), w),
        lambda w: torch.addmm(out, y[0], w, beta=0.5, alpha=2),
        lambda w: torch.einsum("bi,ij->bj", y[0], w),
        lambda w: F.embedding(indices, w),
        lambda w: F.layer_norm(normal(3, 7, 4), (7, 4), w),
        lambda w: x @ w.T,
        lambda w: torch.mm(x, w.mT),
        lambda w: torch.addmm(bias, x, w.t()),
        lambda w: F.linear(y, w.T, out),
        lambda w: F.linear(y[0], w.transpose(0, 1)),
        lambda w: w.T.materialised() if isinstance(w, Moving) else w.T,
        lambda w: torch.cat([F.linear(x, part) for part in w.chunk(3)], 1),
        lambda w: torch.cat([F.linear(x, part, bias[:2]) for part in w[1:].split(2)], 1),
        lambda w: y[..., :4] @ w[2:6],
        lambda w: F.linear(y[..., 1:4], w[1:4].T),
        lambda w: torch.cat([F.linear(y, part) for part in w.T.split(2)], -1),
        lambda w: F.embedding(indices.clamp(max=1), w[2:]),
    ):
        wanted = operation(w.materialised())
        with torch.no_grad():
            torch.testing.assert_close(operation(w), wanted, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operation(w), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(out, normal(4))


@pytest.mark.usefixtures("small_tiles")
def test_the_bias_that_is_added_is_not_written(monkeypatch):
    monkeypatch.setattr(Moving, "materialised", None)
    bias, w = normal(4), stand_in(7, 4)
    with torch.no_grad():
        torch.addmm(bias, normal(1, 7), w)
        F.linear(normal(1, 4), w, normal(7))
        F.embedding(torch.tensor([1]), w)
        normal(1, 4) @ w.T
        F.linear(normal(1, 4), w[1:3])
    assert torch.equal(bias, normal(4))


@DISTRIBUTIONS
@pytest.mark.parametrize("tile", [12, 1 << 20])
def test_probe_and_update_use_the_same_noise(distribution, tile, monkeypatch):
    monkeypatch.setattr(noise, "TILE", tile)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 7), nn.Conv1d(2, 3, 3, padding=1)).double()
    model.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    weights = Weights(model)
    drawn = Streamed(3, distribution).draw(weights, torch.Generator().manual_seed(0), 0, 3)
    with torch.no_grad():
        for row in range(3):
            moved, z = drawn.perturbed(weights, row, 0.5), drawn.tangents(weights, row)
            stacked = drawn.stacked(weights, row, [[0.5]])
            for p, m, t, s in zip(weights.tensors, moved, z, stacked, strict=True):
                torch.testing.assert_close(m.materialised() if isinstance(m, Moving) else m, p + 0.5 * t)
                torch.testing.assert_close(s.stack()[0], p + 0.5 * t)
        for p in weights.tensors:
            p.grad = torch.ones_like(p)
        drawn.accumulate(weights, [0.5, -1.0, 2.0])
        for i, p in enumerate(weights.tensors):
            wanted = 1 + sum(c * drawn.tangents(weights, row)[i] for row, c in enumerate([0.5, -1.0, 2.0]))
            torch.testing.assert_close(p.grad, wanted)


@pytest.mark.parametrize("tile", [12, 1 << 20])
def test_tensors_of_one_shape_and_directions_of_one_step_have_noise_of_their_own(tile, monkeypatch):
    monkeypatch.setattr(noise, "TILE", tile)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    drawn = Streamed(2).draw(Weights(model), torch.Generator().manual_seed(0), 0, 2)
    made = [z for row in range(2) for z in drawn.tangents(Weights(model), row)]
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])


@pytest.mark.parametrize(("distribution", "relative"), [("rademacher", lambda d: d - 1), ("gaussian", lambda d: d + 1)])
@pytest.mark.parametrize("q", [1, 4])
@pytest.mark.parametrize("tile", [12, 1 << 20])
def test_variance_on_a_linear_loss(distribution, relative, q, tile, monkeypatch):
    monkeypatch.setattr(noise, "TILE", tile)
    model, gradient, draws = nn.Linear(5, 7, bias=False).double(), normal(7, 5), 1500
    source = Directional(
        lambda model, batch: (model.weight * gradient).sum(),
        Streamed(q, distribution),
        Central(1.0),
        generator=torch.Generator().manual_seed(0),
    )
    errors = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        model.weight.grad = None
        source(model, None)
        errors[i] = (model.weight.grad - gradient).square().sum() / gradient.square().sum()
    assert abs(float(errors.mean()) - relative(35) / q) < 5 * float(errors.std()) / math.sqrt(draws) + 1e-9


def test_probing_makes_nothing_larger_than_a_tile(monkeypatch):
    monkeypatch.setattr(noise, "TILE", 1 << 14)
    model, x = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 8)), torch.randn(2, 512)
    source = dldw.MeZO(lambda m, b: m(b).square().mean(1), evaluate="sequential")
    source.estimate(model, x)  # the table of normal numbers, smaller than a tile of a real model, is made once
    with Made() as made:
        source.estimate(model, x)
    assert made.sizes
    assert max(made.sizes) <= 1 << 14
    assert max(made.sizes) < max(p.numel() for p in model.parameters())


def test_unknown_settings_are_refused():
    with pytest.raises(dldw.DldwError, match="directions must be at least 1, got 0: without one there is nothing"):
        Streamed(0)
    with pytest.raises(dldw.DldwError, match="distribution must be rademacher or gaussian, got 'cauchy'"):
        dldw.MeZO(lambda m, b: m(b), distribution="cauchy")
