"""Files that are never half-written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` make a file beside ``path`` and moves it there, so that there is either all of it or what was before.

    What ``write`` raises goes on to the caller, and leaves nothing behind.
    """
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
