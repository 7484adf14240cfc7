"""Time of one generation of CMA-ES, ask and tell without the function, beside pycma and evosax.

The three alternate, a generation or a block of them each, on the same processor cores. The mean is what counts for the full
covariance at d = 2,410, whose decompositions fall on a few generations. Peers run in their own environment.

    python benchmarks/cma_time.py --peers PYTHON [--threads 1] [--out benchmarks/results/cma_time.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from interleaved import measure, milliseconds, pin, serve
from raw import machine, save

CASES = [  # generations timed, or blocks of them where one is so short that a cold cache would count
    {"d": 2410, "population": 256, "generations": 35, "diagonal": False},
    {"d": 2410, "population": 256, "generations": 100, "diagonal": True},
    {"d": 10, "population": 16, "generations": 50, "block": 100, "diagonal": False},
    {"d": 10, "population": 16, "generations": 50, "block": 100, "diagonal": True},
]
WARM_UP = 3


def own(case):
    import torch

    import dldw

    search = dldw.CMAES(
        0.5, population=case["population"], diagonal=case["diagonal"], generator=torch.Generator().manual_seed(0)
    )
    search.reset(torch.ones(case["d"]))
    while True:
        start = time.perf_counter()
        x = search.ask()
        asked = time.perf_counter() - start
        losses = x.square().sum(1)
        start = time.perf_counter()
        search.tell(losses)
        yield asked + time.perf_counter() - start


def pycma(case):
    import cma
    import numpy as np

    options = {
        "seed": 1, "popsize": case["population"], "CMA_diagonal": case["diagonal"], "verbose": -9, "verb_log": 0,
        "verb_disp": 0, "signals_filename": "",
    }  # fmt: skip
    search = cma.CMAEvolutionStrategy(np.ones(case["d"]), 0.5, options)
    while True:
        start = time.perf_counter()
        x = search.ask()
        asked = time.perf_counter() - start
        losses = (np.array(x) ** 2).sum(1).tolist()
        start = time.perf_counter()
        search.tell(x, losses)
        yield asked + time.perf_counter() - start


def evosax(case):
    import jax
    from evosax.algorithms import CMA_ES, Sep_CMA_ES

    x0 = jax.numpy.ones(case["d"])
    search = (Sep_CMA_ES if case["diagonal"] else CMA_ES)(population_size=case["population"], solution=x0)
    parameters = search.default_params.replace(std_init=0.5)
    key = jax.random.key(0)
    state = search.init(key, x0, parameters)
    ask, tell = jax.jit(search.ask), jax.jit(search.tell)
    while True:
        key, first, second = jax.random.split(key, 3)
        jax.block_until_ready(second)
        start = time.perf_counter()
        x, state = jax.block_until_ready(ask(first, state, parameters))
        asked = time.perf_counter() - start
        losses = jax.block_until_ready((x**2).sum(1))
        start = time.perf_counter()
        state, _ = jax.block_until_ready(tell(second, x, losses, state, parameters))
        yield asked + time.perf_counter() - start


SIDES = {"dldw": own, "pycma": pycma, "evosax": evosax}


def command(side: str, case, peers: str, threads: int) -> list[str]:
    python = sys.executable if side == "dldw" else peers
    return [python, __file__, "--threads", str(threads), "--serve", side, "--case", json.dumps(case)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of an environment with pycma and evosax")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pin(arguments.threads)
    if arguments.serve:
        serve(SIDES[arguments.serve](arguments.case), arguments.case.get("block", 1))
        return
    if not arguments.peers:
        parser.error("--peers is needed: the python of an environment with pycma and evosax")
    results = {}
    for case in CASES:
        name = f"{'diagonal' if case['diagonal'] else 'full'}, d {case['d']}, population {case['population']}"
        commands = {side: command(side, case, arguments.peers, arguments.threads) for side in SIDES}
        times = measure(commands, WARM_UP + case["generations"])
        results[name] = rows = {side: milliseconds(t[WARM_UP:]) for side, t in times.items()}
        for side, row in rows.items():
            factor = row["mean_ms"] / rows["dldw"]["mean_ms"]
            print(f"{name:36s} {side:8s} mean {row['mean_ms']:9.3f} ms, {factor:6.2f} x  ", end="")
            print(f"median {row['median_ms']:9.3f} [{row['low_ms']:.3f}, {row['high_ms']:.3f}]", flush=True)
        save(arguments.out, {"machine": machine(arguments.threads), "results": results})


if __name__ == "__main__":
    main()
