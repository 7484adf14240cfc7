"""Memory that is freed and taken again at every step."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


@cache
def keep_freed_memory() -> None:
    """Lets the C library keep what a step frees for the next one, up to 256 MiB.

    By default glibc hands large blocks back, and to get them again costs more than what is computed in them: a page fault
    for each 4 KiB. By itself it adapts to blocks of 32 MiB and keeps twice that, less than a population has. Elsewhere than
    with glibc nothing changes.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 256 << 20)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""The numbers that malloc.h gives these settings."""
