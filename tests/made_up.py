"""Made-up results with a known truth, from which every verdict can be produced; nothing here was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]

BACKPROP, CHECKPOINT, NUDGE = "backprop", "backprop[checkpoint=True]", "weight-perturbation"
WEIGHTS = {8: 610, 32: 2410, 128: 9610, 512: 38410}
CLAIMS = {
    BACKPROP: ("backprop", "exact", "autograd", "4 if checkpoint else 3", 3.0, {"checkpoint": False, "lr": 0.5}),
    CHECKPOINT: ("backprop", "exact", "autograd", "4 if checkpoint else 3", 4.0, {"checkpoint": True, "lr": 0.5}),
    NUDGE: (
        "weight-perturbation",
        "biased",
        "loss values",
        "1 + weights",
        2.0,
        {"low": -0.1, "high": 0.1, "weights": 1},
    ),
    "spsa": (
        "spsa",
        "unbiased",
        "loss values",
        "2 * directions if two_sided else directions + 1",
        2.0,
        {"sigma": 1e-3},
    ),
    "evolution-strategy": ("evolution-strategy", "biased", "loss values", "population", 64.0, {"sigma": 0.05}),
    "forward-gradient": ("forward-gradient", "unbiased", "forward mode", "3 * directions", 3.0, {"directions": 1}),
    "random-search": ("random-search", "search", "loss values", "population + 1", 9.0, {"sigma": 1.0}),
    "untrained": ("untrained", "search", "loss values", "0", 0.0, {}),
}
BOUND = 100_000
BASELINES = (CHECKPOINT, "random-search", "untrained")


@dataclass
class World:
    """What is true in the made-up world.

    Attributes:
        seeds: How many.
        budget: Forward equivalents of every run.
        work: Forward equivalents to the target at 2,410 weights, by method; infinite where it never gets there.
        growth: The power of the number of weights with which they grow.
        spread: Standard deviation of the logarithm over seeds.
        ratio: Time of a step over two bare forwards.
        operations: Floating-point operations of a step in forwards.
        peak: Allocator peak of a step in bytes.
        cosine: Of one estimate at 2,410 weights.
        cosine_power: The power of the number of weights with which it falls.
        quotient: Relative error at the largest nudge.
        rate_window: The learning rates, as factors of the tuned one, at which a method trains.
        step_score: Accuracy on step-digits.
        aligned: Degrees from the exact gradient, at first and in the end, of all weights.
        downhill: Cosine of a step with the exact downhill direction.
        deep: Of a gradient at some depth: bytes without a block and for each, time over plain autograd's, relative error.
        fits: Within the bound of memory: rows, bytes of a step, and the accuracy that a run tends to; with 0 rows, none.
        diverse: Deviation of a weight over the first population, by method; it shrinks as the run goes on.
        extra: Further methods by label, in the form of ``CLAIMS``.
    """

    seeds: int = 5
    budget: float = 1e6
    work: dict[str, float] = field(
        default_factory=lambda: {
            BACKPROP: 2.4e3,
            CHECKPOINT: 3.2e3,
            NUDGE: 1.8e5,
            "spsa": 6e4,
            "evolution-strategy": 9e4,
            "forward-gradient": 5e4,
            "random-search": math.inf,
        }
    )
    growth: dict[str, float] = field(
        default_factory=lambda: {NUDGE: 0.9, "spsa": 0.6, "evolution-strategy": 0.5, "forward-gradient": 0.6}
    )
    spread: float = 0.08
    ratio: dict[str, float] = field(
        default_factory=lambda: {
            BACKPROP: 1.6,
            CHECKPOINT: 2.1,
            NUDGE: 1.15,
            "spsa": 1.3,
            "evolution-strategy": 20.0,
            "forward-gradient": 1.9,
            "random-search": 5.0,
        }
    )
    operations: dict[str, float] = field(
        default_factory=lambda: {
            BACKPROP: 2.9,
            CHECKPOINT: 3.8,
            NUDGE: 2.0,
            "spsa": 2.0,
            "evolution-strategy": 64.0,
            "forward-gradient": 3.0,
            "random-search": 9.0,
        }
    )
    peak: dict[str, int] = field(
        default_factory=lambda: {
            BACKPROP: 180_000,
            CHECKPOINT: 140_000,
            NUDGE: 62_000,
            "spsa": 81_000,
            "evolution-strategy": 1_900_000,
            "forward-gradient": 150_000,
            "random-search": 95_000,
        }
    )
    cosine: dict[str, float] = field(
        default_factory=lambda: {NUDGE: 0.0135, "spsa": 0.0163, "evolution-strategy": 0.12, "forward-gradient": 0.0163}
    )
    cosine_power: float = 0.5
    quotient: float = 0.08
    rate_window: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {BACKPROP: (0.1, 4.0), "spsa": (0.3, 1.5)}
    )
    step_score: dict[str, float] = field(
        default_factory=lambda: {BACKPROP: 0.82, NUDGE: 0.86, "spsa": 0.89, "evolution-strategy": 0.91}
    )
    aligned: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {"spsa": (88.0, 89.5), "forward-gradient": (87.0, 60.0)}
    )
    downhill: dict[str, float] = field(default_factory=lambda: {BACKPROP: 1.0, NUDGE: 0.02})
    deep: dict[str, tuple[float, float, float, float]] = field(
        default_factory=lambda: {BACKPROP: (5e5, 2e6, 1.0, 2e-7), CHECKPOINT: (9e5, 1.5e5, 1.4, 2e-7)}
    )
    fits: dict[str, tuple[int, int, float]] = field(
        default_factory=lambda: {
            BACKPROP: (0, 180_000, 0.0),
            CHECKPOINT: (32, 95_000, 0.94),
            "spsa": (160, 99_000, 0.92),
        }
    )
    diverse: dict[str, float] = field(default_factory=lambda: {"random-search": 1.0})
    extra: dict[str, tuple[str, str, str, str, float, dict[str, Any]]] = field(default_factory=dict)


def made_up(
    world: World | None = None,
    *,
    without: Iterable[str] = (),
    studies: Iterable[str] = ("curves", "width", "learning-rate", "memory"),
) -> list[Record]:
    """The records of a run in ``world``, leaving out the kinds of record named in ``without``."""
    w, random = world or World(), np.random.default_rng(7)
    claims = {**CLAIMS, **w.extra}
    records: list[Record] = [
        {
            "kind": "run",
            "format": 1,
            "dldw": "0.1.0",
            "torch": "2.9.0",
            "python": "3.13.5",
            "machine": {
                "system": "Linux",
                "processor": "a made-up processor",
                "cores": 2,
                "threads": 2,
                "memory": 2**33,
                "accelerator": None,
            },
            "config": {
                "task": "digits",
                "methods": list(claims),
                "seeds": list(range(w.seeds)),
                "budget": {"name": "default", "forwards": w.budget},
            },
            "started": "2026-01-02T03:04:05+00:00",
        },
        *(
            _task(name, summary)
            for name, summary in (
                ("digits", "Handwritten digits, 8 × 8."),
                ("step-digits", "The same with hidden units that are a hard step."),
            )
        ),
    ]
    for label, (name, claim, needs, forwards, per_step, settings) in claims.items():
        records.append(
            {
                "kind": "method",
                "method": label,
                "name": name,
                "claim": claim,
                "needs": needs,
                "forwards": forwards,
                "forwards_per_step": per_step,
                "memory": "one weight tensor",
                "paper": "Somebody et al. 2020, arXiv 2001.00001",
                "note": "",
                "settings": settings,
                "baseline": label in BASELINES,
            }
        )
    noise = {(s, m): float(np.exp(w.spread * random.standard_normal())) for s in range(w.seeds) for m in claims}
    if "curves" in studies:
        records += _untrained(w)
        for label in w.work:
            for seed in range(w.seeds):
                records += _run(w, claims, "curves", "digits", label, seed, 32, 1.0, w.work[label] * noise[seed, label])
        for label, score in w.step_score.items():
            for seed in range(w.seeds):
                records += _run(
                    w,
                    claims,
                    "curves",
                    "step-digits",
                    label,
                    seed,
                    32,
                    1.0,
                    math.inf,
                    score * noise[seed, label] ** 0.1,
                )
    if "width" in studies:
        for label in (BACKPROP, *w.growth):
            for width, d in WEIGHTS.items():
                for seed in range(w.seeds):
                    need = (
                        w.work[label]
                        * noise[seed, label]
                        * float(np.exp(w.spread * random.standard_normal()))
                        * (d / 2410) ** w.growth.get(label, 0.0)
                    )
                    records += _run(w, claims, "width", "digits", label, seed, width, 1.0, need)[-1:]
    if "learning-rate" in studies:
        for label in (BACKPROP, NUDGE, "spsa", "evolution-strategy", "forward-gradient"):
            low, high = w.rate_window.get(label, (0.5, 2.0))
            for factor in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
                for seed in range(w.seeds):
                    good = low * noise[seed, label] ** 8 <= factor <= high * noise[seed, label] ** 8
                    records += _run(
                        w,
                        claims,
                        "learning-rate",
                        "digits",
                        label,
                        seed,
                        32,
                        factor,
                        w.work[label] if good else math.inf,
                    )[-1:]
    if "memory" in studies:
        for label, (rows, peak, top) in w.fits.items():
            records.append(
                {"kind": "fit", "task": "digits", "method": label, "bound": BOUND, "rows": rows, "peak_bytes": peak}
                | {"rate_factor": 1.0}
            )
            for seed in range(w.seeds if rows else 0):
                best = top * noise[seed, label] ** 0.1
                records += _run(w, claims, "memory", "digits", label, seed, 32, 1.0, w.work[label], best)
    records += (
        _costs(w)
        + _depths(w)
        + _estimates(w)
        + _sigmas()
        + _displacements(w)
        + _quotients(w)
        + _insides(w)
        + _samplings()
        + _crossed()
        + _two_weights(w)
        + _trials(w, random)
    )
    records.append({"kind": "note", "text": "These results are made up; nothing was measured."})
    records.append({"kind": "done", "seconds": 312.0, "peak_bytes": 700_000_000})
    return [r for r in records if r["kind"] not in set(without)]


def save(records: Iterable[Record], directory: Path) -> Path:
    """Writes the records as the comparison does, one JSON object on a line."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "results.jsonl"
    path.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in records), encoding="utf-8")
    return path


