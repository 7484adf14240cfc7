"""Every method as a learner: it resumes bit for bit, and a search keeps its incumbent."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import dldw
from dldw.learner import make_optimizer
from dldw.registry import method
from dldw.searcher import Searcher
from tests.contract import problems
from tests.contract.checks import seeded
from tests.contract.problems import Problem
from tests.contract.variants import LOSS_FREE, METHODS, SEARCHERS, SOURCES


def batches(problem: Problem, count: int):
    """Rows of the problem's own batch, drawn anew for each."""
    for i in range(count):
        rows = torch.randint(6, (6,), generator=seeded(i))
        yield tree_map(lambda t, rows=rows: t[rows], problem.batch)


def run(learner, data) -> list[float]:
    return [float(learner.step(batch)) for batch in data]


def assert_resumes(make, name):
    """``make(problem, seed)`` gives a learner; six steps are three, a saved state, and three by another object."""
    home = problems.homes(name)[0]
    data = list(batches(home(), 6))
    whole = make(home(), 1)
    losses = run(whole, data)
    first = make(home(), 1)
    begun = run(first, data[:3])
    state = copy.deepcopy(first.state_dict())
    other = home()
    with torch.no_grad():
        for p in other.model.parameters():
            p.add_(1)
    second = make(other, 2)
    second.load_state_dict(state)
    assert begun + run(second, data[3:]) == losses
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "plain"])
@pytest.mark.parametrize("source", [*SOURCES, *LOSS_FREE], ids=str)
def test_descent_resumed_equals_uninterrupted_bit_for_bit(source, optimizer):
    def make(problem: Problem, seed: int) -> dldw.Descent:
        made = source(problem.loss, seeded(seed))
        if optimizer == "plain":
            return dldw.Descent(problem.model, made, 0.01 * seed)  # the state holds the rate
        return dldw.Descent(
            problem.model, made, make_optimizer(problem.model, lr=0.01, optimizer=optimizer, momentum=0.9)
        )

    assert_resumes(make, source.method)


@pytest.mark.parametrize("rate", [0, -0.1, float("inf"), float("nan")])
def test_rate_that_no_descent_has(rate):
    problem = problems.mlp()
    with pytest.raises(dldw.DldwError, match="a learning rate must be positive and finite, got"):
        dldw.Descent(problem.model, dldw.Backprop(problem.loss), rate)


@pytest.mark.parametrize("name", METHODS)
def test_registered_method_with_its_default_generator_resumes_bit_for_bit(name):
    assert_resumes(lambda problem, seed: method(name).build(problem.model, problem.loss), name)


@pytest.mark.parametrize("name", METHODS)
def test_registered_method_builds_a_learner_that_steps(name):
    problem = problems.homes(name)[0]()
    learner = method(name).build(problem.model, problem.loss, seeded())
    assert isinstance(learner, dldw.Learner)
    loss = learner.step(problem.batch)
    assert loss.shape == ()
    assert loss.isfinite()
    assert not loss.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_train_equal_models(name):
    ends = []
    for _ in range(2):
        problem = problems.homes(name)[0]()
        run(method(name).build(problem.model, problem.loss, seeded(8)), batches(problem, 3))
        ends.append(torch.cat([p.detach().flatten() for p in problem.model.parameters()]))
    assert torch.equal(*ends)


def test_descent_steps_from_the_gradient_of_one_batch_alone():
    problem = problems.mlp()
    learner = dldw.Descent(
        problem.model, dldw.Backprop(problem.loss), torch.optim.SGD(problem.model.parameters(), lr=0.1)
    )
    learner.step(problem.batch)
    before = [p.detach().clone() for p in problem.trainable]
    gradient = problem.autograd()
    learner.step(problem.batch)
    for p, old, g in zip(problem.trainable, before, gradient, strict=True):
        assert torch.allclose(p, old - 0.1 * g, rtol=1e-12)


# --- search --------------------------------------------------------------------------------------------------------


def search(problem: Problem, **settings) -> dldw.Search:
    return dldw.Search(problem.model, problem.loss, dldw.RandomSearch(generator=seeded(), **settings))


def test_search_never_gets_worse_on_one_batch_and_returns_the_incumbents_loss():
    problem = problems.mlp()
    learner, last = search(problem, sigma=0.5), problem.value()
    start = last
    for _ in range(10):
        loss = float(learner.step(problem.batch))
        assert loss <= last
        assert loss == pytest.approx(problem.value(), rel=1e-12)
        last = loss
    assert last < start


def test_search_gives_up_an_incumbent_that_was_lucky_on_an_older_batch():
    problem = problems.mlp()
    learner = search(problem, sigma=0.5)
    learner.step(problem.batch)
    held = problem.model[0].weight.clone()
    x, y = problem.batch
    for i in range(5):
        learner.step((x, (y + 1 + i) % 3))
    assert not torch.equal(problem.model[0].weight, held)


