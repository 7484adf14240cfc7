"""Table 2 of the Reformer's paper: trained with full attention or with hashes, evaluated with other numbers of hashes.

    python benchmarks/duplication.py [--trained full 4 2 1] [--half 128] [--out benchmarks/results/duplication.json]

The paper trains on sequences of 1,024 symbols for 150,000 steps; what is smaller here is written into the results. All rows
take ``--steps`` steps but those with 2 and 1 hashes, which take twice and four times as many: as many hashings in all. A row
that ``--out`` holds already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from raw import save

from dldw.compare.crossed import crossed
from dldw.memory import keep_freed_memory
from dldw.tasks.duplication import Duplication


def row(trained, arguments):
    """One model: how it learned and what it knows with every number of hashes."""
    task = Duplication(arguments.half)
    task.symbols, task.chunk, task.batch_size, task.width = (
        arguments.symbols, arguments.chunk, arguments.batch, arguments.width,
    )  # fmt: skip
    torch.manual_seed(arguments.seed)  # rotations are drawn from the global random state, as dropout is
    curve, start = [], time.process_time()

    def progress(step, loss):
        if step % 50 == 0:
            curve.append({"step": step, "loss": loss, "cpu_seconds": time.process_time() - start})
            print(f"trained with {trained}: step {step}, loss {loss:.3f}", flush=True)

    steps = round(arguments.steps * task.ways[trained])
    found = crossed(task, trained, steps=steps, lr=arguments.lr, seed=arguments.seed, progress=progress)
    accuracy = {evaluated: 100 * share for evaluated, share in found.items()}
    return {"accuracy": accuracy, "curve": curve, "weights": sum(p.numel() for p in task.model(0).parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", nargs="+", default=["full", "4", "2", "1"], help="full, or rounds of hashing")
    parser.add_argument("--half", type=int, default=128, help="length of 0w; the paper's is 512")
    parser.add_argument("--symbols", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    results = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    settings = {k: v for k, v in vars(arguments).items() if k not in ("trained", "out", "threads")}
    if results.setdefault("settings", settings) != settings:
        parser.error(f"{arguments.out} holds results of other settings, {results['settings']}: choose another --out")
    for trained in arguments.trained:
        if trained not in results:
            results[trained] = row(trained, arguments)
            save(arguments.out, results)
        ours = [f"{results[trained]['accuracy'][e]:5.1f}" for e in Duplication.asked]
        paper = [f"{p:5.1f}" for p in Duplication.published[trained]]
        print(
            f"trained with {trained:>4}, evaluated with {' '.join(Duplication.asked)}: {' '.join(ours)}   "
            f"paper {' '.join(paper)}"
        )


if __name__ == "__main__":
    main()
