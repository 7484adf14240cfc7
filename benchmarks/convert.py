"""Which conversion starts nearest to the pretrained function, and what fine-tuning with it costs.

A small GPT-2 is pretrained on the characters of Python's own documentation (``pydoc_data``), then converted in every way, and
fine-tuned on a part of the text it has not seen. Printed for each: how far the logits moved, the loss right after the
conversion, the loss after fine-tuning, the allocator's peak and the time of a step, both over those of plain autograd; the
steps of all ways take turns, and the median of the rounds' ratios counts.

    pip install transformers
    python benchmarks/convert.py [--layers 12] [--width 128] [--pretrain 600] [--finetune 150] \
        [--rounds 7] [--threads 2] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from raw import machine, save
from torch import Tensor, nn

from dldw.compare.meter import peak_bytes
from dldw.nn import convert


def text() -> Tensor:
    from pydoc_data.topics import topics

    return torch.tensor(list("\n".join(topics[k] for k in sorted(topics)).encode()), dtype=torch.int64)


def batches(data: Tensor, seed: int, batch: int, length: int):
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - length, (batch,), generator=generator)
        yield torch.stack([data[s : s + length] for s in starts.tolist()])


def train(model: nn.Module, data: Tensor, steps: int, lr: float, batch: int, length: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _, ids in zip(range(steps), batches(data, 1, batch, length), strict=False):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()


@torch.no_grad()
def loss(model: nn.Module, data: Tensor, length: int) -> float:
    model.eval()
    pairs = zip(range(8), batches(data, 2, 16, length), strict=False)
    return sum(float(model(input_ids=ids, labels=ids, use_cache=False).loss) for _, ids in pairs) / 8


def step(model: nn.Module, ids: Tensor) -> float:
    """The seconds of a forward and a backward pass."""
    start = time.perf_counter()
    model.zero_grad(set_to_none=False)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pretrain", type=int, default=600)
    parser.add_argument("--finetune", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = {"n_layer": arguments.layers, "n_embd": arguments.width, "n_positions": arguments.length, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=None, eos_token_id=None, **shape))
    data = text()
    seen, new = data[: int(0.7 * len(data))], data[int(0.7 * len(data)) :]
    fresh, held = new[: len(new) // 2], new[len(new) // 2 :]
    size = arguments.batch, arguments.length
    train(model, seen, arguments.pretrain, 1e-3, *size)
    sample = next(batches(held, 3, *size))
    ways = [("plain", 0.0), ("checkpoint", 0.0)]
    ways += [(method, gamma) for method in ("bdia", "dr2net") for gamma in (0.5, 0.25, 0.125, 0.0625)]
    rows: list[dict[str, Any]] = []
    models = []
    for method, gamma in ways:
        tuned = copy.deepcopy(model)
        moved = 0.0
        if method == "checkpoint":
            tuned.gradient_checkpointing_enable({"use_reentrant": False})
        elif gamma:
            moved = convert(tuned, {"input_ids": sample}, method=method, gamma=gamma).moved
        rows.append({"method": method, "gamma": gamma, "moved": moved, "loss": loss(tuned, held, arguments.length)})
        tuned.train()
        rows[-1]["peak_bytes"] = peak_bytes(lambda at=tuned: step(at, sample), tuned)
        models.append(tuned)
    rounds = [[step(tuned, sample) for tuned in models] for _ in range(arguments.rounds)]
    for row, tuned, seconds in zip(rows, models, zip(*rounds, strict=True), strict=True):
        row["seconds"] = statistics.median(seconds)
        row["over_plain"] = statistics.median(s / times[0] for s, times in zip(seconds, rounds, strict=True))
        train(tuned, fresh, arguments.finetune, 3e-4, *size)
        row["loss_after_finetuning"] = loss(tuned, held, arguments.length)
        share = row["peak_bytes"] / rows[0]["peak_bytes"]
        print(
            f"{row['method']:10s} gamma {row['gamma']:6.4f}  logits moved {row['moved']:7.2%}  "
            f"loss {row['loss']:.4f} -> {row['loss_after_finetuning']:.4f}  "
            f"peak {row['peak_bytes'] / 2**20:8.1f} MiB ({share:.2f})  step {row['over_plain']:.2f} × plain",
            flush=True,
        )
    save(arguments.out, {"machine": machine(arguments.threads, torch=torch.__version__), "results": rows})


if __name__ == "__main__":
    main()
