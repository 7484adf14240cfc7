"""``dldw.quality``: every figure against a closed form, or a calculation that knows nothing of it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import dldw
from dldw.compare import quality as measuring
from dldw.compare.estimate import exact_gradient, trained_point
from dldw.compare.sampled import distance
from dldw.tasks import load_task
from tests.contract.problems import QuadraticProblem


def quadratic(source, against=None, **settings) -> dldw.Quality:
    problem = QuadraticProblem()
    return dldw.quality(source(problem.loss), against, model=problem.model, batch=None, **settings)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("source", "variance"),
    [
        (lambda loss: dldw.SPSA(loss, generator=seeded()), 5),
        (lambda loss: dldw.SPSA(loss, directions=4, generator=seeded()), 5 / 4),
        (lambda loss: dldw.SPSA(loss, distribution="gaussian", generator=seeded()), 7),
        (lambda loss: dldw.ForwardGradient(loss, generator=seeded()), 7),
        (lambda loss: dldw.WeightPerturbation(loss, low=-1e-5, high=1e-5, generator=seeded()), 5),
        (lambda loss: dldw.WeightPerturbation(loss, weights=2, low=-1e-5, high=1e-5, generator=seeded()), 5 / 2),
    ],
    ids=["signs", "four signs", "gaussian", "forward mode", "one weight", "two weights"],
)
def test_the_variance_is_that_of_the_closed_form_on_the_card(source, variance):
    found = quadratic(source, draws=1000, narrow=0)
    assert found.draws == 1000
    assert found.predicted_variance == variance
    assert found.variance == pytest.approx(variance, rel=0.15)
    assert found.predicted_cosine == pytest.approx(1 / math.sqrt(1 + variance))
    assert found.bias_interval[0] < 0.1
    assert found.error == pytest.approx(math.sqrt(found.variance + found.bias**2))


def test_the_bias_of_a_one_sided_difference_is_half_the_step_times_the_curvature():
    problem = QuadraticProblem()
    found = quadratic(lambda loss: dldw.FiniteDifference(loss, step=0.3, central=False))
    exact = 0.15 * problem.hessian.diagonal()
    assert found.bias == pytest.approx(float(exact.norm() / problem.gradient.norm()), rel=1e-6)
    assert (found.variance, found.draws) == (0, 1)
    for part, rows in zip(found.parts, (slice(0, 4), slice(4, 6)), strict=True):
        assert part.bias == pytest.approx(float(exact[rows].norm() / problem.gradient[rows].norm()), rel=1e-6)
        other = problem.gradient[rows] + exact[rows]
        cosine = other @ problem.gradient[rows] / other.norm() / problem.gradient[rows].norm()
        assert part.cosine == pytest.approx(float(cosine), rel=1e-9)


def test_the_decrease_of_the_best_step_is_that_of_a_quadratic():
    problem = QuadraticProblem()
    g = problem.gradient
    best = float((g @ g) ** 2 / (2 * g @ problem.hessian @ g))
    found = quadratic(dldw.Backprop)
    assert 0.95 * best <= found.decrease <= best * (1 + 1e-9)
    assert found.lr == pytest.approx(float(g @ g / (g @ problem.hessian @ g)), rel=0.25)
    assert found.decrease_per_forward == pytest.approx(found.decrease / 3)


def test_the_learning_rate_is_that_of_the_source_as_it_is():
    """One weight of six adds up to a sixth of the gradient: its best rate is larger, and a step at it takes the decrease."""
    problem = QuadraticProblem()
    source = dldw.WeightPerturbation(problem.loss, low=-1e-5, high=1e-5, weights=6, generator=seeded(1))
    found = dldw.quality(source, model=problem.model, batch=None, draws=20)
    start, taken = problem.value(), []
    for _ in range(200):
        problem.model.zero_grad()
        source(problem.model, None)
        with torch.no_grad():
            for p in problem.model.parameters():
                p -= found.lr * p.grad
            taken.append(start - problem.value())
            for p in problem.model.parameters():
                p += found.lr * p.grad
    low, high = found.decrease_interval
    assert low <= sum(taken) / len(taken) <= high


def test_so_many_directions_reach_the_cosine():
    one = quadratic(lambda loss: dldw.SPSA(loss, generator=seeded()), draws=1000, narrow=0)
    needed = one.directions_for(0.9)
    many = quadratic(lambda loss: dldw.SPSA(loss, directions=needed, generator=seeded(1)), draws=500, narrow=0)
    assert many.directions == needed
    assert many.cosine == pytest.approx(0.9, abs=0.03)
    with pytest.raises(dldw.DldwError, match="cosine must be between 0 and 1, got 1: 1 itself is not reached"):
        one.directions_for(1)


def test_drawing_stops_when_the_interval_is_narrow():
    def spsa(loss):
        return dldw.SPSA(loss, directions=8, generator=seeded())

    found = quadratic(spsa, draws=5000, narrow=0.05)
    assert found.draws < 500
    half = (found.cosine_interval[1] - found.cosine_interval[0]) / 2
    assert half <= 0.05 * found.cosine
    assert quadratic(spsa, draws=5000, narrow=0.02).draws > found.draws


def test_the_interval_of_the_variance_holds_the_closed_form_in_19_streams_of_20():
    problem, held = QuadraticProblem(), 0
    for seed in range(60):
        source = dldw.SPSA(problem.loss, generator=seeded(seed))
        found = measuring.measure(source, problem.gradient, problem.model, None, draws=100, narrow=0)
        held += found.variance_interval[0] <= 5 <= found.variance_interval[1]
    assert 51 <= held < 60


def test_on_digits_the_variance_of_spsa_is_that_of_the_closed_form_over_many_streams():
    """One stream of 300 estimates strays by 8 % (the standard deviation of a mean of 300 squares); their mean does not."""
    task = load_task("digits")
    model, batch = trained_point(task, 0, 4)
    gradient, found = exact_gradient(task, model, batch).double(), []
    for seed in range(20_000, 20_012):
        source = dldw.SPSA(task.loss, generator=seeded(seed))
        found.append(measuring.measure(source, gradient, model, batch, draws=300, narrow=0).variance / 309)
    assert sum(found) / len(found) == pytest.approx(1, abs=0.08)
    assert 0.03 < torch.tensor(found).std() < 0.16


def test_the_interval_of_a_bias_holds_it_beside_noise():
    generator, held = seeded(), 0
    for _ in range(100):
        errors = torch.randn(10, 300, generator=generator, dtype=torch.float64)
        errors[:, 0] += 5
        held += distance(errors)[1] <= 25 <= distance(errors)[2]
    assert 86 <= held < 100


def test_the_predicted_cosine_is_the_root_mean_square_of_the_measured_ones():
    found = quadratic(lambda loss: dldw.SPSA(loss, generator=seeded()), draws=2000, narrow=0)
    assert found.cosine_rms == pytest.approx(1 / math.sqrt(6), rel=0.05)
    assert found.cosine < 0.9 * found.cosine_rms
    assert f"root mean square {found.cosine_rms:.3g}, predicted 0.408" in str(found)


def test_of_a_large_model_the_variance_is_told_and_the_bias_is_not(monkeypatch):
    whole = quadratic(lambda loss: dldw.SPSA(loss, generator=seeded()), draws=50)
    monkeypatch.setattr(measuring, "HELD", 1)
    found = quadratic(lambda loss: dldw.SPSA(loss, generator=seeded()), draws=50)
    assert found.variance == pytest.approx(whole.variance)
    assert (found.bias, found.bias_interval, found.error) == (None, None, None)


def test_a_source_without_a_loss_is_held_against_its_own_mean():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rbm = dldw.nn.RBM(6, 4)
    batch = torch.bernoulli(torch.full((40, 6), 0.7), generator=seeded())
    found = dldw.quality(dldw.ContrastiveDivergence(generator=seeded()), model=rbm, batch=batch, draws=40)
    assert (found.exact, found.bias, found.decrease) == (False, None, None)
    assert 0.3 < found.cosine <= 1


class Steps(nn.Module):
    """A network of hard steps, whose gradient is zero wherever it exists."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.a(x) > 0).to(x).mean(1)


