"""Restricted Boltzmann machines against sums over all their states."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dldw
from dldw.compare.contrastive import biases, exact_gradient
from dldw.nn.likelihood import exact_log_partition, log_partition
from dldw.nn.units import bernoulli
from tests.contract.checks import seeded

DOUBLE = torch.float64


def machine(visible=4, hidden=3, seed=0, scale=1.0, **settings):
    """A machine in float64 with weights that matter."""
    rbm = dldw.nn.RBM(visible, hidden, **settings).double()
    with torch.no_grad():
        for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias):
            p.copy_(scale * torch.randn(p.shape, dtype=DOUBLE, generator=seeded(seed)))
            seed += 100
    return rbm


def states(n):
    return torch.tensor(list(product((0.0, 1.0), repeat=n)), dtype=DOUBLE)


def energy(rbm, v, h):
    """E(v, h) of Bernoulli units, term by term as in Hinton 2002."""
    b, c, w = (p.tolist() for p in (rbm.visible_bias, rbm.hidden_bias, rbm.weight))
    total = 0.0
    for i in range(rbm.visible):
        total -= float(v[i]) * b[i]
    for j in range(rbm.hidden):
        total -= float(h[j]) * c[j]
        for i in range(rbm.visible):
            total -= float(h[j]) * w[j][i] * float(v[i])
    return total


def joint(rbm):
    """p(v, h) of Bernoulli units over all states, [2^visible, 2^hidden], and Z."""
    weights = [[math.exp(-energy(rbm, v, h)) for h in states(rbm.hidden)] for v in states(rbm.visible)]
    table = torch.tensor(weights, dtype=DOUBLE)
    return table / table.sum(), float(table.sum())


def bars(n=4):
    """Every image of n x n with whole rows lit, or whole columns."""
    lines = states(n).float()
    rows, columns = lines.repeat_interleave(n, 1), lines.repeat(1, n)
    return torch.unique(torch.cat([rows, columns]), dim=0)


def gradients(rbm):
    return torch.cat([p.grad.flatten() for p in rbm.parameters() if p.requires_grad])


# --- the machine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("visible", "hidden"), [(4, 3), (3, 4)])
def test_likelihood_and_conditionals_are_those_of_the_joint_distribution_over_all_states(visible, hidden):
    rbm = machine(visible, hidden)
    p, z = joint(rbm)
    found = rbm.log_likelihood(states(visible))
    assert torch.allclose(found.values, p.sum(1).log())
    assert found.partition.value == pytest.approx(math.log(z))
    assert found.low == found.mean == found.high == pytest.approx(float(p.sum(1).log().mean()))
    assert torch.allclose(rbm(states(visible)), (p @ states(hidden)) / p.sum(1, keepdim=True))
    assert torch.allclose(rbm.visible_mean(states(hidden)), (p.T @ states(visible)) / p.sum(0)[:, None])


def test_free_energy_is_minus_the_log_of_the_sum_over_hidden_states():
    rbm = machine()
    for v in states(4):
        total = sum(math.exp(-energy(rbm, v, h)) for h in states(3))
        assert rbm.free_energy(v).item() == pytest.approx(-math.log(total))


def test_enumeration_in_many_chunks_equals_that_in_float64_by_hand():
    rbm = machine(14, 13, scale=0.5)
    logs = states(13) @ rbm.hidden_bias
    logs = logs + torch.log1p(torch.exp(states(13) @ rbm.weight + rbm.visible_bias)).sum(1)
    assert exact_log_partition(rbm).item() == pytest.approx(logs.exp().sum().log().item(), rel=1e-12)


@pytest.mark.parametrize("variance", [0.5, 2.0])
def test_gaussian_machine_is_a_density(variance):
    rbm = machine(1, 3, visible_units="gaussian", variance=variance)
    v = torch.linspace(-40, 40, 200_001, dtype=DOUBLE)[:, None]
    density = rbm.log_likelihood(v).values.exp()
    assert float(torch.trapezoid(density, v[:, 0])) == pytest.approx(1.0, abs=1e-9)
    b, c, w = rbm.visible_bias.item(), rbm.hidden_bias.tolist(), rbm.weight[:, 0].tolist()

    def weight(x, h):
        return math.exp(-((x - b) ** 2) / (2 * variance) + sum(h[j] * (c[j] + w[j] * x / variance) for j in range(3)))

    some = v[90_000:110_000:4000]
    weights = torch.tensor([[weight(x, h) for h in states(3).tolist()] for x in some[:, 0].tolist()], dtype=DOUBLE)
    assert torch.allclose(density[90_000:110_000:4000] / density[90_000], weights.sum(1) / weights[0].sum())
    assert torch.allclose(rbm(some), weights @ states(3) / weights.sum(1, keepdim=True))


def test_gaussian_units_given_the_hidden_ones_have_their_mean_and_variance():
    rbm = machine(2, 3, visible_units="gaussian", variance=0.25)
    h = torch.tensor([[1.0, 0.0, 1.0]], dtype=DOUBLE)
    mean = rbm.visible_bias + h @ rbm.weight
    drawn = rbm.units.draw(rbm.visible_mean(h).detach().repeat(40_000, 1), seeded())
    assert torch.allclose(drawn.mean(0), mean[0].detach(), atol=5 * 0.5 / 200)
    assert torch.allclose(drawn.var(0), torch.full((2,), 0.25, dtype=DOUBLE), rtol=5 * math.sqrt(2 / 40_000))


def test_draws_have_their_probabilities_and_zero_and_one_are_certain():
    p = torch.tensor([0.0, 1.0, 0.3, 0.999]).repeat(1_000_000, 1)
    mean = bernoulli(p, seeded()).double().mean(0)
    assert mean[:2].tolist() == [0.0, 1.0]
    error = (p[0].double() * (1 - p[0].double()) / 1_000_000).sqrt()
    assert ((mean - p[0]).abs() <= 4 * error + 2**-16).all()
    few = torch.cat([bernoulli(p[:1], seeded(seed)) for seed in range(3000)]).mean(0)
    assert abs(float(few[2]) - 0.3) < 4 * math.sqrt(0.21 / 3000)


def test_draws_below_the_resolution_of_sixteen_bits_come_as_often_as_they_should():
    generator, calls, size = seeded(), 400, 20_000
    p = torch.full((size,), 2**-20)
    total = sum(float(bernoulli(p, generator).sum()) for _ in range(calls))
    wanted = calls * size * 2**-20
    assert abs(total - wanted) < 5 * math.sqrt(wanted)


# --- the likelihood of what cannot be enumerated -------------------------------------------------------------------


def test_annealed_importance_sampling_is_within_its_interval_on_twenty_machines():
    for seed in range(20):
        gaussian = seed % 2 == 1
        rbm = machine(9 + seed % 4, 8, seed, 0.4 + 0.03 * seed, visible_units="gaussian" if gaussian else "bernoulli")
        exact = log_partition(rbm, "exact").value
        found = log_partition(rbm, "ais", temperatures=500, generator=seeded(seed))
        assert found.low <= exact <= found.high, f"machine {seed}: {exact} is not in {found}"
        assert found.low <= found.value <= found.high
        assert found.high - found.low < 2.0


def test_interval_is_wide_where_the_chains_are_cooled_too_fast():
    rbm = machine(12, 10, scale=2.0)
    exact = log_partition(rbm, "exact").value
    fast = log_partition(rbm, "ais", temperatures=3, generator=seeded())
    slow = log_partition(rbm, "ais", temperatures=2000, generator=seeded())
    assert fast.low <= exact <= fast.high
    assert slow.low <= exact <= slow.high
    assert fast.high - fast.low > 5 * (slow.high - slow.low)


def test_likelihood_of_a_machine_too_large_to_enumerate_has_an_interval_around_that_of_its_twin():
    small = machine(10, 6)
    large = machine(10, 25)  # hidden units without weights: each doubles Z and the sum in F
    with torch.no_grad():
        large.weight.zero_()
        large.weight[:6] = small.weight
        large.hidden_bias.zero_()
        large.hidden_bias[:6] = small.hidden_bias
        large.visible_bias.copy_(small.visible_bias)
        twin = dldw.nn.RBM(30, 25).double()
        twin.weight.zero_()
        twin.weight[:, :10] = large.weight
        twin.hidden_bias.copy_(large.hidden_bias)
        twin.visible_bias.zero_()
        twin.visible_bias[:10] = large.visible_bias
    v = states(10)[::7]
    padded = torch.cat([v, torch.zeros(len(v), 20, dtype=DOUBLE)], 1)
    exact = small.log_likelihood(v)
    found = twin.log_likelihood(padded, temperatures=400, generator=seeded())
    assert found.partition.method == "ais"
    assert found.low <= exact.mean - 20 * math.log(2) <= found.high
    assert found.low < found.mean < found.high
    assert torch.allclose(found.values - found.mean, exact.values - exact.mean)


# --- sampling ------------------------------------------------------------------------------------------------------


def test_samples_have_the_distribution_of_the_machine():
    rbm = machine()
    found = rbm.sample(40_000, steps=60, generator=seeded())
    wanted = joint(rbm)[0].sum(1) @ states(4)
    assert torch.allclose(found.mean(0), wanted, atol=5 * 0.5 / 200)


def test_clamped_units_stay_and_the_others_are_drawn_given_them():
    rbm = machine()
    clamp = torch.tensor([1.0, math.nan, math.nan, 0.0], dtype=DOUBLE)
    found = rbm.sample(40_000, steps=60, clamp=clamp, generator=seeded())
    assert (found[:, 0] == 1).all()
    assert (found[:, 3] == 0).all()
    p, all_states = joint(rbm)[0].sum(1), states(4)
    fits = (all_states[:, 0] == 1) & (all_states[:, 3] == 0)
    wanted = p[fits] @ all_states[fits] / p[fits].sum()
    assert torch.allclose(found.mean(0), wanted, atol=5 * 0.5 / 200)


def test_missing_values_are_filled_with_their_mean_given_what_is_known():
    rbm = machine()
    known = torch.tensor(
        [[1.0, math.nan, math.nan, 0.0], [math.nan, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]], dtype=DOUBLE
    )
    found = rbm.fill(known, steps=20_000, generator=seeded())
    p, all_states = joint(rbm)[0].sum(1), states(4)
    for row, filled in zip(known, found, strict=True):
        fits = ((all_states == row) | row.isnan()).all(1)
        assert torch.allclose(filled, p[fits] @ all_states[fits] / p[fits].sum(), atol=0.02)
    assert torch.equal(found[2], known[2])


def test_chains_start_where_they_are_told_and_draw_from_the_given_generator_alone():
    rbm = machine(scale=0.0)
    with torch.no_grad():
        rbm.weight[:, :] = 30.0 * torch.eye(3, 4)  # each hidden unit holds on to its visible one
        rbm.visible_bias.fill_(-15.0)
        rbm.hidden_bias.fill_(-15.0)
    before = torch.get_rng_state()
    start = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=DOUBLE)
    assert torch.equal(rbm.sample(1, 20, start=start, generator=seeded()), start)
    assert torch.equal(torch.get_rng_state(), before)
    loose = machine()
    a, b, c = (loose.sample(50, 5, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# --- contrastive divergence ----------------------------------------------------------------------------------------


def expected_estimate(rbm, v, k):
    """E[CD-k] by sums over all states: the transition matrix of k Gibbs steps, and the gradients of F by autograd."""
    p, _ = joint(rbm)
    step = (p / p.sum(1, keepdim=True)) @ (p / p.sum(0)).T  # v -> h -> v
    several = torch.linalg.matrix_power(step, k)
    index = (v @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=DOUBLE)).long()
    reached = several[index].mean(0)
    loss = rbm.free_energy(v).mean() - reached @ rbm.free_energy(states(4))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])


@pytest.mark.parametrize("k", [1, 2])
def test_mean_of_cd_k_is_that_of_exactly_k_steps_of_the_chain(k):
    rbm, v = machine(), states(4)[[1, 6, 6, 11]]
    copies, calls = 2000, 30
    source = dldw.ContrastiveDivergence(k, generator=seeded())
    found = []
    for _ in range(calls):
        rbm.zero_grad()
        source(rbm, v.repeat(copies, 1))
        found.append(gradients(rbm))
    found = torch.stack(found)
    z = (found.mean(0) - expected_estimate(rbm, v, k)) / (found.std(0) / math.sqrt(calls) + 1e-12)
    assert float(z.abs().max()) < 4.5
    other = expected_estimate(rbm, v, k + 1)
    assert float((((found.mean(0) - other) / (found.std(0) / math.sqrt(calls))).abs()).max()) > 6


def test_persistent_chains_come_to_give_the_exact_gradient_where_the_weights_stand_still():
    rbm, v = machine(), states(4)[[1, 6, 6, 11]]
    source = dldw.ContrastiveDivergence(persistent=True, chains=8000, generator=seeded())
    for _ in range(100):  # forgets where it started
        source(rbm, v)
    found = []
    for _ in range(40):
        rbm.zero_grad()
        source(rbm, v)
        found.append(gradients(rbm))
    mean, exact = torch.stack(found).mean(0), exact_gradient(rbm, v)
    assert float((mean - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("settings", [{}, {"k": 3}, {"persistent": True, "chains": 5}], ids=str)
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("examples", [2, 7])  # fewer than hidden units, and more
def test_estimate_is_the_gradient_of_the_free_energies_of_both_phases(units, settings, examples):
    extra = {"variance": 0.7, "learn_variance": True} if units == "gaussian" else {}
    rbm = machine(visible_units=units, **extra)
    v = torch.rand(examples, 4, dtype=DOUBLE, generator=seeded())
    source = dldw.ContrastiveDivergence(**settings, generator=seeded())
    for _ in range(2):
        rbm.zero_grad()
        source(rbm, v)
    samples = source._held.samples.v.clone()
    assert len(samples) == settings.get("chains", examples)
    loss = rbm.free_energy(v).mean() - rbm.free_energy(samples).mean()
    wanted = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, [p for p in rbm.parameters() if p.requires_grad])]
    )
    assert torch.allclose(gradients(rbm), wanted, rtol=1e-8, atol=1e-10)
    source(rbm, v)
    assert not torch.allclose(gradients(rbm), 2 * wanted)
    assert (gradients(rbm) - wanted).abs().max() > 0  # added to what .grad held


@pytest.mark.parametrize("frozen", [None, "weight", "hidden_bias", "visible_bias"])
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_plain_descent_moves_every_parameter_as_sgd_does(units, frozen):
    v, ends = torch.rand(7, 4, dtype=DOUBLE, generator=seeded()), []
    for plain in (True, False):
        rbm = machine(visible_units=units, **({"learn_variance": True} if units == "gaussian" else {}))
        if frozen:
            rbm.get_parameter(frozen).requires_grad_(False)
        descent = 0.1 if plain else torch.optim.SGD(rbm.parameters(), lr=0.1)
        learner = dldw.Descent(rbm, dldw.ContrastiveDivergence(generator=seeded()), descent)
        for _ in range(3):
            learner.step(v)
        ends.append(torch.cat([p.detach().flatten() for p in rbm.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-13)


def test_a_last_batch_of_another_size_counts_as_it_should_where_that_of_scikit_learn_does_not():
    from sklearn.neural_network import BernoulliRBM

    half = np.full((11, 50), 0.5)  # batches of 10 and of 1; at weights of zero the exact gradient of the biases is zero
    theirs = BernoulliRBM(4, learning_rate=1e-3, batch_size=10, n_iter=1, random_state=0).fit(half)
    rbm = dldw.nn.RBM(50, 4).double()
    optimizer = torch.optim.SGD(rbm.parameters(), lr=1e-3)
    source = dldw.ContrastiveDivergence(persistent=True, chains=10, generator=seeded())
    for batch in torch.tensor(half).split(10):
        optimizer.zero_grad()
        source(rbm, batch)
        optimizer.step()
    noise = 1e-3 * math.sqrt(0.25 / 10) * math.sqrt(2 / 50)  # of the mean over 50 units after two steps
    assert abs(rbm.visible_bias.mean().item()) < 5 * noise
    assert theirs.intercept_visible_.mean() < -100 * noise


def test_source_leaves_weights_and_the_global_random_state_and_repeats_with_its_generator():
    rbm, v = machine(), states(4)
    before, random = [p.detach().clone() for p in rbm.parameters()], torch.get_rng_state()
    found = []
    for _ in range(2):
        rbm.zero_grad()
        loss = dldw.ContrastiveDivergence(2, generator=seeded(3))(rbm, v)
        found.append(gradients(rbm))
    assert torch.equal(*found)
    assert not loss.requires_grad
    assert loss.shape == ()
    assert all(torch.equal(p, b) for p, b in zip(rbm.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_frozen_parameters_get_no_gradient():
    rbm = machine(visible_units="gaussian")
    rbm.visible_bias.requires_grad_(False)
    dldw.ContrastiveDivergence()(rbm, states(4))
    assert rbm.visible_bias.grad is None
    assert rbm.units.log_variance.grad is None  # fixed unless learn_variance
    assert rbm.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_machine_trains_in_other_types(dtype):
    rbm = dldw.nn.RBM(16, 8).to(dtype)
    learner = dldw.Descent(
        rbm, dldw.ContrastiveDivergence(generator=seeded()), torch.optim.SGD(rbm.parameters(), lr=1.0)
    )
    v = bars()[torch.randint(30, (100,), generator=seeded())].to(dtype)
    errors = [float(learner.step(v)) for _ in range(300)]
    assert rbm.weight.grad.dtype is dtype
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("settings", [{}, {"persistent": True, "chains": 7}], ids=str)
def test_run_that_is_resumed_equals_one_that_was_not_bit_for_bit(settings):
    def fresh():
        rbm = machine(16, 6, scale=0.01).float()
        source = dldw.ContrastiveDivergence(**settings, generator=seeded(5))
        return dldw.Descent(rbm, source, torch.optim.SGD(rbm.parameters(), lr=0.1, momentum=0.9))

    batches = [bars()[i : i + 9] for i in range(0, 21, 3)]
    straight, first, second = fresh(), fresh(), fresh()
    for batch in batches:
        straight.step(batch)
    for batch in batches[:3]:
        first.step(batch)
    state = first.state_dict()
    if settings:
        assert state["source"]["chains"].shape == (7, 6)
    second.load_state_dict(state)
    for batch in batches[3:]:
        second.step(batch)
    for p, q in zip(straight.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def learnt(v, penalty=None, complete=None, lr=0.5, **settings):
    torch.manual_seed(0)
    rbm = dldw.nn.RBM(16, 8)
    source = dldw.ContrastiveDivergence(**settings, generator=seeded())
    optimizer = torch.optim.SGD(rbm.parameters(), lr=lr, momentum=0.5)
    for _ in range(400):
        optimizer.zero_grad()
        source(rbm, complete(rbm) if complete else v)
        if penalty:
            penalty(rbm, v).backward()
        optimizer.step()
    return rbm


@pytest.mark.parametrize("settings", [{}, {"persistent": True, "chains": 200, "lr": 0.2}], ids=str)
def test_bars_become_likelier(settings):
    v = bars()
    untrained = dldw.nn.RBM(16, 8).log_likelihood(v).mean
    assert untrained == pytest.approx(-16 * math.log(2), abs=0.1)
    assert learnt(v, **settings).log_likelihood(v).mean > -8.5  # log(1/30) = -3.4 is the best there is


def test_machine_learns_from_data_of_which_a_fifth_is_missing():
    v = bars().repeat(3, 1)
    generator = seeded()
    holes = torch.where(torch.rand(v.shape, generator=seeded()) < 0.2, math.nan, v)
    learned = learnt(holes, complete=lambda rbm: rbm.sample(len(v), 20, clamp=holes, generator=generator))
    assert learned.log_likelihood(v).mean > -8.5


def test_penalty_for_sparsity_goes_through_the_same_grad_and_optimizer():
    v = bars()

    def sparsity(rbm, v):
        return 5 * (rbm(v).mean(0) - 0.1).square().sum()

    assert learnt(v)(v).mean().item() > 0.3
    assert learnt(v, penalty=sparsity)(v).mean().item() == pytest.approx(0.1, abs=0.05)


def test_variance_of_gaussian_units_is_learnt():
    v = 3.0 * torch.randn(4000, 2, generator=seeded()) + torch.tensor([1.0, -2.0])
    rbm = dldw.nn.RBM(2, 2, visible_units="gaussian", learn_variance=True)
    learner = dldw.Descent(
        rbm, dldw.ContrastiveDivergence(generator=seeded()), torch.optim.Adam(rbm.parameters(), lr=0.02)
    )
    before = rbm.log_likelihood(v).mean
    for _ in range(600):
        learner.step(v)
    best = float(torch.distributions.Normal(0.0, 3.0).entropy()) * -2
    assert before < best - 4
    assert rbm.log_likelihood(v).mean > best - 0.1


# --- its bias ------------------------------------------------------------------------------------------------------


def test_exact_gradient_is_that_of_the_table_of_all_states():
    rbm, v = machine(), states(4)[[1, 6, 11]]
    p, all_states = joint(rbm), states(4)
    loss = rbm.free_energy(v).mean() - p[0].sum(1) @ rbm.free_energy(all_states)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(rbm.parameters()))])
    assert torch.allclose(exact_gradient(rbm, v), wanted)


def test_cosine_of_cd_k_with_the_exact_gradient_rises_with_k():
    torch.manual_seed(0)
    rbm = dldw.nn.RBM(16, 8)
    found = biases(rbm, bars().repeat(20, 1), steps=(0, 300), draws=20, generator=seeded())
    assert [b.estimator for b in found[:4]] == ["CD-1", "CD-3", "CD-10", "PCD-1"]
    one, three, ten, persistent = (b for b in found if b.step == 300)
    assert one.cosine < three.cosine - 0.02 < ten.cosine - 0.04
    assert ten.cosine > 0.9
    assert persistent.cosine > one.cosine
    assert one.error > three.error > ten.error
    assert ten.norm == pytest.approx(1.0, abs=0.2)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda: dldw.nn.RBM(0, 3), ["visible and hidden units, got 0 and 3", "at least 1"]),
        (lambda: dldw.nn.RBM(2, 3, visible_units="binary"), ["bernoulli", "gaussian", "'binary'"]),
        (lambda: dldw.nn.RBM(2, 3, visible_units="gaussian", variance=0.0), ["variance must be positive", "standardised"]),
        (lambda: dldw.nn.RBM(2, 3, learn_variance=True), ["Bernoulli units have no variance", "gaussian"]),
        (lambda: dldw.ContrastiveDivergence(0), ["k must be at least 1", "cancel"]),
        (lambda: dldw.ContrastiveDivergence(chains=3), ["persistent is False", "set persistent=True"]),
        (lambda: dldw.ContrastiveDivergence(persistent=True, chains=0), ["chains must be at least 1"]),
        (lambda: machine().sample(0), ["at least one chain", "n=0"]),
        (lambda: machine().sample(2, 3, start=torch.zeros(3, 4, dtype=DOUBLE)), ["one row for each of the 2"]),
        (lambda: machine().sample(2, 3, clamp=states(4)[:3]), [r"clamp of shape \[3, 4\]", "a row for each"]),
        (lambda: machine().sample(2, 3, clamp=torch.zeros(5, dtype=DOUBLE)), [r"clamp must be a tensor \[\.\.\., 4\]"]),
        (lambda: machine().fill(torch.zeros(1, 4, dtype=DOUBLE), steps=0), ["at least one step"]),
        (lambda: machine().log_likelihood(torch.full((1, 4), math.nan, dtype=DOUBLE)), ["missing values", r"rbm\.fill"]),
        (lambda: machine().log_likelihood(states(4), "pseudo"), ["auto, exact or ais"]),
        (lambda: machine().log_likelihood(states(4), "ais", chains=1), ["at least 2 chains", "interval"]),
        (lambda: exact_log_partition(machine(30, 25)), [r"2\^25 states", "method='ais'"]),
        (
            lambda: machine(3, 25, visible_units="gaussian").log_likelihood(torch.zeros(1, 3, dtype=DOUBLE), "exact"),
            ["the hidden layer has 25", "method='ais'"],
        ),
    ],
)  # fmt: skip
def test_errors_say_what_and_why(make, texts):
    for text in texts:
        with pytest.raises(dldw.DldwError, match=text):
            make()


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.zeros(2, 1, 2, 2, dtype=DOUBLE), r"\[\.\.\., 4\].*images\.flatten\(1\)"),
        ((states(4), torch.zeros(16)), r"got tuple.*batch\[0\]"),
        (states(4).float(), r"of type torch\.float32, the weights of torch\.float64"),
        (255 * states(4), r"from 0 to 255\. Scale them to \[0, 1\]"),
        (torch.zeros(0, 4, dtype=DOUBLE), r"shape \[0, 4\]"),
        (torch.zeros(4, dtype=DOUBLE), r"shape \[B, 4\], an example in each row"),
    ],
)
def test_batch_that_the_machine_cannot_learn_from(batch, text):
    rbm = machine()
    with pytest.raises(dldw.DldwError, match=text):
        dldw.ContrastiveDivergence()(rbm, batch)
    assert all(p.grad is None for p in rbm.parameters())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.inf, r"values of the batch are infinite \(inf\)"),
        (math.nan, r"are missing \(nan\).*rbm\.sample\(.*clamp=batch\)"),
    ],
)
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_values_that_are_infinite_or_missing(units, value, text):
    with pytest.raises(dldw.NonFiniteLossError, match=text):
        dldw.ContrastiveDivergence()(machine(visible_units=units), torch.full((1, 4), value, dtype=DOUBLE))


def test_weights_that_are_not_finite_raise_and_leave_grad():
    rbm = machine()
    with torch.no_grad():
        rbm.weight[0, 0] = math.nan
    with pytest.raises(dldw.NonFiniteLossError, match=r"the weights are not finite.* Lower the learning rate"):
        dldw.ContrastiveDivergence()(rbm, states(4)[1:])
    assert all(p.grad is None for p in rbm.parameters())


def test_model_that_is_no_boltzmann_machine():
    with pytest.raises(
        dldw.DldwError, match=r"trains a restricted Boltzmann machine .* Linear is none.* a source that takes a loss"
    ):
        dldw.ContrastiveDivergence()(nn.Linear(2, 2), torch.zeros(1, 2))


def test_chains_of_another_machine():
    source = dldw.ContrastiveDivergence(persistent=True)
    source(machine(4, 3), states(4))
    with pytest.raises(dldw.DldwError, match="a machine with 3 hidden units, and this one has 2"):
        source(machine(4, 2), states(4))


# --- the example ---------------------------------------------------------------------------------------------------


def test_example_fills_in_digits_better_than_the_mean_digit_does(tmp_path):
    root = Path(__file__).parents[1]
    out = tmp_path / "digits.png"
    found = subprocess.run(
        [sys.executable, root / "examples" / "fill_in_digits.py", "--epochs", "15", "--hidden", "64", "--out", out],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(root / "src")},
    )  # fmt: skip
    filled, plain = map(float, re.findall(r"(0\.\d+)", found.stdout)[:2])
    assert filled < 0.95 * plain
    assert out.read_bytes()[:4] == b"\x89PNG"
