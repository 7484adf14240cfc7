"""The lines of results.jsonl, by kind, and the rows of one method."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dldw.compare.records import (
    FORMAT,
    Bias,
    Cost,
    Crossed,
    Depth,
    Displacement,
    Done,
    End,
    Estimate,
    Evaluation,
    Fit,
    Inside,
    Landscape,
    MethodRecord,
    Note,
    Run,
    SamplingBias,
    Sigma,
    TaskRecord,
    Tuning,
)
from dldw.compare.records import Path as PathRecord
from dldw.errors import DldwError

RESULTS = "results.jsonl"
NUDGE_LIMIT = 0.1 + 1e-6  # the question draws dw from U(-0.1, 0.1)


@dataclass(frozen=True)
class Results:
    """Every record of a run, by kind, each in the order it was written.

    Attributes:
        torn: Whether the last line was cut off, as a killed run leaves it.
    """

    run: Run
    methods: list[MethodRecord] = field(default_factory=list)
    tasks: list[TaskRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    depths: list[Depth] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    estimates: list[Estimate] = field(default_factory=list)
    sigmas: list[Sigma] = field(default_factory=list)
    displacements: list[Displacement] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    landscapes: list[Landscape] = field(default_factory=list)
    paths: list[PathRecord] = field(default_factory=list)
    insides: list[Inside] = field(default_factory=list)
    samplings: list[SamplingBias] = field(default_factory=list)
    crossings: list[Crossed] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    done: Done | None = None
    torn: bool = False

    @property
    def task(self) -> TaskRecord | None:
        """The task that was asked for; others, such as ``step-digits``, are there to answer a side question."""
        asked = self.run["config"].get("task")
        return next((t for t in self.tasks if t["task"] == asked), self.tasks[0] if self.tasks else None)

    @property
    def task_name(self) -> str | None:
        """The name of ``task``."""
        return self.task["task"] if self.task else None

    @property
    def labels(self) -> list[str]:
        """Every method that any record speaks of, the declared ones first."""
        declared = [m["method"] for m in self.methods]
        rows: list[Sequence[Mapping[str, Any]]] = [self.ends, self.evaluations, self.costs, self.estimates, self.paths]
        return list(dict.fromkeys(declared + [row["method"] for table in rows for row in table]))

    def labelled(self, *names: str, **settings: bool) -> list[str]:
        """The labels of the methods registered under ``names`` whose settings are on or off as said (absent is off)."""
        return [
            m["method"]
            for m in self.methods
            if m["name"] in names and all(bool(m["settings"].get(k)) == v for k, v in settings.items())
        ]

    @property
    def backprop(self) -> str | None:
        """The label of plain back-propagation."""
        return next(iter(self.labelled("backprop", checkpoint=False, reversible=False)), None)

    @property
    def nudge(self) -> str | None:
        """The label of the question's method: one random weight at a time."""
        return next(iter(self.labelled("weight-perturbation")), None)

    @property
    def forwards_only(self) -> list[str]:
        """The labels of the methods that see nothing but loss values, the question's first, baselines left out."""
        labels = [m["method"] for m in self.methods if m["needs"] == "loss values" and not m["baseline"]]
        return sorted(labels, key=lambda label: label != self.nudge)

    def missing(self) -> list[str]:
        """What a reader has to know is not in this run, one sentence each."""
        gaps = []
        if self.torn:
            gaps.append("The last line of results.jsonl is cut off, as a stopped run leaves it; it was left out.")
        if self.done is None:
            gaps.append("The run was not finished when this page was made; the same command goes on where it stopped.")
        tables = [
            (self.ends, "No training run has ended yet."),
            (self.costs, "The cost of a step was not measured."),
            (self.estimates, "No estimate was held against the exact gradient."),
            (self.displacements, "No step was held against the exact downhill direction."),
            (self.biases, "The difference quotient was not held against the exact derivative."),
            ([e for e in self.ends if e["study"] == "width"], "No network was trained at several widths."),
            (
                [e for e in self.ends if e["study"] == "learning-rate"],
                "No method was tried over several learning rates.",
            ),
            (self.landscapes, "The landscape of two weights was not recorded."),
            (self.tunings, "No settings were tuned in this run; the methods ran with the settings shown in the table."),
        ]
        return gaps + [text for rows, text in tables if not rows]