def _task(name: str, summary: str) -> Record:
    return {
        "kind": "task",
        "task": name,
        "summary": summary,
        "metric": "accuracy",
        "maximise": True,
        "target": 0.9,
        "weights": 2410,
        "batch_size": 128,
        "train_examples": 1150,
        "test_examples": 360,
    }


def _untrained(w: World) -> list[Record]:
    return [
        {
            "kind": "evaluation",
            "study": "curves",
            "task": "digits",
            "method": "untrained",
            "seed": s,
            "width": 32,
            "factor": 1.0,
        }
        | {
            "step": 0,
            "forwards": 0.0,
            "examples": 0,
            "seconds": 0.0,
            "train_loss": None,
            "loss": 2.35,
            "accuracy": 0.1 + 0.004 * s,
        }
        for s in range(w.seeds)
    ]


def _run(
    w: World,
    claims: dict[str, Any],
    study: str,
    task: str,
    label: str,
    seed: int,
    width: int,
    factor: float,
    need: float,
    top: float = 0.96,
) -> list[Record]:
    """A curve that passes 90 % after ``need`` forwards and tends to ``top``; never, where ``need`` is infinite."""
    per_step = claims[label][4]
    common = {"study": study, "task": task, "method": label, "seed": seed, "width": width, "factor": factor}
    reached = need if need <= w.budget else None
    steps = np.unique(np.geomspace(1, max(w.budget / per_step, 2), 40).astype(int))
    if math.isinf(need):
        top, need = (top if task == "step-digits" else 0.62), w.budget / 20
    rise = math.log(1 - 0.8 / (top - 0.1)) if top > 0.9 else -2.0
    records: list[Record] = []
    for step in (0, *steps.tolist()):
        forwards = step * per_step
        accuracy = 0.1 + (top - 0.1) * (1 - math.exp(rise * forwards / need))
        seconds = forwards * 3e-5 * w.ratio.get(label, 1.0) / per_step * 2
        records.append(
            {
                "kind": "evaluation",
                **common,
                "step": step,
                "forwards": forwards,
                "examples": 128 * step,
                "seconds": seconds,
            }
            | {"train_loss": 2.3 * (1.02 - accuracy), "loss": 2.35 * (1.03 - accuracy), "accuracy": accuracy}
            | (
                {
                    "generation_best": 2.3 * (1.02 - accuracy),
                    "generation_median": 3.1 - accuracy,
                    "diversity": w.diverse[label] / step**0.5,
                }
                if step and label in w.diverse
                else {}
            )
        )
    diverged = study == "learning-rate" and reached is None and factor > 3
    records.append(
        {
            "kind": "end",
            **common,
            "weights": WEIGHTS[width],
            "reason": "diverged" if diverged else "budget",
            "failed": reached is None,
        }
        | {
            "forwards_to_target": reached,
            "seconds_to_target": None if reached is None else reached * 3e-5,
            "forwards": w.budget,
        }
        | {"metric": records[-1]["accuracy"], "best": records[-1]["accuracy"], "error": None}
    )
    return records


