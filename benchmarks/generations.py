"""Time of one whole generation: new candidates, their losses on the batch, and the update, beside peers.

A population of 256 on networks for images of the size of digits (1,437 rows are all of them, in random values): an MLP
64-32-10, a small CNN and a small transformer. What is timed is a step as a user has it: ``Search.step`` or ``Descent.step``
here; ask, losses and tell compiled as one function in evosax; a step of the workflow in EvoX, eager and compiled; a
generation of PyGAD whose fitness function takes the population at once; the update written out in NumPy. The matrix products
alone are the limit for what materialises its weights. All sides take turns on the same cores: in a turn two generations
uncounted, then five of which the mean is taken (of PyGAD, a second each, one). Memory is the allocator's peak in two steps
of ours, beside the bound of the evaluator.

    python benchmarks/generations.py --evosax PYTHON --evox PYTHON --pygad PYTHON [--threads 2] [--rounds 40]
        [--only TEXT] [--out benchmarks/results/generations.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
from interleaved import measure, milliseconds, pin, serve
from raw import machine, save

POPULATION, SIGMA, RATE = 256, 0.05, 0.01
CASES = [
    {"network": "mlp", "rows": 1437},
    {"network": "mlp", "rows": 128},
    {"network": "cnn", "rows": 128},
    {"network": "transformer", "rows": 128},
]
WARM_UP = 5


def data(case):
    random = np.random.default_rng(0)
    return random.random((case["rows"], 64), dtype=np.float32), random.integers(10, size=case["rows"])


# --- networks, in torch and in JAX ---------------------------------------------------------------------------------


def torch_network(name):
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
            self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

        def forward(self, x):
            b, t, width = x.shape
            q, k, v = (
                part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.inner(self.norm1(x)).split(width, -1)
            )
            x = x + self.outer(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, width))
            return x + self.down(torch.tanh(self.up(self.norm2(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.block, self.out = nn.Linear(8, 16), Block(16, 2), nn.Linear(16, 10)

        def forward(self, x):
            return self.out(self.block(self.embed(x.view(-1, 8, 8))).mean(1))

    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    if name == "transformer":
        return Transformer()
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def jax_network(name):
    """The same in JAX: its weights, and ``forward(weights, inputs)``."""
    import jax
    from jax import numpy as jnp

    def layer(*shape):
        return {
            "w": jnp.asarray(np.random.default_rng(0).normal(0, 0.1, shape), jnp.float32),
            "b": jnp.zeros(shape[-1]),
        }

    def dense(p, x):
        return x @ p["w"] + p["b"]

    def norm(p, x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["w"] + p["b"]

    def convolved(p, x):
        y = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["b"]
        b, h, w, c = y.shape
        return jnp.maximum(y, 0).reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))

    def attended(p, x):
        b, t, width = x.shape
        q, k, v = (
            part.reshape(b, t, 2, -1).swapaxes(1, 2) for part in jnp.split(dense(p["inner"], norm(p["n1"], x)), 3, -1)
        )
        weights = jax.nn.softmax(q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1]), -1)
        x = x + dense(p["outer"], (weights @ v).swapaxes(1, 2).reshape(b, t, width))
        return x + dense(p["down"], jnp.tanh(dense(p["up"], norm(p["n2"], x))))

    if name == "mlp":
        weights = {"hidden": layer(64, 32), "out": layer(32, 10)}
        return weights, lambda p, x: dense(p["out"], jnp.tanh(dense(p["hidden"], x)))
    if name == "cnn":
        weights = {"first": layer(3, 3, 1, 8), "second": layer(3, 3, 8, 16), "out": layer(64, 10)}

        def cnn(p, x):
            y = convolved(p["second"], convolved(p["first"], x.reshape(-1, 8, 8, 1)))
            return dense(p["out"], y.reshape(len(x), -1))

        return weights, cnn
    ones = {"w": jnp.ones(16), "b": jnp.zeros(16)}
    weights = {
        "embed": layer(8, 16), "n1": ones, "inner": layer(16, 48), "outer": layer(16, 16), "n2": ones,
        "up": layer(16, 32), "down": layer(32, 16), "out": layer(16, 10),
    }  # fmt: skip
    return weights, lambda p, x: dense(p["out"], attended(p, dense(p["embed"], x.reshape(-1, 8, 8))).mean(1))


# --- sides: each yields the seconds of one generation after another ------------------------------------------------


def timed(step):
    while True:
        start = time.perf_counter()
        step()
        yield time.perf_counter() - start


def learner(case, method):
    import torch
    from torch.nn.functional import cross_entropy

    import dldw

    model = torch_network(case["network"])
    inputs, labels = map(torch.from_numpy, data(case))
    generator = torch.Generator().manual_seed(0)

    def loss(model, batch):
        return cross_entropy(model(batch[0]), batch[1], reduction="none")

    sources = {"evolution strategy": dldw.EvolutionStrategy, "low-rank evolution": dldw.LowRankEvolution}
    if method in sources:
        source = sources[method](loss, sigma=SIGMA, population=POPULATION, generator=generator)
        return dldw.Descent(model, source, torch.optim.SGD(model.parameters(), lr=RATE)), (inputs, labels)
    searchers = {
        "particle swarm": lambda: dldw.ParticleSwarm(particles=POPULATION, sigma=SIGMA, generator=generator),
        "genetic algorithm": lambda: dldw.GeneticAlgorithm(population=POPULATION, sigma=SIGMA, generator=generator),
        "separable CMA-ES": lambda: dldw.CMAES(SIGMA, population=POPULATION, diagonal=True, generator=generator),
    }
    return dldw.Search(model, loss, searchers[method]()), (inputs, labels)


def own(method):
    def side(case):
        trained, batch = learner(case, method)
        return timed(lambda: trained.step(batch))

    return side


def products(case):
    """The matrix products of the whole population and nothing else; what all members see is one wide product."""
    import torch

    x = torch.from_numpy(data(case)[0])
    first, second = torch.rand(64, POPULATION * 32), torch.rand(POPULATION, 32, 10)
    hidden, wide = torch.rand(POPULATION, len(x), 32), torch.empty(len(x), POPULATION * 32)
    out = torch.empty(POPULATION, len(x), 10)
    return timed(lambda: (torch.mm(x, first, out=wide), torch.bmm(hidden, second, out=out)))


def evosax(name):
    def side(case):
        import jax
        import optax
        from evosax import algorithms
        from jax import numpy as jnp

        weights, forward = jax_network(case["network"])
        x, y = map(jnp.asarray, data(case))

        def loss(p):
            return optax.softmax_cross_entropy_with_integer_labels(forward(p, x), y).mean()

        losses = jax.vmap(loss)
        keys = {"Open_ES": {"optimizer": optax.sgd(RATE), "std_schedule": optax.constant_schedule(SIGMA)}}
        keys["SimpleGA"] = {"std_schedule": optax.constant_schedule(SIGMA)}
        search = getattr(algorithms, name)(population_size=POPULATION, solution=weights, **keys.get(name, {}))
        parameters, key = search.default_params, jax.random.key(0)
        if name in ("PSO", "SimpleGA"):
            around = jax.tree.map(lambda w: w + SIGMA * jax.random.normal(key, (POPULATION, *w.shape)), weights)
            state = search.init(key, around, losses(around), parameters)
        else:
            parameters = parameters.replace(std_init=SIGMA) if name == "Sep_CMA_ES" else parameters
            state = search.init(key, weights, parameters)

        @jax.jit
        def generation(key, state):
            key, first, second = jax.random.split(key, 3)
            candidates, state = search.ask(first, state, parameters)
            state, _ = search.tell(second, candidates, losses(candidates), state, parameters)
            return key, state

        carried = [key, state]

        def step():
            carried[:] = jax.block_until_ready(generation(*carried))

        return timed(step)

    return side


def evox(name, *, compiled):
    def side(case):
        import torch
        from evox.algorithms import PSO, OpenES
        from evox.algorithms.so.es_variants.virtual_lora_es import VirtualLoRAES
        from evox.core import Problem
        from evox.core import compile as compiled_by_evox
        from evox.problems.neuroevolution.virtual_lora_problem import VirtualLoRAProblem
        from evox.utils import ParamsAndVector
        from evox.workflows import StdWorkflow
        from torch.func import functional_call, vmap
        from torch.nn.functional import cross_entropy

        torch.manual_seed(0)
        model = torch_network(case["network"])
        inputs, labels = map(torch.from_numpy, data(case))
        adapter = ParamsAndVector(model)
        centre = adapter.to_vector({k: p.detach() for k, p in model.named_parameters()})

        class Losses(Problem):
            def evaluate(self, weights):
                return vmap(lambda w: cross_entropy(functional_call(model, w, (inputs,)), labels))(weights)

        problem, transform = Losses(), adapter
        if name == "OpenES":
            algorithm = OpenES(POPULATION, centre, RATE, SIGMA)
        elif name == "PSO":
            algorithm = PSO(POPULATION, centre - 1, centre + 1)
        else:
            shapes = [tuple(p.shape) for p in model.parameters()]
            algorithm = VirtualLoRAES(shapes, 1, POPULATION, centre, RATE, SIGMA)
            criterion, transform = torch.nn.CrossEntropyLoss(reduction="none"), None
            problem = VirtualLoRAProblem(model, [(inputs, labels)], criterion, 1, n_batch_per_eval=-1)
        workflow = StdWorkflow(algorithm, problem, solution_transform=transform)
        with torch.no_grad():
            workflow.init_step()
        step = compiled_by_evox(workflow.step) if compiled else workflow.step
        return timed(torch.no_grad()(step))

    return side


def numpy_losses(x, y, vectors):
    """Losses [n] of the MLP at ``vectors`` [n, 2410]."""
    n = len(vectors)
    w1, b1, w2, b2 = np.split(vectors, [2048, 2080, 2400], axis=1)
    hidden = np.tanh(np.matmul(x, w1.reshape(n, 64, 32)) + b1[:, None])
    scores = np.matmul(hidden, w2.reshape(n, 32, 10)) + b2[:, None]
    scores -= scores.max(2, keepdims=True)
    return (np.log(np.exp(scores).sum(2)) - scores[:, np.arange(len(y)), y]).mean(1)


def numpy_strategy(case):
    (x, y), random = data(case), np.random.default_rng(1)
    mean = random.normal(0, 0.1, 2410).astype(np.float32)

    def step():
        half = random.standard_normal((POPULATION // 2, len(mean)), dtype=np.float32)
        z = np.concatenate([half, -half])
        ranks = numpy_losses(x, y, mean + SIGMA * z).argsort().argsort().astype(np.float32)
        mean[:] -= RATE / (POPULATION * SIGMA) * (ranks / (POPULATION - 1) - 0.5) @ z

    return timed(step)


def pygad_genetic(case):
    import pygad

    x, y = data(case)
    stamps: list[float] = []
    algorithm = pygad.GA(
        num_generations=2, num_parents_mating=POPULATION // 2, sol_per_pop=POPULATION, num_genes=2410, gene_type=np.float32,
        fitness_batch_size=POPULATION, fitness_func=lambda _, vectors, __: -numpy_losses(x, y, np.asarray(vectors)),
        random_seed=0, suppress_warnings=True, on_generation=lambda _: stamps.append(time.perf_counter()),
    )  # fmt: skip
    while True:  # a run evaluates its first population once more: the generation after that is timed
        stamps.clear()
        algorithm.run()
        yield stamps[1] - stamps[0]


OWN = ("evolution strategy", "low-rank evolution", "particle swarm", "genetic algorithm", "separable CMA-ES")
SIDES = {  # the environment, the networks (all where None), what runs
    **{f"dldw {method}": ("dldw", None, own(method)) for method in OWN},
    "matrix products": ("dldw", ("mlp",), products),
    **{f"evosax {n}": ("evosax", None, evosax(n)) for n in ("Open_ES", "PSO", "SimpleGA", "Sep_CMA_ES")},
    "EvoX OpenES, eager": ("evox", ("mlp",), evox("OpenES", compiled=False)),
    "EvoX OpenES, compiled": ("evox", ("mlp",), evox("OpenES", compiled=True)),
    "EvoX PSO, eager": ("evox", ("mlp",), evox("PSO", compiled=False)),
    "EvoX PSO, compiled": ("evox", ("mlp",), evox("PSO", compiled=True)),
    "EvoX VirtualLoRAES, rank 1": ("evox", ("mlp",), evox("VirtualLoRAES", compiled=False)),
    "NumPy evolution strategy": ("dldw", ("mlp",), numpy_strategy),
    "PyGAD": ("pygad", ("mlp",), pygad_genetic),
}
RIVALS = {
    "dldw evolution strategy": ("Open_ES", "OpenES", "NumPy"),
    "dldw low-rank evolution": ("Open_ES", "OpenES", "NumPy", "LoRA"),
    "dldw particle swarm": ("PSO",),
    "dldw genetic algorithm": ("SimpleGA", "PyGAD"),
    "dldw separable CMA-ES": ("Sep_CMA_ES",),
}


def memory(case) -> dict[str, dict[str, int]]:
    """The allocator's peak in two steps beside the bound of the evaluator, in bytes, by method."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler otherwise greets on standard error
    import torch

    from dldw.compare.meter import peak_bytes
    from dldw.evaluate import Evaluator

    torch.set_num_threads(1)
    rows = {}
    for method in OWN:
        trained, batch = learner(case, method)
        trained.step(batch)
        rows[method] = {
            "peak": peak_bytes(lambda t=trained, b=batch: t.step(b), trained.model),
            "bound": Evaluator().memory,
        }
    return rows


