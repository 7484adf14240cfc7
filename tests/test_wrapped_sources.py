"""Sources made from sources: a part of the weights alone, and a control variate."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import dldw
from dldw import noise
from tests.contract import checks, problems
from tests.contract.checks import seeded


def squares(model, x):
    return model(x).square().sum(1)


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + seed))


INNER = {
    "spsa": lambda loss, generator=None: dldw.SPSA(loss, directions=2, generator=generator),
    "mezo": lambda loss, generator=None: dldw.MeZO(loss, generator=generator),
    "one-sided": lambda loss, generator=None: dldw.OneSidedBatch(loss, directions=4, generator=generator),
}
TILES = pytest.mark.parametrize("tile", [16, 1 << 20], ids=["streamed", "held"])

# --- a part of the weights -----------------------------------------------------------------------------------------


@TILES
@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("select", ["magnitude", "random"])
def test_only_the_selected_weights_are_moved_and_updated(name, select, tile, monkeypatch):
    monkeypatch.setattr(noise, "TILE", tile)
    model = nn.Linear(10, 10, bias=False).double()
    seen = []

    def loss(m, x):
        seen.append((m.weight + 0).detach())
        return squares(m, x)

    source = dldw.SparsePerturbation(INNER[name](loss, seeded(1)), select, fraction=0.3)
    with torch.no_grad():
        source(model, normal(3, 10))
    moved = torch.stack([(w != model.weight) for w in seen]).any(0)
    assert torch.equal(moved, model.weight.grad != 0)
    if select == "magnitude":
        assert int(moved.sum()) == 30
        assert model.weight.detach()[moved].abs().max() < model.weight.detach()[~moved].abs().min()
    else:
        assert 15 < int(moved.sum()) < 45
        again = dldw.SparsePerturbation(INNER[name](squares, seeded(2)), select, fraction=0.3)
        other = dldw.SparsePerturbation(INNER[name](squares, seeded(2)), select, fraction=0.3, seed=1)
        for made, same in ((again, True), (other, False)):
            model.weight.grad = None
            made(model, normal(3, 10))
            assert torch.equal(moved, model.weight.grad != 0) == same


@TILES
def test_a_mask_of_ones_own_by_name(tile, monkeypatch):
    monkeypatch.setattr(noise, "TILE", tile)
    model = problems.mlp().model
    name, first = next(iter(model.named_parameters()))
    mask = torch.zeros_like(first, dtype=torch.bool)
    mask[1, 2] = mask[0, 0] = True
    source = dldw.SparsePerturbation(dldw.MeZO(problems.cross_entropy), {name: mask})
    source(model, problems.mlp().batch)
    for other, p in model.named_parameters():
        assert torch.equal(p.grad != 0, mask if other == name else torch.zeros_like(p, dtype=torch.bool))


@TILES
@pytest.mark.parametrize(("distribution", "sign"), [("rademacher", -1), ("gaussian", 1)])
def test_the_estimate_is_unbiased_for_the_part_and_varies_with_its_size(distribution, sign, tile, monkeypatch):
    monkeypatch.setattr(noise, "TILE", tile)
    model, gradient, mask = (
        nn.Linear(6, 5, bias=False).double(),
        normal(5, 6),
        torch.rand(5, 6, generator=seeded(0)) < 0.4,
    )
    inner = dldw.MeZO(
        lambda m, b: (m.weight * gradient).sum(), sigma=1.0, distribution=distribution, generator=seeded(0)
    )
    source = dldw.SparsePerturbation(inner, {"weight": mask})
    part, k, draws = gradient * mask, int(mask.sum()), 3000
    estimates = torch.empty(draws, 5, 6, dtype=torch.float64)
    for i in range(draws):
        model.weight.grad = None
        source(model, None)
        estimates[i] = model.weight.grad
    z = (estimates.mean(0) - part) / (estimates.std(0) / math.sqrt(draws) + 1e-12)
    assert z.abs().max() < 5
    errors = (estimates - part).square().sum((1, 2)) / part.square().sum()
    assert abs(errors.mean() - (k + sign)) < 5 * errors.std() / math.sqrt(draws)


def test_a_masked_source_trains_with_forward_only_and_replays(tmp_path):
    def make():
        return dldw.SparsePerturbation(dldw.MeZO(problems.cross_entropy), "random", fraction=0.5)

    model = problems.mlp().model
    learner = dldw.ForwardOnly(model, make(), 0.1, log=tmp_path / "log")
    for _ in range(3):
        learner.step(problems.mlp().batch)
    replayed = dldw.replay(problems.mlp().model, tmp_path / "log", source=make())
    assert all(torch.equal(replayed[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("fused", [False, True], ids=["descent", "forward only"])
def test_which_weights_are_the_smallest_is_part_of_the_state(fused):
    """They are those of the first step, also where a run goes on from later weights."""

    def make(model):
        source = dldw.SparsePerturbation(dldw.MeZO(problems.cross_entropy, generator=seeded(3)), fraction=0.5)
        if fused:
            return dldw.ForwardOnly(model, source, 0.5)
        return dldw.Descent(model, source, torch.optim.SGD(model.parameters(), lr=0.5))

    batch = problems.mlp().batch
    whole = make(problems.mlp().model)
    losses = [float(whole.step(batch)) for _ in range(20)]
    first = make(problems.mlp().model)
    begun = [float(first.step(batch)) for _ in range(12)]
    second = make(problems.mlp().model)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert begun + [float(second.step(batch)) for _ in range(8)] == losses


def test_another_model_has_smallest_weights_of_its_own():
    source = dldw.SparsePerturbation(dldw.SPSA(squares), fraction=0.3)
    for scale in (1.0, 100.0):
        model = nn.Linear(10, 10, bias=False)
        with torch.no_grad():
            model.weight.mul_(scale)
        source(model, torch.ones(2, 10))
        assert int(model.weight.grad.count_nonzero()) == 30


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dldw.SparsePerturbation(dldw.Backprop(squares)), "masks the directions of a source, and Backprop has none"),
        (lambda: dldw.SparsePerturbation(dldw.SPSA(squares), "largest"), "select must be magnitude, random or a mask"),
        (lambda: dldw.SparsePerturbation(dldw.SPSA(squares), fraction=0.0), "fraction must be above 0 and at most 1, got 0"),
        (lambda: dldw.SparsePerturbation(dldw.LowRankEvolution(squares))(nn.Linear(2, 1), torch.ones(2, 2)),
         "the directions of LowRank cannot be masked"),
        (lambda: dldw.SparsePerturbation(dldw.SPSA(squares), {"w": torch.ones(1)})(nn.Linear(2, 1), torch.ones(2, 2)),
         "the mask 'w' is for no parameter of the model"),
        (lambda: dldw.SparsePerturbation(dldw.SPSA(squares), {"weight": torch.ones(1)})(nn.Linear(2, 1), torch.ones(2, 2)),
         r"the mask 'weight' has the shape \[1\]"),
        (lambda: dldw.SVRG(dldw.SPSA(squares), every=0), "every and draws must be at least 1, got 0 and 16"),
        (lambda: dldw.SVRG(dldw.EvolutionStrategy(squares, sigma=0.1, population=4)), "have no common scale"),
        (lambda: dldw.SVRG(dldw.SPSA(squares), batches=list)(nn.Linear(2, 1), torch.ones(2, 2)), "batches gave no batch"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, text):
    with pytest.raises(dldw.DldwError, match=text):
        make()


# --- the control variate -------------------------------------------------------------------------------------------


def svrg(loss, generator=None, **settings):
    return dldw.SVRG(dldw.SPSA(loss, generator=generator), **settings)


@pytest.mark.parametrize("check", [
    checks.leaves_weights_bit_identical, checks.adds_to_what_grad_holds, checks.same_generator_same_gradient,
    checks.points_uphill, checks.is_unbiased,
    checks.gives_every_trainable_weight_its_shape_and_type,
], ids=lambda check: check.__name__)  # fmt: skip
def test_it_keeps_the_contract_of_sources(check):
    check(lambda loss, generator=None: svrg(loss, generator, every=1))  # else all estimates share the noise of one mean


def test_the_snapshot_is_no_alias():
    model, x = nn.Linear(3, 2).double(), normal(4, 3)
    source = svrg(squares, seeded(0), every=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = copy.deepcopy(model)
    for _ in range(3):
        optimizer.zero_grad()
        source(model, x)
        optimizer.step()
    assert not torch.equal(model.weight, first.weight)
    assert torch.equal(source._snapshot.weight, first.weight)


def test_the_variance_falls_near_the_snapshot():
    """At the snapshot itself only the noise of its mean is left, 1/draws of the source's."""
    model, x = nn.Linear(8, 4).double(), normal(16, 8)

    def variance(source, draws=200):
        estimates = []
        for _ in range(draws):
            for p in model.parameters():
                p.grad = None
            source(model, x)
            estimates.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        return float(torch.stack(estimates).var(0).sum())

    plain = variance(dldw.SPSA(squares, generator=seeded(1)))
    near = variance(svrg(squares, seeded(1), every=10**6, draws=16))
    assert near < 1e-6 * plain
    anew = variance(svrg(squares, seeded(1), every=1, draws=16))
    assert anew == pytest.approx(plain / 16, rel=0.5)