_TABLES = {
    "method": "methods",
    "task": "tasks",
    "evaluation": "evaluations",
    "end": "ends",
    "cost": "costs",
    "depth": "depths",
    "fit": "fits",
    "estimate": "estimates",
    "sigma": "sigmas",
    "displacement": "displacements",
    "bias": "biases",
    "landscape": "landscapes",
    "path": "paths",
    "inside": "insides",
    "sampling": "samplings",
    "crossed": "crossings",
    "tuning": "tunings",
    "note": "notes",
}
_KEYS = {
    "methods": ("method",),
    "tasks": ("task",),
    "evaluations": ("study", "task", "method", "seed", "width", "factor", "step"),
    "ends": ("study", "task", "method", "seed", "width", "factor"),
    "costs": ("task", "method", "width"),
    "depths": ("task", "method", "depth"),
    "fits": ("task", "method"),
    "sigmas": ("task", "width"),
    "paths": ("task", "method"),
    "landscapes": ("task",),
    "insides": ("task", "method", "seed"),
    "samplings": ("task", "step", "estimator"),
    "crossings": ("task", "trained", "evaluated"),
    "tunings": ("task", "method", "trial"),
    "notes": ("text",),
}


def read(directory: Path) -> Results:
    """Reads ``results.jsonl``; a torn last line is left out, and what was recorded twice counts once, as written last.

    Raises:
        DldwError: There is no such file, it is empty or damaged before its last line, or another format wrote it.
    """
    path = directory / RESULTS
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DldwError(
            f"cannot read {path}: {error.strerror or error}. The report is made from the results of a comparison; "
            f"run 'dldw compare --out {directory}' first, or name the directory of one."
        ) from error
    records, torn = _parse(path, text)
    if not records or records[0].get("kind") != "run":
        raise DldwError(
            f"{path} does not begin with the record of a run, so nobody can say what was measured. "
            f"Run 'dldw compare' into an empty directory."
        )
    found = records[0].get("format")
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise DldwError(
            f"{path} has format {found}, and this version of dldw reads format {FORMAT}: figures would be misread. "
            + ("Update dldw" if newer else f"Use the dldw {records[0].get('dldw', 'of that time')} that wrote it")
            + ", or run the comparison again into a new directory."
        )
    tables: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        if record.get("kind") in _TABLES:
            tables[_TABLES[record["kind"]]].append(record)
    done = [r for r in records if r.get("kind") == "done"]
    return Results(
        run=cast("Run", records[0]),
        done=cast("Done", done[-1]) if done else None,
        torn=torn,
        **{name: _last(rows, _KEYS[name]) if name in _KEYS else rows for name, rows in tables.items()},
    )


def _parse(path: Path, text: str) -> tuple[list[dict[str, Any]], bool]:
    lines = text.split("\n")
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if any(rest.strip() for rest in lines[number:]):
                raise DldwError(
                    f"line {number} of {path} is damaged ({error}), and it is not the last, so this is not the "
                    "trace of a stopped run. Restore the file, or run the comparison again into a new directory."
                ) from error
            return records, True
        records.append(record)
    return records, False


def _last(rows: list[Any], key: Sequence[str]) -> list[Any]:
    return list({tuple(row.get(k) for k in key): row for row in rows}.values())


def ends_of(results: Results, method: str | None, study: str = "curves", task: str | None = None) -> list[End]:
    """The finished runs of a method in one study, on the task asked for unless another is named."""
    name = task or results.task_name
    return [e for e in results.ends if e["method"] == method and e["study"] == study and e["task"] == name]


def cost_of(results: Results, method: str | None) -> Cost | None:
    """What a step of the method costs at the task's own width."""
    task = results.task
    rows = [c for c in results.costs if c["method"] == method and (task is None or c["task"] == task["task"])]
    own = [c for c in rows if task is not None and c["weights"] == task["weights"]]
    return next(iter(own or rows), None)


def depths_of(results: Results, method: str | None) -> list[Depth]:
    """What the gradients of a method cost at each depth, the shallowest first."""
    name = results.task_name
    return sorted((d for d in results.depths if d["method"] == method and d["task"] == name), key=lambda d: d["depth"])


def fit_of(results: Results, method: str) -> Fit | None:
    """The largest batch of a method within the bound of memory of the task asked for."""
    name = results.task_name
    return next((f for f in results.fits if f["method"] == method and f["task"] == name), None)


def by_weights(results: Results, method: str) -> dict[int, list[End]]:
    """The finished runs of a method by the number of weights, at every width that was trained with the tuned rate."""
    rows: dict[tuple[int, int], End] = {}
    for study in ("curves", "width"):  # where both have a run, that of the width study stays
        for end in ends_of(results, method, study):
            rows[end["weights"], end["seed"]] = end
    table: dict[int, list[End]] = defaultdict(list)
    for (weights, _), end in sorted(rows.items()):
        table[weights].append(end)
    return dict(table)
