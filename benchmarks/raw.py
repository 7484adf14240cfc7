"""Raw results: figures beside the machine that gave them, in a file that is written whole or not at all."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any


def machine(threads: int, **more: object) -> dict[str, object]:
    """What figures are to be read with: the processor by its maker's name, threads, and versions or whatever else counts."""
    return {"processor": processor(), "threads": threads, **more}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def save(path: Path | None, results: dict[str, Any]) -> None:
    """Writes them as JSON, if a path is given."""
    if path:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(results, indent=1) + "\n")
        part.replace(path)
