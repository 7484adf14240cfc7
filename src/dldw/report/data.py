"""From the lines of results.jsonl to tidy tables and the few statistics that verdicts and charts share."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dldw.compare.records import (
    FORMAT,
    Bias,
    Cost,
    Done,
    End,
    Estimate,
    Evaluation,
    Landscape,
    MethodRecord,
    Note,
    Run,
    TaskRecord,
    Tuning,
)
from dldw.compare.records import Path as PathRecord
from dldw.errors import DldwError

RESULTS = "results.jsonl"
DRAWS = 4000
NUDGE_LIMIT = 0.1 + 1e-6  # the question draws dw from U(-0.1, 0.1)
Floats = NDArray[np.float64]


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
    estimates: list[Estimate] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    landscapes: list[Landscape] = field(default_factory=list)
    paths: list[PathRecord] = field(default_factory=list)
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
        return next(iter(self.labelled("backprop", checkpoint=False)), None)

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
    "estimate": "estimates",
    "bias": "biases",
    "landscape": "landscapes",
    "path": "paths",
    "tuning": "tunings",
    "note": "notes",
}
_KEYS = {
    "methods": ("method",),
    "tasks": ("task",),
    "evaluations": ("study", "task", "method", "seed", "width", "factor", "step"),
    "ends": ("study", "task", "method", "seed", "width", "factor"),
    "costs": ("task", "method", "width"),
    "paths": ("task", "method"),
    "landscapes": ("task",),
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


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; ``bound`` says when the figure itself is only a bound.

    With fewer than three seeds there is no interval: ``low`` and ``high`` are those of the bound alone, or NaN.
    """

    value: float
    low: float
    high: float
    seeds: int
    bound: str = ""  # "at least", "at most" or nothing

    @property
    def known(self) -> bool:
        """Whether there are enough seeds for an interval."""
        return self.seeds >= 3 and not math.isnan(self.low)


def resample(n: int) -> NDArray[np.int64]:
    """[DRAWS, n] indices drawn with replacement, always the same: the report is a function of the results."""
    return np.random.default_rng(0).integers(0, n, (DRAWS, n))


def quantiles(values: Floats) -> tuple[float, float]:
    """The central 95 % of ``values``, which may be infinite."""
    low = np.quantile(values, 0.025, method="lower")
    high = np.quantile(values, 0.975, method="higher")
    return float(low), float(high)


def bootstrap(values: Iterable[float], statistic: Callable[..., Any] = np.mean) -> Interval:
    """A statistic over seeds with its bootstrap interval."""
    array = np.asarray(list(values), dtype=float)
    value = float(statistic(array))
    if len(array) < 3:
        return Interval(value, math.nan, math.nan, len(array))
    return Interval(value, *quantiles(statistic(array[resample(len(array))], axis=1)), len(array))


@dataclass(frozen=True)
class Reach:
    """The work spent until the target, by seed: a run that missed it lies between what it spent and infinity."""

    low: dict[int, float]
    high: dict[int, float]

    @classmethod
    def of(cls, ends: Iterable[End], key: str = "forwards") -> Reach:
        """The reach of these runs in ``forwards`` (or ``seconds``, where only reached runs have a bound)."""
        low, high = {}, {}
        for end in ends:
            reached = end["forwards_to_target"] if key == "forwards" else end["seconds_to_target"]
            low[end["seed"]] = float(end["forwards"] if reached is None else reached)
            high[end["seed"]] = math.inf if reached is None else float(reached)
        return cls(low, high)

    def median(self) -> float:
        """The median over seeds, infinite when half of them missed."""
        return float(np.median(list(self.high.values()))) if self.high else math.nan

    @property
    def reached(self) -> int:
        """How many runs reached the target."""
        return sum(map(math.isfinite, self.high.values()))


