"""Tables of the documentation, written from the results of the benchmarks: between two comments that name them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CORPUS_TOOLS = {
    "dldw.check": "**`dldw.check`**",
    "gradcheck, slow": "`torch.autograd.gradcheck`, slow mode",
    "gradcheck, fast": "`torch.autograd.gradcheck`, fast mode",
    "scipy check_grad": "`scipy.optimize.check_grad`",
}


def put(page: Path, name: str, lines: Sequence[str]) -> None:
    """Writes ``lines`` between the comments ``<!-- name -->`` and ``<!-- end of name -->`` of a page."""
    text = page.read_text(encoding="utf-8")
    page.write_text(placed(text, name, lines), encoding="utf-8")


def placed(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with ``lines`` between its two comments."""
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise SystemExit(f"the page has no {first.strip()} ... {last}: put both where the table belongs.")
    return before + first + "".join(line + "\n" for line in lines) + last + after


def corpus(results: Mapping[str, Any]) -> list[str]:
    """What each tool found in the corpus of gradients, with the seconds it took where they were measured."""
    timed = all("seconds" in row for row in results.values())
    head = ["tool", "wrong ones found", "located to the tensor", "false alarms", *["seconds"] * timed]
    lines = [_line(head), "|---" * len(head) + "|"]
    for tool, row in results.items():
        cells = [f"{row['found']} of {row['wrong']}", str(row["located"] or "–"), str(len(row["false alarms"]))]
        cells[2] += f" of {row['right']}"
        if timed:
            cells.append(f"{row['seconds']:.1f}")
        if tool == "dldw.check":
            cells = [f"**{cell}**" for cell in cells]
        lines.append(_line([_CORPUS_TOOLS[tool], *cells]))
    return lines


def sigma(results: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> list[str]:
    """The recommended sigma of each model and dtype, and what it took off the loss beside the usual one."""
    lines = [
        "**Recommended, and what it buys.** SPSA with two directions and "
        f"{results[0]['forwards']:,} forwards, each sigma with the best of six learning rates; off the loss: the median",
        f"over seeds, and their range (`python -m benchmarks.sigma_table`, torch {machine['torch']}).",
        "",
        _line(
            ["model", "dtype", "weights", "sigma", "error of the slope", "at 1e-3", "off the loss at 1e-3", "at sigma"]
        ),
        "|---" * 8 + "|",
    ]
    for r in results:
        bought = [f"{r[k]['decrease']:.3f} ({r[k]['least']:.3f} to {r[k]['most']:.3f})" for k in ("usual", "chosen")]
        errors = [f"{r[k]:.0e}" for k in ("error", "error_at_usual")]
        lines.append(_line([r["model"], r["dtype"], f"{r['weights']:,}", f"{r['recommended']:.1e}", *errors, *bought]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
