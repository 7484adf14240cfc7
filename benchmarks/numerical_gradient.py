"""The full numerical gradient: what it costs, and how far it is off, beside the ways that other tools take.

    python -m benchmarks.numerical_gradient [--model mlp lenet transformer] [--rounds 5] [--threads 2] [--out FILE]

Peers, all on the same mean loss as a function of all weights:

- naive central loop: every weight written up and down, two forwards each;
- naive one-sided by ``scipy.optimize.approx_fprime``;
- ``torch.func.vmap`` of perturbed weights, in chunks, central;
- ``torch.autograd.gradcheck`` in slow mode, which says pass or fail and gives no gradient.

Every side is a process of its own, and they take turns. On large models a peer that nudges one weight after the other is
timed on some hundred weights, evenly spread, and its seconds multiplied: its cost is the same for each of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.interleaved import measure, milliseconds, pin, serve
from benchmarks.raw import machine, save

SIDES = ("dldw", "dldw float32", "dldw batched", "naive central", "vmap", "scipy one-sided", "gradcheck slow")
SAMPLED = 128


def build(name: str, dtype: Any) -> tuple[Any, Any, Any]:
    """Model, loss and batch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        logits = model(batch[0])
        return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    if name == "mlp":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        model: nn.Module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        batch = torch.tensor(x[:1437] / 16).to(dtype), torch.tensor(y[:1437])
    elif name == "lenet":
        features = nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)
        head = nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)
        model = nn.Sequential(*features, nn.Flatten(), *head)
        batch = torch.randn(64, 1, 28, 28).to(dtype), torch.randint(10, (64,))
    else:
        model = _transformer()
        batch = torch.randint(65, (4, 8)), torch.randint(65, (4, 8))
    return model.to(dtype), loss, batch


