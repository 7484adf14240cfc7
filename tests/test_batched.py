"""The population rules give what one member after the other gives."""

import pytest
import torch
import torch.nn.functional as F

from dldw.batched import population_map

MEMBERS = 5


def stacked(*shape):
    return torch.randn(MEMBERS, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def one_by_one(function, tensors):
    return torch.stack([function([t[i] for t in tensors]) for i in range(MEMBERS)])


def assert_same(function, *tensors):
    with torch.no_grad():
        torch.testing.assert_close(population_map(function, list(tensors)), one_by_one(function, tensors))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_a_shared_input(shape, bias):
    x = torch.randn(shape, dtype=torch.float64)
    weights = [stacked(6, 4), stacked(6)] if bias else [stacked(6, 4)]
    assert_same(lambda w: F.linear(x, *w), *weights)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_linear_after_linear(shape):
    x = torch.randn(shape, dtype=torch.float64)
    assert_same(
        lambda w: F.linear(F.linear(x, w[0], w[1]).tanh(), w[2], w[3]),
        stacked(6, 4),
        stacked(6),
        stacked(2, 6),
        stacked(2),
    )


def test_linear_with_a_bias_that_no_member_changes():
    x, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert_same(lambda w: F.linear(x, w[0], bias), stacked(6, 4))


def test_linear_with_a_weight_that_no_member_changes():
    x, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    assert_same(lambda w: F.linear(x, weight, w[0]), stacked(6))


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "none"},
        {"reduction": "mean"},
        {"reduction": "sum"},
        {"label_smoothing": 0.1},
        {"weight": torch.arange(1.0, 5.0, dtype=torch.float64)},
        {"ignore_index": 2, "reduction": "none"},
    ],
    ids=str,
)
def test_cross_entropy_with_every_option(options):
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 2, 0])
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]), y, **options), stacked(4, 3))


def test_cross_entropy_that_ignores_the_default_index():
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, -100, 2])
    assert_same(lambda w: F.cross_entropy(F.linear(x, w[0]), y, reduction="none"), stacked(4, 3))


def test_cross_entropy_does_not_overflow():
    y = torch.tensor([0, 1])
    with torch.no_grad():
        loss = population_map(lambda w: F.cross_entropy(w[0], y), [torch.full((MEMBERS, 2, 3), 1e4)])
    torch.testing.assert_close(loss, torch.full((MEMBERS,), 3.0).log())


@pytest.mark.parametrize("causal", [True, False])
def test_attention_folds_the_population_into_the_batch(causal):
    k, v = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64)
    assert_same(lambda w: F.scaled_dot_product_attention(w[0], k, v, is_causal=causal), stacked(2, 3, 7, 4))


@pytest.mark.parametrize("mask_shape", [(7, 7), (2, 1, 7, 7)], ids=str)
def test_attention_with_a_mask(mask_shape):
    k, v = torch.randn(2, 2, 3, 7, 4, dtype=torch.float64)
    mask = torch.ones(mask_shape, dtype=torch.bool).tril()
    assert_same(lambda w: F.scaled_dot_product_attention(w[0], k, v, mask), stacked(2, 3, 7, 4))


def test_a_gradient_taken_inside_the_function_is_right():
    x = torch.randn(3, 4, dtype=torch.float64)

    def penalty(w):
        with torch.enable_grad():
            return torch.func.grad(lambda v: F.linear(x, v).square().sum())(w[0]).square().sum()

    assert_same(penalty, stacked(6, 4))