def _costs(w: World) -> list[Record]:
    return [
        {
            "kind": "cost",
            "task": "digits",
            "method": label,
            "width": 32,
            "weights": 2410,
            "step_seconds": 6e-5 * r,
            "two_forwards_seconds": 6e-5,
            "time_ratio": r,
            "time_ratio_low": 0.96 * r,
            "time_ratio_high": 1.05 * r,
            "repeats": 200,
            "step_flops": int(610_000 * w.operations[label]),
            "forward_flops": 610_000,
            "forwards_measured": w.operations[label],
            "forwards_card": {**CLAIMS, **w.extra}[label][4],
            "peak_bytes": w.peak[label],
            "forward_peak_bytes": 60_000,
        }
        for label, r in w.ratio.items()
    ]


def _depths(w: World) -> list[Record]:
    return [
        {"kind": "depth", "task": "digits", "method": label, "depth": depth, "weights": 1000 + 900 * depth}
        | {"step_seconds": 1e-3 * depth * ratio, "time_ratio": ratio, "repeats": 30, "gradient_error": error}
        | {"time_ratio_low": 0.97 * ratio, "time_ratio_high": 1.04 * ratio, "peak_bytes": int(fixed + each * depth)}
        for label, (fixed, each, ratio, error) in w.deep.items()
        for depth in (8, 16, 32, 64, 128)
    ]


