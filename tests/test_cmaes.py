"""CMA-ES: its update against the equations in NumPy, what it is invariant under, and how its runs end."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import dldw
from dldw.searchers import covariance


def start(x0=(1.5, -0.5, 0.5), *, seed=0, sigma=0.5, dtype=torch.float64, **settings) -> dldw.CMAES:
    search = dldw.CMAES(sigma, generator=torch.Generator().manual_seed(seed), **settings)
    search.reset(torch.as_tensor(x0, dtype=dtype))
    return search


def generation(search, function):
    candidates = search.ask()
    search.tell(function(candidates))
    return candidates


def sphere(x):
    return x.square().sum(1)


def ellipsoid(x):
    return (x.square() * 10.0 ** torch.linspace(0, 4, x.shape[1], dtype=x.dtype)).sum(1)


# --- the update ----------------------------------------------------------------------------------------------------


class Tutorial:
    """One step after the other by the equations (numbered) of arXiv 1604.00772, with Ros & Hansen's rates where diagonal."""

    def __init__(self, x0, sigma, n, diagonal):
        self.m, self.sigma, self.diagonal, self.g = np.array(x0, float), sigma, diagonal, 0
        d = self.d = len(x0)
        self.C, self.ps, self.pc = np.eye(d), np.zeros(d), np.zeros(d)
        w = np.log((n + 1) / 2) - np.log(np.arange(1, n + 1))  # (49)
        mu = self.mu = n // 2
        mueff, minus = w[:mu].sum() ** 2 / (w[:mu] ** 2).sum(), w[mu:].sum() ** 2 / (w[mu:] ** 2).sum()
        if diagonal:
            self.c1 = 1 / (d + 2 * d**0.5 + mueff / d)
            self.cmu = min(1 - self.c1, (mueff + 1 / mueff - 1.75) / (d + 4 * d**0.5 + mueff / 2))
            self.cc = (1 + 1 / d + mueff / d) / (d**0.5 + 1 / d + 2 * mueff / d)
        else:
            self.c1 = min(1, n / 6) * 2 / ((d + 1.3) ** 2 + mueff)  # (57)
            self.cmu = min(1 - self.c1, 2 * (mueff + 1 / mueff - 1.75) / ((d + 2) ** 2 + mueff))  # (58)
            self.cc = (4 + mueff / d) / (d + 4 + 2 * mueff / d)  # (56)
        alpha = min(
            1 + self.c1 / self.cmu, 1 + 2 * minus / (mueff + 2), (1 - self.c1 - self.cmu) / d / self.cmu
        )  # (50-52)
        self.w = np.where(w >= 0, w / w[w > 0].sum(), w * alpha / -w[w < 0].sum())  # (53)
        self.mueff, self.cs = mueff, (mueff + 2) / (d + mueff + 5)  # (55)
        self.ds = 1 + 2 * max(0, ((mueff - 1) / (d + 1)) ** 0.5 - 1) + self.cs
        self.chi = d**0.5 * (1 - 1 / (4 * d) + 1 / (21 * d**2))

    def step(self, x, losses):
        d = self.d
        values, vectors = np.linalg.eigh(self.C)
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        y = ((x - self.m) / self.sigma)[np.argsort(losses, kind="stable")]
        mean = self.w[: self.mu] @ y[: self.mu]  # (41)
        self.m = self.m + self.sigma * mean  # (42)
        self.g += 1
        self.ps = (1 - self.cs) * self.ps + (self.cs * (2 - self.cs) * self.mueff) ** 0.5 * root @ mean  # (43)
        length = np.linalg.norm(self.ps)
        h = length / (1 - (1 - self.cs) ** (2 * self.g)) ** 0.5 < (1.4 + 2 / (d + 1)) * self.chi
        self.pc = (1 - self.cc) * self.pc + h * (self.cc * (2 - self.cc) * self.mueff) ** 0.5 * mean  # (45)
        circ = [w if w >= 0 else w * d / np.linalg.norm(root @ v) ** 2 for w, v in zip(self.w, y, strict=True)]  # (46)
        rank_mu = sum(w * np.outer(v, v) for w, v in zip(circ, y, strict=True))
        delta = (1 - h) * self.cc * (2 - self.cc)
        self.C = (
            (1 + self.c1 * delta - self.c1 - self.cmu * self.w.sum()) * self.C
            + self.c1 * np.outer(self.pc, self.pc)
            + self.cmu * rank_mu
        )  # (47)
        if self.diagonal:
            self.C = np.diag(np.diag(self.C))
        self.sigma *= np.exp(self.cs / self.ds * (length / self.chi - 1))  # (44)


@pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])
@pytest.mark.parametrize(("d", "population", "steps"), [(2, 10, 12), (5, 9, 12), (6, 40, 12), (600, 12, 1)])
def test_update_equals_the_equations(d, population, steps, diagonal):
    x0 = np.linspace(-1, 2, d)
    search = start(x0, sigma=0.7, population=population, diagonal=diagonal, seed=d)
    oracle = Tutorial(x0, 0.7, population, diagonal)
    for _ in range(steps):
        candidates = search.ask()
        losses = ellipsoid(candidates)
        oracle.step(candidates.numpy(), losses.numpy())
        search.tell(losses)
        own = search.state_dict()["own"]
        covariance = np.diag(own["C"]) if diagonal else np.tril(own["C"])
        np.testing.assert_allclose(covariance, np.tril(oracle.C), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(search.mean, oracle.m, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(own["path_sigma"], oracle.ps, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(own["path_c"], oracle.pc, rtol=1e-12, atol=1e-12)
        assert math.isclose(own["numbers"][0], oracle.sigma, rel_tol=1e-12)


def test_samples_have_the_covariance_learned():
    search = start(sigma=1.0, population=20_000)
    for _ in range(2):
        generation(search, ellipsoid)
    own = search.state_dict()["own"]
    wanted = np.tril(own["C"]) + np.tril(own["C"], -1).T
    seen = np.cov(((search.ask() - search.mean) / own["numbers"][0]).numpy().T, bias=True)
    np.testing.assert_allclose(seen, wanted, atol=0.05 * wanted.max())
    assert np.linalg.cond(wanted) > 2


def test_covariance_is_decomposed_only_once_it_has_changed_enough():
    search = start(torch.zeros(100))
    axes = []
    for _ in range(31):
        generation(search, ellipsoid)
        axes.append(search.state_dict()["own"]["B"])
    changes = sum(not torch.equal(a, b) for a, b in pairwise(axes))
    oracle = Tutorial(np.zeros(100), 1, 4 + int(3 * math.log(100)), False)
    gap = math.ceil(1 / (2 * 100 * (oracle.c1 + oracle.cmu)))
    assert gap > 1
    assert changes == 30 // gap


@pytest.mark.parametrize("at_home", [False, True])
def test_a_large_covariance_is_decomposed_from_its_lower_triangle_by_whichever_library(at_home, monkeypatch):
    monkeypatch.setattr(covariance, "mkl_is_at_home", lambda: at_home)
    full = covariance.Full(600, torch.device("cpu"))
    a = torch.randn(600, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = a @ a.T
    full.C = whole.tril() + torch.full_like(whole, torch.nan).triu(1)
    full.refresh()
    assert torch.allclose(full.B * full.D.square() @ full.B.T, whole, rtol=1e-11, atol=1e-9)
    assert torch.allclose(full.B.T @ full.B, torch.eye(600, dtype=torch.float64), atol=1e-12)


def test_arithmetic_is_in_float64_whatever_the_dtype_of_the_start():
    search = start([3.0, 4.0], dtype=torch.bfloat16)
    for _ in range(5):
        assert generation(search, sphere).dtype == search.mean.dtype == torch.bfloat16
    own = search.state_dict()["own"]
    assert {t.dtype for t in own.values()} == {torch.float64}


def test_one_coordinate_is_enough():
    search = start([2.0])
    for _ in range(80):
        generation(search, sphere)
    assert search.best[1] < 1e-10


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**40])
def test_how_step_size_and_covariance_share_the_scale_changes_nothing(diagonal, factor):
    one, other = start(diagonal=diagonal), start(diagonal=diagonal)
    for _ in range(10):
        generation(one, ellipsoid)
    state = copy.deepcopy(one.state_dict())
    own = state["own"]
    for name, scale in (("C", factor**2), ("D", factor), ("path_c", factor)):
        own[name] *= scale
    own["numbers"][0] /= factor
    other.load_state_dict(state)
    for _ in range(20):
        np.testing.assert_allclose(generation(one, ellipsoid), generation(other, ellipsoid), rtol=1e-7, atol=1e-9)
    assert 1e-9 < float(other.state_dict()["own"]["D"].max()) < 1e9


# --- invariances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diagonal", [False, True])
def test_losses_matter_by_rank_alone(diagonal):
    one, other = start(diagonal=diagonal), start(diagonal=diagonal)
    for _ in range(30):
        assert torch.equal(generation(one, ellipsoid), generation(other, lambda x: ellipsoid(x).sqrt().sub(7)))


@pytest.mark.parametrize("diagonal", [False, True])
def test_translated_function_gives_translated_candidates(diagonal):
    x0, shift = torch.tensor([1.5, -0.5, 0.5], dtype=torch.float64), torch.tensor([3.0, -8.0, 1.0], dtype=torch.float64)
    one, other = start(x0, diagonal=diagonal), start(x0 + shift, diagonal=diagonal)
    for _ in range(30):
        here, there = generation(one, ellipsoid), generation(other, lambda x: ellipsoid(x - shift))
        np.testing.assert_allclose(there, here + shift, rtol=0, atol=1e-9)


def test_scaled_space_gives_scaled_candidates():
    x0 = torch.tensor([1.5, -0.5, 0.5], dtype=torch.float64)
    one, other = start(x0), start(8 * x0, sigma=4.0)
    for _ in range(30):
        assert torch.equal(8 * generation(one, ellipsoid), generation(other, lambda x: ellipsoid(x / 8)))


def test_rotated_state_takes_the_rotated_step():
    one = start()
    for _ in range(10):
        generation(one, ellipsoid)
    losses = ellipsoid(one.ask())
    state = copy.deepcopy(one.state_dict())
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q

    def rotated(own):
        c = own["C"].tril() + own["C"].tril(-1).T
        vectors = {name: own[name] @ q.T for name in ("m", "path_sigma", "path_c")}
        return own | vectors | {"C": q @ c @ q.T, "B": q @ own["B"]}

    other = start()
    other.load_state_dict(state | {"own": rotated(state["own"])})
    one.tell(losses)
    other.tell(losses)
    wanted, seen = rotated(one.state_dict()["own"]), other.state_dict()["own"]
    for name in ("m", "path_sigma", "path_c"):
        np.testing.assert_allclose(seen[name], wanted[name], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(seen["C"].tril(), wanted["C"].tril(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_order_of_candidates_changes_nothing(diagonal):
    one, other = start(diagonal=diagonal), start(diagonal=diagonal)
    for _ in range(10):
        generation(one, ellipsoid)
    losses, order = ellipsoid(one.ask()), torch.tensor([4, 0, 6, 2, 5, 1, 3])
    state = copy.deepcopy(one.state_dict())
    own = state["own"] | {"z": state["own"]["z"][order]}
    other.load_state_dict(state | {"own": own, "asked": state["asked"][order]})
    one.tell(losses)
    other.tell(losses[order])
    assert torch.equal(one.best[0], other.best[0])
    for name in ("m", "path_sigma", "path_c", "C"):
        np.testing.assert_allclose(
            other.state_dict()["own"][name], one.state_dict()["own"][name], rtol=1e-12, atol=1e-12
        )


def test_full_covariance_learns_a_rotated_ellipsoid_that_the_diagonal_cannot():
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    reached = []
    for diagonal in (False, True):
        search = start([1.0] * 5, diagonal=diagonal)
        for _ in range(160):
            generation(search, lambda x: ellipsoid(x @ q))
        reached.append(search.best[1])
    assert reached[0] < 1e-8 < reached[1]


# --- the end of a run ----------------------------------------------------------------------------------------------


def _noise():
    generator = torch.Generator().manual_seed(3)
    return lambda x: torch.rand(len(x), dtype=x.dtype, generator=generator)


ENDS = {
    "tolfun": (lambda: lambda x: sphere(x) + 1, {}),
    "tolfunhist": (lambda: lambda x: sphere(x) + 1, {}),
    "flatfitness": (lambda: lambda x: torch.zeros(len(x), dtype=x.dtype), {}),
    "tolx": (lambda: sphere, {}),
    "tolfacupx": (lambda: lambda x: x[:, 0], {}),
    "tolupsigma": (lambda: lambda x: x[:, 0], {}),
    "conditioncov": (lambda: lambda x: x[:, 0].square() + 1e16 * x[:, 1:].square().sum(1), {}),
    "noeffectaxis": (lambda: lambda x: sphere(x - 1e3), {}),
    "noeffectcoord": (lambda: lambda x: sphere(x - 1e3), {}),
    "stagnation": (_noise, {}),
}


@pytest.mark.parametrize("name", ENDS)
def test_every_criterion_ends_a_run(name):
    make, settings = ENDS[name]
    function, search = make(), start(**settings)
    assert search.stop() == {}
    generation(search, function)
    assert name not in search.stop()
    for _ in range(1500):
        generation(search, function)
        if name in search.stop():
            break
    assert name in search.stop()
    assert isinstance(search.stop()[name], float)


def test_run_goes_on_while_it_gets_better():
    search = start([2.0] * 5, seed=4)
    for _ in range(120):
        generation(search, ellipsoid)
        assert search.stop() == {}
    assert search.best[1] < 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_step_has_no_effect_where_candidates_cannot_resolve_it(dtype):
    search = start([1e3, 1e3], sigma=10.0, dtype=dtype)
    while "noeffectcoord" not in search.stop():
        generation(search, lambda x: sphere(x.double() - 1e3))
    own = search.state_dict()["own"]
    smallest = 0.2 * float(own["numbers"][0] * own["C"].diagonal().sqrt().min())
    resolution = 1e3 * torch.finfo(dtype).eps
    assert resolution / 100 < smallest < resolution


def test_generation_without_a_finite_loss_teaches_nothing():
    search = start()
    generation(search, sphere)
    before = search.mean.clone()
    for _ in range(40):
        generation(search, lambda x: torch.full((len(x),), math.nan))
    assert torch.equal(search.mean, before)
    assert "flatfitness" in search.stop()


# --- restarts ------------------------------------------------------------------------------------------------------


def _sizes(search, runs, function=lambda x: torch.zeros(len(x), dtype=x.dtype)):
    """Population and evaluations of each run."""
    seen: dict[int, list[int]] = {}
    while search.runs <= runs:
        run = search.runs
        n = len(generation(search, function))
        assert search.stop() == {}
        seen.setdefault(run, [n, 0])[1] += n
    return list(seen.values())


def test_ipop_doubles_the_population_at_each_restart():
    assert [n for n, _ in _sizes(start([0.0, 0.0], population=4, restarts="ipop"), 5)] == [4, 8, 16, 32, 64]


def test_bipop_spends_as_much_on_small_populations_as_on_large_ones():
    sizes = _sizes(start([0.0, 0.0], population=4, restarts="bipop"), 40)
    assert [n for n, _ in sizes[:2]] == [4, 8]
    small, large, doubled = sizes[0][1], 0, 1
    for n, evaluations in sizes[1:]:
        if small < large:
            assert 4 <= n <= 4 * 2 ** (doubled - 1)
            assert evaluations < large / 2 + n
            small += evaluations
        else:
            assert n == 4 * 2**doubled
            large, doubled = large + evaluations, doubled + 1
    assert doubled > 3


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
@pytest.mark.parametrize("bounds", [None, (-2.0, [1.0, 3.0])])
def test_state_round_trips_bit_for_bit_through_restarts(restarts, bounds):
    def flat(x):
        return sphere(x).clamp(min=0.5)

    one = start([0.5, 0.5], restarts=restarts, bounds=bounds, population=4)
    while one.runs < 4:
        generation(one, flat)
    for between in (False, True):
        asked = one.ask() if between else None
        other = start(
            [9.0, 9.0] if bounds is None else [0.0, 0.0], restarts=restarts, bounds=bounds, seed=7, population=4
        )
        other.load_state_dict(copy.deepcopy(one.state_dict()))
        if asked is not None:
            one.tell(flat(asked))
            other.tell(flat(asked))
        until = one.runs + 3
        while one.runs < until:
            assert torch.equal(generation(one, flat), generation(other, flat))
            assert torch.equal(one.mean, other.mean)
        assert one.runs == other.runs


@pytest.mark.parametrize("restarts", ["ipop", "bipop"])
def test_restarts_find_the_minimum_among_many(restarts):
    def rastrigin(x):
        return (x.square() + 10 * (1 - (2 * math.pi * x).cos())).sum(1)

    search = start([3.2, -2.1, 2.7], restarts=restarts, sigma=2.0, bounds=(-5.0, 5.0), population=6)
    evaluations = 0
    while rastrigin(search.mean[None]) > 1e-6 and evaluations < 40_000:
        evaluations += len(generation(search, rastrigin))
    assert search.best[1] < 1e-5
    assert search.runs > 1


def test_restart_leaves_a_region_without_finite_losses():
    def walled(x):
        return torch.where(x[:, 0] > 0, sphere(x - 1), math.nan)

    search = start([-5.0, 0.0], bounds=(-10.0, 10.0), restarts="ipop")
    while search.runs < 4:
        generation(search, walled)
    assert search.best[1] < 1


# --- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_candidates_and_mean_keep_to_the_bounds_and_find_a_minimum_on_them(dtype, diagonal):
    low, high = torch.tensor([0.1, -1.0, -3.0], dtype=dtype), torch.tensor([0.7, 1.0, 0.3], dtype=dtype)
    search = start([0.4, 0.9, 0.0], sigma=1.0, dtype=dtype, bounds=(low, high), diagonal=diagonal)
    minimum = torch.tensor([-2.0, 0.2, 5.0], dtype=dtype)
    for _ in range(150):
        for x in (generation(search, lambda x: sphere(x.double() - minimum)), search.mean):
            assert (low <= x).all()
            assert (x <= high).all()
    np.testing.assert_allclose(search.best[0], minimum.clamp(low, high), rtol=0, atol=1e-4)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sigma": 0.0}, r"sigma must be positive and finite, got 0\.0\. Take a third of the distance"),
        ({"sigma": math.inf}, r"sigma must be positive and finite, got inf"),
        ({"population": 3}, r"population must be at least 4, got 3: the ranks of fewer say too little\. Leave it out"),
        ({"restarts": "often"}, r"restarts must be ipop, bipop or None, got 'often'\."),
    ],
)
def test_setting_out_of_range_is_refused(settings, text):
    with pytest.raises(dldw.DldwError, match=text):
        dldw.CMAES(**settings)


def test_start_outside_the_bounds_is_refused():
    with pytest.raises(dldw.DldwError, match=r"the start point lies outside the bounds, .* Move it inside"):
        start([5.0, 0.0], bounds=(-1.0, 1.0))


def test_mean_before_reset_is_refused():
    with pytest.raises(dldw.DldwError, match=r"no mean before reset: .* Call reset\(x0\)"):
        _ = dldw.CMAES().mean


def test_nothing_stops_before_reset_and_an_unused_search_has_a_state():
    search = dldw.CMAES()
    assert search.stop() == {}
    other = start()
    before = other.ask()
    other.load_state_dict(start().state_dict())
    assert torch.equal(before, other.ask())
    dldw.CMAES().load_state_dict(search.state_dict())


def test_a_full_covariance_of_very_many_weights_is_refused_and_the_diagonal_is_not():
    with pytest.raises(dldw.DldwError, match=r"full covariance of 20,000 weights takes 3 GB, .* Use diagonal=True"):
        dldw.CMAES().reset(torch.zeros(20_000))
    search = dldw.CMAES(diagonal=True)
    search.reset(torch.zeros(20_000))
    assert search.ask().shape[1] == 20_000