@pytest.mark.parametrize(("name", "settings"), SEARCHERS, ids=str)
def test_search_forwards_equal_the_card(name, settings):
    problem, calls = problems.mlp(), [0]

    def counted(model, batch):
        calls[0] += 1
        return problem.loss(model, batch)

    searcher = method(name).factory(generator=seeded(), **settings)
    learner = dldw.Search(problem.model, counted, searcher, evaluate="sequential")
    learner.step(problem.batch)
    for _ in range(2):
        calls[0] = 0
        learner.step(problem.batch)
        assert calls[0] == searcher.forwards(sum(p.numel() for p in problem.trainable))


def test_random_search_of_nine_candidates_costs_ten_forwards():
    assert dldw.RandomSearch(population=9).forwards(100) == 10


@pytest.mark.parametrize(("name", "settings"), SEARCHERS, ids=str)
def test_model_holds_the_best_candidate_and_step_returns_its_loss(name, settings):
    problem = problems.mlp()
    learner = dldw.Search(problem.model, problem.loss, method(name).factory(generator=seeded(), **settings))
    for i in range(4):
        x, y = problem.batch
        problem.batch = x, (y + i) % 3
        loss = float(learner.step(problem.batch))
        best, told = learner.searcher.best
        assert torch.equal(torch.cat([p.detach().flatten() for p in problem.trainable]), best)
        assert loss == told == pytest.approx(problem.value(), rel=1e-12)


class Shrinking(Searcher):
    """Its mean goes halfway to zero with every generation."""

    card = dldw.Card("Made up.", "search", "loss values", "2", "d", "-")
    _keeps = ("_mean",)

    @property
    def mean(self):
        return self._mean

    def _reset(self, x0):
        self._mean = x0.clone()

    def _ask(self, generator):
        return torch.stack([self._mean, self._mean * 0.9])

    def _tell(self, candidates, losses):
        self._mean = self._mean / 2


def test_search_that_holds_the_mean_puts_it_into_the_model_and_keeps_the_best_current():
    problem = problems.mlp()
    start = torch.cat([p.detach().flatten() for p in problem.trainable])
    at_start = problem.value()
    learner = dldw.Search(problem.model, problem.loss, Shrinking(seeded()), hold="mean")
    assert float(learner.step(problem.batch)) == pytest.approx(at_start, rel=1e-12)
    assert torch.equal(torch.cat([p.detach().flatten() for p in problem.trainable]), start / 2)
    best = learner.searcher.best[0]
    x, y = problem.batch
    learner.step((x, (y + 1) % 3))
    with torch.no_grad():
        for p, value in zip(problem.trainable, best.split([p.numel() for p in problem.trainable]), strict=True):
            p.copy_(value.view_as(p))
    assert learner.searcher.best[1] <= problem.loss(problem.model, (x, (y + 1) % 3)).mean() + 1e-12


def test_holding_the_mean_of_a_searcher_without_one_is_an_error():
    problem = problems.mlp()
    with pytest.raises(dldw.DldwError, match=r"RandomSearch has no mean .* Use hold='best'"):
        dldw.Search(problem.model, problem.loss, dldw.RandomSearch(), hold="mean")
    with pytest.raises(dldw.DldwError, match="hold must be best or mean, got 'last'"):
        dldw.Search(problem.model, problem.loss, dldw.RandomSearch(), hold="last")


def test_search_whose_candidates_all_fail_beside_a_good_incumbent_warns_and_keeps_it(caplog):
    problem = problems.mlp()
    start = problem.model[0].weight.detach().clone()
    inner = problem.loss

    def loss(model, batch):
        return inner(model, batch).mean() + torch.where((model[0].weight == start).all(), 0.0, float("nan"))

    learner = dldw.Search(problem.model, loss, dldw.RandomSearch(population=5, generator=seeded()))
    assert learner.step(problem.batch).isfinite()
    assert torch.equal(problem.model[0].weight, start)
    assert "the loss of all 5 candidates is NaN or infinite; lower the searcher's sigma" in caplog.text


@pytest.mark.parametrize("rows", [1, 3, 100])  # three at a time: some passes have new candidates and old ones
@pytest.mark.parametrize("make", [dldw.RandomSearch, dldw.ParticleSwarm])  # the swarm has old ones evaluated again
def test_batched_search_equals_sequential(make, rows, monkeypatch):
    monkeypatch.setattr(dldw.Evaluator, "_rows", lambda self, objective, candidates: rows)
    ends = []
    for evaluate in ("sequential", "batched"):
        problem = problems.mlp()
        learner = dldw.Search(problem.model, problem.loss, make(sigma=0.3, generator=seeded()), evaluate=evaluate)
        losses = run(learner, [problem.batch] * 4)
        ends.append((losses, [p.detach().clone() for p in problem.trainable]))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-10)
    for p, q in zip(ends[0][1], ends[1][1], strict=True):
        assert torch.equal(p, q)


