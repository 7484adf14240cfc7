"""What an epoch of contrastive divergence costs: 60,000 x 784 pixels, 256 hidden units, beside its matrix products and peers.

Every contender trains on the same batches in turn, a block of them at a time, so that all suffer alike from whatever else the
machine does; a ratio is taken block by block, and its median is printed with its quartiles. The limit is the four products
that a step of CD-1 consists of, the last over data and samples at once and added to the weights, by ``torch.addmm``; beside
it are the same by oneDNN, which is what ours go to. Peers that are not there are left out.

    pip install scikit-learn; pip install --no-deps learnergy rbms h5py    # the last two in an environment of their own
    python benchmarks/rbm.py [--threads 1] [--seconds 20] [--out benchmarks/results/rbm.json]
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from raw import machine, save
from torch import Tensor

import dldw
from dldw.gemm import product

EXAMPLES, VISIBLE, HIDDEN, RATE = 60_000, 784, 256, 0.01
Step = Callable[[Tensor], object]


def operands(batch: int) -> tuple[Tensor, ...]:
    """W and both biases; visible and hidden units of data and samples."""
    weight, bias, hidden_bias = torch.randn(HIDDEN, VISIBLE) * 0.01, torch.zeros(VISIBLE), torch.zeros(HIDDEN)
    return weight, bias, hidden_bias, torch.rand(2 * batch, VISIBLE), torch.rand(2 * batch, HIDDEN)


def limit(batch: int) -> Step:
    weight, bias, hidden_bias, v, h = operands(batch)
    out, samples = torch.empty(batch, HIDDEN), torch.empty(batch, VISIBLE)

    def step(x: Tensor) -> None:
        torch.addmm(hidden_bias, x, weight.t(), out=out)
        torch.addmm(bias, h[batch:], weight, out=samples)
        torch.addmm(hidden_bias, v[batch:], weight.t(), out=out)
        weight.addmm_(h.t(), v, alpha=1e-9)

    return step


def limit_by_onednn(batch: int) -> Step:
    weight, bias, hidden_bias, v, h = operands(batch)

    @torch.no_grad()
    def step(x: Tensor) -> None:
        product(x, weight.t(), hidden_bias)
        product(h[batch:], weight, bias)
        product(v[batch:], weight.t(), hidden_bias)
        weight.sub_(product(h.t(), v), alpha=1e-9)

    return step


def ours(batch: int) -> Step:
    return dldw.Descent(dldw.nn.RBM(VISIBLE, HIDDEN), dldw.ContrastiveDivergence(), RATE).step


def with_optimizer(batch: int) -> Step:
    rbm = dldw.nn.RBM(VISIBLE, HIDDEN)
    return dldw.Descent(rbm, dldw.ContrastiveDivergence(), torch.optim.SGD(rbm.parameters(), lr=RATE)).step


def source_alone(batch: int) -> Step:
    rbm, source = dldw.nn.RBM(VISIBLE, HIDDEN), dldw.ContrastiveDivergence()

    def step(x: Tensor) -> None:
        for p in rbm.parameters():
            p.grad = None
        source(rbm, x)

    return step


def scikit_learn(dtype: type) -> Callable[[int], Step]:
    def make(batch: int) -> Step:
        from sklearn.neural_network import BernoulliRBM

        rbm, random = BernoulliRBM(HIDDEN, learning_rate=RATE, batch_size=batch, n_iter=1), np.random.RandomState(0)
        rbm.fit(np.zeros((batch, VISIBLE), dtype))  # partial_fit would make float64 of it
        return lambda x: rbm._fit(x.numpy().astype(dtype, copy=False), random)  # what fit calls, without its checks

    return make


def learnergy(batch: int) -> Step:
    from learnergy.models.bernoulli import RBM

    rbm = RBM(n_visible=VISIBLE, n_hidden=HIDDEN, steps=1, learning_rate=RATE)

    def step(x: Tensor) -> None:
        cost = rbm.energy(x).mean() - rbm.energy(rbm.gibbs_sampling(x)[4].detach()).mean()
        rbm.optimizer.zero_grad()
        cost.backward()
        rbm.optimizer.step()

    return step  # its fit also computes a pseudo-likelihood


def rbms(batch: int) -> Step:
    from rbms.bernoulli_bernoulli.classes import BBRBM
    from rbms.training.pcd import fit_batch_pcd

    weight, bias, hidden_bias = torch.randn(VISIBLE, HIDDEN) * 0.01, torch.zeros(VISIBLE), torch.zeros(HIDDEN)
    model, ones = BBRBM(weight, bias, hidden_bias, torch.device("cpu"), torch.float32), torch.ones(batch)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    sgd = torch.optim.SGD(model.parameters(), lr=RATE, maximize=True)

    def step(x: Tensor) -> None:
        with torch.no_grad():
            chains = model.init_chains(len(x), weights=ones, start_v=x)
            sgd.zero_grad(set_to_none=False)
            fit_batch_pcd((x, ones), chains, model, gibbs_steps=1, beta=1.0, centered=False)
            sgd.step()

    return step


CONTENDERS: dict[str, Callable[[int], Step]] = {
    "matrix products": limit,
    "the same by oneDNN": limit_by_onednn,
    "dldw": ours,
    "dldw, SGD of torch.optim": with_optimizer,
    "dldw, gradient alone": source_alone,
    "scikit-learn float32": scikit_learn(np.float32),
    "scikit-learn float64": scikit_learn(np.float64),
    "learnergy": learnergy,
    "rbms": rbms,
}


def race(batch: int, seconds: float) -> dict[str, dict[str, float]]:
    """Seconds an epoch, and ratios to the matrix products and to ours, of every contender that is there."""
    images = (torch.rand(max(1000, batch), VISIBLE, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    batches = images.split(batch)
    steps: dict[str, Step] = {}
    for name, make in CONTENDERS.items():
        try:
            steps[name] = make(batch)
            steps[name](batches[0])
        except ImportError:
            print(f"{name} is not installed")
    block = max(3, 5000 // batch)  # a tenth of a second, so that each finds the caches as its own last step left them
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["dldw"]) < 3:
        for name, step in steps.items():
            start = time.perf_counter()
            for i in range(block):
                step(batches[i % len(batches)])
            times[name].append((time.perf_counter() - start) / block)
    epoch = EXAMPLES / batch
    results = {}
    for name, taken in times.items():
        low, ratio, high = quartiles([t / base for t, base in zip(taken, times["matrix products"], strict=True)])
        _, over, _ = quartiles([t / mine for t, mine in zip(taken, times["dldw"], strict=True)])
        row = {
            "seconds": epoch * statistics.median(taken),
            "over_limit": ratio,
            "low": low,
            "high": high,
            "over_ours": over,
        }
        results[name] = row
        print(f"batch {batch:5d}  {name:22s} {row['seconds']:7.2f} s an epoch", end="")
        print(f"  {ratio:6.2f} [{low:.2f}, {high:.2f}] x the products  {over:6.2f} x ours", flush=True)
    return results


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size of batch")
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    logging.disable(logging.INFO)
    results: dict[str, object] = {str(batch): race(batch, a.seconds) for batch in a.batches}
    versions = {}
    for name in ("torch", "scikit-learn", "learnergy", "rbms"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    save(a.out, {"machine": machine(a.threads, **versions), "epochs": results})


if __name__ == "__main__":
    main()
