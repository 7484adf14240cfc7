"""Memory that is freed is there for the next step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
from dldw.memory import keep_freed_memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(b"1") * (8 << 20) for _ in range(12)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keep}:
    keep_freed_memory()
step(), step()
print(step())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another, and nothing is changed")
def test_a_step_finds_the_memory_that_the_last_one_freed() -> None:
    faults = {
        keep: int(
            subprocess.run([sys.executable, "-c", STEPS.format(keep=keep)], capture_output=True, check=True).stdout
        )
        for keep in (True, False)
    }
    assert faults[True] * 4 < faults[False], "96 MiB are 24,576 pages, or 48 huge ones"
