"""``dldw finetune``: a causal language model from a directory, a text, and forward passes alone."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from dldw.compare.spec import parse
from dldw.compare.terminal import plain, size
from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.evaluate import first_line
from dldw.learners.forward_only import ForwardOnly
from dldw.runlog import LOG, digest, read

METHOD = "low-rank-evolution[population=2,sigma=0.001]"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class Text:
    """A text as tokens, and the way back.

    Attributes:
        tokens: int64 [n].
        decode: From token numbers to what a person reads.
        save: Writes the tokenizer to a directory.
    """

    tokens: Tensor
    decode: Callable[[list[int]], str]
    save: Callable[[Path], Any]


def finetune(
    model: Path,
    data: Path,
    out: Path,
    *,
    method: str = METHOD,
    lr: float = 1e-6,
    steps: int = 1000,
    batch: int = 8,
    length: int = 128,
    samples: int = 3,
    seed: int = 0,
    field: str = "text",
    device: str | None = None,
    console: Console | None = None,
) -> str:
    """Fine-tunes, tells how it goes, and saves the model; the same call goes on where one that was killed had stopped.

    Args:
        model: A directory that ``save_pretrained`` wrote; without a tokenizer in it, and with 256 tokens, bytes are tokens.
        data: A text, or JSON lines with the text in ``field``. The last tenth is held out.
        out: A directory for the log and the trained model.
        method: A method that estimates along directions, as the command line has it.
        lr: Learning rate.
        steps: How many.
        batch: Pieces of text in a step.
        length: Tokens in a piece.
        samples: Continuations to show at the end.
        seed: Decides which pieces, and the noise.
        field: Of JSON lines.
        device: The GPU by default, where there is one.
        console: Where to tell.

    Returns:
        The fingerprint of the trained weights.

    Raises:
        DldwError: Model or data cannot be used, or the method does not exist or estimates by other means.
    """
    console = console or Console()
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if out.exists() and not out.is_dir():
        raise DldwError(
            f"{out} is a file, and a directory for the log and the trained model is needed. Give another --out."
        )
    trained = load_model(model).to(place).eval()
    limit = getattr(trained.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise DldwError(f"the model in {model} reads {limit} tokens at most, and --length is {length}. Lower it.")
    text = read_text(data, model, trained.config.vocab_size, field)
    train, held = _split(text.tokens, batch, length, data)
    source = _source(method, torch.Generator(place).manual_seed(seed))
    out.mkdir(parents=True, exist_ok=True)
    before = _held_out(trained, held, place)
    learner = ForwardOnly(trained, source, lr, rounding="stochastic", log=out / LOG)
    if learner.steps:
        plain(console, f"{learner.steps:,} steps are in {out / LOG} already, and were made again from it.")
    _train(learner, train, steps, (batch, length, seed), place, console)
    trained.save_pretrained(out / "model")
    text.save(out / "model")
    names, known = read(out / LOG)[0]["weights"], dict(trained.named_parameters())
    found = digest({name: known[name] for name in names})
    prompts = held.flatten()
    for number in range(samples):
        start = number * max(0, len(prompts) - _PROMPT) // samples
        _show(trained, prompts[start : start + _PROMPT], text, place, console)
    plain(
        console,
        f"Held-out loss: {before:.4f} before, {_held_out(trained, held, place):.4f} after {learner.steps:,} steps",
    )
    plain(console, f"Model: {out / 'model'}")
    plain(console, f"Log: {out / LOG}, {size((out / LOG).stat().st_size)}")
    plain(console, f"Digest: {found}")
    again = ["dldw", "replay", str(model), str(out / LOG), "--out", str(out / "replayed.safetensors")]
    plain(console, f"The same weights from the log: {shlex.join(again)}")
    return found


def load_model(directory: Path) -> Any:
    """The causal language model in a directory; nothing is downloaded.

    Raises:
        DldwError: There is none.
    """
    from transformers import AutoModelForCausalLM

    if not (directory / "config.json").is_file():
        raise DldwError(
            f"{directory} is no directory of a model: there is no config.json in it. Give one that save_pretrained wrote, or "
            "that was downloaded with all its files."
        )
    try:
        return AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DldwError(
            f"the model in {directory} cannot be loaded as a causal language model: {first_line(error)} Give a directory "
            "that AutoModelForCausalLM.from_pretrained can read."
        ) from error
    except Exception as error:  # safetensors raises an exception of its own for a file that is none
        raise DldwError(f"the weights in {directory} cannot be read: {first_line(error)} Copy them again.") from error


def read_text(data: Path, model: Path, vocabulary: int, field: str = "text") -> Text:
    """The text of a file in the tokens of a model.

    Raises:
        DldwError: The file is none of text or JSON lines; the model has no tokenizer.
    """
    documents = _documents(data, field)
    if not any((model / name).is_file() for name in _TOKENIZERS):
        if vocabulary != 256:
            raise DldwError(
                f"there is no tokenizer in {model}, and with {vocabulary} tokens the model does not read bytes. Save the "
                "tokenizer there (tokenizer.save_pretrained)."
            )
        numbers = list("\n\n".join(documents).encode())
        return Text(torch.tensor(numbers), lambda ids: bytes(ids).decode(errors="replace"), lambda out: None)
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    numbers = tokenizer((tokenizer.eos_token or "\n\n").join(documents), verbose=False)["input_ids"]
    return Text(torch.tensor(numbers), tokenizer.decode, tokenizer.save_pretrained)


def _documents(data: Path, field: str) -> list[str]:
    try:
        text = data.read_text(encoding="utf-8")
    except OSError as error:
        raise DldwError(
            f"the data {data} cannot be read: {error.strerror or error}. Give a text or JSONL file."
        ) from error
    except UnicodeDecodeError as error:
        raise DldwError(
            f"the data {data} is no text: byte {error.start} is not UTF-8. Give a text or JSONL file in UTF-8."
        ) from error
    if data.suffix not in (".jsonl", ".ndjson"):
        return [text]
    documents: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found = json.loads(line)[field]
            except (ValueError, KeyError, TypeError):
                found = None
            if not isinstance(found, str):
                raise DldwError(
                    f"line {number} of {data} is no JSON object with a text under {field!r}. Name the right one by --field."
                )
            documents.append(found)
    return documents


def _split(tokens: Tensor, batch: int, length: int, data: Path) -> tuple[Tensor, Tensor]:
    """Tokens to train on [n], and whole pieces that are held out [k, length], as many as a batch has, if there are."""
    held = max(length, len(tokens) // 10)
    if len(tokens) - held < length:
        raise DldwError(
            f"{data} has {len(tokens):,} tokens, too few for a piece of {length} to train on and one to hold out. Give more "
            "text or a lower --length."
        )
    rest = tokens[-held:]
    pieces = rest[: held // length * length].view(-1, length)
    return tokens[:-held], pieces[:batch]


def _source(text: str, generator: torch.Generator) -> Directional:
    spec = parse(text)
    factory: Any = spec.method.factory
    if not issubclass(factory, Directional):
        raise DldwError(
            f"{spec.target} does not estimate along directions, so a log could not make its steps again. Give mezo or "
            "low-rank-evolution."
        )
    foreign = [name for name, _ in spec.given if name not in inspect.signature(factory).parameters]
    if foreign:
        raise DldwError(f"{foreign[0]} in {text} is of an optimizer, and there is none here. Leave it out; see --lr.")
    source: Directional = factory(_loss, generator=generator, **dict(spec.given))
    return source


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def _train(
    learner: ForwardOnly,
    tokens: Tensor,
    steps: int,
    shape: tuple[int, int, int],
    device: torch.device,
    console: Console,
) -> None:
    batch, length, seed = shape
    columns = (
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
    )
    bar = Progress(
        TextColumn("fine-tuning"), *columns, TimeRemainingColumn(), TextColumn("{task.fields[what]}"), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
    tenth, first, start = max(1, steps // 10), learner.steps, time.perf_counter()
    with bar:
        task = bar.add_task("", total=steps, completed=first, what="")
        while learner.steps < steps:
            starts = np.random.default_rng((seed, learner.steps)).integers(0, len(tokens) - length + 1, batch)
            ids = torch.stack([tokens[s : s + length] for s in starts.tolist()]).to(device)
            loss = float(learner.step(ids))
            speed = (learner.steps - first) * ids.numel() / (time.perf_counter() - start)
            what = f"loss {loss:.4f}, {speed:,.0f} tokens/s, {size(_peak(device))}"
            bar.update(task, advance=1, what=what)
            if not console.is_terminal and learner.steps % tenth == 0:
                plain(console, f"step {learner.steps:,} of {steps:,}: {what}")


def _peak(device: torch.device) -> int:
    """The most memory that was held: on the GPU by the allocator, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@torch.no_grad()
def _held_out(model: nn.Module, pieces: Tensor, device: torch.device) -> float:
    return float(np.mean([float(_loss(model, piece.unsqueeze(0).to(device))) for piece in pieces]))


_PROMPT, _MORE = 16, 32
"""Tokens that a sample begins with, and that the model adds."""


def _show(model: Any, prompt: Tensor, text: Text, device: torch.device, console: Console) -> None:
    ids = prompt.unsqueeze(0).to(device)
    pad = model.generation_config.pad_token_id or model.generation_config.eos_token_id or 0
    limit = getattr(model.config, "max_position_embeddings", None) or len(prompt) + _MORE
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=pad if isinstance(pad, int) else pad[0],
        max_length=None, max_new_tokens=max(1, min(_MORE, limit - len(prompt))),
    )[0]  # fmt: skip
    said = [text.decode(part.tolist()) for part in (found[: len(prompt)], found[len(prompt) :])]
    plain(console, f"Sample: {said[0]!r} goes on {said[1]!r}")
