"""The command line, in processes of its own, as a person meets it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

import dldw as package
from dldw.compare.results import read
from dldw.compare.run import interrupts_held
from dldw.compare.summary import summarise
from dldw.compare.terminal import TerminalProgress, cells, show
from tests.harness import dldw, environment, lines

QUICK = ("compare", "digits", "spsa", "weight-perturbation", "--budget", "quick", "--seeds", "2")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A whole comparison: its directory, and what it printed."""
    out = tmp_path_factory.mktemp("quick")
    done = dldw(*QUICK, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def test_help_comes_at_once_and_without_torch() -> None:
    code = (
        "import sys; sys.argv = ['dldw', '--help']\nfrom dldw.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    code += "heavy = {'torch', 'numpy', 'sklearn', 'optuna'} & set(sys.modules)\nsys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in ("compare", "report", "train", "methods", "tasks"))


def test_the_package_run_as_a_module_is_the_command() -> None:
    command = [sys.executable, "-m", "dldw", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m dldw [OPTIONS]" in done.stdout
    assert done.stdout.splitlines()[3:] == dldw("--help").stdout.splitlines()[3:]


def test_help_takes_at_most_half_a_second() -> None:
    resource = pytest.importorskip("resource")
    times = []
    for _ in range(3):  # of the processor, and the least of three: other programs may be running
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        dldw("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5


def test_version() -> None:
    assert dldw("--version").stdout == f"dldw {package.__version__}\n"


def test_methods_are_listed_with_their_cards() -> None:
    shown = dldw("methods").stdout
    for name, method in package.methods().items():
        assert f"{name}\n    {method.card.summary}\n" in shown
    assert json.loads(dldw("methods", "--json").stdout)["spsa"]["claim"] == "unbiased"


def test_tasks_are_listed() -> None:
    shown = dldw("tasks").stdout
    assert re.search(r"^digits\n .*MLP 64-32-10.*\n    target: accuracy 90%$", shown, re.MULTILINE)
    assert re.search(r"^quadratic\n.*\n    target: loss 0.05$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("compare", "digit"), r"no task 'digit'. Did you mean 'digits'\? Known: digits, digits-wide, fashion-mnist"),
        (("compare", "digits", "backprob"), r"no method 'backprob'. Did you mean 'backprop'\? Known: backprop"),
        (("compare", "digits", "spsa[sgma=1]"), r"no setting 'sgma' of spsa. Did you mean 'sigma'\? Known: sigma"),
        (("compare", "--budget", "fully"), r"no budget 'fully'. Did you mean 'full'\?"),
        (("compare", "digits", "spsa[sigma=-1]"), r"spsa\[sigma=-1.0\]: sigma .* must be positive and finite, got -1"),
        (("train", "digits", "spa", "--out", "w.safetensors"), r"no method 'spa'. Did you mean 'spsa'\?"),
        (("report", "nowhere"), r"there are no results in nowhere"),
    ],
)
def test_a_users_mistake_ends_with_one_line_and_code_2(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    done = dldw(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"dldw: .*{text}.*\n", done.stderr), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_does_not_exist_has_code_2() -> None:
    done = dldw("compare", "--seed", "3")
    assert done.returncode == 2
    assert "--seeds" in done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich", "sklearn", "optuna", "jinja2", "altair"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path: Path, missing: str) -> None:
    block = f"import sys\nsys.modules[{missing!r}] = None"
    done = dldw("compare", "digits", "--budget", "20", "--tune", "1", cwd=tmp_path, before=block)
    assert done.returncode == 2
    remedy = 'Install it with: pip install "dldw[compare]"'
    assert done.stderr == f"dldw: this needs {missing}, which is not installed. {remedy}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_task_file_that_raises_is_named_with_line_and_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\n\nraise KeyError('weights.pt')\n")
    done = dldw("compare", "mine.py:Mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(r"mine.py, line 3, raised KeyError: 'weights.pt'", done.stderr)


def test_without_a_terminal_there_are_plain_lines(quick: tuple[Path, str, str]) -> None:
    _, out, err = quick
    assert "\x1b" not in out + err
    assert "training: begins\n" in err
    assert "measuring: 100 %\n" in err
    assert not set("│┃━╭") & set(out + err)
    assert max(len(text) for text in out.splitlines() if text.startswith("spsa")) < 140


def test_the_table_shows_what_a_person_needs(quick: tuple[Path, str, str]) -> None:
    directory, out, _ = quick
    assert re.search(r"^digits: target accuracy 90%, untrained \d+\.\d %, \d+ s$", out, re.MULTILINE)
    assert re.search(
        r"^method +claim +accuracy, 95 % interval +forwards to target +x two forwards +memory +failures$",
        out,
        re.MULTILINE,
    )
    bare = r"\d+\.\d"
    number = rf"{bare} %"
    assert re.search(
        rf"^backprop +exact +{number} \({bare}–{bare}\) +\d+ +\d+\.\d\d +[\d.]+ KiB +0 of 2$", out, re.MULTILINE
    )
    assert re.search(r"^weight-perturbation +biased .* ∞ .* 2 of 2$", out, re.MULTILINE)
    assert "Note: The target was missed within 2,000 forward passes by " in out
    assert "weight-perturbation in 2 of 2 runs" in out
    assert Path(out.splitlines()[-1].removeprefix("Report: ")).parent == directory


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_the_table_is_drawn_and_keeps_every_figure(quick: tuple[Path, str, str], width: int) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)
    summary = summarise(read(quick[0]))
    show(summary, screen)
    drawn = screen.file.getvalue()
    table = drawn[: drawn.index("Forwards to target")].splitlines()
    assert max(map(len, table)) <= width
    letters = Counter("".join(table).replace(" ", ""))
    for row in summary.rows:  # cells may be folded over lines, but no character of any is cut off
        letters.subtract("".join(cells(row, accuracy=True)).replace(" ", ""))
    assert min(letters.values()) >= 0
    assert "…" not in drawn


def test_progress_on_a_terminal_shows_the_time_left() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None, legacy_windows=False)
    with TerminalProgress(screen) as progress:
        progress.begin("training", 10.0)
        progress.advance(4.0, "curves: spsa")
    drawn = screen.file.getvalue()
    assert re.search(r"training +━.* 40 % .*left .*\d:\d\d|training +━.* 40 % .*left .*-:--:--", drawn)
    assert "curves: spsa" in drawn


def test_the_report_is_written_again_from_the_results(quick: tuple[Path, str, str], tmp_path: Path) -> None:
    shutil.copy(quick[0] / "results.jsonl", tmp_path)
    done = dldw("report", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1].removeprefix("Report: ")).stat().st_size > 10_000


