"""The commands of ``dldw``. Torch is imported when a command runs, and not before, so that help comes at once."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from dldw.cli import stop

app = typer.Typer(
    name="dldw",
    help="Train networks with any source of dL/dw, and see what each one costs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _complete_task(incomplete: str) -> list[str]:
    from dldw.tasks import TASKS

    return [name for name in TASKS if name.startswith(incomplete)]


def _complete_method(incomplete: str) -> list[str]:
    from dldw.registry import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


def _complete_budget(incomplete: str) -> list[str]:
    return [name for name in ("quick", "default", "full") if name.startswith(incomplete)]


def _version(asked: bool) -> None:
    if asked:
        from dldw import __version__

        typer.echo(f"dldw {__version__}")
        raise typer.Exit


_TASK = typer.Argument(help="A task (see dldw tasks), or path/to/file.py:Name.", autocompletion=_complete_task)
_METHODS = typer.Argument(
    help="Methods (see dldw methods) as name, name[setting=value,...] or path/to/file.py:Name. All by default.",
    autocompletion=_complete_method,
)
_DATA = typer.Option(help="Directory of the task's data files.", envvar="DLDW_DATA")


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def compare(
    task: Annotated[str, _TASK] = "digits",
    methods: Annotated[list[str] | None, _METHODS] = None,
    seeds: Annotated[int | None, typer.Option(help="Learning curves of each method.  [default: 5]")] = None,
    budget: Annotated[
        str,
        typer.Option(help="quick, default, full, or forward passes for each curve.", autocompletion=_complete_budget),
    ] = "default",
    out: Annotated[
        Path | None, typer.Option(help="Directory of the results.  [default: dldw-results/TASK-BUDGET]")
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes.  [default: one for each core]", min=1)] = None,
    tune: Annotated[int, typer.Option(help="Search settings for every method with so many trials each.")] = 0,
    data: Annotated[Path | None, _DATA] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train with several methods side by side, measure what each costs, and write a report."""
    from rich.console import Console

    from dldw.compare.budget import parse_budget
    from dldw.compare.plan import make_plan
    from dldw.compare.run import available_cores, run
    from dldw.compare.summary import summarise
    from dldw.compare.terminal import TerminalProgress, plain, show
    from dldw.tasks import task_class

    spending = parse_budget(budget)
    _require("jinja2", "altair", "vl_convert", *(["optuna"] if tune else []))
    directory = out or Path("dldw-results") / f"{Path(task.rpartition(':')[0]).stem or task}-{spending.name}"
    kept = data or (directory if task_class(task).keeps else None)
    plan = make_plan(task, methods or [], budget=spending, seeds=seeds, trials=tune, data=kept)
    aside = Console(stderr=True)
    try:
        with TerminalProgress(aside) as progress:
            records = run(plan, directory, jobs=jobs or available_cores(), progress=progress)
    except KeyboardInterrupt:
        again = shlex.join(["dldw", *sys.argv[1:]])
        stop(f"stopped. What was finished is kept in {directory}; go on with: {again}", code=130)
    summary = summarise(records)
    page = _write_report(directory)
    if as_json:
        print(json.dumps({**summary.as_json(), "results": str(directory), "report": str(page)}, allow_nan=False))
    else:
        console = Console()
        show(summary, console)
        if tune:
            plain(console, f"Settings found, with the record of every trial: {directory / 'settings.json'}")
        plain(console, f"Report: {page}")


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Directory of the results.")],
) -> None:
    """Write the report of results that are there already, and show their table."""
    from rich.console import Console

    from dldw.compare.results import read
    from dldw.compare.summary import summarise
    from dldw.compare.terminal import plain, show

    records = read(directory)
    page = _write_report(directory)
    console = Console()
    show(summarise(records), console)
    plain(console, f"Report: {page}")


@app.command()
def train(
    task: Annotated[str, _TASK],
    method: Annotated[str, typer.Argument(help="A method.", autocompletion=_complete_method)],
    out: Annotated[Path, typer.Option(help="Where to save the weights, in safetensors.")],
    seed: Annotated[int, typer.Option(help="Decides initial weights, batches and what the method draws.")] = 0,
    budget: Annotated[str, typer.Option(help="Forward passes, or a named budget.")] = "default",
    data: Annotated[Path | None, _DATA] = None,
) -> None:
    """Train one model with one method and save its weights."""
    from dldw.compare.single import train_and_save

    train_and_save(task, method, out, seed=seed, budget=budget, data=data)