def _displacements(w: World) -> list[Record]:
    return [
        {"kind": "displacement", "task": "digits", "method": label, "seed": seed, "steps": 20, "still": 0}
        | {"cosine": value, "cosine_low": value - 0.01, "cosine_high": value + 0.01}
        for label, value in w.downhill.items()
        for seed in range(w.seeds)
    ]


def _insides(w: World) -> list[Record]:
    """Angles of estimates, layers and pictures; back-propagation, which is exact, has no angles."""
    steps = [0, *np.unique(np.geomspace(1, 2000, 15).astype(int)).tolist()]
    records: list[Record] = []
    for place, label in enumerate((BACKPROP, *w.aligned)):
        first, last = w.aligned.get(label, (0.0, 0.0))
        angles = [
            {"step": s, "forwards": 3.0 * s, "angle": first + (last - first) * s / 2000, "first": min(180.0, first + 2)}
            for s in steps
            if label in w.aligned
        ]
        layers = [
            {"layer": n, "features": f, "accuracy": a - 0.02 * place}
            for n, f, a in ((0, 64, 0.92), (1, 32, 0.94), (2, 32, 0.95), (3, 10, 0.97))
        ]
        records.append(
            {"kind": "inside", "task": "digits", "method": label, "seed": 0, "forwards": 6000.0}
            | {"metric": 0.97 - 0.02 * place, "angles": angles, "layers": layers, "pictures": _pictures(place)}
        )
    return records


