"""A step on a large model over two of its forwards, in time and memory: ours, and what else there is.

All methods take turns on one model and one batch in one process, and every ratio is that of a step to the two forwards
around it; threads are pinned. Memory is the allocator's peak above the loaded model, over that of one forward. Drift is
what a thousand steps at learning rate zero leave in the weights.

    python benchmarks/inference_cost.py [--model gpt2 vit llama] [--dtype float32 bfloat16] [--threads 2] [--repeats 5]
        [--only METHOD ...] [--directions] [--wide MODEL:EXAMPLESxLENGTH ...] [--drift] [--device cpu]
        [--out benchmarks/results/inference_cost.json]

``--directions`` adds what many directions cost: 8 in one pass, one for each example, and many added to the weights.
``--wide`` takes other sizes of models and batches and prints the ratio over model size and tokens; alone, those from
124 M to 1.3 G weights that fit. torchzero is measured where it is installed (``pip install --no-deps torchzero``).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from raw import machine, save
from torch import nn
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import dldw
from dldw.compare.meter import peak_bytes
from dldw.evaluate import Evaluator
from dldw.runlog import Step

SIGMA = 1e-3


def language_loss(model, batch):
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none").view(len(batch), -1).mean(1)


def image_loss(model, batch):
    return F.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")


def gpt2(examples=8, length=128):
    """GPT-2 small, 124 M weights."""
    return GPT2LMHeadModel(GPT2Config()), language_loss, torch.randint(50257, (examples, length))


def gpt2_medium(examples=4, length=64):
    """GPT-2 medium, 355 M weights."""
    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    return GPT2LMHeadModel(config), language_loss, torch.randint(50257, (examples, length))


def gpt2_large(examples=2, length=64):
    """GPT-2 large, 774 M weights."""
    config = GPT2Config(n_embd=1280, n_layer=36, n_head=20)
    return GPT2LMHeadModel(config), language_loss, torch.randint(50257, (examples, length))


def opt_1b(examples=8, length=256):
    """The shape of OPT-1.3B in a Llama layout, 1.3 G weights."""
    config = LlamaConfig(
        vocab_size=50272, hidden_size=2048, intermediate_size=5461, num_hidden_layers=24, num_attention_heads=32
    )
    return LlamaForCausalLM(config), language_loss, torch.randint(50272, (examples, length))


def llama_8b(examples=4, length=512):
    """Llama 3, 8 G weights."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    return LlamaForCausalLM(config), language_loss, torch.randint(128256, (examples, length))


def tiny(examples=2, length=16):
    """To see that everything runs."""
    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config), language_loss, torch.randint(100, (examples, length))


def vit(examples=8):
    """ViT-base, 86 M weights."""
    return ViTForImageClassification(ViTConfig(num_labels=1000)), image_loss, (
        torch.randn(examples, 3, 224, 224), torch.randint(1000, (examples,)),
    )  # fmt: skip