def ratio(a: Reach, b: Reach) -> Interval | None:
    """Median of ``a`` over median of ``b``, resampled over the seeds both have.

    None when they share no seed, or when half the runs of both missed, so that nothing is known of the ratio. Where a
    run missed the target the ratio is only known to lie between two bounds, and the interval covers both.
    """
    seeds = sorted(a.low.keys() & b.low.keys())
    if not seeds:
        return None
    table = np.array([[r[s] for s in seeds] for r in (a.low, a.high, b.low, b.high)])  # [4, seeds]
    a_low, a_high, b_low, b_high = np.maximum(np.median(table, axis=1), 1e-12)
    lower, upper = a_low / b_high, a_high / b_low
    if lower < 1e-9 and math.isinf(upper):  # neither got there, or the one that did not made no step at all
        return None
    value, bound = (lower, "") if lower == upper else (lower, "at least") if lower > 0 else (upper, "at most")
    if len(seeds) < 3:
        return Interval(float(value), float(lower), float(upper), len(seeds), bound)
    drawn = np.maximum(np.median(table[:, resample(len(seeds))], axis=2), 1e-12)  # [4, draws]
    low, high = quantiles(drawn[0] / drawn[3])[0], quantiles(drawn[1] / drawn[2])[1]
    return Interval(float(value), low, high, len(seeds), bound)


def ends_of(results: Results, method: str | None, study: str = "curves", task: str | None = None) -> list[End]:
    """The finished runs of a method in one study, on the task asked for unless another is named."""
    name = task or (results.task["task"] if results.task else None)
    return [e for e in results.ends if e["method"] == method and e["study"] == study and e["task"] == name]


def cost_of(results: Results, method: str | None) -> Cost | None:
    """What a step of the method costs at the task's own width."""
    task = results.task
    rows = [c for c in results.costs if c["method"] == method and (task is None or c["task"] == task["task"])]
    own = [c for c in rows if task is not None and c["weights"] == task["weights"]]
    return next(iter(own or rows), None)


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


@dataclass(frozen=True)
class Growth:
    """How a figure grows with the number of weights: figure ∝ d^exponent.

    Attributes:
        exponent: The fitted slope in log-log coordinates, resampled over seeds.
        points: d -> the figure with its interval, bounds included.
        solved: The values of d the fit rests on.
        at_one: The fitted figure at d = 1.
    """

    exponent: Interval
    points: dict[int, Interval]
    solved: list[int]
    at_one: float


def growth_of_ratio(results: Results, method: str) -> Growth | None:
    """Forwards to target of ``method`` over those of backprop against d; needs three sizes that both solved."""
    if results.backprop is None:
        return None
    own, base = by_weights(results, method), by_weights(results, results.backprop)
    points, tables = {}, {}
    for d in sorted(own.keys() & base.keys()):
        a, b = Reach.of(own[d]), Reach.of(base[d])
        point = ratio(a, b)
        if point is None:
            continue
        points[d] = point
        if not point.bound:
            seeds = sorted(a.high.keys() & b.high.keys())
            tables[d] = {s: (a.high[s], b.high[s]) for s in seeds}
    return _fit(points, tables, lambda pairs: np.median(pairs[..., 0], axis=-1) / np.median(pairs[..., 1], axis=-1))


def growth_of_noise(results: Results, method: str) -> Growth | None:
    """1/cosine² of the estimate to the exact gradient against d: what theory says grows in proportion to d."""
    tables: dict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
    for e in results.estimates:
        if e["method"] == method and e["cosine"] > 0:
            tables[e["weights"]][e["seed"]] = (e["cosine"], 1.0)
    points = {d: bootstrap(1 / t[0] ** 2 for t in rows.values()) for d, rows in sorted(tables.items())}
    return _fit(points, dict(sorted(tables.items())), lambda pairs: np.mean(pairs[..., 0], axis=-1) ** -2.0)


