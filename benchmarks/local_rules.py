"""Local and random-feedback rules: accuracy from equal trials, and memory over depth.

Accuracy: the task ``digits-64-64``, an MLP 64-64-64-10 with ReLU in batches of 64, whose learning rates fall along a cosine
where an optimizer follows the method: at a constant rate noisy estimates end some points lower. Every method has the same
number of trials, of the same length as the run itself, to find its settings on the validation split (as ``dldw compare
--tune`` does); then one run for each seed on the whole training split, of which the test accuracy in the end counts. What a
step costs in forward-equivalents is measured: the floating-point operations of its products over those of one forward pass,
or what the method's card says, whichever is more. Accuracies do not depend on what else the machine does.

Memory: the allocator's peak in one step of networks of 4 to 64 layers of 64, above the loaded model and the optimizers'
state, at batches of 256.

    python benchmarks/local_rules.py [--only accuracy|memory] [--method NAME] [--out FILE.json]

Where the file holds a method already, found in the same way, it is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from raw import machine, save
from torch import nn

from dldw.compare.meter import flops, peak_bytes
from dldw.compare.spec import Spec, parse
from dldw.compare.statistics import mean_interval
from dldw.compare.train import forwards_per_step, train
from dldw.compare.tune import Tuning, chosen
from dldw.tasks.digits_64_64 import Digits6464
from dldw.weights import Weights


class Network(Digits6464):
    """The task ``digits-64-64``."""

    target = 2.0  # out of reach: a trial is judged by its error in the end alone, and no time is gained


METHODS = list(Digits6464.methods)
TARGET = f"{Path(__file__).resolve()}:Network"


def measured_cost(task: Network, spec: Spec, settings: dict[str, Any]) -> float:
    """Forward-equivalents of a step: measured, or the card's where that is more."""
    model = task.model(0)
    learner = spec.method.build(model, task.loss, torch.Generator().manual_seed(0), **settings)
    first, second = islice(task.batches(0), 2)
    learner.step(first)
    done = flops(lambda: (learner.step(second), None)[1]) / flops(lambda: (task.loss(model, second), None)[1])
    return max(done, forwards_per_step(spec, settings, Weights(model).size))


def accuracy(a: argparse.Namespace, label: str) -> dict[str, Any]:
    task, spec = Network(), parse(label)
    size = Weights(task.model(0)).size
    unit = measured_cost(task, spec, dict(spec.given))
    by_card = forwards_per_step(spec, dict(spec.given), size) / unit  # budgets are counted by cards
    trials = Tuning(TARGET, None, spec, spec.given, a.trials, a.forwards * by_card).run()
    settings = chosen(trials)[spec.label]
    runs = [train(task, spec, settings, seed, forwards=a.forwards * by_card, per_decade=6) for seed in range(a.seeds)]
    ends = [100 * run.points[-1]["accuracy"] for run in runs]
    mean, low, high = mean_interval(ends)
    print(f"{label:42s} {unit:5.2f} forwards a step  {mean:5.1f} % [{low:.1f}, {high:.1f}]  {settings}", flush=True)
    return {
        "method": label, "forwards_per_step": unit, "settings": settings, "accuracies": ends, "mean": mean, "low": low,
        "high": high, "reasons": [run.reason for run in runs],
        "trials": [{"settings": t["settings"], "score": t["score"]} for t in trials],
    }  # fmt: skip


def memory(depths: list[int], width: int = 64, rows: int = 256) -> Iterator[dict[str, Any]]:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(rows, width, generator=generator), torch.randint(10, (rows,), generator=generator)
    for label in ("backprop", "backprop[checkpoint=true]", "local-backprop", "mono-forward", "forward-forward"):
        spec = parse(label)
        settings = {"lr": 1e-3, "optimizer": "sgd", **dict(spec.given)}
        for depth in depths:
            hidden = [m for _ in range(depth - 1) for m in (nn.Linear(width, width), nn.ReLU())]
            model = nn.Sequential(*hidden, nn.Linear(width, 10))
            learner = spec.method.build(model, loss, torch.Generator().manual_seed(0), **settings)
            learner.step(batch)
            model.zero_grad()
            peak = peak_bytes(lambda learner=learner: (learner.step(batch), None)[1], model)
            print(f"{label:30s} depth {depth:3d}  {peak / 2**20:7.2f} MiB", flush=True)
            yield {"method": label, "depth": depth, "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--forwards", type=float, default=30_000)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--only", choices=["accuracy", "memory"])
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(a.out.read_text()) if a.out and a.out.exists() else {}
    asked = {k: getattr(a, k) for k in ("seeds", "forwards", "trials")}
    if results.get("asked") != asked:
        results = {"asked": asked, "accuracy": [], "memory": results.get("memory", [])}
    results["machine"] = machine(1, torch=torch.__version__)

    for label in a.method if a.only != "memory" else ():
        if label not in [row["method"] for row in results["accuracy"]]:
            results["accuracy"].append(accuracy(a, label))
            save(a.out, results)
    if a.only != "accuracy":
        results["memory"] = list(memory(a.depths))
        save(a.out, results)


if __name__ == "__main__":
    main()
