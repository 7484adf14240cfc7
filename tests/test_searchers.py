"""What each searcher promises of its own: its update rule, its selection, its memory."""

from __future__ import annotations

import copy
import gc
from itertools import permutations

import pytest
import torch
from scipy.stats import kstest
from torch import nn

import dldw
from dldw.searcher import Searcher
from dldw.searchers.sampling import Box, coins, others, random_bytes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(searcher: Searcher, x0: torch.Tensor | None = None) -> Searcher:
    searcher.reset(torch.zeros(3, dtype=torch.float64) if x0 is None else x0)
    return searcher


def sphere(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(1)


# --- particle swarm ------------------------------------------------------------------------------------------------


def pulled_by(swarm: Searcher, cognitive: float, social: float, attractor) -> torch.Tensor:
    """The share of the way to its attractor that each coordinate of each particle goes, over some generations.

    The swarm has no inertia and, after four generations that scatter it, one pull alone; ``attractor(seen, i)`` works out
    its target in plain Python from all (point, loss) pairs that each particle has seen.
    """
    seen: list[list[tuple[torch.Tensor, float]]] = [[] for _ in range(swarm.particles)]
    shares, before = [], None
    for generation in range(12):
        if generation == 4:
            swarm.cognitive, swarm.social = cognitive, social
        x = swarm.ask()
        if generation >= 4:
            for i, row in enumerate(x):
                way = attractor(seen, i) - before[i]
                shares.append(((row - before[i]) / way)[way.abs() > 1e-9])
        losses = (x - 5).square().sum(1) + (1e6 if 0 < generation < 4 else 0)
        for i, (row, loss) in enumerate(zip(x, losses.tolist(), strict=True)):
            seen[i].append((row.clone(), loss))
        swarm.tell(losses)
        before = x.clone()
    return torch.cat(shares)


def best_of(pairs):
    return min(pairs, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize(
    ("cognitive", "social", "topology", "attractor"),
    [
        (0.0, 1.2, "global", lambda seen, i: best_of([p for own in seen for p in own])),
        (0.0, 1.2, "ring", lambda seen, i: best_of(seen[i - 1] + seen[i] + seen[(i + 1) % len(seen)])),
        (1.2, 0.0, "global", lambda seen, i: best_of(seen[i])),
    ],
    ids=["global best", "best of the ring", "own best"],
)
def test_a_particle_goes_a_uniform_share_of_the_way_to_its_attractor(cognitive, social, topology, attractor):
    swarm = dldw.ParticleSwarm(particles=20, inertia=0.0, sigma=3.0, topology=topology, generator=seeded())
    shares = pulled_by(started(swarm, torch.zeros(40, dtype=torch.float64)), cognitive, social, attractor)
    assert len(shares) > 300
    assert shares.min() >= 0
    assert shares.max() <= 1.2
    assert float(shares.mean()) == pytest.approx(0.6, abs=4 * 1.2 / (12 * len(shares)) ** 0.5)
    assert float(shares.var()) == pytest.approx(1.44 / 12, rel=0.2)


def test_inertia_alone_multiplies_every_step():
    swarm = started(dldw.ParticleSwarm(particles=6, generator=seeded()))
    points = []
    for _ in range(3):
        points.append(swarm.ask())
        swarm.tell(sphere(points[-1]))
    swarm.cognitive = swarm.social = 0.0
    points.append(swarm.ask())
    assert torch.allclose(points[3] - points[2], 0.7298 * (points[2] - points[1]), rtol=1e-12)


def test_defaults_are_the_constriction_of_clerc_and_kennedy():
    swarm = dldw.ParticleSwarm()
    chi = 2 / abs(2 - 4.1 - (4.1**2 - 4 * 4.1) ** 0.5)
    assert swarm.inertia == pytest.approx(chi, abs=1e-4)
    assert swarm.cognitive == swarm.social == pytest.approx(2.05 * chi, abs=1e-4)


@pytest.mark.parametrize(("bounds", "fastest"), [(None, 0.2), ((-1.0, 0.5), 0.75), (([-1, -2, -3], [1, 2, 3]), None)])
def test_velocity_is_clamped(bounds, fastest):
    swarm = started(dldw.ParticleSwarm(particles=30, social=50.0, sigma=0.1, bounds=bounds, generator=seeded()))
    limit = torch.tensor([1.0, 2.0, 3.0]) if fastest is None else fastest
    most = torch.zeros(3, dtype=torch.float64)
    for _ in range(10):
        candidates = swarm.ask()
        most = torch.maximum(most, swarm._v.abs().amax(0))
        swarm.tell((candidates - 5).square().sum(1))
    assert (most <= limit + 1e-12).all()
    assert (most > 0.9 * limit).any()


@pytest.mark.parametrize("make", [dldw.ParticleSwarm, dldw.DifferentialEvolution])
def test_no_candidate_lies_outside_the_bounds_and_a_minimum_in_a_corner_is_found(make):
    low, high = torch.tensor([-1.0, 0.0, -2.0]), torch.tensor([1.0, 0.5, 3.0])
    searcher = make(sigma=2.0, bounds=(low, high), generator=seeded())
    started(searcher, torch.tensor([0.0, 0.1, 0.0]))
    for _ in range(80):
        candidates = searcher.ask()
        assert ((candidates >= low) & (candidates <= high)).all()
        searcher.tell(candidates.sum(1))
    assert searcher.best[1] == pytest.approx(-3, abs=0.05)


@pytest.mark.parametrize("make", [dldw.ParticleSwarm, dldw.DifferentialEvolution])
def test_without_sigma_the_first_candidates_are_even_over_the_bounds_and_the_start_is_none_of_them(make):
    low, high = torch.tensor([-1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    searcher = started(make(bounds=(low, high), generator=seeded()), torch.tensor([0.9, 0.4], dtype=torch.float64))
    first = searcher.ask()
    fractions = ((first - low) / (high - low)).flatten()
    assert kstest(fractions.numpy(), "uniform").pvalue > 0.01
    assert not (first == torch.tensor([0.9, 0.4], dtype=torch.float64)).all(1).any()


@pytest.mark.parametrize("make", [dldw.ParticleSwarm, dldw.DifferentialEvolution])
@pytest.mark.parametrize(
    ("settings", "std"), [({}, 1.0), ({"sigma": 0.2}, 0.2), ({"sigma": 0.2, "bounds": (-9, 9)}, 0.2)]
)
def test_with_sigma_or_without_bounds_they_are_gaussian_around_the_start(make, settings, std):
    start = torch.full((200,), 0.5, dtype=torch.float64)
    first = started(make(generator=seeded(), **settings), start).ask()
    assert torch.equal(first[0], start)
    assert kstest(((first[1:] - start) / std).flatten().numpy(), "norm").pvalue > 0.01


def test_reflection_is_a_walk_that_turns_at_every_wall():
    low, high = -1.0, 0.5
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)[:, None]

    def walked(at: float) -> float:
        while not low <= at <= high:
            at = 2 * low - at if at < low else 2 * high - at
        return at

    wanted = torch.tensor([[walked(float(at))] for at in x], dtype=torch.float64)
    box = Box((low, high), torch.zeros(1, dtype=torch.float64))
    assert torch.allclose(box.reflect(x.clone()), wanted, atol=1e-12)


@pytest.mark.parametrize("particles", [7, 64])
def test_swarm_in_many_blocks_equals_the_swarm_in_one(particles):
    ends = []
    for block in (3, 10**6):
        swarm = started(dldw.ParticleSwarm(particles=particles, topology="ring", generator=seeded()))
        swarm._block = block
        for _ in range(5):
            swarm.tell(sphere(swarm.ask()))
        ends.append(swarm.ask())
    assert torch.equal(*ends)


# --- genetic algorithm ---------------------------------------------------------------------------------------------


def told(settings, d: int = 4, seed: int = 0):
    """A genetic algorithm after one generation, its candidates sorted from the best down, and the next candidates."""
    genetic = dldw.GeneticAlgorithm(sigma=1.0, generator=seeded(seed), **settings)
    started(genetic, torch.zeros(d, dtype=torch.float64))
    candidates = genetic.ask()
    losses = sphere(candidates - 1)
    genetic.tell(losses)
    return candidates[losses.argsort()], genetic.ask()


@pytest.mark.parametrize("seeds", [False, True])
def test_elites_go_on_unchanged(seeds):
    ranked, offspring = told({"population": 20, "elites": 3, "seeds": seeds})
    assert torch.equal(offspring[:3], ranked[:3])
    assert not (offspring[3:, None] == ranked[None]).all(2).any()


def test_an_elite_whose_batch_was_lucky_is_not_kept_by_its_old_loss():
    genetic = started(dldw.GeneticAlgorithm(population=10, generator=seeded()))
    candidates = genetic.ask()
    genetic.tell(torch.where(torch.arange(10) == 4, -100.0, 0.0))
    assert torch.equal(genetic.ask()[0], candidates[4])
    genetic.tell(torch.arange(10, 0, -1.0))
    assert not torch.equal(genetic.ask()[0], candidates[4])


@pytest.mark.parametrize(("selection", "best"), [("truncation", 200), (("truncation", 0.5), 500)])
def test_truncation_draws_parents_evenly_from_the_best_fifth_or_the_share_asked_for(selection, best):
    ranked, offspring = told({"population": 1000, "elites": 0, "mutation_sigma": 0.0, "selection": selection})
    parents = (offspring[:, None] == ranked[None]).all(2).double().argmax(1)
    assert parents.max() < best
    halves = (parents < best / 2).double().mean()
    assert float(halves) == pytest.approx(0.5, abs=4 * 0.5 / 1000**0.5)


@pytest.mark.parametrize(("selection", "contestants"), [("tournament", 3), (("tournament", 2), 2)])
def test_tournament_is_won_by_the_best_of_three_or_of_as_many_as_asked_for(selection, contestants):
    ranked, offspring = told({"population": 1000, "elites": 0, "mutation_sigma": 0.0, "selection": selection})
    parents = (offspring[:, None] == ranked[None]).all(2).double().argmax(1) / 1000
    k, lost = contestants, 2.0**-contestants  # the least of k uniforms, and how often it is above a half
    deviation = (k / (k + 1) ** 2 / (k + 2)) ** 0.5
    assert float(parents.mean()) == pytest.approx(1 / (k + 1), abs=4 * deviation / 1000**0.5)
    assert float((parents < 0.5).double().mean()) == pytest.approx(1 - lost, abs=4 * (lost * (1 - lost) / 1000) ** 0.5)


@pytest.mark.parametrize("crossover", ["uniform", "one-point", "blend"])
def test_a_child_is_made_of_two_parents(crossover):
    settings = {"population": 11, "elites": 0, "mutation_sigma": 0.0, "crossover": crossover}
    ranked, offspring = told(settings, d=6)  # the best fifth of eleven is two
    mother, father = ranked[:2]
    share = (offspring - mother) / (father - mother)
    assert not (share == 0).all()
    if crossover == "blend":
        assert share.min() >= -0.5 - 1e-9
        assert share.max() <= 1.5 + 1e-9
        return
    assert ((share.abs() < 1e-9) | ((share - 1).abs() < 1e-9)).all()
    changes = (share.diff(dim=1).abs() > 0.5).sum(1)
    assert (changes.max() > 1) == (crossover == "uniform")
    assert changes.max() >= 1


def test_with_crossover_the_best_fifth_take_turns_each_with_the_next_in_rank():
    settings = {"population": 50, "elites": 2, "mutation_sigma": 0.0, "crossover": "uniform"}
    ranked, offspring = told(settings, d=30)
    for turn, child in enumerate(offspring[2:]):
        inherited = child == ranked[:10]
        assert inherited.any(1).nonzero().flatten().tolist() == sorted((turn % 10, (turn + 1) % 10))
        assert inherited.any(0).all()


def test_a_mutation_is_gaussian_with_the_stated_deviation():
    ranked, offspring = told({"population": 11, "elites": 1, "mutation_sigma": 0.01}, d=2000)
    z = (offspring[1:, None] - ranked[None, :2]) / 0.01
    z = z[torch.arange(10), z.square().sum(2).argmin(1)]
    assert float(z.std()) == pytest.approx(1, abs=4 / (2 * z.numel()) ** 0.5)
    assert float(z.mean()) == pytest.approx(0, abs=4 / z.numel() ** 0.5)
    assert float((z.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=4 * 0.466 / z.numel() ** 0.5)


@pytest.mark.parametrize("seeds", [False, True])
def test_coordinates_mutate_at_the_stated_rate_and_by_the_stated_deviation(seeds):
    settings = {"population": 11, "elites": 1, "mutation_sigma": (0.01, 0.1), "seeds": seeds}
    ranked, offspring = told(settings, d=2000)
    changes = offspring[1:, None] - ranked[None, :2]
    of_the_second = changes.square().sum(2).argmin(1) == 1  # the first is the start point, whose children have sigma
    changes = changes[of_the_second, 1]
    mutated = changes[changes != 0]
    assert mutated.numel() / changes.numel() == pytest.approx(0.1, abs=4 * (0.09 / changes.numel()) ** 0.5)
    assert float(mutated.std()) == pytest.approx(0.01, rel=4 / (2 * mutated.numel()) ** 0.5)


def numbers(state: object) -> int:
    """How many numbers a state holds."""
    if isinstance(state, torch.Tensor):
        return state.numel()
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(numbers, state)) if isinstance(state, (list, tuple)) else 1


def held(d: int, **settings) -> int:
    genetic = started(dldw.GeneticAlgorithm(population=40, generator=seeded(), **settings), torch.zeros(d))
    for _ in range(5):
        genetic.tell(sphere(genetic.ask()))
    return numbers(genetic.state_dict()["own"])


def test_a_population_of_seeds_takes_memory_that_does_not_grow_with_the_number_of_weights():
    assert held(10_000, seeds=True) <= 8 * 5 + 2  # eight parents of at most five mutations
    assert held(10, seeds=True) <= 8 * 5 + 2
    assert held(10_000) > 50_000


def test_an_individual_is_its_start_point_and_the_noise_of_its_seeds():
    x0 = torch.arange(5, dtype=torch.float64)
    genetic = started(
        dldw.GeneticAlgorithm(population=12, sigma=2.0, mutation_sigma=0.5, seeds=True, generator=seeded()), x0
    )
    for _ in range(6):
        genetic.tell(sphere(genetic.ask() - 7))
    chain = genetic.state_dict()["own"]["pool"][0]
    assert 1 < len(chain) <= 6
    x = x0.clone()
    for i, seed in enumerate(chain):
        x += (0.5 if i else 2.0) * torch.empty(5, dtype=torch.float64).normal_(generator=seeded(seed))
    assert torch.allclose(genetic.best[0], x, rtol=1e-14)
    assert torch.equal(genetic.ask()[0], genetic.best[0])


@pytest.mark.parametrize("evaluate", ["sequential", "batched"])
def test_training_with_seeds_makes_the_vectors_as_they_are_evaluated(evaluate):
    model, seen, most = nn.Linear(100, 50), [], []
    genetic = dldw.GeneticAlgorithm(population=30, seeds=True, generator=seeded())

    def large():
        tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() >= 5050]
        return {t.untyped_storage().data_ptr(): t.numel() for t in tensors}

    others = large()  # of the tests before

    def loss(model, batch):
        seen.append(type(genetic.waiting))
        if len(seen) % 20 == 0:
            most.append(sum(size for at, size in large().items() if at not in others))
        return model(batch).square().mean(1)

    learner = dldw.Search(model, loss, genetic, evaluate=evaluate)
    for _ in range(4):
        learner.step(torch.ones(2, 100))
    assert torch.Tensor not in seen
    if evaluate == "sequential":
        assert max(most) < 10 * 5050, "thirty candidates, and no more than a few of them in memory"


def test_a_proposal_is_the_same_vector_alone_in_a_slice_and_in_what_ask_gives():
    genetic, other = (started(dldw.GeneticAlgorithm(population=9, seeds=True, generator=seeded())) for _ in range(2))
    for _ in range(4):
        proposals, asked = genetic.propose(), other.ask()
        assert torch.equal(torch.stack([proposals[i] for i in (*range(8, -1, -1),)]), asked.flip(0))
        assert torch.equal(proposals[3:7], asked[3:7])
        genetic.tell(sphere(asked))
        other.tell(sphere(asked))


# --- differential evolution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["rand/1/bin", "best/1/bin"])
def test_a_trial_is_a_difference_of_two_others_added_to_a_third_or_to_the_best(strategy):
    evolution = dldw.DifferentialEvolution(
        population=5, mutation=0.7, crossover=1.0, strategy=strategy, generator=seeded()
    )
    x = started(evolution).ask().clone()
    evolution.tell(sphere(x))
    best = x[sphere(x).argmin()]
    for i, trial in enumerate(evolution.ask()):
        rows = [row for row in range(5) if row != i]
        mutants = [
            (x[a] if strategy == "rand/1/bin" else best) + 0.7 * (x[b] - x[c]) for a, b, c in permutations(rows, 3)
        ]
        assert min(float((trial - mutant).abs().max()) for mutant in mutants) < 1e-12


@pytest.mark.parametrize(("crossover", "changed"), [(0.0, 1.0), (0.25, 0.25 + 0.75 / 50)])
def test_a_coordinate_is_the_mutants_with_probability_crossover_and_one_always_is(crossover, changed):
    evolution = dldw.DifferentialEvolution(population=200, crossover=crossover, generator=seeded())
    x = started(evolution, torch.zeros(50)).ask().clone()
    evolution.tell(torch.zeros(200))
    differing = (evolution.ask() != x).sum(1)
    assert differing.min() >= 1
    if crossover == 0:
        assert differing.max() == 1
    else:
        assert float(differing.double().mean() / 50) == pytest.approx(changed, abs=4 * (0.19 / 10_000) ** 0.5)


def test_a_trial_that_is_no_worse_replaces_its_parent_and_no_other():
    evolution = started(dldw.DifferentialEvolution(population=4, generator=seeded()))
    parents = evolution.ask().clone()
    evolution.tell(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    trials = evolution.ask().clone()
    evolution.tell(torch.tensor([0.5, 1.0, 1.5, torch.nan]))
    assert torch.equal(evolution._x, torch.stack([trials[0], trials[1], parents[2], parents[3]]))


# --- hill climbing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["gaussian", "uniform", "one-weight"])
def test_a_step_starts_from_the_best_point_and_has_the_stated_shape(step):
    climb = dldw.HillClimb(step=step, sigma=0.1, proposals=4000, generator=seeded())
    started(climb, torch.ones(10, dtype=torch.float64))
    steps = climb.ask() - 1
    moved = steps[steps.abs() > 1e-12]
    assert float(moved.mean()) == pytest.approx(0, abs=4 * 0.1 / len(moved) ** 0.5)
    if step == "gaussian":
        assert float(moved.std()) == pytest.approx(0.1, rel=0.05)
        assert moved.abs().max() > 0.25
    else:
        assert moved.abs().max() <= 0.1
        assert float(moved.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    if step == "one-weight":
        assert ((steps.abs() > 1e-12).sum(1) == 1).all()
        hits = (steps.abs() > 1e-12).sum(0).double()
        assert (hits - 400).abs().max() < 4.5 * (4000 * 0.09) ** 0.5


def test_a_worse_step_is_not_taken():
    climb = dldw.HillClimb(sigma=1e-6, generator=seeded())
    started(climb)
    climb.retell(torch.tensor([1.0]))
    climb.ask()
    climb.tell(torch.tensor([2.0]))
    assert torch.equal(climb.best[0], torch.zeros(3, dtype=torch.float64))
    better = climb.ask()
    assert better.abs().max() < 1e-5
    climb.tell(torch.tensor([0.5]))
    assert torch.equal(climb.best[0], better[0])


# --- what they draw ------------------------------------------------------------------------------------------------


def test_random_bytes_are_uniform_and_independent():
    drawn = random_bytes(2, torch.empty(301, 333), seeded()).flatten(1).double()
    assert drawn.shape == (2, 301 * 333)
    counts = torch.bincount(drawn.flatten().long(), minlength=256).double()
    expected = counts.sum() / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 255 + 5 * (2 * 255) ** 0.5  # chi squared
    assert float(torch.corrcoef(drawn)[0, 1].abs()) < 4 / drawn.shape[1] ** 0.5
    neighbours = torch.stack([drawn[0, :-1], drawn[0, 1:]])
    assert float(torch.corrcoef(neighbours)[0, 1].abs()) < 4 / drawn.shape[1] ** 0.5


@pytest.mark.parametrize("p", [0.0, 0.1, 0.9, 1.0])
def test_coins_fall_with_the_stated_probability(p):
    fallen = coins(p, torch.empty(100, 401), seeded())
    assert fallen.unique().tolist() == ([p] if p in (0, 1) else [0, 1])
    assert float(fallen.mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / fallen.numel()) ** 0.5 + 1e-5)


def test_others_are_distinct_and_every_choice_is_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    generator = seeded()
    for _ in range(2000):
        picks = torch.stack([torch.arange(4), *others(4, 2, generator)]).T.tolist()
        for row in picks:
            counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    assert counts.keys() == set(permutations(range(4), 3))
    expected = 8000 / 24
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 23 + 5 * 46**0.5


# --- state and errors ----------------------------------------------------------------------------------------------


def test_a_saved_state_is_not_moved_by_the_searcher_that_loaded_it():
    swarm = started(dldw.ParticleSwarm(particles=5, generator=seeded()))
    swarm.tell(sphere(swarm.ask()))
    state = swarm.state_dict()
    kept = copy.deepcopy(state)
    other = dldw.ParticleSwarm(particles=5)
    other.load_state_dict(state)
    for _ in range(3):
        other.tell(sphere(other.ask()) - 9)
    for name, value in kept["own"].items():
        assert torch.equal(state["own"][name], value), name


def test_stop_is_empty_and_the_mean_is_none_where_a_method_has_neither():
    swarm = started(dldw.ParticleSwarm())
    assert swarm.stop() == {}
    assert swarm.mean is None


@pytest.mark.parametrize(
    ("make", "settings", "text"),
    [
        (dldw.ParticleSwarm, {"particles": 1}, "at least 2 particles and a positive sigma, got 1 and 1.0"),
        (dldw.ParticleSwarm, {"sigma": 0.0}, "a positive sigma, got 32 and 0.0"),
        (dldw.ParticleSwarm, {"inertia": 1.0}, r"inertia must lie in \[0, 1\), or velocities grow without end"),
        (dldw.ParticleSwarm, {"social": -1.0}, "cognitive and social must not be negative; got 0.7298, 1.49618 and -1"),
        (dldw.ParticleSwarm, {"topology": "star"}, "topology must be global or ring, got 'star'"),
        (dldw.GeneticAlgorithm, {"population": 1}, "population must be at least 2 and exceed the elites, got 1 and 1"),
        (dldw.GeneticAlgorithm, {"population": 4, "elites": 4}, "exceed the elites, got 4 and 4"),
        (dldw.GeneticAlgorithm, {"mutation_sigma": -0.1}, "mutation_sigma not negative; got 0.3 and -0.1"),
        (dldw.GeneticAlgorithm, {"mutation_sigma": (0.1, 0.0)}, r"rate .* must lie in \(0, 1\], got 0.0"),
        (dldw.GeneticAlgorithm, {"mutation_sigma": (0.1, 1.1)}, r"rate .* must lie in \(0, 1\], got 1.1"),
        (
            dldw.GeneticAlgorithm,
            {"selection": "roulette"},
            "selection must be truncation or tournament, got 'roulette'",
        ),
        (dldw.GeneticAlgorithm, {"selection": ("truncation", 0.0)}, r"share .* must lie in \(0, 1\], got 0.0"),
        (dldw.GeneticAlgorithm, {"selection": ("tournament", 2.5)}, "a whole number of contestants, .* got 2.5"),
        (dldw.GeneticAlgorithm, {"crossover": "two-point"}, "None, uniform, one-point or blend, got 'two-point'"),
        (
            dldw.GeneticAlgorithm,
            {"seeds": True, "crossover": "blend"},
            "chain of seeds has one parent, so 'blend' crossover cannot be written down. Use crossover=None, or seeds=False",
        ),
        (dldw.DifferentialEvolution, {"population": 3}, "at least 4, a parent and three others, .* got 3 and 1.0"),
        (
            dldw.DifferentialEvolution,
            {"mutation": 0.0},
            r"mutation must lie in \(0, 2\] and crossover .* got 0.0 and 0.9",
        ),
        (dldw.DifferentialEvolution, {"crossover": 1.5}, r"crossover in \[0, 1\], got 0.5 and 1.5"),
        (dldw.DifferentialEvolution, {"strategy": "best/2/exp"}, "rand/1/bin or best/1/bin, got 'best/2/exp'"),
        (dldw.HillClimb, {"sigma": 0.0}, "sigma and proposals must be positive, got 0.0 and 1"),
        (dldw.HillClimb, {"proposals": 0}, "sigma and proposals must be positive, got 0.1 and 0"),
        (dldw.HillClimb, {"step": "big"}, "step must be gaussian, uniform or one-weight, got 'big'"),
    ],
)
def test_a_searcher_says_which_setting_is_wrong(make, settings, text):
    with pytest.raises(dldw.DldwError, match=text):
        make(**settings)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((0.5, 2.0), "the start point lies outside the bounds, where no candidate may be. Move it inside"),
        ((-1.0, -1.0), "each bound must be finite and the lower below the upper. Leave a coordinate that is fixed out"),
        ((-1.0, torch.inf), "each bound must be finite"),
        (([-1.0, -1.0], 1.0), r"one number or one for each of the 3 coordinates, got shape \[2\]"),
    ],
)
def test_bounds_that_cannot_be_kept_are_an_error(bounds, text):
    with pytest.raises(dldw.DldwError, match=text):
        started(dldw.ParticleSwarm(bounds=bounds))
