"""What a step costs on the digits network: the question's method over two bare forwards, and a batched population.

Every ratio is taken pair by pair from steps that alternate, and its median is printed with its quartiles; threads are pinned.

    python benchmarks/step_cost.py [--threads 2] [--repeats 2000] [--out benchmarks/results/step_cost.json]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from raw import machine, save
from torch import nn
from torch.nn.functional import cross_entropy

import dldw


def loss(model, batch):
    inputs, labels = batch
    return cross_entropy(model(inputs), labels, reduction="none")


def pairs(a: Callable[[], object], b: Callable[[], object], repeats: int) -> dict[str, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(repeats + repeats // 10 + 1):
        for f, out in zip((a, b), times, strict=True):
            start = time.perf_counter()
            f()
            if i > repeats // 10:
                out.append(time.perf_counter() - start)
    low, ratio, high = statistics.quantiles([x / y for x, y in zip(*times, strict=True)], n=4)
    medians = [1e6 * statistics.median(t) for t in times]
    return {"ratio": ratio, "low": low, "high": high, "a_microseconds": medians[0], "b_microseconds": medians[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    batch = torch.rand(128, 64), torch.randint(10, (128,))

    def forwards():
        with torch.no_grad():
            loss(model, batch)
            loss(model, batch)

    def predictions():
        with torch.no_grad():
            return float(loss(model, batch).mean()), float(loss(model, batch).mean())

    def step(source):
        def run():
            for p in model.parameters():
                p.grad = None
            source(model, batch)

        return run

    nudge = step(dldw.WeightPerturbation(loss))
    strategies = [
        step(dldw.EvolutionStrategy(loss, sigma=0.05, population=256, evaluate=mode))
        for mode in ("sequential", "batched")
    ]
    results = {
        "weight perturbation / two bare forwards": pairs(nudge, forwards, arguments.repeats),
        "weight perturbation / two predictions read as numbers": pairs(nudge, predictions, arguments.repeats),
        "spsa / two bare forwards": pairs(step(dldw.SPSA(loss)), forwards, arguments.repeats),
        "evolution strategy 256: sequential / batched": pairs(*strategies, max(10, arguments.repeats // 50)),
    }
    for name, row in results.items():
        print(f"{name:56s} {row['ratio']:6.2f} [{row['low']:.2f}, {row['high']:.2f}]  ", end="")
        print(f"{row['a_microseconds']:9.0f} us / {row['b_microseconds']:.0f} us")
    save(arguments.out, {"machine": machine(arguments.threads, torch=torch.__version__), "results": results})


if __name__ == "__main__":
    main()
