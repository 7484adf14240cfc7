"""A stand-in W + A Bᵀ gives what the sum gives in every operation, and low-rank noise varies as its closed form says."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dldw
from dldw import perturbed
from dldw.directional import Directional
from dldw.low_rank import LowRank
from dldw.perturbed import Perturbed
from dldw.slopes import Central
from dldw.weights import Weights
from tests.harness import Made

RANKS = pytest.mark.parametrize("rank", [1, 3])


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + seed))


def stand_in(*shape, rank):
    return Perturbed(normal(*shape), normal(shape[0], rank, seed=1), normal(math.prod(shape[1:]), rank, seed=2))


def assert_same(operation, weight):
    with torch.no_grad():
        wanted = operation(weight.materialised())
        torch.testing.assert_close(operation(weight), wanted, rtol=1e-10, atol=1e-10)
    with torch.enable_grad():
        torch.testing.assert_close(operation(weight), wanted, rtol=1e-10, atol=1e-10)


def without_fallback(monkeypatch):
    def refuse(self):
        raise AssertionError("the weight was materialised")

    monkeypatch.setattr(Perturbed, "materialised", refuse)


@RANKS
@pytest.mark.parametrize("lead", [(), (5,), (2, 5)], ids=str)
def test_linear(rank, lead):
    x, bias = normal(*lead, 4), normal(6)
    assert_same(lambda w: F.linear(x, w, bias), stand_in(6, 4, rank=rank))
    assert_same(lambda w: F.linear(x, w), stand_in(6, 4, rank=rank))


@RANKS
def test_products(rank):
    x, batch, bias = normal(5, 6), normal(2, 5, 6), normal(4)
    for operation in (
        lambda w: x @ w,
        lambda w: torch.mm(x, w),
        lambda w: torch.matmul(batch, w),
        lambda w: torch.addmm(bias, x, w),
        lambda w: torch.addmm(bias, x, w, beta=0.5, alpha=2),
        lambda w: torch.einsum("bi,ij->bj", x, w),
        lambda w: w @ normal(4, 3),
        lambda w: x @ (2 * w),
    ):
        assert_same(operation, stand_in(6, 4, rank=rank))


@RANKS
def test_autocast_inside_the_model(rank):
    x, weight = normal(5, 4).float(), normal(6, 4).float()
    w = Perturbed(weight, normal(6, rank).float(), normal(4, rank).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                y = F.linear(x, w)
                assert y.dtype == torch.bfloat16
                torch.testing.assert_close(y, F.linear(x, w.materialised()), rtol=0.05, atol=0.1)


@RANKS
def test_embedding(rank):
    indices = torch.tensor([[0, 2, 2], [5, 1, 0]])
    assert_same(lambda w: F.embedding(indices, w), stand_in(6, 4, rank=rank))


@RANKS
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("batch", [(2,), ()], ids=str)
def test_convolution(rank, groups, batch):
    bias = normal(8)
    for convolve, size in ((F.conv1d, (9,)), (F.conv2d, (9, 7)), (F.conv3d, (5, 6, 7))):
        x, weight = normal(*batch, 4, *size), stand_in(8, 4 // groups, *[3] * len(size), rank=rank)
        assert_same(lambda w, x=x, f=convolve: f(x, w, bias, stride=2, padding=1, groups=groups), weight)
        assert_same(lambda w, x=x, f=convolve: f(x, w, dilation=2, padding="same", groups=groups), weight)


@RANKS
def test_norms_and_anything_else_get_the_sum(rank):
    x = normal(3, 4)
    assert_same(lambda w: F.layer_norm(x, (4,), w[0], w[1]), stand_in(2, 4, rank=rank))
    assert_same(lambda w: w.square().sum(), stand_in(6, 4, rank=rank))
    assert_same(lambda w: torch.linalg.norm(w), stand_in(6, 4, rank=rank))


def test_operations_with_a_rule_never_make_the_sum(monkeypatch):
    without_fallback(monkeypatch)
    w, conv = stand_in(6, 4, rank=1), stand_in(6, 4, 3, 3, rank=1)
    with torch.no_grad():
        F.linear(normal(5, 4), w)
        normal(5, 6) @ w
        torch.addmm(normal(4), normal(5, 6), w)
        F.embedding(torch.tensor([1, 2]), w)
        F.conv2d(normal(1, 4, 5, 5), conv)
        assert (w.shape, w.dtype, w.device, w.ndim, w.size(0), w.numel()) == (
            torch.Size([6, 4]), torch.float64, torch.device("cpu"), 2, 6, 24,
        )  # fmt: skip


def test_a_materialised_weight_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(perturbed, "_materialised_for", set())
    with caplog.at_level(logging.DEBUG, "dldw"):
        for _ in range(2):
            stand_in(6, 4, rank=1).sum()
    assert [r.message for r in caplog.records] == [
        "sum has no rule for a perturbed weight, so the weight is materialised for it"
    ]


def test_a_step_that_bf16_weights_would_round_away_still_moves_the_output():
    weight, step = torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([[1e-3, -1e-3]], dtype=torch.bfloat16)
    assert torch.equal(weight + step, weight)
    x = torch.tensor([[1.0, -1.0]], dtype=torch.bfloat16)
    assert F.linear(x, weight + step) == 0
    with torch.no_grad():
        assert float(F.linear(x, Perturbed(weight, torch.ones(1, 1, dtype=torch.bfloat16), step.mT))) == pytest.approx(
            2e-3, rel=1e-2
        )


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@RANKS
def test_stacked_factors_are_the_perturbed_weights_column_after_column(noise, rank):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(5, 4)).double()
    weights = Weights(model)
    drawn = LowRank(3, rank, noise).draw(weights, torch.Generator().manual_seed(0), 0, 3)
    scales = [[0.1, 0.2], [-0.3, -0.4]]
    with torch.no_grad():
        stacked = drawn.stacked(weights, 1, scales)
        for column in range(2):
            for row in range(2):
                for s, one in zip(stacked, drawn.perturbed(weights, 1 + row, scales[column][row]), strict=True):
                    at = 2 * column + row
                    many = s.stack()[at]
                    one = one.materialised() if isinstance(one, Perturbed) else one
                    torch.testing.assert_close(many, one)


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
@RANKS
def test_the_estimate_is_the_sum_of_slopes_times_directions(noise, rank):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(5, 4)).double()
    weights = Weights(model)
    drawn = LowRank(3, rank, noise).draw(weights, torch.Generator().manual_seed(0), 0, 3)
    for p in weights.tensors:
        p.grad = torch.ones_like(p)
    drawn.accumulate(weights, [0.5, -1.0, 2.0])
    for i, p in enumerate(weights.tensors):
        wanted = 1 + sum(c * drawn.tangents(weights, row)[i] for row, c in enumerate([0.5, -1.0, 2.0]))
        torch.testing.assert_close(p.grad, wanted)


class Matrix(nn.Module):
    def __init__(self, m, n):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(m, n, dtype=torch.float64))


@pytest.mark.parametrize(
    ("rank", "noise", "relative"),
    [
        (1, "sign", lambda m, n: m * n - 1),
        (1, "gaussian", lambda m, n: m * n + 3 + 2 * (m + n)),
        (2, "gaussian", lambda m, n: m * n + 1 + (m + n + 1)),
        (4, "gaussian", lambda m, n: m * n + 1 + (m + n + 1) / 2),
    ],
)
def test_variance_on_a_linear_loss(rank, noise, relative):
    m, n, draws = 5, 7, 4000
    model, gradient = Matrix(m, n), normal(m, n)
    source = Directional(
        lambda model, batch: (model.w * gradient).sum(),
        LowRank(1, rank, noise),
        Central(1.0),
        generator=torch.Generator().manual_seed(0),
    )
    errors = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        model.w.grad = None
        source(model, None)
        errors[i] = (model.w.grad - gradient).square().sum() / gradient.square().sum()
    deviation = errors.std() / math.sqrt(draws)
    assert abs(float(errors.mean()) - relative(m, n)) < 5 * float(deviation) + 1e-9 * relative(m, n)


def test_equal_shapes_have_noise_of_their_own():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    first, second = LowRank(1).draw(Weights(model), torch.Generator().manual_seed(0), 0, 1).tangents(Weights(model), 0)
    assert not torch.equal(first, second)


def test_probing_allocates_nothing_of_the_size_of_the_weights():
    model, x = nn.Linear(1024, 1024, bias=False), torch.randn(2, 1024)
    source = dldw.LowRankEvolution(lambda m, b: m(b).square().mean(1), population=2)
    model.weight.grad = torch.zeros_like(model.weight)
    with Made() as made:
        source(model, x)
    assert made.sizes
    assert max(made.sizes) < model.weight.numel()
