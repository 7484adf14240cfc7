"""The loss over two weights, and each method's way through it from the same start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dldw.compare.estimate import exact_gradient, trained_point
from dldw.compare.item import Identity, Item, note
from dldw.compare.records import Record
from dldw.compare.spec import Spec
from dldw.compare.train import forwards_per_step
from dldw.errors import DldwError
from dldw.tasks.task import Task

TRAINED = 100
NARROWER = 8
"""The network is that much narrower than the task's own: in a wide one no two weights change the loss by much."""
FIRST_STEP = 0.1
"""Length of each method's first step on average, over half the side of the map: all start at one pace."""


class TwoWeights(nn.Module):
    """A model of which only two weights can be trained.

    Args:
        model: The model, trained.
        at: Positions of the two among all its weights.
    """

    def __init__(self, model: nn.Module, at: tuple[int, int]) -> None:
        super().__init__()
        self.whole = model.requires_grad_(False)
        self._names: list[tuple[str, int]] = []
        values = []
        for position in at:
            for name, p in model.named_parameters():
                if position < p.numel():
                    self._names.append((name, position))
                    values.append(p.flatten()[position].clone())
                    break
                position -= p.numel()
        self.pair = nn.Parameter(torch.stack(values))

    @property
    def names(self) -> list[str]:
        """The two weights as a reader finds them: parameter and index."""
        shapes = {name: p.shape for name, p in self.whole.named_parameters()}
        found = []
        for name, position in self._names:
            index = torch.unravel_index(torch.tensor(position), shapes[name])
            found.append(f"{name}[{', '.join(str(int(i)) for i in index)}]")
        return found

    def forward(self, *inputs: Any) -> Any:
        """The model's own forward with the two weights in their places."""
        changed: dict[str, Tensor] = dict(self.whole.named_parameters())
        for i, (name, position) in enumerate(self._names):
            p = changed[name]
            spot = torch.zeros(p.numel(), dtype=p.dtype, device=p.device)
            spot[position] = 1.0
            changed[name] = p + (spot * (self.pair[i] - p.flatten()[position])).view_as(p)
        return functional_call(self.whole, changed, inputs)


