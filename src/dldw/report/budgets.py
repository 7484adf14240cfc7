"""What every method got out of the same memory, and out of the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median

from dldw.compare.records import Evaluation
from dldw.report.intervals import Interval, bootstrap
from dldw.report.results import Results, cost_of, fit_of


@dataclass(frozen=True)
class Entry:
    """One method under a budget.

    Attributes:
        method: The label.
        rows: Examples in its batch; 0 where not even one fits.
        peak: Bytes of a step above the loaded model, of one example where none fits; None where it was not measured.
        metric: The task's metric over seeds; None where no run has one.
        steps: Made, mean over seeds.
        lost: Runs that diverged or failed.
    """

    method: str
    rows: int
    peak: int | None
    metric: Interval | None
    steps: float
    lost: int


@dataclass(frozen=True)
class Equal:
    """All methods under one budget, the best first, those that did not fit last.

    Attributes:
        name: ``memory`` or ``time``.
        seconds: That each run had in its steps: what the quickest method took for the work of a run.
        entries: One a method.
        before: The metric of the model that all begin with.
    """

    name: str
    seconds: float
    entries: list[Entry]
    before: float

    def best(self, results: Results, blind: bool) -> Entry | None:
        """The first of the methods that see only losses, or of all others; baselines left out."""
        others = {m["method"] for m in results.methods if m["needs"] != "loss values"}
        among = set(results.forwards_only) if blind else others
        return next((e for e in self.entries if e.metric is not None and e.method in among), None)


def equal_memory(results: Results) -> Equal | None:
    """Every method with the largest batch within the bound; None where no bound was asked for."""
    batches = {f["method"]: (f["rows"], f["peak_bytes"]) for m in results.labels if (f := fit_of(results, m))}
    return _equal(results, "memory", "memory", batches) if batches else None


def equal_time(results: Results) -> Equal | None:
    """Every method with the batch and the settings tuned for it; None where no bound of memory was asked for."""
    task = results.task
    if task is None or not results.fits:
        return None
    tuned = {m["method"]: m["settings"].get("rows", task["batch_size"]) for m in results.methods}
    peaks = {label: cost["peak_bytes"] if (cost := cost_of(results, label)) else None for label in tuned}
    return _equal(results, "time", "curves", {label: (rows, peaks[label]) for label, rows in tuned.items()})


def bound_of(results: Results) -> int:
    """Bytes of the bound."""
    return max((f["bound"] for f in results.fits), default=0)


def _equal(results: Results, name: str, study: str, batches: Mapping[str, tuple[int, int | None]]) -> Equal | None:
    task = results.task
    ends = {
        (e["method"], e["seed"]): e for e in results.ends if task and (e["task"], e["study"]) == (task["task"], study)
    }
    points: dict[tuple[str, int], list[Evaluation]] = defaultdict(list)
    for e in results.evaluations:
        if task and (e["task"], e["study"]) == (task["task"], study) and (e["method"], e["seed"]) in ends:
            points[e["method"], e["seed"]].append(e)
    whole: dict[str, list[float]] = defaultdict(list)
    for key, of_run in points.items():
        if ends[key]["reason"] == "budget" and of_run[-1]["step"]:
            whole[key[0]].append(of_run[-1]["seconds"])
    if task is None or not whole:
        return None
    seconds = min(median(values) for values in whole.values())
    entries = []
    for method, (rows, peak) in batches.items():
        runs = [of_run for (label, _), of_run in points.items() if label == method]
        last = [[e for e in run if e["seconds"] <= seconds][-1] for run in runs]
        known = [v for e in last if (v := _value(e, task["metric"])) is not None]
        lost = sum(ends[key]["reason"] in ("diverged", "error") for key in ends if key[0] == method)
        metric = bootstrap(known) if known and not lost else None
        entries.append(Entry(method, rows, peak, metric, mean([e["step"] for e in last] or [0]), lost))
    sign = -1.0 if task["maximise"] else 1.0
    entries.sort(key=lambda e: (e.metric is None, e.rows == 0, sign * e.metric.value if e.metric else 0.0))
    first = [v for of_run in points.values() if (v := _value(of_run[0], task["metric"])) is not None]
    return Equal(name, seconds, entries, mean(first or [float("nan")]))


def _value(e: Evaluation, metric: str) -> float | None:
    found = e.get(metric)  # a metric may have a name of its own
    return float(found) if isinstance(found, int | float) else None
