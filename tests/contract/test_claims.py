"""Every source is what its card claims: exact, unbiased with the known variance, good enough to train, and as dear."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dldw
from dldw.registry import method
from tests.contract import checks, problems
from tests.contract.checks import seeded
from tests.contract.variants import LOSS_FREE, SOURCES, Variant, claiming

# --- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", claiming("exact"), ids=str)
def test_exact_source_equals_autograd_in_float64(source):
    checks.equals_autograd(source)


@pytest.mark.parametrize("source", [s for s in SOURCES if s.method == "finite-difference"], ids=str)
def test_finite_differences_agree_with_autograd_to_their_truncation_error(source):
    one_sided = not dict(source.settings).get("central", True)
    checks.equals_autograd(source, rtol=1e-5 if one_sided else 1e-7, atol=1e-6 if one_sided else 1e-9)


# --- unbiased ------------------------------------------------------------------------------------------------------
# On L(w) = ½ wᵀHw + bᵀw + c with g = Hw + b:
#   E‖(g·z) z‖² = ‖g‖² times d for signs and the sphere, times d + 2 for Gaussians; subtracting ‖g‖² gives the variance.
#   A one-sided step adds (σ/2 zᵀHz) z, which is uncorrelated with the rest because z and -z are equally likely.
#   The score function L(w + σz)/σ · z keeps L(w) as well.
# Moments: with t = tr H and s = t² + 2 tr H²,
#   E[(zᵀHz)²‖z‖²] = (d + 4) s for Gaussians (radius and direction are independent), d² s / (d + 2) on the sphere,
#   d (t² + 2 Σ_{i≠j} H_ij²) for signs; E[zᵀHz ‖z‖²] = (d + 2) t for Gaussians.


def _moments(problem):
    h, g = problem.hessian, problem.gradient
    trace = float(h.trace())
    return float(g @ g), len(g), trace, trace**2 + 2 * float((h @ h).trace())


def _two_sided(distribution, n):
    def variance(problem):
        square, d, *_ = _moments(problem)
        return square * (d + 1 if distribution == "gaussian" else d - 1) / n

    return variance


def _one_sided(distribution, n, sigma):
    def variance(problem):
        _, d, trace, s = _moments(problem)
        off_diagonal = float((problem.hessian - problem.hessian.diag().diag()).square().sum())
        curved = {
            "gaussian": (d + 4) * s,
            "sphere": d * d * s / (d + 2),
            "rademacher": d * (trace**2 + 2 * off_diagonal),
        }[distribution]
        return _two_sided(distribution, n)(problem) + sigma**2 / 4 * curved / n

    return variance


def _score(n, sigma):
    def variance(problem):
        square, d, trace, s = _moments(problem)
        loss = problem.value()
        second = d * loss**2 / sigma**2 + (d + 2) * square + loss * (d + 2) * trace + sigma**2 / 4 * (d + 4) * s
        return (second - square) / n

    return variance


def _spsa(distribution, directions, sigma=None):
    settings = {"distribution": distribution, "directions": directions}
    if sigma is None:
        return Variant("spsa", tuple(settings.items())), _two_sided(distribution, directions)
    settings |= {"two_sided": False, "sigma": sigma}
    return Variant("spsa", tuple(settings.items())), _one_sided(distribution, directions, sigma)


def _evolution(population, sigma, antithetic):
    settings = {"shaping": "none", "population": population, "sigma": sigma, "antithetic": antithetic}
    # antithetic pairs are central differences along population / 2 Gaussians
    closed = _two_sided("gaussian", population // 2) if antithetic else _score(population, sigma)
    return Variant("evolution-strategy", tuple(settings.items())), closed


def _per_node(problem):
    """On a loss that is linear in the nodes: (nodes + 1) · mean‖g_i‖² / B."""
    return (problem.nodes + 1) * float(problem.each.square().sum(1).mean()) / len(problem.each)


def _per_example(problem):
    """All entries of a direction are signs, so each example has (d - 1) ‖g_i‖² of its own: (d - 1) · mean‖g_i‖² / B."""
    return (len(problem.gradient) - 1) * float(problem.each.square().sum(1).mean()) / len(problem.each)


CLOSED_FORMS = [
    *(_spsa(z, n) for z in ("rademacher", "gaussian", "sphere") for n in (1, 16)),
    *(_spsa(z, n, sigma=0.7) for z in ("rademacher", "gaussian", "sphere") for n in (1, 16)),
    _evolution(2, 0.3, antithetic=True),
    _evolution(32, 0.3, antithetic=True),
    _evolution(1 << 4, 0.6, antithetic=False),
    # signs of rank 1 have the norm of full signs, and the same second moments
    *((Variant("low-rank-evolution", (("population", 2 * n),)), _two_sided("rademacher", n)) for n in (1, 8)),
    (Variant("mezo"), _two_sided("gaussian", 1)),
    (Variant("mezo", (("distribution", "rademacher"), ("directions", 4))), _two_sided("rademacher", 4)),
    (Variant("one-sided-batch", (("sigma", 0.7), ("directions", 4))), _one_sided("rademacher", 4, 0.7)),
    (Variant("per-example-perturbation"), _per_example),
    (Variant("forward-gradient"), _two_sided("gaussian", 1)),
    (Variant("node-perturbation"), _per_node),
    (Variant("node-perturbation", (("layers", "nodes"),)), _per_node),
    (Variant("activity-forward-gradient", (("local", False),)), _per_node),
    # the quadratic has no layers: its weights themselves are moved, along Gaussians
    (Variant("node-perturbation", (("layers", "weights"),)), _two_sided("gaussian", 1)),
    (Variant("node-perturbation", (("per_example", False),)), _two_sided("gaussian", 1)),
    (Variant("forward-gradient", (("directions", 6),)), _two_sided("gaussian", 6)),
]


@pytest.mark.parametrize(("source", "variance"), CLOSED_FORMS, ids=[str(v) for v, _ in CLOSED_FORMS])
def test_unbiased_source_has_the_closed_form_variance_on_a_quadratic(source, variance):
    checks.is_unbiased(source, draws=600, variance=variance)


@pytest.mark.parametrize("source", claiming("unbiased"), ids=str)
def test_unbiased_source_passes_the_z_test(source):
    checks.is_unbiased(source, draws=400)


def test_every_method_that_claims_to_be_unbiased_is_among_those_with_a_closed_form():
    claimed = {v.method for v in claiming("unbiased")}
    assert claimed <= {v.method for v, _ in CLOSED_FORMS}


# --- biased: it trains ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Noughts, ones and twos among scikit-learn's digits: 256 to train on, the rest to test."""
    x, y = load_digits(n_class=3, return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    return x[:256], y[:256], x[256:], y[256:]


SETTINGS = {
    "one-sided-batch": (150, {"lr": 0.03}),
    "weight-perturbation": (1500, {"lr": 20.0}),
    "weight-perturbation[weights=3]": (600, {"lr": 20.0}),
    "evolution-strategy": (150, {"lr": 2.0}),
    "sparse-mezo": (150, {"lr": 0.01, "directions": 16, "fraction": 0.9}),
    "coordinate-wise": (60, {"lr": 10.0}),
}


@pytest.mark.parametrize(
    "source",
    [
        s for s in claiming("biased") if s.method != "contrastive-divergence"
    ],  # classifies nothing; see tests/test_rbm.py
    ids=str,
)
def test_biased_source_reaches_ninety_percent_on_three_digits(source, digits):
    steps, settings = SETTINGS.get(str(source), SETTINGS.get(source.method, (12, {"lr": 2.0})))
    torch.manual_seed(0)
    model = nn.Linear(64, 3)
    if source.method != "sparse-mezo":  # which moves the smallest weights, and among zeros there are none
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
    x, y, test_x, test_y = digits
    learner = method(source.method).build(model, problems.cross_entropy, seeded(3), **dict(source.settings), **settings)
    for _ in range(steps):
        learner.step((x, y))
    accuracy = float((model(test_x).argmax(1) == test_y).float().mean())
    assert accuracy >= 0.9, f"{source} reaches only {accuracy:.3f}"


OTHER_OBJECTIVES = [
    name for name, m in dldw.methods().items() if m.card.claim == "biased" and m.card.note.startswith("Other objective")
]


@pytest.mark.parametrize("name", OTHER_OBJECTIVES)
def test_method_with_another_objective_trains_a_network_with_hidden_layers(name, digits):
    """They have no gradient to be tested against; a deep and narrow network shows whether hidden layers learn.

    A method that leaves these as they were drawn shows that the network needs them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layers = [m for width in (64, 12, 12, 12) for m in (nn.Linear(width, 12), nn.Tanh())]
        model = nn.Sequential(*layers, nn.Linear(12, 3))
    x, y, test_x, test_y = digits
    drawn = model[0].weight.detach().clone()
    settings = {"lr": 0.01, "optimizer": "adam"} if method(name).is_source else {}
    learner = method(name).build(model, problems.cross_entropy, seeded(3), **settings)
    for _ in range(80):
        learner.step((x, y))
    accuracy = float((learner.model(test_x).argmax(1) == test_y).float().mean())
    if torch.equal(model[0].weight, drawn):
        assert accuracy < 0.85, "the last layer alone solves this: it shows nothing of the others"
    else:
        assert accuracy >= 0.95, f"{name} reaches only {accuracy:.3f}"


# --- cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", [s for s in SOURCES if s.sample.card.needs == "loss values" and s.mode != "batched"], ids=str
)
def test_forwards_equal_the_card(source):
    settings = dict(source.settings)
    if source.method != "weight-perturbation":  # which has one way to evaluate
        settings["evaluate"] = "sequential"
    checks.forwards_equal_the_card(Variant(source.method, tuple(settings.items())))


def _deep() -> problems.Problem:
    """Sixteen layers, and so few outputs that what is done once for each of them hardly counts."""
    layers = [m for _ in range(16) for m in (nn.Linear(48, 48), nn.Tanh())]
    x = torch.randn(32, 48, generator=seeded())
    return problems.Problem(nn.Sequential(*layers, nn.Linear(48, 3)), problems.cross_entropy, (x, torch.arange(32) % 3))


def _flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "source",
    [  # those of single weights were counted above
        s for s in (*SOURCES, *LOSS_FREE) if s.method not in ("finite-difference", "coordinate-wise")
    ],
    ids=str,
)
def test_floating_point_operations_are_the_forwards_on_the_card(source):
    problem = source.homes[0]() if source in LOSS_FREE else _deep()
    made = source(problem.loss, seeded())
    made(problem.model, problem.batch)  # the first call may evaluate more
    problem.model.zero_grad()
    one = _flops(problem.forward)
    d = sum(p.numel() for p in problem.trainable)
    measured = _flops(lambda: made(problem.model, problem.batch)) / one
    assert math.isclose(measured, made.forwards(d), rel_tol=0.12), f"{measured:.2f} against {made.forwards(d):g}"


# --- the cards themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(dldw.methods()))
def test_card_is_filled_in_and_its_space_names_real_settings(name):
    registered = method(name)
    card = registered.card
    assert card.summary.endswith(".")
    assert card.claim in ("exact", "unbiased", "biased", "search")
    assert card.needs in ("autograd", "forward mode", "loss values", "no loss", "episodes", "layers")
    assert card.paper
    assert card.memory
    assert set(card.space) <= set(registered.settings)
    cost = card.count_forwards({"checkpoint": False, **registered.settings}, 100)
    assert cost > 0
    assert math.isfinite(cost)


def test_evolution_strategy_changes_its_card_only_where_shaping_is_none():
    plain = dldw.EvolutionStrategy(problems.cross_entropy)
    unshaped = dldw.EvolutionStrategy(problems.cross_entropy, shaping="none")
    assert (plain.card.claim, plain.additive) == ("biased", False)
    assert (unshaped.card.claim, unshaped.additive) == ("unbiased", True)
    assert dldw.EvolutionStrategy.card.claim == "biased"
