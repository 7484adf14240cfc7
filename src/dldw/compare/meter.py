"""What one step costs: time and memory against bare forward passes, and floating-point operations. Runs alone."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from statistics import median, quantiles
from typing import Any, cast

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dldw.compare.item import Identity, MethodItem, note
from dldw.compare.records import Record
from dldw.compare.train import forwards_per_step
from dldw.errors import DldwError
from dldw.weights import Weights

LONGEST_STEP = 3.0
"""Seconds a single step may take, by its card, to be measured at all."""
START, MORE = 0.5, 1.5
"""Seconds an item takes before the clock runs, and for each second that it runs."""
SHORTEST = 0.1


def seconds_within(total: float, methods: int, seconds: float) -> float:
    """Time to measure each of so many methods within ``total`` seconds, ``seconds`` at most and a tenth at least.

    Example:
        >>> seconds_within(30, 5, 1.0), round(seconds_within(30, 20, 1.0), 2), seconds_within(30, 90, 1.0)
        (1.0, 0.67, 0.1)
    """
    return max(SHORTEST, min(seconds, (total / methods - START) / MORE))


@dataclass(frozen=True)
class Metering(MethodItem):
    """The cost of one method's step on one task.

    Attributes:
        seconds: Time to spend.
        rows: Examples in a batch; as many as the task has by default.
    """

    width: int | None
    seconds: float
    rows: int | None = None

    @property
    def weight(self) -> float:
        return MORE * self.seconds + START

    @property
    def keys(self) -> list[Identity]:
        return [("cost", self.task, self.label, self.width)]

    @property
    def what(self) -> str:
        return f"cost of a step: {self.label} on {self.task}"

    def run(self) -> list[Record]:
        task, settings = self.loaded().resized(self.rows), dict(self.settings)
        batches = list(islice(task.batches(0), 8))
        bare = task.model(0, self.width)

        def forward() -> None:
            with torch.no_grad():
                task.loss(bare, batches[0])

        def fresh() -> Callable[[], None]:
            model = task.model(0, self.width)
            learner = self.spec.method.build(model, task.loss, torch.Generator().manual_seed(0), **settings)
            turn = iter(range(1 << 60))
            return lambda: _ignore(learner.step(batches[next(turn) % len(batches)]))

        size = Weights(bare).size
        card = forwards_per_step(self.spec, settings, size)
        forward()
        expected = card * _timed(forward, bare)
        if expected > LONGEST_STEP:
            text = (
                f"The cost of {self.label} on {self.task} was not measured: one step takes {card:,.0f} forward passes on "
                f"{size:,} weights, about {expected:.0f} s."
            )
            return [note(text)]
        try:
            step = fresh()
            step()
            step()
        except DldwError as error:
            return [note(f"The cost of {self.label} on {self.task} was not measured, because a step failed: {error}")]
        pairs = [(_timed(step, bare), _timed(forward, bare) + _timed(forward, bare))]
        deadline = time.perf_counter() + self.seconds
        while len(pairs) < 5 or (time.perf_counter() < deadline and len(pairs) < 5000):
            both = (
                _timed(forward, bare),
                _timed(step, bare),
                _timed(forward, bare),
            )  # one before, one after: drift cancels
            pairs.append((both[1], both[0] + both[2]))
        ratios = [a / b for a, b in pairs]
        low, _, high = quantiles(ratios, n=4)
        record: dict[str, Any] = {
            "kind": "cost",
            "task": self.task,
            "method": self.label,
            "width": self.width,
            "weights": size,
            "step_seconds": median(a for a, _ in pairs),
            "two_forwards_seconds": median(b for _, b in pairs),
            "time_ratio": median(ratios),
            "time_ratio_low": low,
            "time_ratio_high": high,
            "repeats": len(pairs),
            "step_flops": (step_flops := flops(step)),
            "forward_flops": (forward_flops := flops(forward)),
            "forwards_measured": step_flops / forward_flops if forward_flops else card,
            "forwards_card": card,
            "peak_bytes": peak_bytes(fresh(), bare),
            "forward_peak_bytes": peak_bytes(forward, bare),
        }
        return [cast(Record, record)]


def flops(action: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in ``action``.

    The counter sees what is dispatched below autograd, so batched (vmap), forward-mode and recomputed products count too;
    elementwise operations do not, on either side of a ratio.
    """
    formulas = {}
    if torch.backends.mkldnn.is_available():  # what large products go to, which torch does not count
        formulas[torch.ops.mkldnn._linear_pointwise] = lambda x, w, *rest, **named: 2 * math.prod(x) * w[0]
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        action()
    return int(counter.get_total_flops())


def peak_bytes(action: Callable[[], None], model: nn.Module) -> int:
    """The allocator's peak during two calls of ``action``, above what is held before them.

    Gradients and the optimizer's state count, as the first of the two calls makes them.
    """
    gc.collect()
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        action()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
        action()
    events = recorded.profiler.kineto_results.events()
    sizes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(sizes, key=lambda e: e[0]):  # stable: events of one instant stay in their order
        held += size
        peak = max(peak, held)
    return peak


def _timed(action: Callable[[], None], model: nn.Module) -> float:
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _ignore(_: object) -> None:
    """The loss a step returns is let go before the clock stops, as a training loop lets it go."""