def test_json_is_one_object_on_standard_output(quick: tuple[Path, str, str]) -> None:
    done = dldw(*QUICK, "--out", str(quick[0]), "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    rows = {row["method"]: row for row in summary["rows"]}
    assert rows.keys() == {"spsa", "weight-perturbation", "backprop", "backprop[checkpoint=true]", "random-search"}
    assert rows["weight-perturbation"]["forwards_to_target"] is None
    assert rows["backprop"]["forwards_to_target"] < 1000
    assert summary["results"] == str(quick[0])


def test_the_first_line_says_where_and_with_what_it_ran(quick: tuple[Path, str, str]) -> None:
    run = lines(quick[0])[0]
    assert run["kind"] == "run"
    assert run["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert run["config"]["settings"]["spsa"].keys() >= {"lr", "sigma"}


def test_another_configuration_in_the_same_directory_is_refused(quick: tuple[Path, str, str]) -> None:
    done = dldw(*QUICK[:-1], "3", "--out", str(quick[0]))
    assert done.returncode == 2
    assert "holds the results of another configuration (seeds: 2 there, 3 now)" in done.stderr


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = dldw("compare", "--budget", "quick", "--out", str(tmp_path / "file"))
    assert done.returncode == 2
    assert re.match(r"dldw: results cannot be written to .*/file: File exists. Give another directory", done.stderr)


def test_workers_that_are_being_started_do_not_see_control_c() -> None:
    command = [
        sys.executable,
        "-c",
        "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))",
    ]
    with interrupts_held():
        inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (inside, after) == ("True\n", "False\n")


def test_control_c_says_how_to_go_on(tmp_path: Path) -> None:
    # a shell has what it starts in the background ignore Ctrl-C, and this test with it
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-c", heard + "from dldw.cli import main\nmain()", *QUICK, "--out", "here"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    file = tmp_path / "here" / "results.jsonl"
    while not (file.exists() and file.read_bytes().count(b"\n") > 12):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to every process of the group
    start = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith(
        "dldw: stopped. What was finished is kept in here; go on with: dldw compare digits spsa"
    )
    assert err.splitlines()[-1].endswith("--budget quick --seeds 2 --out here")


def test_training_saves_weights_that_do_what_was_reported(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from dldw.tasks import load_task

    done = dldw("train", "digits", "backprop", "--out", "w.safetensors", "--budget", "300", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    task = load_task("digits")
    model = task.model(1)
    model.load_state_dict(load_file(tmp_path / "w.safetensors"))
    reported = float(re.findall(r"accuracy ([\d.]+)", done.stdout)[-1])
    assert task.evaluate(model)["accuracy"] == pytest.approx(reported, abs=1e-4)
    assert not torch.equal(model[0].weight, task.model(0)[0].weight)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_training_that_fails_saves_nothing(tmp_path: Path) -> None:
    done = dldw("train", "quadratic", "backprop[lr=1e6]", "--out", "w.safetensors", "--budget", "300", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r"training with backprop\[lr=1000000.0\] failed, so nothing was saved: the loss is", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_log_makes_the_trained_weights_from_the_first_ones(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from dldw import ForwardOnly, MeZO
    from dldw.runlog import digest

    model = torch.nn.Linear(3, 2)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    learner = ForwardOnly(model, MeZO(lambda m, x: m(x).square().sum(1)), 0.01, log=tmp_path / "run.jsonl")
    for _ in range(3):
        learner.step(torch.ones(4, 3))
    done = dldw("replay", "base.safetensors", "run.jsonl", "--out", "w.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    replayed = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(replayed[name], p) for name, p in model.named_parameters())
    assert re.search(r"Steps: 3\nDigest: (\w+)\n", done.stdout).group(1) == digest(dict(model.named_parameters()))
    wrong = dldw("replay", "w.safetensors", "run.jsonl", "--out", "x.safetensors", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "belongs to other weights" in wrong.stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_weights_go_to_a_directory_that_exists(tmp_path: Path) -> None:
    done = dldw("train", "digits", "backprop", "--out", str(tmp_path / "no" / "w.safetensors"), "--budget", "3")
    assert done.returncode == 2
    assert "must be a file in a directory that exists" in done.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("dldw compare dig", {"digits", "digits-wide", "digits-64-64"}),
        ("dldw compare digits sps", {"spsa"}),
        ("dldw train digits weig", {"weight-perturbation"}),
    ],
)
def test_the_shell_completes_names_of_tasks_and_methods(words: str, wanted: set[str]) -> None:
    more = {"_DLDW_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = dldw(before="import sys; sys.argv[0] = 'dldw'", **more)
    assert set(done.stdout.split()) == wanted
