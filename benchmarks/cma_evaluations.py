"""Evaluations that CMA-ES needs to 1e-8, and how often it gets there, beside pycma on the same instances.

Both see the same 25 instances of each function and the same start point, sigma, population and budget; each ends a run by its
own criteria. Runs that ``--out`` holds already are not made again: a row that was cut short goes on with its next instance.
The peer runs in its own environment, which needs cma, at the same time.

    python benchmarks/cma_evaluations.py --peers PYTHON [--only TEXT] [--out benchmarks/results/cma_evaluations.json]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from raw import save

TARGET = 1e-8
SEEDS = 25
FUNCTIONS = {
    "sphere": lambda z: (z**2).sum(1),
    "ellipsoid": lambda z: (10 ** (6 * np.arange(z.shape[1]) / (z.shape[1] - 1)) * z**2).sum(1),
    "rosenbrock": lambda z: (100 * (z[:, 1:] + 1 - (z[:, :-1] + 1) ** 2) ** 2 + z[:, :-1] ** 2).sum(1),
    "rastrigin": lambda z: (z**2 + 10 * (1 - np.cos(2 * np.pi * z))).sum(1),
}
BUDGETS = {5: 100_000, 20: 200_000, 40: 600_000}
RESTART_BUDGETS = {5: 100_000, 20: 2_000_000}
"""Of all restarts together, of which the first are in vain."""


def case(function, d, *, variant="full", population=None):
    budget = (RESTART_BUDGETS if variant in ("ipop", "bipop") else BUDGETS)[d]
    return {"function": function, "d": d, "variant": variant, "population": population, "budget": budget}


CASES = [
    *(case(f, d) for f in ("sphere", "ellipsoid", "rosenbrock") for d in (5, 20, 40)),
    *(case("rastrigin", d, population=n) for d, n in ((5, 100), (20, 400), (40, 800))),
    *(case(f, d, variant="diagonal") for f in ("sphere", "ellipsoid") for d in (5, 20, 40)),
    case("rosenbrock", 20, variant="diagonal"),
    *(case("rastrigin", d, variant="diagonal", population=n) for d, n in ((5, 100), (20, 400), (40, 800))),
    *(case("rastrigin", d, variant=variant) for variant in ("ipop", "bipop") for d in (5, 20)),
]


class Instance:
    """A function whose minimum is shifted and, but for the separable variant, rotated; counts calls up to the first hit."""

    def __init__(self, name, d, rotated, seed):
        random = np.random.default_rng([seed, d])
        self.f = FUNCTIONS[name]
        self.shift = random.uniform(-2, 2, d)
        q, r = np.linalg.qr(random.standard_normal((d, d)))
        self.rotation = q * np.sign(np.diag(r)) if rotated else np.eye(d)
        self.x0 = self.shift + random.uniform(-3, 3, d)
        self.calls, self.hit = 0, None

    def __call__(self, x):
        losses = self.f((np.asarray(x) - self.shift) @ self.rotation.T)
        self.calls += len(losses)
        if self.hit is None and losses.min() <= TARGET:
            self.hit = self.calls
        return losses


def run_own(instance, seed, sigma, population, variant, budget):
    import torch

    import dldw

    search = dldw.CMAES(
        sigma, population=population, diagonal=variant == "diagonal",
        restarts=variant if variant in ("ipop", "bipop") else None, generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    search.reset(torch.from_numpy(instance.x0))
    while instance.hit is None and instance.calls < budget and not search.stop():
        search.tell(torch.from_numpy(instance(search.ask().numpy())))


def run_pycma(instance, seed, sigma, population, variant, budget):
    import cma

    options = {
        "seed": seed + 1, "verbose": -9, "verb_log": 0, "verb_disp": 0, "CMA_diagonal": variant == "diagonal",
        "ftarget": TARGET, "maxfevals": budget, "signals_filename": "",
    }  # fmt: skip
    if population:
        options["popsize"] = population
    if variant in ("ipop", "bipop"):
        cma.fmin2(
            None, instance.x0, sigma, options, parallel_objective=lambda x: instance(x).tolist(), restarts=99,
            bipop=variant == "bipop",
        )  # fmt: skip
        return
    search = cma.CMAEvolutionStrategy(instance.x0, sigma, options)
    while not search.stop():
        x = search.ask()
        search.tell(x, instance(x).tolist())


def run_on(run, case, seed):
    """The evaluations to the target on one instance, or None."""
    name, variant = case["function"], case["variant"]
    instance = Instance(name, case["d"], variant != "diagonal", seed)
    run(instance, seed, 2.0 if name == "rastrigin" else 1.0, case["population"], variant, case["budget"])
    return instance.hit


def finish(case, row, peers, save):
    """Makes the runs that ``row`` lacks, and saves it after each."""
    started = len(row["own"])
    command = [peers, __file__, "--pycma", json.dumps(case), "--from", str(started)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as peer:
        for seed in range(started, SEEDS):
            own = run_on(run_own, case, seed)
            line = next((line for line in peer.stdout if line.startswith("hit ")), "")
            if not line:
                sys.exit("pycma has ended: see what it says above.")
            row["own"].append(own)
            row["pycma"].append(json.loads(line.removeprefix("hit ")))
            row |= summary(row["own"], row["pycma"])
            save()


def not_worse(own: int, peer: int, runs: int) -> float:
    """P of so few successes of ours, or fewer, if both succeed equally often (exact, conditional on their sum)."""
    total = own + peer
    ways = [math.comb(runs, k) * math.comb(runs, total - k) for k in range(max(0, total - runs), min(runs, total) + 1)]
    return sum(ways[: own - max(0, total - runs) + 1]) / sum(ways)


def summary(own, peer):
    solved = [[hit for hit in hits if hit is not None] for hits in (own, peer)]
    medians = [statistics.median(s) if s else None for s in solved]
    ratio = medians[0] / medians[1] if all(medians) else None
    return {
        "median": medians, "ratio": ratio, "solved": [len(s) for s in solved],
        "p_not_worse": not_worse(*map(len, solved), len(own)), "own": own, "pycma": peer,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of an environment with pycma")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pycma", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--from", type=int, dest="first", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.pycma:
        for seed in range(arguments.first, SEEDS):
            print("hit", json.dumps(run_on(run_pycma, arguments.pycma, seed)), flush=True)
        return
    if not arguments.peers:
        parser.error("--peers is needed: the python of an environment with pycma")
    results = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    for each in CASES:
        name = f"{each['variant']} {each['function']} {each['d']}"
        name += f" population {each['population']}" if each["population"] else ""
        row = results.get(name)
        if row is None or row.get("budget", BUDGETS[each["d"]]) != each["budget"]:
            row = {"budget": each["budget"], "own": [], "pycma": []}
        if arguments.only not in name or len(row["own"]) == SEEDS:
            continue
        results[name] = row
        finish(each, row, arguments.peers, lambda: save(arguments.out, results))
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}"
        print(f"{name:40s} median {row['median'][0]} / {row['median'][1]} = {ratio}  ", end="")
        print(f"solved {row['solved'][0]} / {row['solved'][1]} of {SEEDS}, p {row['p_not_worse']:.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
