"""Control tasks by method: how many of five seeds solve them, and after how many environment steps.

Each run trains with the settings that ship. At stops spaced evenly on a logarithmic scale the policy plays twenty validation
episodes; where their mean reaches the threshold it plays a hundred unseen ones in gymnasium's own environments, and the task
is solved if their mean reaches it too. Environment steps are those of training. Runs with these settings that are in the file
already are kept.

    python benchmarks/control.py [TASK ...] [--methods M ...] [--seeds 5] [--out benchmarks/results/control.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import torch
from raw import save

import dldw
from dldw.compare.spec import parse
from dldw.compare.statistics import log_spaced
from dldw.compare.train import forwards_per_step, reached
from dldw.rollout import Rollout
from dldw.tasks import load_task
from dldw.tasks.control import Control
from dldw.tasks.task import tuned
from dldw.weights import Weights

BUDGETS = {"cartpole": 4e6, "acrobot": 8e6, "pendulum": 1e7, "mountain-car-continuous": 4e6}
"""Environment steps after which a run ends unsolved."""
METHODS = (
    "random-search", "hill-climb[proposals=15]", "particle-swarm", "genetic-algorithm", "differential-evolution", "cma-es",
    "evolution-strategy", "low-rank-evolution", "spsa[directions=8]", "reinforce",
)  # fmt: skip


@torch.no_grad()
def unseen(task: Control, model: torch.nn.Module) -> float:
    """The mean return of a hundred unseen episodes in gymnasium's own environments."""
    theirs = Rollout(lambda n: gymnasium.make_vec(task.environment, n, vectorization_mode="sync"))
    return -float(theirs(model, torch.tensor(task.splits["test"])).double().mean())


def solve(name: str, method: str, seed: int) -> dict[str, Any]:
    """One run."""
    task = load_task(name)
    assert isinstance(task, Control)
    spec = parse(method)
    settings = spec.settings(task.settings)
    model = task.model(seed)
    learner = spec.method.build(model, task.loss, torch.Generator().manual_seed(10_000 + seed), **settings)
    unit = forwards_per_step(spec, settings, Weights(model).size)
    batches, step, began = task.batches(seed, tuning=True), 0, time.process_time()
    run: dict[str, Any] = {"task": name, "method": method, "seed": seed, "settings": settings, "curve": []}
    for stop in log_spaced(1e9, unit, 20):
        while step < stop and task.interactions < BUDGETS[name]:
            learner.step(next(batches))
            step += 1
        value = task.evaluate(model, "validation")["return"]
        run["curve"].append([task.interactions, value])
        run |= {"environment_steps": task.interactions, "forwards": step * unit, "return": None}
        if reached(task, value):
            run["return"] = unseen(task, model)
        if task.interactions >= BUDGETS[name] or (run["return"] is not None and reached(task, run["return"])):
            break
    run["return"] = unseen(task, model) if run["return"] is None else run["return"]
    run["solved"] = reached(task, run["return"])
    return run | {"processor_seconds": time.process_time() - began}


def table(runs: list[dict[str, Any]]) -> str:
    """Solved seeds, and the median of environment steps over all seeds, unsolved ones counting as endless."""
    lines = [f"{'task':24s} {'method':24s} {'solved':>8s} {'environment steps':>18s} {'return of 100 unseen':>22s}"]
    for task in BUDGETS:
        for method in dict.fromkeys(r["method"] for r in runs):
            mine = [r for r in runs if (r["task"], r["method"]) == (task, method)]
            if mine:
                steps = statistics.median_high([r["environment_steps"] if r["solved"] else float("inf") for r in mine])
                solved = f"{sum(r['solved'] for r in mine)} of {len(mine)}"
                returns = statistics.median(r["return"] for r in mine)
                lines.append(f"{task:24s} {method:24s} {solved:>8s} {steps:18,.0f} {returns:22.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(BUDGETS)}; all by default")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "control.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(arguments.out.read_text())["runs"] if arguments.out.is_file() else []
    runs = [r for r in runs if r["settings"] == parse(r["method"]).settings(tuned(r["task"])["settings"])]
    done = {(r["task"], r["method"], r["seed"]) for r in runs}
    for task in arguments.tasks or BUDGETS:
        for method in arguments.methods:
            for seed in range(arguments.seeds):
                if (task, method, seed) not in done:
                    runs.append(solve(task, method, seed))
                    found = {"dldw": dldw.__version__, "torch": torch.__version__, "gymnasium": gymnasium.__version__}
                    save(arguments.out, found | {"budgets": BUDGETS, "runs": runs})
    print(table(runs))


if __name__ == "__main__":
    main()