def _fit(
    points: dict[int, Interval],
    tables: dict[int, dict[int, tuple[float, float]]],
    figure: Callable[[Floats], Floats],
) -> Growth | None:
    if len(tables) < 3:
        return None
    seeds = sorted(set.intersection(*(set(rows) for rows in tables.values())))
    if not seeds:
        return None
    x = np.log(np.array(list(tables), dtype=float))
    pairs = np.array([[rows[s] for s in seeds] for rows in tables.values()])  # [sizes, seeds, 2]
    whole = np.log(figure(pairs))
    slope, intercept = np.polyfit(x, whole, 1)
    low = high = math.nan
    if len(seeds) >= 3:
        with np.errstate(invalid="ignore"):
            drawn = np.log(figure(pairs[:, resample(len(seeds))]))  # [sizes, draws]
        drawn = drawn[:, np.isfinite(drawn).all(axis=0)]
        centred = x - x.mean()
        if drawn.size:
            low, high = quantiles(centred @ drawn / (centred @ centred))
    exponent = Interval(float(slope), low, high, len(seeds))
    return Growth(exponent, points, list(tables), float(np.exp(intercept)))


# --- figures as a reader wants them ---


def significant(x: float, digits: int = 3) -> float:
    """``x`` rounded to so many significant digits."""
    return x if x == 0 or not math.isfinite(x) else round(x, digits - 1 - math.floor(math.log10(abs(x))))


def number(x: float) -> str:
    """12345 -> '12,300', 3.2e6 -> '3.2 million', 0.0123 -> '0.012'."""
    if math.isnan(x):
        return "–"
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    size = abs(x)
    for limit, word in ((1e9, "billion"), (1e6, "million")):
        if size >= 0.9995 * limit:
            return f"{significant(x / limit):g}\u00a0{word}"
    if size >= 100:
        return f"{significant(x):,.0f}"
    text = f"{significant(x, 2 if size < 10 else 3):g}" if size >= 1e-4 or size == 0 else f"{x:.1e}"
    return text.replace("-", "−")


def times(x: float) -> str:
    """A ratio: '74 ×', unbreakable like every figure with its unit."""
    return f"{number(significant(x, 2))}\u00a0×"


def percent(x: float, digits: int = 0) -> str:
    """A share: '93 %'."""
    return f"{100 * x:.{digits}f}\u00a0%".replace("-", "−")


def size(count: float) -> str:
    """Bytes: '1.2 MiB'."""
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= limit:
            return f"{number(count / limit)}\u00a0{unit}"
    return f"{count:.0f}\u00a0B"


def duration(seconds: float) -> str:
    """Seconds: '2 min 5 s'."""
    if seconds < 1e-3:
        return f"{number(seconds * 1e6)}\u00a0µs"
    if seconds < 1:
        return f"{number(seconds * 1e3)}\u00a0ms"
    if seconds < 60:
        return f"{number(seconds)}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes}\u00a0min" if hours else f"{minutes}\u00a0min {rest}\u00a0s"


def power(exponent: float) -> str:
    """A power of the number of weights: 'd⁰·⁹⁰'."""
    return "d" + f"{exponent:.2f}".translate(str.maketrans("0123456789.-", "⁰¹²³⁴⁵⁶⁷⁸⁹·⁻"))


def between(interval: Interval, show: Callable[[float], str] = number) -> str:
    """'95 % interval 60 to 90, 5 seeds', or why there is none."""
    seeds = f"{interval.seeds}\u00a0seed{'s' if interval.seeds != 1 else ''}"
    if not interval.known:
        return f"{seeds}: too few for an interval"
    low, high = show(interval.low), show(interval.high)
    if math.isinf(interval.high):
        return f"95\u00a0% interval: {low} or more, {seeds}"
    unit = low.rpartition("\u00a0")[2]
    if low.endswith("\u00a0" + unit) and high.endswith("\u00a0" + unit):
        low = low.rpartition("\u00a0")[0]
    return f"95\u00a0% interval {low} to {high}, {seeds}"


def list_of(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