def test_without_a_gradient_it_says_what_can_be_known():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch = Steps(), torch.randn(64, 20)
    source = dldw.SPSA(lambda model, x: model(x), sigma=0.1, generator=seeded())
    found = dldw.quality(source, model=model, batch=batch, draws=500, narrow=0)
    assert (found.exact, found.bias, found.error) == (False, None, None)
    assert found.variance == pytest.approx(found.predicted_variance, rel=0.3)
    assert found.cosine == pytest.approx(found.predicted_cosine, rel=0.3)
    assert found.decrease > 0
    assert "against their own mean, as there is no exact gradient" in str(found)
    with pytest.raises(dldw.DldwError, match="there is no exact gradient here, so the error of a slope cannot be told"):
        found.sweep()


def test_ranks_have_no_size():
    found = quadratic(lambda loss: dldw.EvolutionStrategy(loss, population=8, generator=seeded()), draws=200)
    assert (found.variance, found.bias, found.error, found.predicted_variance) == (None, None, None, None)
    assert 0 < found.cosine < 1
    assert found.directions_for(0.99) > found.directions


def test_another_source_may_take_the_place_of_the_gradient():
    problem = QuadraticProblem()
    exact = dldw.FiniteDifference(problem.loss)
    found = quadratic(lambda loss: dldw.Backprop(loss), exact)
    assert found.cosine == pytest.approx(1)
    assert found.bias < 1e-8