def _transformer() -> Any:
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.feed = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

        def forward(self, x: Any) -> Any:
            b, t, d = x.shape
            q, k, v = self.qkv(self.norm(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(b, t, d))
            return x + self.feed(x)

    class Transformer(nn.Module):
        def __init__(self, tokens: int = 65, width: int = 64, heads: int = 4, length: int = 8) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(length, width)
            self.blocks = nn.Sequential(Block(width, heads), Block(width, heads), nn.LayerNorm(width))
            self.head = nn.Linear(width, tokens)

        def forward(self, x: Any) -> Any:
            return self.head(self.blocks(self.token(x) + self.place.weight[: x.shape[1]]))

    return Transformer()


class Side:
    """One way to the gradient of one model."""

    def __init__(self, name: str, side: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.side = side
        self.model, self.loss, self.batch = build(name, torch.float32 if side == "dldw float32" else torch.float64)
        self.weights = list(self.model.parameters())
        self.size = sum(p.numel() for p in self.weights)
        self.every = 1 if name == "mlp" else max(1, self.size // SAMPLED)
        self.scale = 1.0

    def gradient(self) -> Any:
        """The flat gradient, or as much of it as this side gives."""
        run: Callable[[], Any] = getattr(self, "_" + self.side.replace(" ", "_").replace("-", "_"))
        return run()

    def _dldw(self) -> Any:
        import torch

        import dldw

        self.model.zero_grad()
        dldw.FiniteDifference(self.loss, evaluate="batched" if self.side == "dldw batched" else "auto")(
            self.model, self.batch
        )
        return torch.cat([p.grad.flatten().double() for p in self.weights])

    _dldw_float32 = _dldw_batched = _dldw

    def _naive_central(self) -> Any:
        import torch

        out, step, at = torch.full((self.size,), float("nan"), dtype=torch.float64), 2.0**-17, 0
        taken = 0
        with torch.no_grad():
            for p in self.weights:
                flat = p.view(-1)
                for i in range(p.numel()):
                    if (at + i) % self.every == 0:
                        held = flat[i].item()
                        flat[i] = held + step
                        up = float(self.loss(self.model, self.batch))
                        flat[i] = held - step
                        down = float(self.loss(self.model, self.batch))
                        flat[i] = held
                        out[at + i] = (up - down) / (2 * step)
                        taken += 1
                at += p.numel()
        self.scale = self.size / taken
        return out

    def _vmap(self) -> Any:
        import torch
        from torch.func import functional_call, vmap

        names = [name for name, _ in self.model.named_parameters()]
        flat = torch.cat([p.detach().flatten() for p in self.weights])
        picks, step = torch.arange(0, self.size, self.every), 2.0**-17
        out = torch.full((self.size,), float("nan"), dtype=torch.float64)

        def one(vector: torch.Tensor) -> torch.Tensor:
            parts = vector.split([p.numel() for p in self.weights])
            values = {n: part.view(p.shape) for n, part, p in zip(names, parts, self.weights, strict=True)}
            return self.loss(lambda x: functional_call(self.model, values, (x,)), self.batch)

        with torch.no_grad():
            for some in picks.split(16):
                nudges = torch.zeros(len(some), self.size, dtype=flat.dtype)
                nudges[torch.arange(len(some)), some] = step
                out[some] = (vmap(one)(flat + nudges) - vmap(one)(flat - nudges)) / (2 * step)
        self.scale = self.size / len(picks)
        return out

    def _scipy_one_sided(self) -> Any:
        import numpy as np
        import torch
        from scipy.optimize import approx_fprime

        flat = torch.cat([p.detach().flatten() for p in self.weights])
        picks = torch.arange(0, self.size, self.every)
        out = torch.full((self.size,), float("nan"), dtype=torch.float64)

        def value(x: Any) -> float:
            moved = flat.clone()
            moved[picks] = torch.from_numpy(np.ascontiguousarray(x))
            with torch.no_grad():
                for p, part in zip(self.weights, moved.split([p.numel() for p in self.weights]), strict=True):
                    p.copy_(part.view(p.shape))
                return float(self.loss(self.model, self.batch))

        out[picks] = torch.from_numpy(approx_fprime(flat[picks].numpy(), value, 1.5e-8))
        value(flat[picks].numpy())
        self.scale = self.size / len(picks)
        return out

    def _gradcheck_slow(self) -> None:
        import torch
        from torch.autograd import gradcheck
        from torch.func import functional_call

        if self.every > 1:
            sys.exit("gradcheck nudges all weights of a tensor: it is timed on the small model alone.")
        names = [name for name, _ in self.model.named_parameters()]

        def value(*values: torch.Tensor) -> torch.Tensor:
            given = dict(zip(names, values, strict=True))
            return self.loss(lambda x: functional_call(self.model, given, (x,)), self.batch)

        gradcheck(value, tuple(p.detach().requires_grad_() for p in self.weights))

    def error(self) -> float | None:
        """The largest error over the largest entry of the exact gradient, in float64."""
        found = self.gradient()
        if found is None:
            return None
        model = self.model.double()
        model.zero_grad()
        batch = tuple(t.double() if t.is_floating_point() else t for t in self.batch)
        self.loss(model, batch).backward()
        import torch

        exact = torch.cat([p.grad.flatten() for p in model.parameters()])
        known = ~found.isnan()
        return float((found - exact)[known].abs().max() / exact.abs().max())

    def generations(self) -> Iterator[float]:
        while True:
            start = time.perf_counter()
            self.gradient()
            yield (time.perf_counter() - start) * self.scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["mlp", "lenet", "transformer"])
    parser.add_argument("--side", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        pin(arguments.threads)
        side = Side(*arguments.serve, threads=arguments.threads)
        side.gradient()  # what is loaded and cached at first is not what is measured
        serve(side.generations())
        return
    results: dict[str, Any] = {"machine": machine(arguments.threads)}
    for name in arguments.model:
        sides = [s for s in arguments.side if name == "mlp" or s not in ("gradcheck slow", "dldw batched")]
        own = [sys.executable, "-m", "benchmarks.numerical_gradient", "--threads", str(arguments.threads), "--serve"]
        times = measure({side: [*own, name, side] for side in sides}, arguments.rounds)
        rows = results[name] = {}
        for side in sides:
            made = Side(name, side, arguments.threads)
            rows[side] = {**milliseconds(times[side]), "error": made.error(), "weights": made.size}
        print(f"{name}, {rows[sides[0]]['weights']:,} weights")
        for side in sides:
            row = rows[side]
            ratios = [theirs / ours for theirs, ours in zip(times[side], times[sides[0]], strict=True)]
            off = "pass or fail" if row["error"] is None else f"error {row['error']:.0e}"
            print(
                f"  {side:16s} {row['median_ms'] / 1e3:9.3f} s [{row['low_ms'] / 1e3:.3f}, {row['high_ms'] / 1e3:.3f}]"
                f"  {statistics.median(ratios):7.1f} x {sides[0]}   {off}"
            )
    save(arguments.out, results)


if __name__ == "__main__":
    main()