def show(name, rows, peaks):
    for side, row in rows.items():
        first = f"   first {row['first_s']:6.2f} s" if row["first_s"] > 1 else ""
        print(f"{name:18s} {side:30s} {row['median_ms']:9.2f} ms [{row['low_ms']:.2f}, {row['high_ms']:.2f}]{first}")
    for side, words in RIVALS.items():
        rivals = {k: r["median_ms"] for k, r in rows.items() if not k.startswith("dldw") and any(w in k for w in words)}
        if rivals and side in rows:
            fastest = min(rivals, key=rivals.get)
            print(f"{name:18s} {side:30s} {rivals[fastest] / rows[side]['median_ms']:6.2f} x as fast as {fastest}")
        if side in rows and "matrix products" in rows:
            over = rows[side]["median_ms"] / rows["matrix products"]["median_ms"]
            print(f"{name:18s} {side:30s} {over:6.2f} x the time of the matrix products")
    for method, peak in peaks.items():
        print(f"{name:18s} {method:30s} {peak['peak'] / 2**20:7.1f} MiB of {peak['bound'] / 2**20:.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("evosax", "evox", "pygad"):
        parser.add_argument(f"--{peer}", help=f"the python of an environment with {peer}; left out without")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    pin(a.threads)
    if a.serve:
        serve(SIDES[a.serve][2](a.case), *((1, 0) if a.serve == "PyGAD" else (5, 2)))
        return
    pythons = {"dldw": sys.executable, "evosax": a.evosax, "evox": a.evox, "pygad": a.pygad}
    results = {}
    for case in CASES:
        name = f"{case['network']}, {case['rows']} rows"
        if a.only not in name:
            continue
        fixed = ["--threads", str(a.threads), "--case", json.dumps(case), "--serve"]
        commands = {
            side: [pythons[where], __file__, *fixed, side]
            for side, (where, networks, _) in SIDES.items()
            if pythons[where] and (networks is None or case["network"] in networks)
        }
        times = measure(commands, WARM_UP + a.rounds)
        rows = {side: milliseconds(t[WARM_UP:]) | {"first_s": t[0]} for side, t in times.items()}
        peaks = memory(case)
        results[name] = {"generations": rows, "memory": peaks}
        show(name, rows, peaks)
        save(a.out, {"machine": machine(a.threads, rounds=a.rounds), "results": results})


if __name__ == "__main__":
    main()