@pytest.mark.parametrize(("dtype", "low", "high"), [(torch.float64, 1e-7, 1e-5), (torch.float32, 1e-4, 1e-2)])
def test_the_valley_of_sigma_lies_where_truncation_and_rounding_balance(dtype, low, high):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
        batch = torch.randn(32, 8).to(dtype)
    source = dldw.SPSA(lambda model, x: model(x).square().squeeze(1), generator=seeded())
    valley = dldw.quality(source, model=model, batch=batch, draws=2).sweep()
    assert low <= valley.recommended <= high
    errors = dict(zip(valley.sigma, valley.error, strict=True))
    least = min(valley.error)
    assert errors[valley.recommended] <= 2 * least
    assert errors[valley.sigma[0]] > 100 * least
    assert errors[valley.sigma[-1]] > 100 * least
    assert f"{valley.recommended:10.2e}" in str(valley)


def test_truncation_grows_with_the_square_of_sigma():
    model = nn.Linear(5, 1, bias=False).double()
    source = dldw.SPSA(lambda model, _: model.weight.exp().sum(), generator=seeded())
    valley = dldw.quality(source, model=model, batch=None, draws=2).sweep([0.02, 0.01])
    assert valley.sigma == (0.01, 0.02)
    assert valley.error[1] / valley.error[0] == pytest.approx(4, rel=0.01)


def test_mistakes_are_explained():
    with pytest.raises(dldw.DldwError, match="draws must be at least 2, got 1: the variance of one estimate"):
        quadratic(dldw.Backprop, draws=1)
    with pytest.raises(dldw.DldwError, match="Backprop does not measure differences at w \\+ sigma z"):
        quadratic(dldw.Backprop).sweep()
    with pytest.raises(dldw.DldwError, match="sigma is empty, so there is nothing to sweep"):
        quadratic(lambda loss: dldw.SPSA(loss, generator=seeded()), draws=2).sweep([])
    flat = QuadraticProblem()
    zero = dldw.Backprop(lambda model, _: 0 * flat.loss(model, None))
    with pytest.raises(
        dldw.DldwError, match="the exact gradient is zero here, so the error of a slope has nothing to be"
    ):
        dldw.quality(dldw.SPSA(flat.loss), zero, model=flat.model, batch=None, draws=2).sweep()
    with pytest.raises(dldw.DldwError, match="have no direction in common"):
        dldw.Quality(**{**vars(quadratic(dldw.Backprop)), "variance": None, "cosine": 0.0}).directions_for(0.5)


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 1))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    source = dldw.SPSA(lambda model, x: model(x).square().squeeze(1), generator=seeded())
    found = dldw.quality(source, model=model, batch=torch.ones(8, 4), draws=30)
    found.sweep([1e-3])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[3].weight.grad is None


def test_it_prints_and_draws_itself():
    pytest.importorskip("altair")
    found = quadratic(lambda loss: dldw.SPSA(loss, generator=seeded()), draws=200)
    text = str(found)
    assert f"{found.draws} estimates of 6 weights against the gradient" in text
    assert "variance " in text
    assert ", predicted 5" in text
    assert "2 forwards and" in text
    bars = json.loads(found.plot().to_json())
    (rows,) = bars["datasets"].values()
    assert [row["tensor"] for row in rows] == ["a", "b"]
    valley = json.loads(found.sweep([0.1, 0.2]).plot().to_json())
    assert len(valley["layer"]) == 2
