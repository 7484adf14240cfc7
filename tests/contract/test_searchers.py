"""Every registered searcher keeps the contract of searchers."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import dldw
from dldw.searcher import Searcher
from tests.contract.variants import SEARCHERS


@pytest.fixture(params=SEARCHERS, ids=lambda p: f"{p[0]}{p[1] or ''}")
def make(request):
    name, settings = request.param

    def build(seed: int | None = 0, x0: torch.Tensor | None = None) -> Searcher:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        searcher = dldw.methods()[name].factory(generator=generator, **settings)
        searcher.reset(torch.tensor([1.5, -0.5, 0.5], dtype=torch.float64) if x0 is None else x0)
        return searcher

    build.evaluations = 20_000 if settings.get("step") == "one-weight" else 4_000  # one weight creeps along the valley
    return build


def test_a_searcher_claims_to_be_a_search_that_needs_loss_values_and_is_tuned():
    found = {name for name, m in dldw.methods().items() if issubclass(m.factory, Searcher)}
    assert found == {name for name, m in dldw.methods().items() if m.card.claim == "search"}
    for name in found:
        card = dldw.methods()[name].card
        assert card.needs == "loss values"
        assert card.space


def sphere(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_candidates_are_rows_of_the_start_points_size_and_type(make, dtype):
    candidates = make(x0=torch.zeros(5, dtype=dtype)).ask()
    assert candidates.ndim == 2
    assert candidates.shape[1] == 5
    assert candidates.dtype == dtype
    assert candidates.isfinite().all()


def test_same_seed_same_candidates(make):
    runs = []
    for seed in (3, 3, 4):
        searcher = make(seed)
        asked = []
        for _ in range(4):
            asked.append(searcher.ask())
            searcher.tell(sphere(asked[-1]))
        runs.append(torch.stack(asked))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.parametrize("seed", [0, None])
def test_global_random_state_is_untouched(make, seed):
    before = torch.get_rng_state()
    searcher = make(seed)
    searcher.tell(sphere(searcher.ask()))
    searcher.ask()
    assert torch.equal(torch.get_rng_state(), before)


def test_start_point_is_not_written(make):
    x0 = torch.ones(4)
    searcher = make(x0=x0)
    for _ in range(3):
        searcher.tell(sphere(searcher.ask()))
    assert torch.equal(x0, torch.ones(4))


def test_best_is_the_lowest_loss_ever_told_and_its_candidate(make):
    searcher, seen = make(), []
    for generation in range(5):
        candidates = searcher.ask()
        losses = sphere(candidates) + (2 - generation) ** 2
        seen += [(float(loss), c.clone()) for loss, c in zip(losses, candidates, strict=True)]
        searcher.tell(losses)
        loss, candidate = min(seen, key=lambda pair: pair[0])
        assert searcher.best[1] == loss
        assert torch.equal(searcher.best[0], candidate)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_never_becomes_best(make, bad):
    searcher = make()
    searcher.tell(torch.full((len(searcher.ask()),), bad))
    with pytest.raises(dldw.DldwError, match="no best candidate yet"):
        _ = searcher.best
    candidates = searcher.ask()
    assert candidates.isfinite().all()
    losses = sphere(candidates)
    wanted = float(losses.min())
    searcher.tell(losses)
    assert searcher.best[1] == wanted
    searcher.tell(torch.full((len(searcher.ask()),), bad))
    assert searcher.best[1] == wanted
    assert searcher.ask().isfinite().all()


def test_the_last_generation_can_be_looked_at_until_the_next_is_asked_for(make):
    searcher = make()
    assert searcher.last is None
    for _ in range(3):
        candidates = searcher.ask()
        assert searcher.last is None, "two populations are never held at a time"
        losses = sphere(candidates)
        losses[0] = math.nan
        searcher.tell(losses)
        told, known = searcher.last
        assert torch.equal(told[:], candidates)
        assert known.tolist() == [math.inf, *losses[1:].tolist()]
    searcher.load_state_dict(searcher.state_dict())
    assert searcher.last is None
    searcher.reset(torch.zeros(2))
    assert searcher.last is None


def test_one_bad_loss_among_good_ones_does_not_hide_them(make):
    searcher = make()
    losses = sphere(searcher.ask())
    losses[0] = math.nan
    if len(losses) > 1:
        searcher.tell(losses)
        assert searcher.best[1] == float(losses[1:].min())


def test_caller_may_reuse_the_tensor_of_losses(make):
    searcher = make()
    losses = sphere(searcher.ask())
    wanted = float(losses.min())
    searcher.tell(losses)
    losses.fill_(-1)
    assert searcher.best[1] == wanted


@pytest.mark.parametrize("between_ask_and_tell", [False, True])
def test_state_round_trips(make, between_ask_and_tell):
    searcher = make(5)
    for _ in range(3):
        searcher.tell(sphere(searcher.ask()))
    waiting = searcher.ask() if between_ask_and_tell else None
    state = copy.deepcopy(searcher.state_dict())
    other = make(99)
    other.load_state_dict(state)
    if waiting is not None:
        for s in (searcher, other):
            s.tell(sphere(waiting))
    for _ in range(3):
        mine, theirs = searcher.ask(), other.ask()
        assert torch.equal(mine, theirs)
        searcher.tell(sphere(mine))
        other.tell(sphere(theirs))
    assert searcher.best[1] == other.best[1]
    assert torch.equal(searcher.best[0], other.best[0])


def test_state_does_not_move_when_the_search_goes_on(make):
    searcher = make(5)
    searcher.tell(sphere(searcher.ask()))
    state, kept = searcher.state_dict(), copy.deepcopy(searcher.state_dict())
    for _ in range(3):
        searcher.tell(sphere(searcher.ask()) - 100)
    first, second = make(1), make(2)
    first.load_state_dict(state)
    second.load_state_dict(kept)
    assert torch.equal(first.ask(), second.ask())
    assert first.best[1] == second.best[1]


def test_reset_starts_over(make):
    searcher = make()
    searcher.tell(sphere(searcher.ask()))
    searcher.reset(torch.zeros(2))
    assert searcher.ask().shape[1] == 2
    with pytest.raises(dldw.DldwError, match="no best candidate"):
        _ = searcher.best


@pytest.mark.parametrize("function", [sphere, rosenbrock])
def test_search_comes_close_to_the_minimum_of_two_variables(make, function):
    searcher = make(x0=torch.tensor([0.2, 0.4], dtype=torch.float64))
    evaluated = 0
    while evaluated < make.evaluations:
        candidates = searcher.ask()
        evaluated += len(candidates)
        searcher.tell(function(candidates))
    assert searcher.best[1] < 0.1


@pytest.mark.parametrize("transform", [lambda x: 8 * x, torch.log], ids=["times 8", "log"])
def test_a_monotone_transform_of_the_losses_changes_nothing(make, transform):
    plain, transformed = make(3), make(3)
    for _ in range(6):
        a, b = plain.ask(), transformed.ask()
        assert torch.equal(a, b)
        plain.tell(sphere(a))
        transformed.tell(transform(sphere(b)))
    assert torch.equal(plain.best[0], transformed.best[0])


def test_of_equal_losses_the_first_is_best_and_the_search_goes_on(make):
    searcher = make()
    first = searcher.ask().clone()
    searcher.tell(torch.ones(len(first)))
    assert torch.equal(searcher.best[0], first[0])
    for _ in range(5):
        candidates = searcher.ask()
        assert candidates.isfinite().all()
        searcher.tell(torch.ones(len(candidates)))
    assert torch.equal(searcher.best[0], first[0])


def test_candidates_once_given_are_never_written(make):
    searcher, asked = make(), []
    for _ in range(5):
        candidates = searcher.ask()
        asked.append((candidates, candidates.clone()))
        searcher.retell(sphere(searcher.remembered()))
        searcher.tell(sphere(candidates))
    assert all(torch.equal(now, then) for now, then in asked)


def test_what_is_remembered_is_the_best_first_and_without_a_start_the_start(make):
    searcher = make()
    assert torch.equal(searcher.remembered(), torch.tensor([[1.5, -0.5, 0.5]], dtype=torch.float64))
    for _ in range(3):
        searcher.tell(sphere(searcher.ask()))
        assert torch.equal(searcher.remembered()[0], searcher.best[0])
        assert torch.equal(searcher.remembered(), searcher.remembered())


def search_where_the_first_batch_was_lucky(searcher: Searcher, *, retelling: bool) -> torch.Tensor:
    """The best after 400 batches, of which the first had losses lower by 100, and a minimum elsewhere."""
    for batch in range(400):
        minimum, luck = (-1, 100) if batch == 0 else (1, 0)
        candidates = searcher.ask()
        if retelling:
            searcher.retell(sphere(searcher.remembered() - minimum) - luck)
        searcher.tell(sphere(candidates - minimum) - luck)
    return searcher.best[0]


def test_a_candidate_that_was_lucky_once_gives_way_where_losses_are_retold(make):
    x0 = torch.zeros(2, dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    stale = search_where_the_first_batch_was_lucky(make(0, x0), retelling=False)
    fresh = search_where_the_first_batch_was_lucky(make(0, x0), retelling=True)
    assert (stale - one).norm() > 1, "without retelling, the first batch's best stays for ever"
    assert (fresh - one).norm() < 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_best_whose_loss_is_no_longer_finite_gives_way(make, bad):
    searcher = make()
    searcher.tell(sphere(searcher.ask()))
    candidates = searcher.ask()
    searcher.retell(torch.full((len(searcher.remembered()),), bad))
    searcher.tell(sphere(candidates))
    assert searcher.best[1] == float(sphere(candidates).min())


def test_no_remembered_loss_is_older_than_eight_generations(make):
    searcher = make()
    searcher.tell(sphere(searcher.ask()))
    memory = searcher._memory()
    if memory is None:
        return
    memory[1].fill_(-7)
    for _ in range(8):
        searcher.retell(sphere(searcher.remembered()))
    assert torch.equal(memory[1], sphere(memory[0]))


def test_retelling_a_wrong_number_of_losses_is_an_error(make):
    searcher = make()
    searcher.tell(sphere(searcher.ask()))
    k = len(searcher.remembered())
    for losses in (torch.zeros(k + 1), torch.zeros(k, 1), torch.zeros(k, dtype=torch.int64)):
        with pytest.raises(dldw.DldwError, match=rf"retell needs one floating-point loss for each of the {k} rows of"):
            searcher.retell(losses)


def test_remembering_before_reset_is_an_error():
    with pytest.raises(dldw.DldwError, match=r"nothing is remembered before reset: .* Call reset\(x0\)"):
        dldw.RandomSearch().remembered()


def test_asking_twice_is_an_error(make):
    searcher = make()
    searcher.ask()
    with pytest.raises(dldw.DldwError, match=r"ask was called twice in a row: .* still wait for tell\(losses\)"):
        searcher.ask()


def test_asking_before_reset_is_an_error():
    with pytest.raises(dldw.DldwError, match=r"ask was called before reset: .* Call reset\(x0\)"):
        dldw.RandomSearch().ask()


def test_telling_before_asking_is_an_error(make):
    with pytest.raises(dldw.DldwError, match="tell was called before ask: there are no candidates"):
        make().tell(torch.zeros(3))


def test_telling_a_wrong_number_of_losses_is_an_error_and_may_be_repaired(make):
    searcher = make()
    candidates = searcher.ask()
    n = len(candidates)
    for losses in (torch.zeros(n + 1), torch.zeros(n, 1), torch.zeros(())):
        with pytest.raises(
            dldw.DldwError, match=rf"one floating-point loss for each of the {n} candidates, got .*shape"
        ):
            searcher.tell(losses)
    searcher.tell(sphere(candidates))
    assert searcher.best


def test_telling_integer_losses_is_an_error(make):
    searcher = make()
    n = len(searcher.ask())
    with pytest.raises(dldw.DldwError, match=r"floating-point loss .* got torch\.int64"):
        searcher.tell(torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize(
    "x0", [torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2), torch.zeros(()), torch.zeros(0)], ids=str
)
def test_start_point_that_is_no_floating_point_vector_is_an_error(make, x0):
    with pytest.raises(dldw.DldwError, match=r"floating-point vector \[d\], got .* x0\.float\(\)\.flatten\(\)"):
        make(x0=x0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sigma": 0.0}, "sigma and population must be positive, got 0.0"),
        ({"sigma": -1.0}, "must be positive, got -1.0"),
        ({"population": 0}, "must be positive, got 1.0 and 0"),
        ({"distribution": "cauchy"}, "distribution must be gaussian or uniform, got 'cauchy'"),
    ],
)
def test_random_search_says_which_setting_is_wrong(settings, text):
    with pytest.raises(dldw.DldwError, match=text):
        dldw.RandomSearch(**settings)
