"""The table of a comparison: a pure function of its records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dldw.compare.statistics import mean_interval, median_time


@dataclass(frozen=True)
class Row:
    """One method on the task of the run; figures that were not measured are None."""

    method: str
    claim: str
    metric: float | None  # mean over the seeds at the end of the budget
    metric_low: float | None  # 95 % interval of the mean
    metric_high: float | None
    forwards_to_target: float  # median over the seeds; infinite where the target was missed
    reached: int
    seeds: int
    time_ratio: float | None  # a step over two bare forwards
    flops_ratio: float | None
    peak_bytes: int | None
    failures: int  # target missed, diverged, or an error
    tuning_forwards: float


@dataclass(frozen=True)
class Summary:
    """The table and what belongs to it."""

    task: str
    metric: str
    target: float
    untrained: float | None
    rows: list[Row]
    notes: list[str]
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: JSON has no infinity, so what was never reached is null."""
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(r).items()}
            for r in self.rows
        ]
        return {**asdict(self), "rows": rows}


def summarise(records: Iterable[Any]) -> Summary:
    """The summary of the records of one run."""
    every: list[Mapping[str, Any]] = list(records)
    kind = {k: [r for r in every if r["kind"] == k] for k in {r["kind"] for r in every}}
    config = kind["run"][0]["config"]
    task = next(r for r in kind.get("task", []) if r["task"] == config["task"])
    curves = [r for r in kind.get("end", []) if r["study"] == "curves" and r["task"] == task["task"]]
    start = [
        r[task["metric"]]
        for r in kind.get("evaluation", [])
        if r["study"] == "curves" and r["task"] == task["task"] and r["step"] == 0 and r[task["metric"]] is not None
    ]
    rows = []
    for method in kind.get("method", []):
        label = method["method"]
        ends = [r for r in curves if r["method"] == label]
        values = [r["metric"] for r in ends if r["metric"] is not None]
        mean, low, high = _bounded(mean_interval(values), task["metric"]) if values else (None, None, None)
        cost = next((r for r in kind.get("cost", []) if r["method"] == label and r["task"] == task["task"]), None)
        tuning = [r["forwards"] for r in kind.get("tuning", []) if r["method"] == label and r["task"] == task["task"]]
        rows.append(
            Row(
                method=label,
                claim=method["claim"],
                metric=mean,
                metric_low=low,
                metric_high=high,
                forwards_to_target=median_time([r["forwards_to_target"] for r in ends]),
                reached=sum(not r["failed"] for r in ends),
                seeds=len(ends),
                time_ratio=cost["time_ratio"] if cost else None,
                flops_ratio=cost["forwards_measured"] / 2 if cost else None,
                peak_bytes=cost["peak_bytes"] if cost else None,
                failures=sum(r["failed"] for r in ends),
                tuning_forwards=sum(tuning),
            )
        )
    return Summary(
        task=task["task"],
        metric=task["metric"],
        target=task["target"],
        untrained=sum(start) / len(start) if start else None,
        rows=rows,
        notes=[r["text"] for r in kind.get("note", [])],
        seconds=kind["done"][0]["seconds"] if "done" in kind else None,
    )


def _bounded(interval: tuple[float, float, float], metric: str) -> tuple[float, float | None, float | None]:
    """An accuracy lies within 0..1 and a loss above 0, and so do their intervals; one run alone has none."""
    mean, low, high = interval
    if not math.isfinite(low):
        return mean, None, None
    if metric in ("accuracy", "loss"):
        low = max(0.0, low)
    return mean, low, min(1.0, high) if metric == "accuracy" else high
