"""The entry point of the command line: errors a person can act on, also where the extra is not installed."""

from __future__ import annotations

import sys
from typing import NoReturn

from dldw.errors import DldwError

EXTRA = ("typer", "click", "rich", "sklearn", "optuna", "altair", "vl_convert", "jinja2", "scipy")
"""What ``dldw[compare]`` brings, by the name under which Python imports it."""
LANGUAGE = ("transformers", "tokenizers", "accelerate")
"""What ``dldw[transformers]`` brings."""


def main() -> NoReturn:
    """The entry point of the ``dldw`` command."""
    try:
        from dldw.compare.commands import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in (*EXTRA, *LANGUAGE):
            raise
        extras = "compare" if missing in EXTRA else "compare,transformers"
        stop(f'this needs {missing}, which is not installed. Install it with: pip install "dldw[{extras}]"')
    except DldwError as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("stopped.", code=130)
    sys.exit(0)


def stop(text: str, code: int = 2) -> NoReturn:
    """Ends the program with one line on standard error."""
    print(f"dldw: {text}", file=sys.stderr)
    raise SystemExit(code)