@app.command()
def finetune(
    model: Annotated[Path, typer.Argument(help="Directory of a causal language model of transformers.")],
    data: Annotated[Path, typer.Argument(help="A text file, or JSON lines.")],
    out: Annotated[Path, typer.Option(help="Directory of the log and the trained model.")] = Path("dldw-finetune"),
    method: Annotated[
        str, typer.Option(help="A method that estimates along directions.", autocompletion=_complete_method)
    ] = "low-rank-evolution[population=2,sigma=0.001]",
    lr: Annotated[float, typer.Option(help="Learning rate.", min=0)] = 1e-6,
    steps: Annotated[int, typer.Option(help="Steps in all.", min=0)] = 1000,
    batch: Annotated[int, typer.Option(help="Pieces of text in a step.", min=1)] = 8,
    length: Annotated[int, typer.Option(help="Tokens in a piece.", min=2)] = 128,
    samples: Annotated[int, typer.Option(help="Continuations to show at the end.", min=0)] = 3,
    seed: Annotated[int, typer.Option(help="Decides which pieces, and the noise.", min=0)] = 0,
    field: Annotated[str, typer.Option(help="Where JSON lines have the text.")] = "text",
    device: Annotated[str | None, typer.Option(help="cpu or cuda.  [default: cuda, where there is one]")] = None,
) -> None:
    """Fine-tune a language model with forward passes alone, at the memory of inference."""
    _require("transformers")
    from dldw.finetune import finetune

    try:
        finetune(
            model, data, out, method=method, lr=lr, steps=steps, batch=batch, length=length, samples=samples, seed=seed,
            field=field, device=device,
        )  # fmt: skip
    except KeyboardInterrupt:
        again = shlex.join(["dldw", *sys.argv[1:]])
        stop(f"stopped. The steps that were made are kept in {out}; go on with: {again}", code=130)


@app.command()
def replay(
    base: Annotated[
        Path, typer.Argument(help="The weights that the run began with: a safetensors file, or a model's directory.")
    ],
    log: Annotated[Path, typer.Argument(help="The log that dldw.ForwardOnly wrote.")],
    out: Annotated[Path, typer.Option(help="Where to save the trained weights, in safetensors.")],
) -> None:
    """Make the weights that forward passes alone have trained, from the first ones and the log of the run."""
    from dldw.compare.single import replay_and_save

    replay_and_save(base, log, out)


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(help="path/to/file.py:Model, path/to/file.py:Function, or a file or directory of functions."),
    ],
    directions: Annotated[int, typer.Option(help="Random directions.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Decides directions, weights and examples.")] = 0,
) -> None:
    """Check gradients against difference quotients; exit status 0 for right, 1 for wrong, 3 for cannot tell."""
    from dldw.compare.check import check_target

    raise typer.Exit(check_target(target, directions=directions, seed=seed))


@app.command("methods")
def list_methods(as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False) -> None:
    """List the methods, what each claims, needs and costs."""
    from dldw.registry import methods

    cards = {name: method.card for name, method in methods().items()}
    if as_json:
        shown = {n: {k: str(v) if k == "space" else v for k, v in vars(c).items()} for n, c in cards.items()}
        print(json.dumps(shown))
        return
    for name, card in cards.items():
        settings = ", ".join(methods()[name].settings)
        print(f"{name}\n    {card.summary}\n    {card.claim}; needs {card.needs}; forwards a step: {card.forwards}")
        print(f"    settings: {settings}\n    {card.paper}")


@app.command("tasks")
def list_tasks() -> None:
    """List the tasks."""
    from dldw.tasks import TASKS, task_class

    for name in TASKS:
        found = task_class(name)
        target = f"{found.target:.0%}" if found.metric == "accuracy" else f"{found.target:g}"
        print(f"{name}\n    {found.summary}\n    target: {found.metric} {target}")


def _require(*modules: str) -> None:
    """Says at the start, and not after minutes of work, what the end of it needs."""
    from importlib.util import find_spec

    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"no module named {module}", name=module)


def _write_report(directory: Path) -> Path:
    from dldw.report import write

    return write(directory)
