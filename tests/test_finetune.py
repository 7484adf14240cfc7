"""``dldw finetune`` on a tiny model that reads bytes: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import dldw as package
from dldw.finetune import LOG, finetune, load_model, read_text
from dldw.runlog import digest, read
from tests.harness import dldw, environment

TEXT = "A method asks for losses and knows no derivative. " * 40
EXAMPLES = Path(__file__).parent.parent / "examples"


def save_model(directory: Path, vocabulary: int = 256, dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=vocabulary, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=None,
                            eos_token_id=None)  # fmt: skip
        GPT2LMHeadModel(config).to(dtype).save_pretrained(directory)
    return directory


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "data.txt").write_text(TEXT)
    return save_model(tmp_path / "base"), tmp_path / "data.txt"


def run(made: tuple[Path, Path], out: Path, **settings: Any) -> str:
    quiet = Console(quiet=True)
    settings = {"steps": 6, "length": 16, "batch": 2, "lr": 1e-3, "samples": 0, "device": "cpu", **settings}
    return finetune(*made, out, console=quiet, **settings)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_the_command_trains_tells_and_can_be_replayed(made: tuple[Path, Path], tmp_path: Path) -> None:
    options = ["--steps", "20", "--length", "16", "--batch", "2", "--lr", "1e-3", "--device", "cpu", "--out", "out"]
    done = dldw("finetune", str(made[0]), str(made[1]), *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = r"step (\d+) of 20: loss \d+\.\d{4}, [\d,]+ tokens/s, [\d.]+ [KMG]iB\n"
    assert re.findall(figures, done.stdout) == [str(2 * n) for n in range(1, 11)]
    assert len(re.findall(r"^Sample: .* goes on '.+'$", done.stdout, re.MULTILINE)) == 3
    assert re.search(r"Held-out loss: \d\.\d{4} before, \d\.\d{4} after 20 steps\n", done.stdout)
    found = re.search(r"^Digest: (\w{32})$", done.stdout, re.MULTILINE)
    again = re.search(r"^The same weights from the log: dldw (.*)$", done.stdout, re.MULTILINE)
    assert found
    assert again
    assert "\x1b" not in done.stdout
    replayed = dldw(*again[1].split(), cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert f"Digest: {found[1]}\n" in replayed.stdout
    trained, base = weights(tmp_path / "out" / "model"), weights(made[0])
    from_log = load_file(tmp_path / "out" / "replayed.safetensors")
    assert all(torch.equal(from_log[name], trained[name]) for name in trained)
    assert not all(torch.equal(base[name], trained[name]) for name in trained)
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "out" / "model").config.vocab_size == 256


def test_a_run_goes_on_where_it_stopped_with_the_same_weights(made: tuple[Path, Path], tmp_path: Path) -> None:
    whole = run(made, tmp_path / "whole")
    assert run(made, tmp_path / "cut", steps=4) != whole
    assert run(made, tmp_path / "cut") == whole
    assert (tmp_path / "cut" / LOG).read_bytes() == (tmp_path / "whole" / LOG).read_bytes()
    assert run(made, tmp_path / "cut") == whole  # and where it is done, nothing more is


def test_the_digest_is_that_of_the_saved_weights(made: tuple[Path, Path], tmp_path: Path) -> None:
    found = run(made, tmp_path / "out", method="mezo[sigma=1e-2]")
    names, saved = read(tmp_path / "out" / LOG)[0]["weights"], weights(tmp_path / "out" / "model")
    assert digest({name: saved[name] for name in names}) == found


def test_bfloat16_weights_stay_bfloat16(made: tuple[Path, Path], tmp_path: Path) -> None:
    model = save_model(tmp_path / "half", dtype=torch.bfloat16)
    run((model, made[1]), tmp_path / "out")
    assert {t.dtype for t in weights(tmp_path / "out" / "model").values()} == {torch.bfloat16}


def test_training_lowers_the_loss(made: tuple[Path, Path], tmp_path: Path) -> None:
    run(made, tmp_path / "out", steps=60, lr=2e-2, method="low-rank-evolution[population=16,sigma=0.01]", batch=4)
    losses = [step.loss for step in read(tmp_path / "out" / LOG)[1]]
    assert sum(losses[-5:]) < sum(losses[:5]) - 2.5


def test_lines_of_json_are_documents(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"body": text}) for text in ("one", "two")) + "\n\n")
    found = read_text(data, save_model(tmp_path / "base"), 256, "body")
    assert found.decode(found.tokens.tolist()) == "one\n\ntwo"


def test_the_tokenizer_of_the_model_is_taken_and_saved_with_it(tmp_path: Path) -> None:
    words = {word: i for i, word in enumerate(["<end>", "a", "b", "c"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    model = save_model(tmp_path / "base", vocabulary=4)
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>").save_pretrained(model)
    (tmp_path / "data.txt").write_text("a b c a " * 50)
    text = read_text(tmp_path / "data.txt", model, 4)
    assert text.tokens[:4].tolist() == [1, 2, 3, 1]
    assert text.decode([1, 2]) == "a b"
    run((model, tmp_path / "data.txt"), tmp_path / "out", samples=1)
    assert (tmp_path / "out" / "model" / "tokenizer.json").exists()


def test_the_example_runs_and_its_replay_is_the_same(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "finetune.py"), "--steps", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("the same weights, bit for bit\n")


def test_the_loop_of_accelerate_learns_and_resumes_bit_for_bit() -> None:
    command = [sys.executable, str(EXAMPLES / "accelerate_loop.py"), "--steps", "60"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"loss ([\d.]+) at first, ([\d.]+) at the end, ([\d.]+) when continued", done.stdout)
    assert found
    begin, ended, again = map(float, found.groups())
    assert ended < begin - 0.1
    assert again == ended


# --- bad input -----------------------------------------------------------------------------------------------------


def cli(made: tuple[Path, Path], *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return dldw("finetune", *arguments, "--device", "cpu", cwd=made[0].parent, before=before)


def test_a_users_mistake_is_one_line_and_leaves_nothing(made: tuple[Path, Path], tmp_path: Path) -> None:
    done = cli(made, "nowhere", "data.txt")
    assert done.returncode == 2
    assert re.fullmatch(r"dldw: nowhere is no directory of a model: there is no config.json in it.*\n", done.stderr)
    assert not (tmp_path / "dldw-finetune").exists()


def test_the_missing_extra_is_named_with_the_command_that_installs_it(made: tuple[Path, Path]) -> None:
    done = cli(made, "base", "data.txt", before="import sys, importlib.util as u\nf = u.find_spec\n"
               "u.find_spec = lambda name, *rest: None if name == 'transformers' else f(name, *rest)")  # fmt: skip
    remedy = 'Install it with: pip install "dldw[compare,transformers]"'
    assert done.stderr == f"dldw: this needs transformers, which is not installed. {remedy}\n"


def broken(directory: Path) -> Path:
    (directory / "model.safetensors").write_bytes(b"nothing")
    return directory


def of_no_kind(directory: Path) -> Path:
    (directory / "config.json").write_text('{"model_type": "clockwork"}')
    return directory


def written(directory: Path, name: str, content: bytes) -> Path:
    (directory / name).write_bytes(content)
    return directory / name


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m, d, out: load_model(broken(m)), r"the weights in .*base cannot be read: .*Copy them again"),
        (lambda m, d, out: load_model(of_no_kind(m)), r"cannot be loaded as a causal language model: .*clockwork"),
        (lambda m, d, out: run((m, d.with_name("none")), out), r"the data .*none cannot be read: No such file"),
        (lambda m, d, out: run((m, m), out), r"the data .*base cannot be read: Is a directory"),
        (lambda m, d, out: run((m, written(m, "x.txt", b"ab\xff")), out), r"x\.txt is no text: byte 2 is not UTF-8"),
        (lambda m, d, out: run((m, written(m, "x.jsonl", b'{"text": "a"}\n{"txt": "b"}\n')), out),
         r"line 2 of .*x\.jsonl is no JSON object with a text under 'text'. Name the right one by --field"),
        (lambda m, d, out: run((m, written(m, "x.jsonl", b"{\n")), out), r"line 1 of .*is no JSON object"),
        (lambda m, d, out: run((m, written(m, "x.txt", b"short text")), out), r"has 10 tokens, too few for a piece of 16"),
        (lambda m, d, out: run((m, d), out, length=33), r"reads 32 tokens at most, and --length is 33. Lower it"),
        (lambda m, d, out: run((m, d), out, method="backprop"), r"backprop does not estimate along directions"),
        (lambda m, d, out: run((m, d), out, method="mezo[lr=1.0]"), r"lr in .* is of an optimizer, .*see --lr"),
        (lambda m, d, out: run((m, d), d), r"data\.txt is a file, and a directory for the log"),
        (lambda m, d, out: run((save_model(m.with_name("b"), 300), d), out), r"no tokenizer in .*b, and with 300 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_the_reason(made, tmp_path, call, text):
    with pytest.raises(package.DldwError, match=text):
        call(*made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


INTERRUPTED = """
import dldw
take = dldw.ForwardOnly.step
def step(self, batch):
    if self.steps == 3:
        raise KeyboardInterrupt
    return take(self, batch)
dldw.ForwardOnly.step = step
"""


def test_an_interrupted_run_says_how_to_go_on(made, tmp_path):
    options = ("--steps", "6", "--length", "16", "--batch", "2", "--lr", "1e-3", "--samples", "0", "--out", "out")
    done = cli(made, "base", "data.txt", *options, before=INTERRUPTED)
    assert done.returncode == 130
    told = r"dldw: stopped. The steps that were made are kept in out; go on with: dldw (finetune base data.txt .*)"
    assert re.fullmatch(told, done.stderr.splitlines()[-1])
    assert len(read(tmp_path / "out" / LOG)[1]) == 3
    assert run(made, tmp_path / "out") == run(made, tmp_path / "whole")
