"""Tools that check gradients, on the same wrong and right gradients, and what they cost as the model grows.

    python -m benchmarks.gradient_check [--only corpus|cost] [--sizes 1000 100000 ...] [--out FILE] [--docs PAGE]

What is not measured anew stays in FILE. With ``--docs docs/gradient-check.md`` the table of that page is written from FILE.

The corpus is that of tests/check_corpus.py. ``gradcheck`` runs as it comes, on the mean loss as a function of the parameters;
an exception of it counts as an alarm, and the parameter that its text names as the location. ``scipy.optimize.check_grad``
returns a length and no verdict; more than 1e-5 of the gradient's counts as an alarm. Where a tool says that there is no
telling, it has neither found a fault nor raised a false alarm.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.raw import machine, save
from benchmarks.tables import corpus as corpus_lines
from benchmarks.tables import put
from scipy.optimize import check_grad
from tests.check_corpus import RIGHT, WRONG
from torch import nn
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.func import functional_call

import dldw

Found = tuple[bool, set[str]]
"""Whether there is an alarm, and which tensors are accused."""


def by_dldw(model, loss, batch) -> Found:
    result = dldw.check(model, loss, batch)
    return result.verdict == "wrong", {part.name.split(" = ")[0] for part in result.wrong}


class Call(nn.Module):
    """The loss as the forward pass of a module, so that its parameters can be replaced."""

    def __init__(self, model, loss, batch):
        super().__init__()
        self.model, self.loss, self.batch = model, loss, batch

    def forward(self):
        return self.loss(self.model, self.batch).mean()


def by_gradcheck(fast, model, loss, batch) -> Found:
    call = Call(model, loss, batch)
    parameters = {name: p for name, p in call.named_parameters() if p.requires_grad}
    names = [name.removeprefix("model.") for name in parameters]

    def f(*values):
        return functional_call(call, dict(zip(parameters, values, strict=True)), ())

    try:
        gradcheck(f, tuple(parameters.values()), fast_mode=fast)
    except (GradcheckError, RuntimeError, ValueError) as error:
        return True, {names[int(i)] for i in re.findall(r"with respect to input (\d+)", str(error))}
    return False, set()


def by_scipy(model, loss, batch) -> Found:
    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in parameters]
    start = torch.cat([p.detach().double().flatten() for p in parameters]).numpy()

    def put(x):
        with torch.no_grad():
            for p, part in zip(parameters, torch.from_numpy(x).split(sizes), strict=True):
                p.copy_(part.view_as(p))

    def f(x):
        put(x)
        with torch.no_grad():
            return float(loss(model, batch).double().mean())

    def gradient(x):
        put(x)
        model.zero_grad()
        value = loss(model, batch).mean()
        if value.requires_grad:
            value.backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat([g.double().flatten() for g in parts]).numpy()

    off = check_grad(f, gradient, start)
    return not off <= 1e-5 * float(np.linalg.norm(gradient(start))), set()


TOOLS: dict[str, Callable[..., Found]] = {
    "dldw.check": by_dldw,
    "gradcheck, slow": partial(by_gradcheck, False),
    "gradcheck, fast": partial(by_gradcheck, True),
    "scipy check_grad": by_scipy,
}


def corpus() -> dict[str, Any]:
    table: dict[str, Any] = {}
    for tool, run in TOOLS.items():
        row: dict[str, Any] = {"wrong": len(WRONG), "right": len(RIGHT), "missed": [], "false alarms": []}
        found = located = 0
        seconds = 0.0
        for case in [*WRONG, *RIGHT]:
            made = case.make()
            start = time.perf_counter()
            with torch.random.fork_rng(devices=[]):
                alarm, accused = run(*made)
            seconds += time.perf_counter() - start
            if case.wrong:
                truth = set(case.truth())
                found += alarm
                located += accused == truth if tool == "dldw.check" else bool(accused) and accused <= truth
                row["missed"] += [] if alarm else [case.name]
            elif alarm:
                row["false alarms"].append(case.name)
        table[tool] = {**row, "found": found, "located": located, "seconds": seconds}
    return table


def show_corpus(table: dict[str, Any]) -> None:
    some = next(iter(table.values()))
    print(f"{some['wrong']} wrong and {some['right']} right gradients")
    print(f"{'tool':20s} {'found':>6s} {'located':>8s} {'false alarms':>13s} {'seconds':>8s}")
    for tool, row in table.items():
        print(f"{tool:20s} {row['found']:6d} {row['located']:8d} {len(row['false alarms']):13d} {row['seconds']:8.2f}")


def square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(1)


def network(weights: int) -> nn.Module:
    """Two square layers in float64."""
    width = round((weights / 2) ** 0.5)
    layers = nn.Linear(width, width, bias=False), nn.Tanh(), nn.Linear(width, width, bias=False)
    return nn.Sequential(*layers).double()


def cost(sizes: list[int], slow: int) -> list[dict[str, Any]]:
    rows = []
    for weights in sizes:
        model = network(weights)
        batch = torch.randn(16, model[0].in_features, dtype=torch.float64)
        row: dict[str, Any] = {"weights": sum(p.numel() for p in model.parameters())}

        def step(model=model, batch=batch):
            model.zero_grad()
            square(model, batch).mean().backward()

        runs = {"forward and backward": step, "dldw.check": partial(dldw.check, model, square, batch)}
        runs["gradcheck, fast"] = partial(by_gradcheck, True, model, square, batch)
        if weights <= slow:
            runs["gradcheck, slow"] = partial(by_gradcheck, False, model, square, batch)
        for tool, run in runs.items():
            gc.collect()
            times = []
            for _ in range(3 if weights < 10**7 else 1):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            row[tool] = min(times)
        row["forwards"] = dldw.check(model, square, batch).forwards if weights < 10**7 else None
        rows.append(row)
    return rows


def show_cost(rows: list[dict[str, Any]]) -> None:
    tools = ["forward and backward", "dldw.check", "gradcheck, fast", "gradcheck, slow"]
    print(f"{'weights':>12s} " + " ".join(f"{tool:>21s}" for tool in tools) + "   seconds")
    for row in rows:
        print(f"{row['weights']:12d} " + " ".join(f"{row[t]:21.4f}" if t in row else f"{'-':>21s}" for t in tools))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("corpus", "cost"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**3, 10**4, 10**5, 10**6, 10**7, 10**8])
    parser.add_argument("--slow", type=int, default=10**4, help="weights up to which gradcheck's slow mode runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path, help="a page with the comments around its table, which is written anew")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    if arguments.only != "cost":
        results["corpus"] = corpus()
        show_corpus(results["corpus"])
    if arguments.only != "corpus":
        results["cost"] = cost(arguments.sizes, arguments.slow)
        show_cost(results["cost"])
    if arguments.out:
        kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        found = {"machine": machine(arguments.threads, torch=torch.__version__), **results}
        save(arguments.out, {**kept, **found})
    if arguments.docs:
        put(arguments.docs, "corpus", corpus_lines(results["corpus"]))


if __name__ == "__main__":
    main()
