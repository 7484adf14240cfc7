"""Swarm, genetic algorithm and differential evolution against peers, and what their own arithmetic costs.

Quality: the least loss found on rotated and shifted functions (``dldw.tasks.landscapes``) within the same evaluations, from
first populations spread over the same box, with the same population and, where both have it, the same coefficients. A peer
is *better* where a one-sided Mann-Whitney test over the seeds says so at 5 %; of eight such tests one goes wrong in a third
of all cases, so that Holm's correction over the functions of a pair is given too. Seeds below 8000 have been used for
choosing settings; nothing may be chosen on those from 8000. Overhead: ask and tell without the function,
and one generation on a function that costs next to nothing, alternating with the peers' in one process.

    pip install pyswarms pygad scipy
    python benchmarks/searchers.py [--seeds 25] [--first-seed 8000] [--threads 1] [--only quality|overhead] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pygad
import pyswarms
import torch
from raw import machine, save
from scipy.optimize import differential_evolution
from scipy.stats import mannwhitneyu

import dldw
from dldw.tasks.landscapes import FUNCTIONS, Landscape

BOX = (-5.0, 5.0)
SPREAD = 10 / 12**0.5  # standard deviation of the uniform distribution over the box, which the peers start from
DRAWS = 1_000_000  # the searcher must not draw the numbers that the function's minimum was drawn from
PULLS = {"inertia": 0.7298, "cognitive": 1.49618, "social": 1.49618}


class Budgeted:
    """A function of NumPy arrays [n, d] that remembers the least value of its first ``budget`` evaluations."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], budget: int) -> None:
        self.function, self.left, self.best = function, budget, np.inf

    def __call__(self, x: np.ndarray) -> np.ndarray:
        losses = self.function(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        if self.left > 0:
            self.best = min(self.best, float(losses[: self.left].min()))
        self.left -= len(losses)
        return losses


def ours(make: Callable[..., dldw.Searcher], **settings):
    def run(function: Budgeted, d: int, n: int, seed: int) -> None:
        size = {"particles" if make is dldw.ParticleSwarm else "population": n}
        own = {name: value(d) if callable(value) else value for name, value in settings.items()}
        searcher = make(generator=torch.Generator().manual_seed(DRAWS + seed), **size, **own)
        searcher.reset(torch.zeros(d, dtype=torch.float64))
        while function.left > 0:
            searcher.tell(torch.from_numpy(function(searcher.ask().numpy())))

    return run


def pyswarms_with(kind: Callable[..., object], **options):
    def run(function: Budgeted, d: int, n: int, seed: int) -> None:
        np.random.seed(DRAWS + seed)
        pulls = {"w": PULLS["inertia"], "c1": PULLS["cognitive"], "c2": PULLS["social"], **options}
        box = (np.full(d, BOX[0]), np.full(d, BOX[1]))
        clamp = (-(BOX[1] - BOX[0]) / 2, (BOX[1] - BOX[0]) / 2)  # as ours; its defaults, neither, do far worse
        swarm = kind(n, d, pulls, bounds=box, bh_strategy="reflective", velocity_clamp=clamp)
        swarm.optimize(function, iters=-(-function.left // n), verbose=False)

    return run


def pygad_with(**options):
    def run(function: Budgeted, d: int, n: int, seed: int) -> None:
        algorithm = pygad.GA(
            num_generations=-(-function.left // (n - 1)), num_parents_mating=n // 2, sol_per_pop=n, num_genes=d,
            init_range_low=BOX[0], init_range_high=BOX[1], fitness_batch_size=n, random_seed=DRAWS + seed,
            suppress_warnings=True, fitness_func=lambda _, x, __: -function(np.atleast_2d(x)), **options,
        )  # fmt: skip
        algorithm.run()

    return run


def scipy_with(strategy: str):
    def run(function: Budgeted, d: int, n: int, seed: int) -> None:
        rng = np.random.default_rng(DRAWS + seed)
        differential_evolution(
            lambda x: function(x.T), [BOX] * d, strategy=strategy, init=rng.uniform(*BOX, (n, d)), mutation=0.5,
            recombination=0.9, maxiter=-(-function.left // n) - 1, tol=0, polish=False, updating="deferred",
            vectorized=True, rng=rng,
        )  # fmt: skip

    return run


genetic = partial(ours, dldw.GeneticAlgorithm, sigma=SPREAD, selection=("truncation", 0.5))  # as PyGAD's parents

PAIRS = {
    "particle swarm, global / pyswarms": (
        ours(dldw.ParticleSwarm, bounds=BOX, **PULLS),
        pyswarms_with(pyswarms.single.GlobalBestPSO),
    ),
    "particle swarm, ring / pyswarms": (
        ours(dldw.ParticleSwarm, bounds=BOX, topology="ring", **PULLS),
        pyswarms_with(partial(pyswarms.single.LocalBestPSO, static=True), k=3, p=2),
    ),
    "particle swarm, ring / pyswarms, the nearest of the moment": (  # its default, which is no ring
        ours(dldw.ParticleSwarm, bounds=BOX, topology="ring", **PULLS),
        pyswarms_with(pyswarms.single.LocalBestPSO, k=3, p=2),
    ),
    "genetic algorithm, one-point / PyGAD": (  # by default one gene in ten mutates, at least one, evenly by up to 1
        genetic(crossover="one-point", mutation_sigma=lambda d: (3**-0.5, max(1, d // 10) / d)),
        pygad_with(),
    ),
    "genetic algorithm, one-point / PyGAD, mutating every gene": (
        genetic(crossover="one-point", mutation_sigma=0.1),
        pygad_with(mutation_probability=1.0, random_mutation_min_val=-(0.03**0.5), random_mutation_max_val=0.03**0.5),
    ),
    "genetic algorithm, uniform / PyGAD": (
        genetic(crossover="uniform", mutation_sigma=(0.1 / 3**0.5, 0.3)),
        pygad_with(
            crossover_type="uniform",
            random_mutation_min_val=-0.1,
            random_mutation_max_val=0.1,
            mutation_probability=0.3,
        ),
    ),
    "genetic algorithm, blend / PyGAD": (
        genetic(crossover="blend"),
        pygad_with(),
    ),
    "differential evolution, rand/1/bin / SciPy": (
        ours(dldw.DifferentialEvolution, bounds=BOX),
        scipy_with("rand1bin"),
    ),
    "differential evolution, best/1/bin / SciPy": (
        ours(dldw.DifferentialEvolution, bounds=BOX, strategy="best/1/bin"),
        scipy_with("best1bin"),
    ),
}


def quality(a: argparse.Namespace) -> Iterator[dict[str, object]]:
    seeds, population, per_dimension = a.seeds, a.population, a.per_dimension
    for pair, (mine, peer) in PAIRS.items():
        if a.pair not in pair:
            continue
        chances: list[tuple[float, float]] = []
        for name in FUNCTIONS:
            for d in a.dimensions:
                losses: tuple[list[float], list[float]] = ([], [])
                for seed in range(a.first_seed, a.first_seed + seeds):
                    landscape = Landscape(name, d, seed)
                    for run, out in zip((mine, peer), losses, strict=True):
                        function = Budgeted(landscape, per_dimension * d)
                        run(function, d, population, seed)
                        out.append(function.best)
                worse = mannwhitneyu(*losses, alternative="greater").pvalue
                better = mannwhitneyu(*losses, alternative="less").pvalue
                chances.append((worse, better))
                medians = [statistics.median(side) for side in losses]
                verdict = "worse" if worse < 0.05 else "better" if better < 0.05 else "equal"
                print(f"{pair:66s} {name:10s} {d:3d}  {medians[0]:9.2e} / {medians[1]:9.2e}  {verdict}", flush=True)
                yield {
                    "pair": pair, "function": name, "d": d, "population": population, "evaluations": per_dimension * d,
                    "seeds": [a.first_seed, a.first_seed + seeds], "ours": losses[0], "peer": losses[1],
                    "p_peer_better": worse, "p_ours_better": better,
                }  # fmt: skip
        worse, better = (holm(side) for side in zip(*chances, strict=True))
        print(f"{pair:66s} worse in {worse}, better in {better} of {len(chances)} with Holm's correction", flush=True)


def holm(chances: Sequence[float], level: float = 0.05) -> int:
    """How many of these tests still say so at ``level`` when all are taken together (Holm 1979)."""
    ordered = sorted(chances)
    passed = [p <= level / (len(ordered) - i) for i, p in enumerate(ordered)]
    return passed.index(False) if False in passed else len(passed)


def microseconds(generations: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Quartiles of the time of each, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in generations}
    for i in range(repeats + 5):
        for name, generation in generations.items():
            start = time.perf_counter()
            generation()
            if i >= 5:
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.quantiles(t, n=4) for name, t in times.items()}


def asking_and_telling(searcher: dldw.Searcher, d: int, n: int) -> Callable[[], None]:
    losses = torch.rand(n, dtype=torch.float64)
    searcher.reset(torch.zeros(d))

    def generation() -> None:
        searcher.ask()
        searcher.tell(losses.mul_(0.999))

    return generation


def overhead(repeats: int) -> Iterator[dict[str, object]]:
    def row(what: str, of: str, d: int, n: int, quartiles: list[float]) -> dict[str, object]:
        low, middle, high = quartiles
        print(f"{what:20s} {of:72s} d {d:5d}  {middle:8.0f} us [{low:.0f}, {high:.0f}]", flush=True)
        return {"what": what, "of": of, "d": d, "population": n, "microseconds": quartiles}

    for d, n, times in ((10, 16, repeats), (2410, 256, max(20, repeats // 20))):
        searchers = {
            "particle swarm, global": dldw.ParticleSwarm(particles=n),
            "particle swarm, ring": dldw.ParticleSwarm(particles=n, topology="ring"),
            "genetic algorithm": dldw.GeneticAlgorithm(population=n),
            "genetic algorithm, one-point": dldw.GeneticAlgorithm(population=n, crossover="one-point"),
            "differential evolution": dldw.DifferentialEvolution(population=n),
            "hill climb": dldw.HillClimb(proposals=n),
            "random search": dldw.RandomSearch(population=n),
        }
        generations = {name: asking_and_telling(s, d, n) for name, s in searchers.items()}
        for name, quartiles in microseconds(generations, times).items():
            yield row("ask and tell", name, d, n, quartiles)
    d, n, per_call = 10, 16, 50

    def whole(run) -> Callable[[], None]:
        return lambda: run(Budgeted(lambda x: x.square().sum(1), n * per_call), d, n, 0)

    runs = {
        f"{side} of {pair}": whole(run) for pair, both in PAIRS.items() for side, run in zip("ab", both, strict=True)
    }
    for name, quartiles in microseconds(runs, max(3, repeats // 200)).items():
        yield row("a generation on x.x", name, d, n, [q / per_call for q in quartiles])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--first-seed", type=int, default=8000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--population", type=int, default=40)
    parser.add_argument("--per-dimension", type=int, default=500, help="evaluations for each dimension")
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["quality", "overhead"])
    parser.add_argument("--pair", default="", help="only the pairs in whose name this is")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    results = json.loads(a.out.read_text()) if a.out and a.out.exists() else {}
    peers = {name: version(name) for name in ("pyswarms", "pygad", "scipy", "torch")}
    results["machine"] = machine(a.threads, **peers)
    runs = {"quality": quality(a), "overhead": overhead(a.repeats)}
    for part, rows in runs.items():
        if a.only not in (None, part):
            continue
        results[part] = []
        for row in rows:
            results[part].append(row)
            save(a.out, results)


if __name__ == "__main__":
    main()
