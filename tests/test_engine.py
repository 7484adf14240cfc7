"""The engine: directions, slopes, combinations, and evaluation within a memory bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dldw
from dldw.directional import CenteredRanks, Directional, Mean, Standardised
from dldw.directions import AllCoordinates, Gaussian, Rademacher, RandomCoordinates, Sphere
from dldw.evaluate import Evaluator
from dldw.objective import Objective
from dldw.slopes import Central, Jvp, OneSided, ScoreFunction
from dldw.weights import Weights
from tests.contract import checks, problems
from tests.contract.checks import close, dot, estimate, gradients, seeded
from tests.contract.variants import Variant

# --- directions ----------------------------------------------------------------------------------------------------


def drawn_vectors(directions, model: nn.Module, n: int) -> torch.Tensor:
    """The directions as rows [n, d]."""
    weights = Weights(model)
    drawn = directions.draw(weights, seeded(1), 0, n)
    return torch.stack([torch.cat([t.reshape(-1) for t in drawn.tangents(weights, i)]) for i in range(n)])


def test_weights_follow_a_model_into_another_precision():
    model = nn.Linear(3, 2)
    assert Weights.of(model).dtype == torch.float32
    model.double()
    assert (Weights.of(model).dtype, Weights.of(model).bytes) == (torch.float64, 64)


@pytest.fixture
def model() -> nn.Module:
    return problems.mlp().model[2:]  # 12 + 3 + 1 weights, one of them without dimensions


@pytest.mark.parametrize("kind", [Gaussian, Rademacher, Sphere])
def test_random_directions_have_mean_zero_and_unit_covariance(kind, model):
    n = 20_000
    z = drawn_vectors(kind(n), model, n)
    d = z.shape[1]
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(n)
    assert float((z.T @ z / n - torch.eye(d, dtype=z.dtype)).abs().max()) < 5 * math.sqrt(2 / n)


def test_rademacher_directions_are_signs(model):
    z = drawn_vectors(Rademacher(500), model, 500)
    assert set(z.unique().tolist()) == {-1.0, 1.0}


def test_sphere_directions_have_length_root_d(model):
    z = drawn_vectors(Sphere(500), model, 500)
    assert torch.allclose(z.norm(dim=1), torch.full((500,), math.sqrt(z.shape[1]), dtype=z.dtype), rtol=1e-12)


def test_gaussian_directions_have_the_fourth_moment_of_gaussians(model):
    z = drawn_vectors(Gaussian(20_000), model, 20_000)
    assert float(z.pow(4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / z.numel()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_signs_are_signs_in_every_type(dtype):
    z = drawn_vectors(Rademacher(64), nn.Linear(13, 7).to(dtype), 64)
    assert set(z.float().unique().tolist()) == {-1.0, 1.0}
    assert abs(float(z.float().mean())) < 5 / math.sqrt(z.numel())


def test_all_coordinates_are_the_unit_vectors_in_order(model):
    d = sum(p.numel() for p in model.parameters())
    assert torch.equal(drawn_vectors(AllCoordinates(), model, d), torch.eye(d, dtype=torch.float64))


def test_random_coordinates_are_unit_vectors(model):
    z = drawn_vectors(RandomCoordinates(50), model, 50)
    assert torch.equal(z.sum(1), torch.ones(50, dtype=z.dtype))
    assert torch.equal(z.count_nonzero(dim=1), torch.ones(50, dtype=torch.int64))


@pytest.mark.parametrize("directions", [Gaussian(6), Rademacher(6), Sphere(6), RandomCoordinates(6), AllCoordinates()])
def test_a_combination_is_the_sum_of_its_directions(directions, model):
    weights = Weights(model)
    drawn = directions.draw(weights, seeded(2), 0, 6)
    coefficients = np.linspace(-1, 2, 6)
    total = [torch.zeros_like(p) for p in weights.tensors]
    for i, c in enumerate(coefficients):
        for t, z in zip(total, drawn.tangents(weights, i), strict=True):
            t += c * z
    drawn.accumulate(weights, coefficients.tolist())
    assert close([p.grad for p in weights.tensors], total, rtol=1e-12)


@pytest.mark.parametrize("directions", [Gaussian(5), Rademacher(5), Sphere(5), RandomCoordinates(5), AllCoordinates()])
def test_stacked_weights_are_the_perturbed_ones_column_after_column(directions, model):
    weights = Weights(model)
    drawn = directions.draw(weights, seeded(3), 0, 5)
    scales = np.array([[0.1, -0.2]] * 5) * np.arange(1, 6)[:, None]
    with torch.no_grad():
        moved = drawn.stacked(weights, 1, scales[1:4].T.tolist())
        stacked = [s if isinstance(s, torch.Tensor) else s.stack() for s in moved]
    for column in range(2):
        for row in range(1, 4):
            one = drawn.perturbed(weights, row, float(scales[row, column]))
            for s, t, p in zip(stacked, one, weights.tensors, strict=True):
                member = p if s is p else s[column * 3 + row - 1]
                assert torch.allclose(member, t, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("directions", [Gaussian(1), Rademacher(1), Sphere(1), RandomCoordinates(1)])
def test_perturbed_weights_are_not_the_weights_themselves(directions, model):
    weights = Weights(model)
    before = [p.detach().clone() for p in weights.tensors]
    moved = directions.draw(weights, seeded(4), 0, 1).perturbed(weights, 0, 0.5)
    assert any(not torch.equal(m, b) for m, b in zip(moved, before, strict=True))
    assert all(torch.equal(p, b) for p, b in zip(weights.tensors, before, strict=True))


@pytest.mark.parametrize(("kind", "text"), [(Gaussian, "directions"), (RandomCoordinates, "weights")])
def test_no_direction_at_all_is_an_error(kind, text):
    with pytest.raises(dldw.DldwError, match=rf"{text} must be at least 1, got 0"):
        kind(0)


# --- slopes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slope", "tolerance"),
    [(Jvp(), 1e-12), (Central(1e-4), 1e-7), (OneSided(1e-6), 1e-4), (Central(None), 1e-7), (OneSided(None), 1e-4)],
)
def test_slopes_along_the_coordinates_are_the_gradient(slope, tolerance):
    problem = problems.mlp()
    make = lambda loss, generator: Directional(loss, AllCoordinates(), slope, generator=generator)  # noqa: E731
    assert close(estimate(make, problem), problem.autograd(), rtol=tolerance, atol=tolerance)


def test_central_difference_is_exact_on_a_quadratic_however_long_the_step():
    problem = problems.QuadraticProblem()
    got = estimate(lambda loss, g: dldw.FiniteDifference(loss, step=3.0), problem)
    assert torch.allclose(torch.cat([g.reshape(-1) for g in got]), problem.gradient, rtol=1e-12)


def test_one_sided_difference_is_off_by_half_the_step_times_the_curvature():
    problem = problems.QuadraticProblem()
    got = estimate(lambda loss, g: dldw.FiniteDifference(loss, step=0.5, central=False), problem)
    wanted = problem.gradient + 0.25 * problem.hessian.diag()
    assert torch.allclose(torch.cat([g.reshape(-1) for g in got]), wanted, rtol=1e-12)


def test_default_step_follows_the_coarsest_type():
    steps = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = nn.Linear(1, 1, bias=False).to(dtype)
        own, seen = float(model.weight.detach()), []

        def loss(m, x, seen=seen):
            seen.append(float(m.weight.detach()))
            return m.weight.double().sum()

        dldw.FiniteDifference(loss, evaluate="sequential")(model, None)
        steps.append(max(abs(w - own) for w in seen))
    for step, eps in zip(steps, (2**-52, 2**-23, 2**-7), strict=True):
        assert step == pytest.approx(eps ** (1 / 3), rel=0.6)


def test_score_function_keeps_the_loss_itself():
    problem = problems.QuadraticProblem()
    n, sigma = 4, 0.5
    source = Directional(problem.loss, Gaussian(n), ScoreFunction(sigma), generator=seeded(8))
    source(problem.model, problem.batch)
    got = torch.cat([g.reshape(-1) for g in gradients(problem.model)])
    weights = Weights(problem.model)
    drawn = Gaussian(n).draw(weights, seeded(8), 0, n)
    wanted = torch.zeros(6, dtype=torch.float64)
    own = problem.model().detach()
    for i in range(n):
        z = torch.cat([t.reshape(-1) for t in drawn.tangents(weights, i)])
        w = own + sigma * z
        loss = 0.5 * w @ problem.hessian @ w + problem.slope @ w + 0.3
        wanted += loss / sigma * z / n
    assert torch.allclose(got, wanted, rtol=1e-10)


# --- combine -------------------------------------------------------------------------------------------------------

losses_strategy = st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=2, max_size=40).map(
    lambda values: np.array(values[: len(values) // 2 * 2]).reshape(-1, 2)
)


def shaped_by(combine, losses):
    return np.array(combine.shape(losses.tolist()))


@settings(max_examples=60, deadline=None)
@given(losses_strategy)
def test_centered_ranks_keep_the_order_lie_within_a_half_and_sum_to_zero(losses):
    ranks = shaped_by(CenteredRanks(), losses)
    assert ranks.shape == losses.shape
    assert np.abs(ranks).max() <= 0.5
    assert abs(ranks.sum()) < 1e-9
    flat, shaped = losses.ravel(), ranks.ravel()
    for i in range(len(flat)):
        assert np.array_equal(flat < flat[i], shaped < shaped[i])


@settings(max_examples=60, deadline=None)
@given(losses_strategy, st.floats(0.1, 10), st.floats(-100, 100))
def test_centered_ranks_and_z_scores_ignore_scale_and_offset(losses, scale, offset):
    moved = losses * scale + offset
    z = shaped_by(Standardised(), losses)
    if np.ptp(losses) > 1:
        assert np.allclose(shaped_by(Standardised(), moved), z, atol=1e-6)
        assert z.mean() == pytest.approx(0, abs=1e-9)
        assert z.std() == pytest.approx(1, rel=1e-9)
    if len(np.unique(moved)) == len(np.unique(losses)):
        assert np.allclose(shaped_by(CenteredRanks(), moved), shaped_by(CenteredRanks(), losses))


def test_ranks_of_distinct_losses_are_those_of_the_paper():
    assert CenteredRanks().shape([[3.0, 1.0], [9.0, 2.0], [-4.0, 5.0]]) == [
        pytest.approx([0.1, -0.3]),
        pytest.approx([0.5, -0.1]),
        pytest.approx([-0.5, 0.3]),
    ]


@pytest.mark.parametrize("combine", [CenteredRanks(), Standardised()])
def test_equal_losses_have_no_preference(combine):
    assert not shaped_by(combine, np.full((3, 2), 7.0)).any()


def test_mean_takes_losses_as_they_are():
    losses = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert np.array_equal(shaped_by(Mean(), losses), losses)


def test_normalised_estimates_do_not_change_with_the_scale_of_the_loss():
    problem = problems.mlp()
    inner = problem.loss
    for shaping in ("centered_ranks", "z_score"):
        make = Variant("evolution-strategy", (("shaping", shaping),))
        one = estimate(make, problem)
        problem.loss = lambda model, batch: 1000 * inner(model, batch)
        many = estimate(make, problem)
        assert close(one, many, rtol=1e-6)
        problem.loss = inner


# --- a method nobody has named -------------------------------------------------------------------------------------

NAMED = {
    dldw.SPSA: lambda loss, g: Directional(loss, Rademacher(1), Central(1e-3), generator=g),
    dldw.FiniteDifference: lambda loss, g: Directional(loss, AllCoordinates(), Central(None), generator=g),
    dldw.ForwardGradient: lambda loss, g: Directional(loss, Gaussian(1), Jvp(), generator=g),
    dldw.EvolutionStrategy: lambda loss, g: Directional(
        loss, Gaussian(16), Central(0.05), CenteredRanks(), generator=g
    ),
}


@pytest.mark.parametrize("named", NAMED, ids=lambda c: c.__name__)
def test_named_method_is_the_engine_with_its_three_choices(named):
    problem = problems.mlp()
    assert close(estimate(lambda loss, g: named(loss, generator=g), problem), estimate(NAMED[named], problem))


@pytest.mark.parametrize("combine", [Mean(), CenteredRanks(), Standardised()], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("slope", [Central(1e-3), OneSided(1e-3), Jvp()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("directions", [Gaussian(64), Rademacher(64), Sphere(64)], ids=lambda d: type(d).__name__)
def test_every_composition_of_directions_slope_and_combine_points_uphill(directions, slope, combine):
    problem = problems.mlp()
    got = estimate(lambda loss, g: Directional(loss, directions, slope, combine, generator=g), problem)
    gradient = problem.autograd()
    cosine = dot(got, gradient) / math.sqrt(dot(got, got) * dot(gradient, gradient))
    if isinstance(slope, Jvp) or isinstance(combine, Mean):
        assert cosine > 0.4
    else:
        assert cosine > 0.2


# --- evaluation ----------------------------------------------------------------------------------------------------


def bounded(source: Directional, memory: int) -> Directional:
    source._evaluator = Evaluator(source._evaluator.mode, memory=memory)
    return source


def counted(loss, calls: list[int]):
    def wrapped(model, batch):
        calls[0] += 1
        return loss(model, batch)

    return wrapped


MANY = {
    "spsa": lambda loss, g, e: dldw.SPSA(loss, directions=10, evaluate=e, generator=g),
    "sphere, one-sided": lambda loss, g, e: dldw.SPSA(
        loss, directions=10, distribution="sphere", two_sided=False, evaluate=e, generator=g
    ),
    "evolution strategy": lambda loss, g, e: dldw.EvolutionStrategy(loss, population=20, evaluate=e, generator=g),
    "not antithetic": lambda loss, g, e: dldw.EvolutionStrategy(
        loss, population=11, antithetic=False, shaping="z_score", evaluate=e, generator=g
    ),
    "finite difference": lambda loss, g, e: dldw.FiniteDifference(loss, evaluate=e, generator=g),
    "gaussian": lambda loss, g, e: dldw.SPSA(loss, directions=10, distribution="gaussian", evaluate=e, generator=g),
}


@pytest.mark.parametrize("memory", [1, 1 << 40], ids=["replayed", "held"])
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_directions_drawn_again_to_be_combined_are_those_that_were_probed(distribution, memory):
    """The directions are read off the weights that the loss was evaluated at: z = (w⁺ - w⁻)/2σ."""
    sigma, seen = 0.25, []
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64, generator=seeded(3))

    def loss(m, batch):
        value = m(batch).square().sum(1)
        weights = (m[0].weight, m[0].bias, m[2].weight, m[2].bias)
        seen.append((torch.cat([w.detach().reshape(-1) for w in weights]), float(value.detach().mean())))
        return value

    source = dldw.SPSA(
        loss, sigma=sigma, directions=7, distribution=distribution, evaluate="sequential", generator=seeded(1)
    )
    bounded(source, memory)
    probed = []
    for _ in range(3):  # the generator goes on after a replay as after a draw
        seen.clear()
        model.zero_grad()
        source(model, x)
        pairs = [(seen[i], seen[i + 1]) for i in range(0, 14, 2)]
        z = torch.stack([(plus - minus) / (2 * sigma) for (plus, _), (minus, _) in pairs])
        slopes = torch.tensor([(a - b) / (2 * sigma) for (_, a), (_, b) in pairs], dtype=torch.float64)
        got = torch.cat([g.reshape(-1) for g in gradients(model)])
        assert torch.allclose(got, slopes @ z / 7, rtol=1e-9, atol=1e-11)
        probed.append(z)
    everything = torch.cat(probed)
    assert len(everything.round(decimals=6).unique(dim=0)) == 21, "a direction was drawn twice"


@pytest.mark.parametrize("memory", [1, 1 << 40], ids=["replayed", "held"])
def test_generator_is_left_where_the_last_draw_left_it(memory):
    """Lengths of steps are drawn after directions, so that drawing the directions again ends somewhere else."""
    problem, states, generator = problems.mlp(), [], seeded(4)

    def loss(model, batch):
        states.append(generator.get_state())
        return problem.loss(model, batch)

    source = bounded(dldw.WeightPerturbation(loss, weights=4, generator=generator), memory)
    source(problem.model, problem.batch)
    assert torch.equal(generator.get_state(), states[-1])


def test_finite_differences_do_not_depend_on_the_memory_bound():
    problem = problems.mlp()
    for mode in ("sequential", "batched"):
        got = [
            estimate(lambda loss, g, m=m, mode=mode: bounded(dldw.FiniteDifference(loss, evaluate=mode), m), problem)
            for m in (1, 10_000, 1 << 30)
        ]
        assert close(got[0], got[1], rtol=1e-6, atol=1e-9)
        assert close(got[0], got[2], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MANY)
def test_sequential_and_batched_agree_within_a_tiny_memory_bound(name):
    problem = problems.mlp()
    got = [
        estimate(lambda loss, g, m=mode: bounded(MANY[name](loss, g, m), memory=1), problem)
        for mode in ("sequential", "batched")
    ]
    assert close(*got, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MANY)
def test_a_batched_chunk_keeps_to_the_memory_bound(name):
    """Under vmap the loss is called once for each chunk; twice the weights of its members is the least they take."""
    problem, calls = problems.mlp(), [0]
    member = 2 * sum(p.numel() * p.element_size() for p in problem.trainable)
    bound = 8 * member
    source = bounded(MANY[name](counted(problem.loss, calls), seeded(), "batched"), memory=bound)
    source(problem.model, problem.batch)
    calls[0] = 0
    if source.additive:
        source(problem.model, problem.batch)
    else:
        problem.model.zero_grad()
        source(problem.model, problem.batch)
    d = sum(p.numel() for p in problem.trainable)
    assert calls[0] >= math.ceil((source.forwards(d) - 1) / 8)


def test_an_estimate_from_replayed_directions_is_unbiased_too():
    checks.is_unbiased(
        lambda loss, g: bounded(dldw.SPSA(loss, directions=6, evaluate="batched", generator=g), memory=1),
        draws=500,
        variance=lambda problem: float(problem.gradient @ problem.gradient) * 5 / 6,
    )


def test_weights_of_a_recurrent_network_are_swapped():
    problem = problems.lstm()
    weights = Weights(problem.model)
    with torch.no_grad():
        weights.put([torch.zeros_like(p) for p in weights.tensors])
        assert not problem.model(problem.batch[0]).any()
        weights.restore()
        assert problem.model(problem.batch[0]).any()


def test_restored_weights_are_the_parameters_themselves():
    model = nn.Linear(2, 2)
    weights, own = Weights.of(model), model.weight
    weights.put([torch.zeros_like(p) for p in weights.tensors])
    assert not model.weight.any()
    weights.restore()
    assert model.weight is own


def replace_a_layer(model):
    model[0] = nn.Linear(4, 3)


def replace_a_parameter(model):
    model[0].weight = nn.Parameter(torch.ones(3, 4))


def add_a_layer(model):
    model.append(nn.Linear(2, 2))


def freeze_a_parameter(model):
    model[0].bias.requires_grad_(False)


def thaw_a_parameter(model):
    model[1].bias.requires_grad_(True)


def remove_a_bias(model):
    model[0].bias = None


def add_a_buffer(model):
    model.register_buffer("count", torch.zeros(1))


@pytest.mark.parametrize(
    "change",
    [
        replace_a_layer,
        replace_a_parameter,
        add_a_layer,
        freeze_a_parameter,
        thaw_a_parameter,
        remove_a_bias,
        add_a_buffer,
    ],
)
def test_a_model_that_changed_is_walked_again(change):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[1].bias.requires_grad_(False)
    before = Weights.of(model)
    assert Weights.of(model) is before
    change(model)
    after = Weights.of(model)
    assert [id(p) for p in after.tensors] == [id(p) for p in model.parameters() if p.requires_grad]
    assert len(after.buffers) == len(list(model.buffers()))


def test_weights_survive_a_round_trip_through_one_vector():
    model = problems.mlp().model
    weights = Weights(model)
    parts = weights.split(weights.flat())
    assert all(torch.equal(a, b) and a.shape == b.shape for a, b in zip(parts, weights.tensors, strict=True))
    assert weights.flat().shape == (weights.size,)


def test_parametrized_weights_are_trained_where_they_are_kept():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Tanh()).double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded())
    problem = problems.Problem(model, lambda m, batch: m(batch).square().sum(1), x)
    for evaluate in ("sequential", "batched"):
        got = estimate(lambda loss, g, e=evaluate: dldw.FiniteDifference(loss, evaluate=e), problem)
        assert close(got, problem.autograd(), rtol=1e-6, atol=1e-8)


def test_a_module_used_twice_is_perturbed_in_both_uses():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer).double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=seeded())
    problem = problems.Problem(model, lambda m, batch: m(batch).square().sum(1), x)
    assert close(estimate(lambda loss, g: dldw.FiniteDifference(loss), problem), problem.autograd(), 1e-6, 1e-8)


def test_means_are_summed_in_double_precision():
    """A million float32 losses of 0.1 and one direction in which they all grow by less than their last place."""
    model = nn.Linear(1, 1, bias=False)
    objective = Objective(model, lambda m, _: torch.full((1 << 20,), 0.1), None, Weights(model))
    assert objective.plain() == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_default_generator_is_seeded_by_manual_seed():
    problem = problems.mlp()
    runs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        problem.model.zero_grad()
        dldw.SPSA(problem.loss)(problem.model, problem.batch)
        runs.append(gradients(problem.model))
    assert close(runs[0], runs[1], rtol=0, atol=0)
    assert not close(runs[0], runs[2])


def test_a_weight_that_the_loss_does_not_reach_gets_a_finite_estimate():
    """Dead weights are not an error; only a loss that depends on none of them is."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

    for source in (dldw.SPSA, dldw.WeightPerturbation, dldw.FiniteDifference, dldw.ForwardGradient, dldw.Backprop):
        model = Half()
        made = source(lambda m, _: m.used.square().sum(), generator=seeded())
        for _ in range(6):
            made(model, None)
        if source in (dldw.FiniteDifference, dldw.Backprop):
            assert model.unused.grad is None or not model.unused.grad.any()


