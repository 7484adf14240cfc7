"""Does the work of a plan on several processes and appends what comes of it; whatever is there already is not done again."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, Protocol, cast

import torch

import dldw
from dldw.compare.item import Item
from dldw.compare.notes import notes
from dldw.compare.plan import Plan
from dldw.compare.records import FORMAT, Record
from dldw.compare.results import Results
from dldw.compare.tune import chosen, write_settings
from dldw.errors import DldwError
from dldw.tasks.task import tuned
from dldw.tasks.userfile import where


class Progress(Protocol):
    """Where the work tells how far it is; seconds are estimates."""

    def begin(self, name: str, total: float) -> None:
        """A phase begins that takes about ``total`` seconds of work."""
        ...

    def advance(self, seconds: float, what: str) -> None:
        """A piece of about ``seconds`` is done."""
        ...


def run(plan: Plan, out: Path, *, jobs: int, progress: Progress) -> list[Record]:
    """Does what is missing of ``plan`` in ``out`` and returns all records.

    Args:
        plan: What to do.
        out: Directory of the results.
        jobs: Processes for the learning curves; what each step costs is always measured by one alone.
        progress: Told of every piece.

    Raises:
        DldwError: ``out`` cannot be used (see ``Results``), or a piece of work failed.
    """
    began = time.monotonic()
    with Results(out, run_record(plan)) as results:
        if results.has([("done",)]):
            return results.records
        resumed = len(results.records) > 1
        settings = dict(plan.task.settings)
        searches = plan.tuning()
        if searches:
            _work("tuning", searches, results, jobs, progress)
            settings |= chosen(cast(Any, results.records))
            write_settings(
                out / "settings.json", plan.target, plan.trials, plan.budget.tune_forwards, cast(Any, results.records)
            )
        companion = dict(tuned(plan.task.companion)["settings"]) if plan.task.companion else {}
        results.append(plan.header(settings))
        _work("training", plan.studies(settings, companion), results, jobs, progress)
        _work("measuring", plan.metering(settings), results, 1, progress)
        results.append(notes(plan, results.records, resumed=resumed))
        done = {"kind": "done", "seconds": time.monotonic() - began, "peak_bytes": _peak_bytes()}
        results.append([cast(Record, done)])
        return results.records


def run_record(plan: Plan) -> dict[str, Any]:
    """The first line of the results."""
    return {
        "kind": "run",
        "format": FORMAT,
        "dldw": dldw.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": machine(),
        "config": plan.config(dldw.__version__),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": available_cores(),
        "threads": 1,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _work(name: str, items: Sequence[Item], results: Results, jobs: int, progress: Progress) -> None:
    progress.begin(name, sum(item.weight for item in items))
    missing = []
    for item in items:
        if results.has(item.keys):
            progress.advance(item.weight, "kept from before")
        else:
            missing.append(item)
    if not missing:
        return
    with _pool(min(jobs, len(missing))) as pool:
        queue = iter(missing)
        running: dict[Future[list[Record]], Item] = {}
        try:
            while True:
                for item in queue:
                    with interrupts_held():  # it may start a worker
                        running[pool.submit(_do, item)] = item
                    if len(running) > jobs:  # one waits for each that ends; the rest stay here, to be stopped at once
                        break
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    item = running.pop(future)
                    results.append(future.result())
                    progress.advance(item.weight, item.what)
        except BrokenProcessPool as error:
            raise DldwError(
                "a worker process was killed, most likely for want of memory. All that was finished is kept; give the same "
                "command with --jobs 1 to go on with less memory."
            ) from error


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are gone when the block is left by an exception, whatever they are doing."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler otherwise greets on standard error
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    pool.shutdown()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Inside, Ctrl-C waits; processes that are started never see it, so that none can be hit before it is prepared."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets Ctrl-C through again where it has to be started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker() -> None:
    """One thread for each process; Ctrl-C is the parent's to handle; and nobody outlives a parent that was killed."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (wait_for([sentinel]), os._exit(1)), daemon=True).start()


def _do(item: Item) -> list[Record]:
    try:
        return item.run()
    except DldwError:
        raise
    except Exception as error:
        raise DldwError(f"{item.what} failed: {where(error)} raised {type(error).__name__}: {error}") from error


def _peak_bytes() -> int:
    """Resident memory of the largest process at its peak."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
