"""Fine-tunes a language model with forward passes alone, and makes the same weights again from the log of the run.

    pip install 'dldw[compare,transformers]'
    python examples/finetune.py [--model DIRECTORY --data FILE] [--steps 300] [--out DIRECTORY]

Without --model a tiny GPT-2 that reads bytes is made here, of random weights, and without --data it is tuned on Python's own
documentation. ``dldw finetune MODEL DATA`` does the same from the shell.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import dldw
from dldw.finetune import LOG, METHOD, finetune
from dldw.runlog import digest, read


def tiny_model(directory: Path) -> Path:
    """A GPT-2 of random weights whose tokens are bytes."""
    torch.manual_seed(0)
    shape = {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4}
    GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None, **shape)).save_pretrained(directory)
    return directory


def documentation(file: Path) -> Path:
    """The text of Python's help."""
    file.write_text("\n".join(topics[key] for key in sorted(topics)), encoding="utf-8")
    return file


def main() -> None:
    """Makes what is missing, fine-tunes, replays, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory of a causal language model")
    parser.add_argument("--data", type=Path, help="a text or JSONL file")
    parser.add_argument("--out", type=Path, default=Path("dldw-finetune"))
    parser.add_argument("--method", help="a method that estimates along directions")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = arguments.model or tiny_model(arguments.out / "base")
    data = arguments.data or documentation(arguments.out / "documentation.txt")
    trained = finetune(
        model,
        data,
        arguments.out,
        method=arguments.method or (METHOD if arguments.model else "low-rank-evolution[population=16,sigma=0.01]"),
        lr=arguments.lr or (1e-6 if arguments.model else 1e-2),
        steps=arguments.steps,
        length=64,
    )
    log = arguments.out / LOG
    replayed = dldw.replay(model / "model.safetensors", log)
    same = digest({name: replayed[name] for name in read(log)[0]["weights"]}) == trained
    print(f"replayed from {log.stat().st_size:,} bytes: {'the same weights, bit for bit' if same else 'OTHER WEIGHTS'}")


if __name__ == "__main__":
    main()