@pytest.mark.parametrize(
    "source", [dldw.SPSA, dldw.FiniteDifference, dldw.WeightPerturbation], ids=lambda c: c.__name__
)
def test_an_error_rate_that_a_small_step_does_not_change_is_not_an_error(source):
    """The rate on two examples takes three values, so that it is easily equal at two unrelated weights."""
    for seed in range(20):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, x = nn.Linear(3, 1), torch.randn(2, 3)
        made = source(lambda m, batch: (m(batch) > 0).float().mean(), generator=seeded(seed))
        assert made(model, x).isfinite()


def test_a_step_network_gets_a_zero_gradient_by_backprop_and_a_real_one_by_spsa():
    class Step(nn.Module):
        def forward(self, x):
            return (x > 0).to(x.dtype)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), Step(), nn.Linear(16, 1)).double()
        x = torch.randn(64, 4, dtype=torch.float64)
    loss = lambda m, batch: (m(batch) - batch[:, :1]).square().mean(1)  # noqa: E731
    dldw.Backprop(loss)(model, x)
    assert model[0].weight.grad is None or not model[0].weight.grad.any()
    model.zero_grad()
    dldw.SPSA(loss, sigma=0.1, directions=32, generator=seeded())(model, x)
    assert model[0].weight.grad.any()