def _pictures(place: int) -> list[Record]:
    """Images of 3 x 3 pixels: what is in them is told by their place."""

    def images(rows: int, columns: int) -> list[list[list[int]]]:
        return [[[(place + r + c + i) * 28 % 256 for i in range(9)] for c in range(columns)] for r in range(rows)]

    times = ["0", "1", "2", "5", "10", "50", "200", "1,000"]
    left = {"left after 10": 0.6 - 0.1 * place, "left after 1000": 0.05}
    halves = ["digits", "what is left of them", "filled in: a sample", "filled in: the mean of many"]
    made = [
        ("filters", images(3, 4), [], [], True, {"largest weight": 2.5 + place}),
        ("samples", images(4, 10), ["digits", "samples", "", ""], [], False, {}),
        ("chains", images(5, 8), [], times, False, left),
        ("occluded", images(4, 10), halves, [], False, {"error": 0.3 + 0.02 * place, "error of the mean image": 0.41}),
    ]
    keys = ("name", "pixels", "rows", "columns", "signed", "figures")
    return [{**dict(zip(keys, row, strict=True)), "size": [3, 3]} for row in made]


def _samplings() -> list[Record]:
    bias = {"CD-1": 0.12, "CD-3": 0.05, "CD-10": 0.01, "PCD-1": 0.04}
    return [
        {"kind": "sampling", "task": "digits", "step": step, "estimator": name, "cosine": 1 - off * step / 1000}
        | {"norm": 1 - 2 * off * step / 1000, "error": 0.02 + off}
        for step in (0, 100, 300, 1000)
        for name, off in bias.items()
    ]


def _crossed() -> list[Record]:
    table = {"full": (1.0, 0.9, 0.8, 0.6, 0.5), "4": (0.01, 1.0, 0.999, 0.99, 0.92)}
    published = {"full": (1.0, 0.948, 0.925, 0.769, 0.525), "4": (0.008, 1.0, 0.999, 0.994, 0.919)}
    return [
        {"kind": "crossed", "task": "digits", "trained": trained, "evaluated": evaluated, "steps": 600}
        | {"accuracy": table[trained][i], "published": published[trained][i]}
        for trained in table
        for i, evaluated in enumerate(("full", "8", "4", "2", "1"))
    ]


def _estimates(w: World) -> list[Record]:
    records = []
    for label, at_home in w.cosine.items():
        for width, d in WEIGHTS.items():
            for seed in range(w.seeds):
                value = min(1.0, at_home * (2410 / d) ** w.cosine_power * (1 + 0.02 * (seed % 3)))
                theory = {NUDGE: d - 1.0, "spsa": d - 1.0, "forward-gradient": d + 1.0}.get(label)
                records.append(
                    {
                        "kind": "estimate",
                        "task": "digits",
                        "method": label,
                        "seed": seed,
                        "width": width,
                        "weights": d,
                        "draws": 200,
                    }
                    | {"cosine": value, "cosine_low": 0.94 * value, "cosine_high": 1.06 * value, "relative_bias": 0.02}
                    | {"relative_variance": 1 / value**2 - 1, "theory_variance": theory}
                    | {"variance_low": 0.8 / value**2 - 1, "variance_high": 1.2 / value**2 - 1}
                    | {"bias": 0.05, "bias_high": 0.09, "relative_error": 1 / value, "forwards": 2.0, "seconds": 3e-4}
                    | {"decrease": value**2, "decrease_low": 0.5 * value**2, "decrease_high": 1.5 * value**2}
                )
    return records


