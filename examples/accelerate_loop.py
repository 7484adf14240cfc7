"""A training loop of Hugging Face's accelerate on forward passes: two lines differ, the optimizer and its step.

    pip install 'dldw[transformers]'
    python examples/accelerate_loop.py [--steps 200] [--mixed-precision bf16]
    torchrun --nproc-per-node 2 examples/accelerate_loop.py      # each process has examples of its own

A tiny GPT-2 learns to count. The run is saved half-way, continued from there, and ends with the same loss.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import dldw


def main() -> None:
    """Trains, saves half-way, goes back there, trains again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=arguments.mixed_precision,
        step_scheduler_with_optimizer=False,  # else a schedule moves once for each process at every step
    )
    shape = {"vocab_size": 32, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, **shape)).eval()
    data = [(torch.arange(16) + start) % 32 for start in range(32)]

    evaluate = dldw.Evaluator(ranks=dldw.Ranks("examples") if accelerator.num_processes > 1 else None)
    source = partial(dldw.MeZO, directions=8, sigma=1e-2, evaluate=evaluate)
    forward_only = dldw.optim.ForwardOnly(model.parameters(), lr=2e-2, source=source)  # was: torch.optim.AdamW(...)
    schedule = LambdaLR(forward_only, lambda step: 1 - step / arguments.steps)
    loader = DataLoader(data, batch_size=8)
    model, optimizer, loader, schedule = accelerator.prepare(model, forward_only, loader, schedule)

    def train(first: int, last: int) -> float:
        batches = list(loader)
        for step in range(first, last):
            ids = batches[step % len(batches)]
            optimizer.step(lambda ids=ids: model(ids, labels=ids).loss)  # was: loss, backward, step, zero_grad
            schedule.step()
        return float(forward_only.loss)

    half = arguments.steps // 2
    directory = [tempfile.mkdtemp()]
    broadcast_object_list(directory)
    begin = train(0, 1)
    train(1, half)
    accelerator.save_state(directory[0])
    ended = train(half, arguments.steps)
    accelerator.load_state(directory[0])
    again = train(half, arguments.steps)
    accelerator.print(f"loss {begin:.4f} at first, {ended:.4f} at the end, {again:.4f} when continued from half-way")


if __name__ == "__main__":
    main()
