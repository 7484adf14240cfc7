"""A Reformer reads CPython's own documentation, thousands of bytes at a time, and then writes some of its own.

    pip install 'dldw[compare]'
    python examples/reformer_text.py [--length 8192] [--steps 300] [--sample 400] [--seed 0] [--out reformer.safetensors]

The text is the language reference that ``help()`` prints, which every Python brings along. One step reads one window of
``--length`` bytes. What the activations take does not grow with the number of layers: they are reversible. Sampling keeps the
hashes of what was written, so a byte costs the same however long the text before it.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_model

import dldw
import dldw.nn
from dldw.tasks.text import documentation


def build(length: int, seed: int) -> dldw.nn.Reformer:
    """Four layers, half of them local, and a grid of positions that holds ``length`` bytes."""
    side = math.isqrt(length - 1) + 1
    config = dldw.nn.ReformerConfig(256, 128, ("local", "lsh") * 2, hidden=512, positions=(side, side))
    torch.manual_seed(seed)
    return dldw.nn.Reformer(config)


def train(model: dldw.nn.Reformer, text: torch.Tensor, length: int, steps: int, seed: int) -> float:
    """Trains on random windows of the text; returns the loss of the last ones, smoothed, in bits for a byte."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    learner = dldw.Descent(model, dldw.Backprop(lambda model, batch: model.loss(batch)), optimizer)
    generator = torch.Generator().manual_seed(seed)
    bits = 8.0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=steps)
        for step in range(steps):
            start = int(torch.randint(len(text) - length + 1, (1,), generator=generator))
            loss = float(learner.step(text[start : start + length].long().unsqueeze(0))) / math.log(2)
            schedule.step()
            bits += (loss - bits) * max(0.05, 1 / (step + 1))
            progress.update(bar, advance=1, description=f"{bits:.2f} bits a byte")
    return bits


def write(model: dldw.nn.Reformer, start: str, count: int, seed: int) -> None:
    """Prints ``start`` and what the model makes of it, byte by byte as they come."""
    tokens = torch.tensor([list(start.encode())])
    sys.stdout.write(start)
    for token in model.stream(tokens, count, temperature=0.8, generator=torch.Generator().manual_seed(seed)):
        sys.stdout.write(bytes(token.tolist()).decode("ascii", "replace"))
        sys.stdout.flush()
    sys.stdout.write("\n")


def main() -> None:
    """Trains, says how well, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sample", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = documentation()
    if not 64 <= arguments.length <= len(text):
        parser.error(f"--length must be between 64 and the {len(text)} bytes of the text, got {arguments.length}")
    model = build(arguments.length, arguments.seed)
    bits = train(model, text, arguments.length, arguments.steps, arguments.seed)
    print(f"{bits:.2f} bits a byte after {arguments.steps} windows of {arguments.length} bytes; a sample:\n")
    write(model, "The import statement", min(arguments.sample, arguments.length - 20), arguments.seed)
    if arguments.out:
        save_model(model, str(arguments.out))


if __name__ == "__main__":
    main()