def llama(examples=8, length=128):
    """Twelve layers of Llama's, 134 M weights."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    )
    return LlamaForCausalLM(config), language_loss, torch.randint(32000, (examples, length))


MODELS = {f.__name__: f for f in (gpt2, gpt2_medium, gpt2_large, opt_1b, llama_8b, vit, llama, tiny)}
WIDE = [
    "gpt2:8x128",
    "gpt2:1x64",
    "gpt2_medium:4x64",
    "gpt2_medium:1x64",
    "gpt2_large:2x64",
    "opt_1b:2x64",
    "opt_1b:1x64",
]
MILLIONS = {"gpt2": 124, "gpt2_medium": 355, "gpt2_large": 774, "opt_1b": 1315, "llama_8b": 8030}


def reference_mezo(model: nn.Module, loss: Any, lr: float) -> Callable[[Any], None]:
    """The published loop: noise written into the weights and out again, made anew from a seed four times."""

    def move(scale: float, seed: int) -> None:
        torch.manual_seed(seed)
        for p in model.parameters():
            z = torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)
            p.data = p.data + scale * z

    @torch.no_grad()
    def step(batch: Any) -> None:
        seed = int(torch.randint(1 << 30, ()))
        move(SIGMA, seed)
        up = float(loss(model, batch).mean())
        move(-2 * SIGMA, seed)
        down = float(loss(model, batch).mean())
        move(SIGMA, seed)
        slope = (up - down) / (2 * SIGMA)
        torch.manual_seed(seed)
        for p in model.parameters():
            z = torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)
            p.data = p.data - lr * slope * z

    return step


def torchzero_mezo(target: str) -> Callable[..., Callable[[Any], None]]:
    def build(model: nn.Module, loss: Any, lr: float) -> Callable[[Any], None]:
        import torchzero as tz

        mezo = tz.m.MeZO(h=SIGMA, distribution="normal", target=target)
        optimizer = tz.Optimizer(model.parameters(), mezo, tz.m.LR(lr))

        def step(batch: Any) -> None:
            with torch.no_grad():
                optimizer.step(lambda backward=True: loss(model, batch).mean())

        return step

    return build


def fused(make: Callable[..., Any]) -> Callable[..., Callable[[Any], None]]:
    def build(model: nn.Module, loss: Any, lr: float) -> Callable[[Any], None]:
        learner = dldw.ForwardOnly(model, make(loss), lr)
        return lambda batch: learner.step(batch) and None

    return build


def backprop(optimizer: type[torch.optim.Optimizer], checkpoint: bool) -> Callable[..., Callable[[Any], None]]:
    def build(model: nn.Module, loss: Any, lr: float) -> Callable[[Any], None]:
        learner = dldw.Descent(model, dldw.Backprop(loss, checkpoint=checkpoint), optimizer(model.parameters(), lr=lr))
        return lambda batch: learner.step(batch) and None

    return build


METHODS: dict[str, Callable[..., Callable[[Any], None]]] = {
    "dldw low-rank, rank 1": fused(lambda loss: dldw.LowRankEvolution(loss, sigma=SIGMA, population=2)),
    "dldw MeZO, signs": fused(lambda loss: dldw.MeZO(loss, sigma=SIGMA, distribution="rademacher")),
    "dldw MeZO, Gaussian": fused(lambda loss: dldw.MeZO(loss, sigma=SIGMA)),
    "reference MeZO": reference_mezo,
    "torchzero MeZO": torchzero_mezo("closure"),
    "torchzero MeZO, target=update": torchzero_mezo("update"),
    "backprop + SGD": backprop(torch.optim.SGD, False),
    "backprop + Adam": backprop(torch.optim.Adam, False),
    "checkpointed backprop + SGD": backprop(torch.optim.SGD, True),
}


if importlib.util.find_spec("torchzero") is None:
    METHODS = {name: build for name, build in METHODS.items() if not name.startswith("torchzero")}


class Bench:
    """One model on one device in one precision, with a batch of its own size or the given one."""

    def __init__(self, name: str, dtype: torch.dtype, device: str, *shape: int) -> None:
        torch.manual_seed(0)
        model, self.loss, batch = MODELS[name](*shape)
        self.model = model.to(device, dtype).eval()
        self.batch = tuple(t.to(device) for t in batch) if isinstance(batch, tuple) else batch.to(device)
        if isinstance(self.batch, tuple):
            self.batch = (self.batch[0].to(dtype), self.batch[1])
        self.device = device

    @torch.no_grad()
    def forward(self) -> None:
        float(self.loss(self.model, self.batch).mean())

    def timed(self, action: Callable[[], None]) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def measure(self, build: Callable[..., Callable[[Any], None]], repeats: int) -> dict[str, float]:
        step = partial(build(self.model, self.loss, 0.0), self.batch)
        row = self.beside_forwards(step, repeats)
        peak = peak_bytes(step, self.model)
        one = peak_bytes(self.forward, self.model)
        for p in self.model.parameters():
            p.grad = None
        return {**row, "peak_mib": peak / 2**20, "forward_peak_mib": one / 2**20}

    def beside_forwards(self, step: Callable[[], None], repeats: int) -> dict[str, float]:
        """The step's time over that of the two forwards around it, and its seconds, after one that is not counted."""
        step()
        self.forward()
        ratios, seconds = [], []
        for _ in range(repeats):
            before = self.timed(self.forward)
            seconds.append(self.timed(step))
            ratios.append(seconds[-1] / (before + self.timed(self.forward)))
        return {**spread(ratios), "seconds": statistics.median(seconds)}


def spread(ratios: list[float]) -> dict[str, float]:
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def population(bench: Bench, repeats: int, members: int = 8) -> dict[str, float]:
    """``members`` rank-1 directions in one pass of the whole batch each, over a plain forward of as many examples."""
    source = dldw.LowRankEvolution(bench.loss, sigma=SIGMA, population=members, evaluate=Evaluator("batched", 16 << 30))
    many = (
        tuple(torch.cat([t] * members) for t in bench.batch)
        if isinstance(bench.batch, tuple)
        else torch.cat([bench.batch] * members)
    )

    @torch.no_grad()
    def plain() -> None:
        float(bench.loss(bench.model, many).mean())

    def step() -> None:
        source.estimate(bench.model, bench.batch)

    step()
    plain()
    return spread([bench.timed(step) / bench.timed(plain) for _ in range(repeats)])


def per_example(bench: Bench, repeats: int) -> dict[str, float]:
    """A rank-1 direction for each example, over two plain forwards of the same batch."""
    source = dldw.PerExamplePerturbation(bench.loss, sigma=SIGMA)
    return bench.beside_forwards(lambda: source.estimate(bench.model, bench.batch) and None, repeats)


def additions(bench: Bench, repeats: int) -> dict[str, float]:
    """So many rank-1 directions drawn again and added to the weights, over a forward: what ranks do not share."""
    source = dldw.LowRankEvolution(bench.loss, sigma=SIGMA, population=2)
    learner = dldw.ForwardOnly(bench.model, source, lr=0.0)
    found = {}
    for count in (1, 32, 1024):
        add = partial(learner.repeat, Step(0, 0.0, [1.0] * count, 0.0))
        add()
        ratios = [bench.timed(add) / bench.timed(bench.forward) for _ in range(repeats)]
        found[str(count)] = statistics.median(ratios)
    return found


