"""What tests share: a comparison of a few seconds, commands in processes of their own, a look at what is allocated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dldw.compare.budget import Budget

TINY = Budget(
    "tiny", forwards=120, seeds=2, per_decade=5, widths=(0.25, 1.0), width_forwards=60, width_seeds=1,
    factors=(0.1, 1.0), factor_forwards=60, factor_seeds=1, draws=3, estimate_seeds=1, displacements=3,
    nudges=(1e-3, 1e-1), nudged_weights=5, grid=3, path_forwards=12, cost_seconds=0.01, tune_forwards=60,
)  # fmt: skip

METHODS = ("weight-perturbation", "spsa")

OF_ANOTHER_KIND = {
    "reinforce",  # plays episodes
    "contrastive-divergence",  # trains a Boltzmann machine
    "perceptron",  # trains one linear layer
}
"""What a comparison on a network of several layers leaves out."""

RUN_TINY = """
import sys
from pathlib import Path
from dldw.compare.plan import make_plan
from dldw.compare.run import run
from tests.harness import METHODS, TINY, Silent
if __name__ == "__main__":
    plan = make_plan("quadratic", METHODS, budget=TINY)
    run(plan, Path(sys.argv[1]), jobs=int(sys.argv[2]), progress=Silent())
"""


class Silent:
    """Progress nobody sees."""

    def begin(self, name: str, total: float) -> None: ...

    def advance(self, seconds: float, what: str) -> None: ...


def environment(**more: str) -> dict[str, str]:
    root = Path(__file__).resolve().parent.parent
    paths = [str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "NO_COLOR": "1", "COLUMNS": "200", **more}


def dldw(*arguments: str, cwd: Path | None = None, before: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Runs ``dldw`` with ``arguments`` in a process of its own; ``before`` is Python to run first."""
    code = f"{before}\nfrom dldw.cli import main\nmain()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment(**more), timeout=300, check=False
    )


class Made(TorchDispatchMode):
    """Counts the numbers in each tensor that is made inside, views and in-place results left out."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _is_plain(t)}
        made = [t for t in tree_leaves(out) if _is_plain(t)]
        self.sizes.extend(t.numel() for t in made if t.untyped_storage().data_ptr() not in held)
        return out


def _is_plain(t: Any) -> bool:
    return type(t) in (torch.Tensor, torch.nn.Parameter)


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (directory / "results.jsonl").read_text().splitlines()]


def curves(
    records: Iterable[dict[str, Any]],
    kinds: Sequence[str] = ("evaluation", "end", "estimate", "bias", "landscape", "path"),
) -> set[str]:
    """Everything that has to be equal between two runs: all but what a clock measured."""
    clocks = ("seconds", "seconds_to_target")
    return {
        json.dumps({k: v for k, v in r.items() if k not in clocks}, sort_keys=True)
        for r in records
        if r["kind"] in kinds
    }
