"""Which sigma for which model and dtype, and how much loss the choice takes off beyond the usual 1e-3.

    python -m benchmarks.sigma_table [--steps 150] [--seeds 3] [--dtypes float64 ...] [--out FILE] [--docs PAGE]

For each of five models the sigma that ``dldw.quality(...).sweep()`` recommends; then SPSA with that sigma and with 1e-3, from
the same weights, along the same directions, on the same batches and for the same number of forwards. Both have the best of
six learning rates, from a hundredth to three times that of the best single step, by the median over seeds of what comes off
the loss of 512 examples.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.raw import machine, save
from benchmarks.tables import put
from benchmarks.tables import sigma as sigma_lines
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dldw

USUAL = 1e-3
DIRECTIONS = 2
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
BATCH = 64


class Attending(nn.Module):
    """Two layers of a transformer over 32 tokens of 16 levels of grey, two pixels each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(33, 32), nn.Parameter(torch.randn(32, 32))
        layers = (nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2))
        self.body, self.head = nn.Sequential(*layers), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.float().mul(16).round().long().view(len(x), 32, 2).sum(2)
        return self.head(self.body(self.embed(tokens) + self.place).mean(1))


class Recurrent(nn.Module):
    """An LSTM over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.view(-1, 8, 8))[0][:, -1])


class Residual(nn.Module):
    """A narrow layer with a way around it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.layer(self.norm(x)))


def convolving() -> nn.Module:
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers, nn.Flatten(), nn.Linear(256, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 64-32-10": lambda: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
    "CNN": convolving,
    "transformer": Attending,
    "LSTM": Recurrent,
    "16 residual layers": lambda: nn.Sequential(nn.Linear(64, 24), *(Residual() for _ in range(16)), nn.Linear(24, 10)),
}
Batch = tuple[Tensor, Tensor]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    x, labels = batch
    return cross_entropy(model(x), labels, reduction="none")


def made(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def digits(dtype: torch.dtype) -> Batch:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=dtype), torch.tensor(labels)


def batches(seed: int, dtype: torch.dtype) -> Iterator[Batch]:
    (x, y), generator = digits(dtype), torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        yield x[rows], y[rows]


def spsa(sigma: float, seed: int) -> dldw.SPSA:
    return dldw.SPSA(loss, sigma=sigma, directions=DIRECTIONS, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def value(model: nn.Module, dtype: torch.dtype) -> float:
    x, y = digits(dtype)
    return float(loss(model, (x[:512], y[:512])).double().mean())


def decrease(name: str, dtype: torch.dtype, sigma: float, lr: float, steps: int, seed: int) -> float:
    """How far the loss falls; minus infinity where it is not finite any more."""
    model, source, data = made(name, dtype), spsa(sigma, seed), batches(seed, dtype)
    start, optimizer = value(model, dtype), torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        try:
            source(model, next(data))
        except dldw.DldwError:
            return -math.inf
        optimizer.step()
    end = value(model, dtype)
    return start - end if math.isfinite(end) else -math.inf


def row(name: str, dtype: torch.dtype, steps: int, seeds: int) -> dict[str, Any]:
    model, batch = made(name, dtype), next(batches(99, dtype))
    begun = time.perf_counter()
    found = dldw.quality(spsa(USUAL, 0), model=model, batch=batch, draws=24, narrow=0)
    valley = found.sweep()
    seconds = time.perf_counter() - begun
    errors = dict(zip(valley.sigma, valley.error, strict=True))
    near = min(valley.sigma, key=lambda sigma: abs(sigma / USUAL - 1))
    out: dict[str, Any] = {
        "model": name, "dtype": str(dtype).removeprefix("torch."), "weights": found.weights,
        "recommended": valley.recommended, "error": errors[valley.recommended], "error_at_usual": errors[near],
        "seconds": seconds, "forwards": 2 * DIRECTIONS * steps,
    }  # fmt: skip
    base = dldw.quality(spsa(valley.recommended, 0), model=model, batch=batch, draws=24, narrow=0).lr or 1e-2
    for key, sigma in (("usual", USUAL), ("chosen", valley.recommended)):
        tried = [[decrease(name, dtype, sigma, base * f, steps, seed) for seed in range(seeds)] for f in FACTORS]
        best = max(tried, key=statistics.median)
        out[key] = {"decrease": statistics.median(best), "least": min(best), "most": max(best)}
        out[key]["lr"] = base * FACTORS[tried.index(best)]
    return out


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'model':20s} {'dtype':9s} {'weights':>8s} {'sigma':>9s} {'error':>8s} {'at 1e-3':>8s} {'loss off, 1e-3':>24s} "
          f"{'loss off, recommended':>24s} {'ratio':>6s}")  # fmt: skip
    for r in rows:
        cells = [f"{r[k]['decrease']:.3f} ({r[k]['least']:.3f} to {r[k]['most']:.3f})" for k in ("usual", "chosen")]
        ratio = r["chosen"]["decrease"] / r["usual"]["decrease"] if r["usual"]["decrease"] > 0 else math.inf
        print(f"{r['model']:20s} {r['dtype']:9s} {r['weights']:8d} {r['recommended']:9.1e} {r['error']:8.1e} "
              f"{r['error_at_usual']:8.1e} {cells[0]:>24s} {cells[1]:>24s} {ratio:6.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path, help="docs/quality.md, whose table is written anew")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begun = time.perf_counter()
    rows = [
        row(name, getattr(torch, dtype), arguments.steps, arguments.seeds)
        for name in arguments.models
        for dtype in arguments.dtypes
    ]
    show(rows)
    found = machine(arguments.threads, torch=torch.__version__)
    if arguments.docs:
        put(arguments.docs, "sigma", sigma_lines(rows, found))
    save(arguments.out, {"machine": found, "seconds": time.perf_counter() - begun, "rows": rows})


if __name__ == "__main__":
    main()