def wide(sizes: list[str], dtype: torch.dtype, device: str, methods: list[str], repeats: int) -> list[dict[str, Any]]:
    """The ratio over model size and tokens, of models that fit into memory."""
    rows = []
    for size in sizes:
        name, shape = size.split(":")
        examples, length = map(int, shape.split("x"))
        needed = 1.3 * MILLIONS.get(name, 0) * 1e6 * 4  # made in float32
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > free:
            print(
                f"  {name}: left out, {needed / 2**30:.1f} GiB do not fit into the {free / 2**30:.1f} GiB that are free"
            )
            continue
        bench = Bench(name, dtype, device, examples, length)
        millions = sum(p.numel() for p in bench.model.parameters()) / 1e6
        for method in methods:
            row = bench.measure(METHODS[method], repeats)
            rows.append(
                {"model": name, "weights_millions": millions, "tokens": examples * length, "method": method, **row}
            )
            print(f"  {millions:6.0f} M weights x {examples * length:5d} tokens  {method:30s} {row['ratio']:5.2f}"
                  f" [{row['low']:.2f}, {row['high']:.2f}]  {row['seconds']:7.2f} s  peak {row['peak_mib']:6.0f} MiB,"
                  f" a forward's {row['forward_peak_mib']:.0f}")  # fmt: skip
        del bench
    return rows


def drift(dtype: torch.dtype, steps: int = 1000) -> dict[str, float]:
    """RMS change of the weights in units of sigma after ``steps`` steps at learning rate zero."""
    found = {}
    for name in ("dldw low-rank, rank 1", "dldw MeZO, signs", "dldw MeZO, Gaussian", "reference MeZO"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).to(dtype)
        first = [p.detach().double().clone() for p in model.parameters()]
        batch = torch.randn(4, 64, dtype=dtype), torch.randint(10, (4,))
        step = METHODS[name](model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), 0.0)
        for _ in range(steps):
            step(batch)
        change = torch.cat(
            [(p.detach().double() - q).flatten() for p, q in zip(model.parameters(), first, strict=True)]
        )
        found[name] = float(change.square().mean().sqrt()) / SIGMA
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["gpt2", "vit", "llama"], choices=MODELS)
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=METHODS)
    parser.add_argument("--directions", action="store_true")
    parser.add_argument("--wide", nargs="*", metavar="MODEL:EXAMPLESxLENGTH")
    parser.add_argument("--drift", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cuda = {"device": torch.cuda.get_device_name()} if arguments.device == "cuda" else {}
    results: dict[str, Any] = {"machine": machine(arguments.threads, torch=torch.__version__, **cuda)}
    for name in arguments.model:
        for dtype in arguments.dtype:
            bench = Bench(name, getattr(torch, dtype), arguments.device)
            size = sum(p.numel() for p in bench.model.parameters()) / 1e6
            print(f"{name}, {size:.0f} M weights, {dtype}")
            rows = results.setdefault(f"{name} {dtype}", {"weights_millions": size})
            for method in arguments.only or METHODS:
                row = rows[method] = bench.measure(METHODS[method], arguments.repeats)
                print(
                    f"  {method:30s} {row['ratio']:5.2f} x two forwards [{row['low']:.2f}, {row['high']:.2f}]"
                    f"  {row['seconds']:7.2f} s  peak {row['peak_mib']:6.0f} MiB, "
                    f"a forward's {row['forward_peak_mib']:.0f}"
                )
            if arguments.directions:
                row = rows["population of 8 / plain"] = population(bench, arguments.repeats)
                print(f"  {'8 directions in one pass':30s} {row['ratio']:5.2f} x a plain forward of as many examples")
                row = rows["a direction for each example / two forwards"] = per_example(bench, arguments.repeats)
                print(f"  {'a direction for each example':30s} {row['ratio']:5.2f} x two forwards")
                row = rows["directions added to the weights / a forward"] = additions(bench, arguments.repeats)
                print(f"  {'directions added':30s} {row} x a forward")
            save(arguments.out, results)
            del bench
    if arguments.wide is not None:
        methods = arguments.only or ["dldw low-rank, rank 1", "dldw MeZO, signs", "reference MeZO"]
        for dtype in arguments.dtype:
            print(f"a step over two forwards, by model size and tokens, {dtype}")
            results[f"wide {dtype}"] = wide(
                arguments.wide or WIDE, getattr(torch, dtype), arguments.device, methods, arguments.repeats
            )
            save(arguments.out, results)
    if arguments.drift:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            row = results.setdefault("drift", {})[str(dtype)] = drift(dtype)
            print(f"drift in units of sigma, {dtype}: {row}")
        save(arguments.out, results)


if __name__ == "__main__":
    main()