def test_search_ignores_candidates_whose_loss_is_not_finite():
    problem = problems.mlp()
    inner = problem.loss
    problem.loss = lambda model, batch: torch.where(
        model[0].weight[0, 0] > 0, torch.full((), float("nan"), dtype=torch.float64), inner(model, batch).mean()
    )
    learner = search(problem, sigma=2.0, population=32)
    with torch.no_grad():
        problem.model[0].weight[0, 0] = -1
    for _ in range(5):
        assert learner.step(problem.batch).isfinite()
        assert problem.model[0].weight[0, 0] <= 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_search_leaves_weights_bit_identical_when_the_loss_raises(call, error):
    problem, calls = problems.mlp(), [0]

    def stopping(model, batch):
        calls[0] += 1
        if calls[0] >= call:
            raise error("stop")
        return problem.loss(model, batch)

    learner = dldw.Search(problem.model, stopping, dldw.RandomSearch(generator=seeded()), evaluate="sequential")
    before = [p.detach().clone() for p in problem.trainable]
    with pytest.raises(error):
        learner.step(problem.batch)
    assert all(torch.equal(p, b) for p, b in zip(problem.trainable, before, strict=True))
    calls[0] = -1000
    assert learner.step(problem.batch).isfinite(), "a search goes on after an interruption"


def test_interrupted_search_evaluates_the_same_candidates_again():
    ends = []
    for stop in (False, True):
        problem, failing = problems.mlp(), [stop]

        def loss(model, batch, problem=problem, failing=failing):
            if failing[0]:
                raise KeyboardInterrupt
            return problem.loss(model, batch)

        learner = dldw.Search(problem.model, loss, dldw.RandomSearch(sigma=0.5, generator=seeded()))
        if stop:
            with pytest.raises(KeyboardInterrupt):
                learner.step(problem.batch)
            failing[0] = False
        ends.append([float(learner.step(problem.batch)) for _ in range(3)])
    assert ends[0] == ends[1]


def test_search_leaves_a_start_whose_loss_is_not_finite():
    problem = problems.mlp()
    start = problem.model[0].weight.detach().clone()
    inner = problem.loss

    def loss(model, batch):
        at_start = (model[0].weight == start).all()
        return inner(model, batch).mean() + torch.where(at_start, float("inf"), 0.0)

    assert dldw.Search(problem.model, loss, dldw.RandomSearch(generator=seeded())).step(problem.batch).isfinite()
    assert not torch.equal(problem.model[0].weight, start)


def test_search_goes_on_after_a_generation_of_failures():
    problem, failing = problems.mlp(), [True]
    learner = dldw.Search(
        problem.model,
        lambda model, batch: problem.loss(model, batch) * (float("nan") if failing[0] else 1.0),
        dldw.RandomSearch(population=5, generator=seeded()),
    )
    with pytest.raises(dldw.DldwError, match=r"all 5 candidates is NaN or infinite, .* Lower the searcher's sigma"):
        learner.step(problem.batch)
    failing[0] = False
    assert learner.step(problem.batch).isfinite()


def test_search_leaves_buffers_and_the_random_state_as_one_forward_would():
    problem, reference = problems.batch_norm(), problems.batch_norm()
    reference.loss(reference.model, reference.batch)
    search(problem).step(problem.batch)
    for (name, b), wanted in zip(problem.model.named_buffers(), reference.model.buffers(), strict=True):
        assert torch.equal(b, wanted), name
    problem = problems.dropout()
    torch.manual_seed(3)
    problem.loss(problem.model, problem.batch)
    wanted = torch.get_rng_state()
    torch.manual_seed(3)
    search(problem).step(problem.batch)
    assert torch.equal(torch.get_rng_state(), wanted)


@pytest.mark.parametrize(("name", "settings"), SEARCHERS, ids=str)
@pytest.mark.parametrize(
    "dtypes", [(torch.float64,) * 2, (torch.bfloat16,) * 2, (torch.float16, torch.float32)], ids=str
)
def test_search_trains_weights_in_their_own_types(name, settings, dtypes):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in dtypes)

    def loss(model, batch):
        return ((model.a.double() - 1).square() + (model.b.double() + 1).square()).sum()

    model = Two()
    learner = dldw.Search(model, loss, dldw.methods()[name].factory(generator=seeded(), **settings))
    losses = [float(learner.step(None)) for _ in range(30)]
    assert (model.a.dtype, model.b.dtype) == dtypes
    assert losses[-1] < 6
    assert losses[-1] == pytest.approx(float(loss(model, None).detach()), rel=1e-12)


def test_search_leaves_frozen_weights_alone_and_keeps_tied_weights_tied():
    problem = problems.tied()
    problem.model.body[0].weight.requires_grad_(False)
    frozen = problem.model.body[0].weight.clone()
    learner = search(problem, sigma=0.5)
    for _ in range(4):
        learner.step(problem.batch)
    assert torch.equal(problem.model.body[0].weight, frozen)
    assert problem.model.head.weight is problem.model.embedding.weight