def _sigmas() -> list[Record]:
    sigma = [4.0**power for power in range(-11, 2)]
    return [
        {"kind": "sigma", "task": "digits", "width": width, "weights": d, "dtype": "float32", "sigma": sigma}
        | {"error": [s**2 + 1e-7 / s for s in sigma], "recommended": 4.0**-4 if d > 1000 else 4.0**-3}
        for width, d in WEIGHTS.items()
    ]


def _quotients(w: World) -> list[Record]:
    records = []
    for nudge in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1):
        error = w.quotient * nudge / 0.1 + 3e-8 / nudge
        records.append(
            {"kind": "bias", "task": "digits", "nudge": nudge, "weights_tried": 400, "relative_error": error}
            | {
                "relative_error_low": 0.4 * error,
                "relative_error_high": 2.5 * error,
                "wrong_sign": min(0.5, 0.3 * error),
            }
        )
    return records


def _two_weights(w: World) -> list[Record]:
    axis = np.linspace(-3, 3, 41)
    x, y = np.meshgrid(axis, axis)

    def loss(x: Any, y: Any) -> Any:
        return 0.4 + 0.15 * (x - 1) ** 2 + 0.05 * (y + 1) ** 2 + 0.25 * np.sin(1.4 * x) * np.cos(y)

    names = ["layers.0.weight[3, 17]", "layers.2.weight[5, 9]"]
    records: list[Record] = [
        {
            "kind": "landscape",
            "task": "digits",
            "names": names,
            "x": axis.tolist(),
            "y": axis.tolist(),
            "loss": loss(x, y).tolist(),
        }
    ]
    for i, label in enumerate(m for m in w.work if m != CHECKPOINT):
        random, at = np.random.default_rng(i), np.array([-2.4, 2.3])
        way = [at.copy()]
        for _ in range(60):
            slope = np.array(
                [(loss(at[0] + h, at[1] + k) - loss(at[0] - h, at[1] - k)) / 2e-4 for h, k in ((1e-4, 0), (0, 1e-4))]
            )
            if label == NUDGE:
                slope = slope * (np.arange(2) == random.integers(2)) * 2
            elif label not in (BACKPROP, "evolution-strategy"):
                sign = random.choice([-1.0, 1.0], 2)
                slope = (slope @ sign) * sign
            at = at - 0.3 * (slope if label != "random-search" else random.standard_normal(2))
            way.append(at.copy())
        path = np.array(way)
        records.append(
            {"kind": "path", "task": "digits", "method": label, "x": path[:, 0].tolist(), "y": path[:, 1].tolist()}
            | {
                "loss": loss(path[:, 0], path[:, 1]).tolist(),
                "forwards": [CLAIMS.get(label, CLAIMS[NUDGE])[4] * s for s in range(len(path))],
            }
        )
    return records


def _trials(w: World, random: np.random.Generator) -> list[Record]:
    records = []
    for label in w.work:
        rates = np.geomspace(1e-3, 3, 12)
        scores = 0.93 - 0.06 * (np.log10(rates) + 0.7) ** 2 - 0.02 * random.random(12)
        for trial, (rate, score) in enumerate(zip(rates, scores, strict=True)):
            records.append(
                {"kind": "tuning", "task": "digits", "method": label, "trial": trial, "settings": {"lr": float(rate)}}
                | {
                    "score": None if rate > 2 else float(score),
                    "forwards": 2e4,
                    "seconds": 0.9,
                    "chosen": bool(trial == scores.argmax()),
                }
            )
    return records
