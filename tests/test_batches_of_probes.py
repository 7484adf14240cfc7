"""Many probes at the price of few forwards: shared baselines, and directions for each example."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dldw
from dldw.evaluate import Evaluator
from tests.contract.checks import seeded


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + seed))


def relative_variance(source, model, batch, gradient, draws):
    """Mean and standard error of ‖ghat - g‖² / ‖g‖²."""
    errors = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        model.weight.grad = None
        source(model, batch)
        errors[i] = (model.weight.grad - gradient).square().sum() / gradient.square().sum()
    return float(errors.mean()), float(errors.std()) / math.sqrt(draws)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize(
    ("baseline", "closed"),
    [
        ("original", lambda d, n: (d - 1) / n),
        ("leave-one-out", lambda d, n: (d - 1) / n + (d + 1) / (n * (n - 1))),
    ],
)
def test_variance_of_one_sided_batches_on_a_linear_loss(baseline, closed, n):
    model, gradient = nn.Linear(4, 3, bias=False).double(), normal(3, 4)
    source = dldw.OneSidedBatch(
        lambda m, b: (m.weight * gradient).sum() + 3, sigma=0.5, directions=n, baseline=baseline, generator=seeded(0)
    )
    mean, error = relative_variance(source, model, None, gradient, 3000)
    assert abs(mean - closed(12, n)) < 5 * error


def test_a_normalised_step_does_not_know_the_scale_of_the_loss():
    grads = []
    for scale in (1.0, 1000.0):
        model = nn.Linear(4, 3).double()
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        source = dldw.OneSidedBatch(
            lambda m, b, scale=scale: scale * m(b).square().sum(1), normalise=True, generator=seeded(1)
        )
        source(model, torch.ones(2, 4, dtype=torch.float64))
        grads.append(model.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_normalised_estimates_are_the_slopes_over_the_deviation_of_the_losses():
    def build(**settings):
        model = nn.Linear(4, 3, bias=False).double()
        nn.init.ones_(model.weight)
        taken = []

        def loss(m, b):
            taken.append(float(m(b).square().mean()))
            return m(b).square().mean()

        source = dldw.OneSidedBatch(loss, sigma=0.1, evaluate="sequential", generator=seeded(1), **settings)
        source(model, torch.ones(2, 4, dtype=torch.float64))
        return model.weight.grad, taken

    plain, taken = build()
    normalised, _ = build(normalise=True)
    deviation = torch.tensor(taken[:8], dtype=torch.float64).std()
    torch.testing.assert_close(normalised, plain * 0.1 / deviation)


@pytest.mark.parametrize("settings", [{"normalise": True}, {"baseline": "leave-one-out"}], ids=str)
def test_probes_that_are_compared_with_each_other_are_at_least_two(settings):
    with pytest.raises(dldw.DldwError, match="directions must be at least 2 where probes are compared"):
        dldw.OneSidedBatch(lambda m, b: m(b), directions=1, **settings)


def test_normalised_estimates_refuse_to_be_accumulated():
    model = nn.Linear(4, 3)
    source = dldw.OneSidedBatch(lambda m, b: m(b).square().sum(1), normalise=True)
    source(model, torch.ones(2, 4))
    with pytest.raises(dldw.AccumulationError, match="do not add up"):
        source(model, torch.ones(2, 4))


@pytest.mark.parametrize("baseline", ["antithetic", "original"])
def test_variance_of_a_direction_for_each_example_on_a_linear_loss(baseline):
    """(mn - 1) · mean‖g_b‖² / (B ‖g‖²), and the variance over the batch is none, as the batch is the same."""
    model, x, c = nn.Linear(4, 3, bias=False).double(), normal(6, 4), normal(6, 3)
    each = torch.einsum("bm,bn->bmn", c, x)
    gradient = each.mean(0)
    source = dldw.PerExamplePerturbation(
        lambda m, b: (m(b[0]) * b[1]).sum(1), sigma=0.5, baseline=baseline, generator=seeded(0)
    )
    mean, error = relative_variance(source, model, (x, c), gradient, 3000)
    closed = 11 * each.square().sum((1, 2)).mean() / (6 * gradient.square().sum())
    assert abs(mean - float(closed)) < 5 * error


def test_many_examples_are_many_directions_for_the_price_of_one():
    model, x, c = nn.Linear(20, 10, bias=False).double(), normal(64, 20), normal(64, 10)
    x, c = x + 2, c + 1  # gradients of examples that agree
    gradient = torch.einsum("bm,bn->mn", c, x) / 64

    def loss(m, b):
        return (m(b[0]) * b[1]).sum(1)

    own = relative_variance(dldw.PerExamplePerturbation(loss, generator=seeded(0)), model, (x, c), gradient, 50)
    one = relative_variance(dldw.SPSA(loss, generator=seeded(0)), model, (x, c), gradient, 50)
    assert own[0] < one[0] / 20


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Embedding(9, 6), nn.Flatten(), nn.Linear(18, 5), nn.LayerNorm(5), nn.Dropout(0.5), nn.Linear(5, 3)
        ).double()


def test_one_pass_and_one_example_at_a_time_give_the_same_estimate():
    batch = torch.randint(9, (4, 3), generator=seeded(2)), torch.arange(4) % 3
    found = []
    for mode in ("batched", "sequential"):
        model = network().eval()
        source = dldw.PerExamplePerturbation(
            lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"),
            evaluate=mode,
            generator=seeded(3),
        )
        found.append([float(source(model, batch)), *(p.grad for p in model.parameters())])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ((torch.ones(4, 2), torch.ones(3)), r"needs a batch of tensors \[B, ...\], got first dimensions 3, 4"),
        ((torch.ones(4, 2), torch.tensor(1.0)), "got first dimensions 4, None"),
        ((), "got first dimensions of no tensor"),
    ],
)  # fmt: skip
def test_batches_whose_examples_cannot_be_told_apart_are_refused(batch, text):
    with pytest.raises(dldw.DldwError, match=text):
        dldw.PerExamplePerturbation(lambda m, b: m(b[0]).square().sum(1))(nn.Linear(2, 1), batch)


def test_one_example_is_not_compared_with_others():
    source = dldw.PerExamplePerturbation(lambda m, b: m(b).square().sum(1), baseline="leave-one-out")
    with pytest.raises(dldw.DldwError, match="the batch holds one example, and leave-one-out compares it with others"):
        source(nn.Linear(2, 1), torch.ones(1, 2))
    with pytest.raises(dldw.DldwError, match="baseline must be one of antithetic, original, leave-one-out, got 'none'"):
        dldw.PerExamplePerturbation(lambda m, b: m(b), baseline="none")


def test_an_evaluator_with_a_memory_bound_of_its_own_can_be_given():
    evaluator = Evaluator("batched", memory=1 << 20)
    source = dldw.LowRankEvolution(lambda m, b: m(b).square().sum(1), population=8, evaluate=evaluator)
    assert source(nn.Linear(2, 1), torch.ones(4, 2)).isfinite()
    assert source._evaluator is evaluator
