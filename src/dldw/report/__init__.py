"""One HTML page from the results of a comparison: the question, answered with figures."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dldw.errors import DldwError

REPORT = "report.html"


def write(directory: Path) -> Path:
    """Writes ``report.html`` beside ``results.jsonl`` and returns its path.

    The page is a function of the results alone, works without a network, and appears whole or not at all.

    Args:
        directory: Where a comparison put its ``results.jsonl``; the run may be unfinished.

    Raises:
        DldwError: The results cannot be read, are of another format, or the page cannot be written.
    """
    from dldw.report.results import read

    results = read(directory)
    try:
        from dldw.report.page import render
    except ModuleNotFoundError as error:
        raise DldwError(
            f"the report needs {error.name}, which is not installed. Install it with: pip install 'dldw[compare]'"
        ) from error
    path = directory / REPORT
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=directory, prefix=".report-", suffix=".html", delete=False
        ) as file:
            file.write(render(results))
        Path(file.name).chmod(0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise DldwError(
            f"cannot write {path}: {error.strerror or error}. The results are untouched; make room or free the "
            f"directory, then run 'dldw report {directory}'."
        ) from error
    finally:
        if "file" in locals():
            Path(file.name).unlink(missing_ok=True)
    return path
