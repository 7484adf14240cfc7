"""Memory that is freed and taken again at every step."""

from __future__ import annotations

from functools import cache

import numpy as np


@cache
def keep_freed_memory() -> None:
    """Lets the C library keep what a step frees for the next one, up to 64 MiB.

    By default glibc hands large blocks back, and to get them again costs more than what is computed in them: a page fault
    for each 4 KiB. It adapts its threshold to the largest block that was ever freed, so one of 31 MiB is, untouched.
    """
    np.empty(31 << 20, dtype=np.uint8)
