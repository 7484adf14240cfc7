"""Fine-tunes a pretrained language model with a reversible backward pass, and prints the memory that it saves.

    pip install 'dldw[compare]' transformers
    python examples/finetune_reversible.py [--model gpt2] [--steps 100] [--length 256] [--batch 8]

Without --model a small GPT-2 is pretrained here first, for a minute or two, on the characters of one half of Python's own
documentation; the other half is what it is fine-tuned on. With --model, any causal language model of transformers is taken,
by its name or its directory.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from rich.progress import track
from torch import Tensor, nn

import dldw
from dldw.compare.meter import peak_bytes


def load(name: str | None, length: int, layers: int) -> tuple[nn.Module, Tensor]:
    """The model, and the text as its tokens."""
    text = "\n".join(topics[key] for key in sorted(topics))
    if name is None:
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = {"n_layer": layers, "n_embd": 128, "n_head": 4, "n_positions": length, "vocab_size": 256}
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, **shape))
        return model, torch.tensor(list(text.encode()))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(name)(text, return_tensors="pt")["input_ids"][0]
    return AutoModelForCausalLM.from_pretrained(name), tokens


def batches(tokens: Tensor, count: int, length: int, seed: int) -> Iterator[Tensor]:
    """Random pieces of the text [count, length], without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(tokens) - length, (count,), generator=generator)
        yield torch.stack([tokens[s : s + length] for s in starts.tolist()])


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    """The mean loss of predicting each token from those before it."""
    found: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return found


def train(model: nn.Module, data: Iterator[Tensor], steps: int, what: str) -> None:
    """So many steps of back-propagation with AdamW."""
    learner = dldw.Descent(model, dldw.Backprop(loss), torch.optim.AdamW(model.parameters(), lr=5e-4))
    model.train()
    for _ in track(range(steps), what):
        learner.step(next(data))


@torch.no_grad()
def held_out(model: nn.Module, ids: Tensor) -> float:
    """The loss on a batch that no training saw."""
    model.eval()
    return float(loss(model, ids))


def peak(model: nn.Module, ids: Tensor) -> int:
    """The allocator's peak while one gradient is made, above the weights and their gradients."""

    def gradient() -> None:
        model.zero_grad(set_to_none=False)
        loss(model, ids).backward()

    model.train()
    gradient()
    return peak_bytes(gradient, model)


def main() -> None:
    """Pretrains or loads, converts, fine-tunes, says what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or directory of a causal language model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pretrain", type=int, default=300, help="steps, where there is no --model")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12, help="of the small model")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, tokens = load(arguments.model, arguments.length, arguments.layers)
    size = arguments.batch, arguments.length
    half, held = len(tokens) // 2, next(batches(tokens[-len(tokens) // 10 :], *size, seed=2))
    if arguments.model is None:
        train(model, batches(tokens[:half], *size, seed=0), arguments.pretrain, "pretraining")
    plain = copy.deepcopy(model)
    report = dldw.nn.convert(model, {"input_ids": held})
    print(report)
    before, lean = peak(plain, held), peak(model, held)
    print(f"one gradient peaks at {lean / 2**20:.0f} MiB; with plain autograd at {before / 2**20:.0f} MiB", end="")
    print(f": {1 - lean / before:.0%} saved")
    start = held_out(model, held)
    train(model, batches(tokens[half : -len(tokens) // 10], *size, seed=1), arguments.steps, "fine-tuning")
    print(f"loss on held-out text: {held_out(plain, held):.3f} before the conversion, {start:.3f} after it, ", end="")
    print(f"{held_out(model, held):.3f} after fine-tuning")


if __name__ == "__main__":
    main()