@dataclass(frozen=True)
class Mapping2d(Item):
    """The map and all paths.

    Attributes:
        methods: Each with the settings it is built with.
        grid: Points along each side.
        forwards: Spent on each path.
    """

    methods: tuple[tuple[Spec, tuple[tuple[str, Any], ...]], ...]
    grid: int
    forwards: float

    @property
    def weight(self) -> float:
        return 0.5 + self.seconds_of(self.grid**2 + 3 * self.forwards * len(self.methods))

    @property
    def keys(self) -> list[Identity]:
        return [("landscape", self.task), *(("path", self.task, spec.label) for spec, _ in self.methods)]

    @property
    def what(self) -> str:
        return "two-weight landscape"

    def run(self) -> list[Record]:
        task = self.loaded()
        try:
            width = None if task.width is None else max(2, task.width // NARROWER)
            model, batch = trained_point(task, 0, width, steps=TRAINED)
            at = _two_that_matter(task, model)
        except RuntimeError as error:
            return [note(f"There is no two-weight landscape of {self.task}: {error}")]
        pair = TwoWeights(model, at)
        centre = pair.pair.detach().clone()
        try:
            reach = _reach(task, pair, batch, centre)
        except AttributeError as error:
            return [
                note(f"There is no two-weight landscape of {self.task}: its loss is not of a forward pass: {error}")
            ]
        x = torch.linspace(float(centre[0]) - reach, float(centre[0]) + reach, self.grid).tolist()
        y = torch.linspace(float(centre[1]) - reach, float(centre[1]) + reach, self.grid).tolist()
        loss = [[_loss_at(task, pair, batch, (a, b)) for a in x] for b in y]
        far = 0.8 * reach
        corners = [(float(centre[0]) + s * far, float(centre[1]) + t * far) for s in (-1, 1) for t in (-1, 1)]
        start = max(corners, key=lambda corner: _loss_at(task, pair, batch, corner))
        drawn: dict[str, Any] = {
            "kind": "landscape",
            "task": self.task,
            "width": width,
            "names": pair.names,
            "x": x,
            "y": y,
            "loss": loss,
        }
        records = [cast(Record, drawn)]
        for spec, settings in self.methods:
            try:
                records.append(self._path(task, spec, dict(settings), pair, batch, start, reach))
            except (DldwError, RuntimeError) as error:
                records.append(note(f"{spec.label} has no path through the two-weight landscape: {error}"))
        return records

    def _path(
        self, task: Task, spec: Spec, settings: dict[str, Any], pair: TwoWeights, batch: Any,
        start: tuple[float, float], reach: float,
    ) -> Record:  # fmt: skip
        _put(pair, start)
        if spec.method.is_source:
            settings.update(optimizer="sgd", momentum=0.0)
            settings["lr"] = FIRST_STEP * reach / _mean_length(task, spec, settings, pair, batch)
        elif "sigma" in spec.method.settings:
            settings["sigma"] = reach / 2
        learner = spec.method.build(pair, task.loss, torch.Generator().manual_seed(1), **settings)
        unit = forwards_per_step(spec, settings, 2)
        points = [(*start, _loss_at(task, pair, batch, start), 0.0)]
        for step in range(1, max(1, int(self.forwards // unit)) + 1):
            learner.step(batch)
            a, b = pair.pair.detach().tolist()
            points.append((a, b, _loss_at(task, pair, batch, (a, b)), step * unit))
        columns = list(zip(*points, strict=True))
        path: Mapping[str, Any] = {
            "kind": "path", "task": self.task, "method": spec.label,
            **{name: list(column) for name, column in zip(("x", "y", "loss", "forwards"), columns, strict=True)},
        }  # fmt: skip
        return cast(Record, path)


def _two_that_matter(task: Task, model: nn.Module, batches: int = 20) -> tuple[int, int]:
    """Positions of the two weights with the largest mean squared gradient: the map is not flat along them."""
    stream = task.batches(1)
    squares = sum(exact_gradient(task, model, next(stream)).square() for _ in range(batches))
    first, second = torch.as_tensor(squares).topk(2).indices.tolist()
    return first, second


def _reach(task: Task, pair: TwoWeights, batch: Any, centre: Tensor) -> float:
    """Half a side of the map: far enough that the loss rises to its corners, and not so far that it is flat there."""
    a, b = centre.tolist()
    middle = _loss_at(task, pair, batch, (a, b))
    reach = 0.5
    while reach < 4:
        corners = [_loss_at(task, pair, batch, (a + s * reach, b + t * reach)) for s in (-1, 1) for t in (-1, 1)]
        if sum(corners) / 4 > 1.6 * middle:
            break
        reach *= 1.5
    return reach


def _mean_length(
    task: Task, spec: Spec, settings: dict[str, Any], pair: TwoWeights, batch: Any, draws: int = 16
) -> float:
    """Root mean square length of a method's estimate at the start."""
    learner: Any = spec.method.build(pair, task.loss, torch.Generator().manual_seed(2), **settings)
    squares = 0.0
    for _ in range(draws):
        pair.zero_grad()
        learner.source(pair, batch)
        squares += float(torch.as_tensor(pair.pair.grad).square().sum())
    pair.zero_grad()
    return float(max((squares / draws) ** 0.5, 1e-12))


def _put(pair: TwoWeights, point: tuple[float, float]) -> None:
    with torch.no_grad():
        pair.pair.copy_(torch.tensor(point))


def _loss_at(task: Task, pair: TwoWeights, batch: Any, point: tuple[float, float]) -> float:
    keep = pair.pair.detach().clone()
    _put(pair, point)
    with torch.no_grad():
        loss = float(task.loss(pair, batch).mean())
        pair.pair.copy_(keep)
    return loss
