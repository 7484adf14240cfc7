"""A stand-in W + A Bᵀ gives what the sum gives in every operation, and low-rank noise varies as its closed form says."""

import logging
import math
from unittest import mock

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


def full(t):
    return t.weight + (t.a @ t.b.mT).view(t.shape) if isinstance(t, Perturbed) else t


def assert_same(operation, weight):
    """With thin products and with sums made for the moment, with and without autograd."""
    for cheap in (False, True):
        for grad in (False, True):
            with torch.set_grad_enabled(grad), mock.patch.object(perturbed, "_cheap", lambda *_, c=cheap: c):
                wanted = operation(full(weight))
                torch.testing.assert_close(operation(weight), wanted, rtol=1e-10, atol=1e-10)


def without_fallback(monkeypatch):
    def refuse(self):
        raise AssertionError("the weight was materialised")

    monkeypatch.setattr(Perturbed, "materialised", refuse)
    monkeypatch.setattr(perturbed, "_cheap", lambda weight, numbers: False)


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
        lambda w: x @ w.T.mT,
        lambda w: x @ w[1:3].t() if w.shape[1] == 6 else x[:, 1:3] @ w[1:3],
        lambda w: w @ normal(4, 3),
        lambda w: x @ (2 * w),
    ):
        assert_same(operation, stand_in(6, 4, rank=rank))


@RANKS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_16_bits(rank, dtype):
    made = stand_in(6, 4, rank=rank)
    w = Perturbed(made.weight.to(dtype), (0.1 * made.a).to(dtype), made.b.to(dtype))
    for operation in (
        lambda x, b, w: F.linear(x, w, b),
        lambda x, b, w: F.linear(x, w),
        lambda x, b, w: x @ w.mT,
        lambda x, b, w: torch.addmm(b, x, w.t()),
        lambda x, b, w: torch.addmm(b, x, w.t(), beta=0.5, alpha=2),
        lambda x, b, w: x[0] @ w.mT,
    ):
        x, bias = normal(50, 4).to(dtype), normal(6).to(dtype)
        wide = operation(x.double(), bias.double(), w.weight.double() + w.a.double() @ w.b.double().mT)
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                found = operation(x, bias, w)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), wide, rtol=0.02, atol=0.05)


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
def test_views(rank):
    x, y = normal(5, 4), normal(5, 6)
    for operation in (
        lambda w: torch.cat([F.linear(x, part) for part in w.chunk(4)], 1),
        lambda w: torch.cat([F.linear(x, part) for part in torch.chunk(w, 3, dim=0)], 1),
        lambda w: torch.cat([F.linear(x, part) for part in w.split([1, 5])], 1),
        lambda w: torch.cat([F.linear(x, part) for part in torch.split(w, 4)], 1),
        lambda w: torch.cat([F.linear(y, part) for part in w.mT.split(3)], 1),
        lambda w: F.linear(x, w[2:]),
        lambda w: F.linear(x, w[4:2]),
        lambda w: y @ w.transpose(0, 1).transpose(-1, -2),
        lambda w: y @ w.transpose(0, 0),
        lambda w: torch.add(other=F.linear(input=y, weight=w.transpose(dim0=0, dim1=1)), input=w[:5]),
        lambda w: torch.cat([F.linear(x, part) for part in w.split(split_size=4, dim=-2)], 1),
        lambda w: torch.cat(w.split([1, 3], dim=1), 1),
        lambda w: w[::2] + w[0],
    ):
        assert_same(operation, stand_in(6, 4, rank=rank))


@RANKS
@pytest.mark.parametrize(
    "equation",
    ["bi,ij->bj", "bj,ij->bi", "bi, ij -> ijb", "bzi,ij->bzj", "...i,ij->...j", "bi,bj,ij->b", "bi,ij", "bji,ij->b"],
)
def test_einsum(rank, equation):
    sizes = {"b": 3, "i": 6, "j": 4, "z": 2, ".": 2}
    terms = equation.replace(" ", "").replace("...", ".").split("->")[0].split(",")
    inputs = [normal(*(sizes[letter] for letter in term)) for term in terms[:-1]]
    assert_same(lambda w: torch.einsum(equation, *inputs, w), stand_in(6, 4, rank=rank))


@RANKS
def test_einsum_on_a_weight_of_three_dimensions(rank):
    x, y = normal(2, 5, 6), normal(2, 5, 3, 4)
    assert_same(lambda w: torch.einsum("bsd,dhk->bshk", x, w), stand_in(6, 3, 4, rank=rank))
    assert_same(lambda w: torch.einsum("bshk,hkd->bsd", y, w), stand_in(3, 4, 6, rank=rank))
    assert_same(lambda w: torch.einsum("dhk,bsd->bshk", [w, x]), stand_in(6, 3, 4, rank=rank))


@RANKS
def test_einsum_of_two_weights_or_of_a_diagonal(rank):
    assert_same(lambda w: torch.einsum("ij,kj->ik", w, w), stand_in(6, 4, rank=rank))
    assert_same(lambda w: torch.einsum("ii->i", w), stand_in(4, 4, rank=rank))


@RANKS
def test_positions_and_class_tokens_are_added_and_expanded(rank):
    x = normal(2, 5, 4)
    for weight in (stand_in(1, 5, 4, rank=rank), stand_in(5, 4, rank=rank), stand_in(1, 1, 4, rank=rank)):
        assert_same(lambda w: x + w, weight)
        assert_same(lambda w: w + x, weight)
        assert_same(lambda w: torch.add(x, w, alpha=2), weight)
        assert_same(lambda w: w + 1.0, weight)
    assert_same(lambda w: x[:, :3] + w[:3], stand_in(5, 4, rank=rank))
    assert_same(lambda w: torch.cat([w.expand(2, -1, -1), x], 1), stand_in(1, 1, 4, rank=rank))
    assert_same(lambda w: w.expand(2, -1, -1), stand_in(5, 4, rank=rank))


ATTENTION = {
    "itself": lambda f, x, y: f(x, x, x),
    "another": lambda f, x, y: f(x, y, y),
    "three": lambda f, x, y: f(x, y, y + 1),
    "masked": lambda f, x, y: f(x, x, x, attn_mask=torch.ones(3, 3).triu(1).bool(), is_causal=True, need_weights=False),
    "padded": lambda f, x, y: f(x, y, y, key_padding_mask=torch.tensor([[False] * 4 + [True]] * 2)),
    "each head": lambda f, x, y: f(x, y, y, average_attn_weights=False),
}


@RANKS
@pytest.mark.parametrize("called", ATTENTION)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
def test_attention_with_a_packed_projection(rank, called, options, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(8, 2, batch_first=True, **options).double()
    x, y = normal(2, 3, 8), normal(2, 5, 8)
    if "mask" in called and "add_bias_kv" in options:
        layer.bias_k = layer.bias_v = None
    projections = [(layer, "in_proj_weight"), (layer.out_proj, "weight")]
    moved = [stand_in(*module._parameters[name].shape, rank=rank) for module, name in projections]

    def run(weights):
        for (module, name), weight in zip(projections, weights, strict=True):
            module._parameters[name] = weight
        return ATTENTION[called](layer, x, y)

    with torch.no_grad():
        wanted, weights = run([full(w) for w in moved])
        without_fallback(monkeypatch)
        found, found_weights = run(moved)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert (weights is None) == (found_weights is None)
    if weights is not None:
        torch.testing.assert_close(found_weights, weights, rtol=1e-10, atol=1e-10)


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
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_estimate_is_the_sum_of_slopes_times_directions(layout, noise, rank):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(5, 4)).double().to(memory_format=layout)
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