def test_a_snapshot_is_taken_again_in_time():
    model, x = nn.Linear(3, 2).double(), normal(4, 3)
    source = svrg(squares, seeded(0), every=2)
    snapshots = []
    for _ in range(5):
        source(model, x)
        snapshots.append(id(source._snapshot))
    assert [a == b for a, b in pairwise(snapshots)] == [True, False, True, False]
    assert source.forwards(d=8) == (2 + 16 / 2) * 2


def test_the_mean_is_taken_over_the_batches_that_are_given():
    model, asked = nn.Linear(3, 2).double(), []

    def batches():
        for i in range(100):
            asked.append(i)
            yield normal(4, 3, seed=i)

    source = svrg(squares, seeded(0), every=10, draws=5, batches=batches)
    source(model, normal(4, 3))
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("steps", [0, 6, 8], ids=["at the start", "between snapshots", "where a snapshot is due"])
def test_a_run_goes_on_bit_for_bit_from_a_saved_state(steps):
    def make(model):
        source = svrg(problems.cross_entropy, seeded(5), every=4)
        return dldw.Descent(model, source, torch.optim.SGD(model.parameters(), lr=0.1))

    batch = problems.mlp().batch
    whole = make(problems.mlp().model)
    losses = [float(whole.step(batch)) for _ in range(10)]
    first = make(problems.mlp().model)
    begun = [float(first.step(batch)) for _ in range(steps)]
    second = make(problems.mlp().model)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert begun + [float(second.step(batch)) for _ in range(10 - steps)] == losses
