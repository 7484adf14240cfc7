"""What happens inside a model as a method trains it: where its estimate points, what each layer knows, what is to be seen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.compare.displacement import drawn_aside
from dldw.compare.estimate import exact_gradient
from dldw.compare.item import Identity, MethodItem, note
from dldw.compare.records import Record
from dldw.compare.sampled import trainable
from dldw.compare.train import START, train
from dldw.layers import Call, Layers
from dldw.learner import Descent, Learner
from dldw.tasks.task import Task
from dldw.weights import Weights

RIDGE = 1.0
"""Of the read-outs, in units of a squared feature summed over examples."""


@dataclass(frozen=True)
class Inside(MethodItem):
    """One training run that is looked into.

    At every evaluation the angle between one estimate of the method and the exact gradient, on a batch that is the same all
    along; at the end the accuracy of a linear read-out of every layer, and the task's pictures.
    """

    seed: int
    forwards: float
    per_decade: int

    @property
    def weight(self) -> float:
        return START + self.seconds_of(1.2 * self.forwards)

    @property
    def keys(self) -> list[Identity]:
        return [("inside", self.task, self.label, self.seed)]

    @property
    def what(self) -> str:
        return f"inside the model: {self.label}, seed {self.seed}"

    def run(self) -> list[Record]:
        task, angles = self.loaded(), []
        model = task.model(self.seed)
        held = next(task.batches(50_000 + self.seed))
        aimed = has_gradient(task, model, held)

        def look(point: dict[str, Any], learner: Learner) -> None:
            # an exact gradient is at 0° of itself, and what is no gradient source has no estimate
            if aimed and isinstance(learner, Descent) and learner.source.card.claim != "exact":
                angles.append({"step": point["step"], "forwards": point["forwards"], **angles_of(task, learner, held)})

        curve = train(
            task, self.spec, dict(self.settings), self.seed, forwards=self.forwards, per_decade=self.per_decade,
            model=model, progress=look,
        )  # fmt: skip
        if curve.reason in ("diverged", "error"):
            return [note(f"The model that {self.label} trains on {self.task} was not looked into: {curve.error}")]
        generator = torch.Generator().manual_seed(60_000 + self.seed)
        record: dict[str, Any] = {
            "kind": "inside",
            "task": self.task,
            "method": self.label,
            "seed": self.seed,
            "forwards": curve.points[-1]["forwards"],
            "metric": curve.points[-1][task.metric],
            "angles": angles,
            "layers": layer_accuracies(task, model, curve.points[-1]["accuracy"]),
            "pictures": [_plain(asdict(picture)) for picture in task.pictures(model, generator)],
        }
        return [cast(Record, record)]


def has_gradient(task: Task, model: nn.Module, batch: Any) -> bool:
    """Whether the loss can be differentiated at all."""
    try:
        exact_gradient(task, model, batch)
    except RuntimeError:
        return False
    return True


def angles_of(task: Task, learner: Descent, batch: Any) -> dict[str, float | None]:
    """Degrees between an estimate and the exact gradient, over all weights and over those of the first layer."""
    found = drawn_aside(learner.source, learner.model, batch)
    exact = exact_gradient(task, learner.model, batch).double()
    first = next(iter(trainable(learner.model).values())).numel()
    return {"angle": angle(found, exact), "first": angle(found[:first], exact[:first])}


def angle(a: Tensor, b: Tensor) -> float | None:
    """Degrees between two vectors; None where one of them is zero or not finite."""
    lengths = float(a.norm() * b.norm())
    if not lengths or not math.isfinite(lengths):
        return None
    return math.degrees(math.acos(max(-1.0, min(1.0, float(a @ b) / lengths))))


@torch.no_grad()
def layer_accuracies(task: Task, model: nn.Module, accuracy: float | None) -> list[dict[str, Any]]:
    """The test accuracy of a linear read-out of the input and of what every layer hands on, and that of the model itself.

    A read-out is fitted by ridge regression on training examples that the validation split is not among. What a layer hands
    on is what the next one is given, so that the non-linearity between them is included.

    Args:
        task: The task.
        model: The model.
        accuracy: As the method that trained it has it predict, which need not be by its output.
    """
    learnt, unseen = task.examples("train"), task.examples("test")
    if learnt is None or unseen is None:
        return []
    (x, y), (x_test, y_test) = learnt, unseen
    model.eval()
    seen, tested = features(model, x), features(model, x_test)
    found = [
        {"layer": number, "features": a.shape[1], "accuracy": _read_out(a, y, b, y_test)}
        for number, (a, b) in enumerate(zip(seen[:-1], tested[:-1], strict=True))
    ]
    return [*found, {"layer": len(found), "features": tested[-1].shape[1], "accuracy": accuracy}]


def features(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What every layer of the model is given, and the model's output, each [B, features]."""
    inputs: list[Tensor] = []

    def seen(call: Call) -> Tensor:
        inputs.append(call.input)
        return call.output()

    with torch.no_grad(), Layers(Weights.of(model), seen):
        out = model(x)
    return [t.flatten(1) for t in (*inputs, out)]


def _read_out(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    a, b = (F.pad(t.double(), (0, 1), value=1.0) for t in (x, x_test))
    wanted = F.one_hot(y, int(max(y.max(), y_test.max())) + 1).double()
    square = a.T @ a + RIDGE * torch.eye(a.shape[1], dtype=torch.float64)
    readout = torch.linalg.solve(square, a.T @ wanted)
    return float(((b @ readout).argmax(1) == y_test).double().mean())


def _plain(picture: dict[str, Any]) -> dict[str, Any]:
    """A picture as JSON has it: each image its pixels row by row."""
    pixels: Tensor = picture["pixels"]
    return {**picture, "size": list(pixels.shape[2:]), "pixels": pixels.flatten(2).tolist()}
