"""Sides that take turns: each a process, and where it must be an environment, of its own, all on the same pinned cores.

A side is started with a command that calls ``serve``; ``measure`` lets every side do a generation in turn.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence


def pin(threads: int) -> None:
    """Before any numerical library is loaded, or its pools are as wide as the machine."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def serve(generations: Iterator[float], block: int = 1, first: int = 0) -> None:
    """Says that it is ready; then one block of generations for each line that comes in, and the seconds of one back.

    Args:
        generations: Each one's seconds.
        block: How many are averaged.
        first: How many are run before and not counted: the sides before have left caches and memory to themselves, where
            a run of one method alone finds them as its last generation left them.
    """
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(first):
            next(generations)
        print(sum(next(generations) for _ in range(block)) / block, flush=True)


def measure(sides: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each round, by side, of processes that take turns, also in starting."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    running = {}
    for side, command in sides.items():
        running[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _answer(side, running[side])
    for _ in range(rounds):
        for side, process in running.items():
            time.sleep(0.01)  # the threads of the side before spin for a while when they have nothing to do
            print(file=process.stdin, flush=True)
            times[side].append(float(_answer(side, process)))
    for process in running.values():
        process.communicate()
    return times


def _answer(side: str, process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{side} has ended: see what it says above.")
    return line


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """Mean and quartiles."""
    low, middle, high = (1e3 * q for q in statistics.quantiles(times, n=4))
    return {"mean_ms": 1e3 * statistics.fmean(times), "low_ms": low, "median_ms": middle, "high_ms": high}
