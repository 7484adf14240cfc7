"""Time of one pass over the examples: dldw's PerceptronClassifier beside scikit-learn's Perceptron, both in float64.

The two alternate, a whole fit of some passes each from zero and with shuffling, on the same processor cores; what a fit does
besides its passes (checks, copies) is in the figure of both. The time of dldw's rule grows with the mistakes made, so these
are told, and so is the test accuracy. The large case is drawn: ten classes of eight clusters of non-negative numbers, at two
levels of noise; with ``--data`` it is also Fashion-MNIST.

    python benchmarks/perceptron.py [--data DIR] [--rounds 7] [--threads 1] [--out benchmarks/results/perceptron.json]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from interleaved import pin
from raw import machine, save

PASSES = 5


def digits():
    from dldw.tasks import load_task

    task = load_task("digits")
    (x, y), (test_x, test_y) = task.train, task.splits["test"]
    return x.double().numpy(), y.numpy(), test_x.double().numpy(), test_y.numpy()


def clusters(rows: int, noise: float):
    import numpy as np

    rng = np.random.default_rng(0)
    centres = np.maximum(rng.normal(size=(10, 8, 784)), 0)
    y = rng.integers(10, size=rows + rows // 6)
    x = centres[y, rng.integers(8, size=len(y))]
    x += rng.normal(scale=noise, size=x.shape)
    x = np.maximum(x, 0) / 4
    return x[:rows], y[:rows], x[rows:], y[rows:]


def images(directory: Path, rows: int):
    from dldw.tasks import load_task

    task = load_task("fashion-mnist", directory)
    (x, y), (test_x, test_y) = task.train, task.splits["test"]
    flat = [task.prepare(part).flatten(1).double().numpy() for part in (x[:rows], test_x)]
    return flat[0], y[:rows].numpy(), flat[1], test_y.numpy()


def sides():
    from sklearn.linear_model import Perceptron

    from dldw.integrations.sklearn import PerceptronClassifier

    return {
        "dldw": lambda seed: PerceptronClassifier(max_iter=PASSES, random_state=seed),
        "scikit-learn": lambda seed: Perceptron(max_iter=PASSES, tol=None, random_state=seed),
    }


def measure(data, rounds: int):
    x, y, test_x, test_y = data
    seconds = {side: [] for side in sides()}
    scores = {side: [] for side in sides()}
    mistakes = []
    for seed in range(rounds + 1):
        for side, make in sides().items():
            start = time.perf_counter()
            model = make(seed).fit(x, y)
            took = (time.perf_counter() - start) / model.n_iter_
            if seed:  # the first round warms up
                seconds[side].append(took)
                scores[side].append(model.score(test_x, test_y))
                if side == "dldw":
                    mistakes = model.mistakes_
    rows = {}
    for side, t in seconds.items():
        low, middle, high = statistics.quantiles(t, n=4)
        rows[side] = {
            "median_ms": 1e3 * middle, "low_ms": 1e3 * low, "high_ms": 1e3 * high,
            "accuracy": statistics.fmean(scores[side]),
        }  # fmt: skip
    return {"shape": list(x.shape), "mistakes": mistakes, "a pass": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of Fashion-MNIST")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=60_000, help="examples of the large cases")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pin(arguments.threads)
    cases = {
        "digits": digits,
        "clusters, noise 1": lambda: clusters(arguments.rows, 1.0),
        "clusters, noise 2": lambda: clusters(arguments.rows, 2.0),
    }
    if arguments.data:
        cases["fashion-mnist"] = lambda: images(arguments.data, arguments.rows)
    results = {}
    for name, load in cases.items():
        results[name] = result = measure(load(), arguments.rounds)
        print(f"{name}, {result['shape'][0]} x {result['shape'][1]}, mistakes by pass {result['mistakes']}")
        for side, row in result["a pass"].items():
            factor = row["median_ms"] / result["a pass"]["dldw"]["median_ms"]
            print(f"    {side:12s} {row['median_ms']:9.2f} ms [{row['low_ms']:.2f}, {row['high_ms']:.2f}], ", end="")
            print(f"{factor:5.2f} x; test accuracy {row['accuracy']:.4f}", flush=True)
        save(arguments.out, {"machine": machine(arguments.threads), "results": results})


if __name__ == "__main__":
    main()