# --- checkpointing -------------------------------------------------------------------------------------------------


def residual_net(depth: int = 8, width: int = 16) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, width), *(problems.Block(width) for _ in range(depth)), nn.Linear(width, 3))


def saved_bytes(source, model, batch) -> int:
    """Bytes that autograd holds on to for the backward pass, the weights not counted."""
    seen: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    inner = source.loss

    def measured(m, b):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            return inner(m, b)

    source.loss = measured
    source(model, batch)
    return sum(seen.values())


def test_checkpointing_holds_fewer_activations_and_gives_the_same_gradient():
    model = residual_net()
    batch = torch.randn(64, 4, generator=seeded()), torch.randint(3, (64,), generator=seeded())
    full = saved_bytes(dldw.Backprop(problems.cross_entropy), model, batch)
    wanted = gradients(model)
    model.zero_grad()
    thrifty = saved_bytes(dldw.Backprop(problems.cross_entropy, checkpoint=True), model, batch)
    assert close(gradients(model), wanted, rtol=1e-5, atol=1e-7)
    assert thrifty < full / 2


def test_checkpointing_named_submodules_recomputes_those_alone():
    model, calls = residual_net(3), []
    for i in range(5):
        model[i].register_forward_hook(lambda m, a, out, i=i: calls.append(i))
    batch = torch.randn(6, 4, generator=seeded()), torch.zeros(6, dtype=torch.int64)
    dldw.Backprop(problems.cross_entropy, checkpoint=["2"])(model, batch)
    inner = [c for c in calls if c != 2]
    assert inner == [0, 1, 3, 4]
    dldw.Backprop(problems.cross_entropy)(model, batch)
    assert "forward" not in model[2].__dict__


def test_checkpointing_leaves_the_model_as_it_was_when_the_loss_raises():
    model = residual_net(3)

    def loss(m, batch):
        m(batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dldw.Backprop(loss, checkpoint=True)(model, torch.zeros(2, 4))
    assert all("forward" not in m.__dict__ for m in model.modules())
