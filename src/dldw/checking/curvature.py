"""Second derivatives of the loss from loss values alone, each with an estimate of its own error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dldw.checking.quotient import Losses
from dldw.differences.every_weight import nudged
from dldw.directions import Coordinates
from dldw.errors import DldwError
from dldw.evaluate import Evaluator
from dldw.objective import Objective
from dldw.slopes import Central, Probes, power_of_two
from dldw.source import Batch, Loss
from dldw.weights import Weights


@dataclass(frozen=True)
class Curvature:
    """zᵀHz along a direction z.

    Attributes:
        value: Of the second derivative at step 0, by Richardson's extrapolation from steps h and h/2.
        error: Its estimated error.
        step: h.
        forwards: Losses that were taken.
    """

    value: float
    error: float
    step: float
    forwards: int


@dataclass(frozen=True)
class HessianDiagonal:
    """d²L/dw² of each weight alone.

    Attributes:
        values: One tensor for each parameter, by name, in float32 or float64.
        errors: The estimated errors of ``values``.
        step: h.
        path: How the losses were found; see ``dldw.single_weights``.
    """

    values: dict[str, Tensor]
    errors: dict[str, Tensor]
    step: float
    path: str


def hessian_diagonal(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    *,
    step: float | None = None,
    evaluate: Evaluator | None = None,
) -> HessianDiagonal:
    """The diagonal of the Hessian of the mean loss, from loss values alone.

        D(h)_i = (L(w + h e_i) - 2 L(w) + L(w - h e_i)) / h²,      D = D(h/4) + (D(h/4) - D(h/2)) / 3

    Where changes can be followed through the model (``dldw.differences``), the small difference of large losses is never
    taken. The error is the distance of D(h/4) from D(h/2) and what rounding can add; where D(h), D(h/2) and D(h/4) do not
    settle, as at a kink, it is as large as they are. The model is left as it was.

    Args:
        model: The model.
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        batch: Handed to ``loss``.
        step: h, in units of the weights; by default where truncation and rounding balance for weights of size 1.
        evaluate: An ``Evaluator`` with a memory bound of its own; a mode other than ``auto`` follows no changes.

    Raises:
        NonFiniteLossError: The loss was NaN or infinite.
        DldwError: Nothing can be trained, or ``step`` is no length.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> found = dldw.hessian_diagonal(model, lambda m, x: m(x).square().sum(1), torch.tensor([[1.0, 3.0]]).double())
        >>> [round(float(v), 6) for v in found.values["weight"].flatten()]
        [2.0, 18.0]
    """
    weights, evaluator = Weights.of(model), evaluate or Evaluator()
    weights.require_trainable()
    if step is not None:
        Central(step)  # refuses a step that is none
    objective = Objective(model, loss, batch, weights)
    objective.rewind()
    eps = max(torch.finfo(p.dtype).eps for p in weights.tensors)
    with torch.no_grad():
        found = (
            _followed(objective, step or power_of_two(eps ** (1 / 4)), evaluator) if evaluator.mode == "auto" else None
        )
        if found is None:
            found = _one_by_one(objective, step or power_of_two(eps ** (1 / 6)), evaluator)
        objective.finish()
    values, errors, step, path = found
    names = weights.named(model)
    return HessianDiagonal(dict(zip(names, values, strict=True)), dict(zip(names, errors, strict=True)), step, path)


_Found = tuple[list[Tensor], list[Tensor], float, str]


def _followed(objective: Objective, step: float, evaluator: Evaluator) -> _Found | None:
    """None where changes cannot be followed through the model."""
    if any(p.dtype not in (torch.float32, torch.float64) for p in objective.weights.tensors):
        return None
    try:
        found = [nudged(objective, step / n, evaluator.memory) for n in _SHORTER]
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, DldwError):
            raise
        return None
    size = abs(objective.mean(found[0].loss, "at the model's own weights")) if found[0].valued else 0.0
    values, errors = [], []
    for odd, *evens in zip(found[0].odd, *(f.even for f in found), strict=True):
        largest = float(odd.abs().max()) if odd.numel() else 0.0
        rounding = torch.finfo(odd.dtype).eps * (64 * largest + 64 * size) / step**2
        value, off = _extrapolated(
            [2 * even * (n / step) ** 2 for n, even in zip(_SHORTER, evens, strict=True)], rounding
        )
        values.append(value)
        errors.append(off)
    return values, errors, step, found[0].path


def _one_by_one(objective: Objective, step: float, evaluator: Evaluator) -> _Found:
    weights = objective.weights
    here, count = objective.any_mean_at(weights.tensors), weights.size
    quotients, largest = [], abs(here)
    for h in (step / n for n in _SHORTER):
        probes = Probes(Coordinates(weights, range(count)), weights, (1.0, -1.0), [h] * count)
        losses = torch.tensor(evaluator(objective, probes), dtype=torch.float64, device=weights.device)
        largest = max(largest, float(losses.abs().max()))
        quotients.append(((losses[:, 0] - here) + (losses[:, 1] - here)) / h**2)
    eps = max(torch.finfo(dtype).eps for dtype in (weights.dtype, objective.tensor(0.0).dtype))
    path = "batched" if evaluator.batches(objective, 2 * count) else "one by one"
    sizes, found = [p.numel() for p in weights.tensors], _extrapolated(quotients, 64 * eps * largest / step**2)
    values, errors = (
        [part.view(p.shape) for part, p in zip(flat.split(sizes), weights.tensors, strict=True)] for flat in found
    )
    return values, errors, step, path


_SHORTER = 1, 2, 4
"""What the step is divided by, one after the other."""


def _extrapolated(quotients: list[Tensor], rounding: float) -> tuple[Tensor, Tensor]:
    """The limit and its error; where quotients do not settle, as at a kink, the error is as large as what is seen."""
    wide, middle, narrow = quotients
    value, first, second = narrow + (narrow - middle) / 3, (middle - wide).abs(), (narrow - middle).abs()
    unsettled = second > first / 2 + rounding
    return value, second + rounding + (value.abs() + first).where(unsettled, 0)


def directional_curvature(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    direction: Mapping[str, Tensor],
    *,
    step: float | None = None,
    forwards: int = 29,
) -> Curvature:
    """zᵀHz, the curvature of the mean loss along a direction z, from loss values alone.

        C(h) = (L(w + h z) - 2 L(w) + L(w - h z)) / h²,      C = C(h/2) + (C(h/2) - C(h)) / 3

    The step is the one with the least estimated error among those that are tried. The model is left as it was.

    Args:
        model: The model.
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        batch: Handed to ``loss``.
        direction: z, a tensor for each parameter by name; parameters left out stay still.
        step: h, in units of z; the only one that is tried where it is given.
        forwards: How many losses may be taken, one for all and four for each step.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite at the model's own weights.
        DldwError: ``direction`` fits no parameter or is zero, or ``step`` is no length.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batch, z = torch.tensor([[1.0, 3.0]]).double(), {"weight": torch.ones(1, 2).double()}
        >>> found = dldw.directional_curvature(model, lambda m, x: m(x).square().sum(1), batch, z)
        >>> abs(found.value - 32) <= found.error
        True
    """
    if step is not None:
        Central(step)
    weights = Weights.of(model)
    weights.require_trainable()
    moved = _Along(model, weights, direction)
    objective = Objective(model, loss, batch, weights)
    objective.rewind()
    losses = Losses(objective)
    objective.require_finite(np.array([losses.here]))

    def at(length: float) -> float:
        return losses.at(moved(length))

    if step is None:
        first = power_of_two(losses.eps ** (1 / 6) * losses.scale / moved.length)
        quotient, spent = losses.best(lambda h: losses.bend(at, h), first, good=1e-9, forwards=forwards - 1)
    else:
        quotient, spent = losses.bend(at, step), 4
    with torch.no_grad():
        objective.finish()
    return Curvature(quotient.value, quotient.error, quotient.step, spent + 1)


class _Along:
    """w + length * z."""

    def __init__(self, model: nn.Module, weights: Weights, direction: Mapping[str, Tensor]) -> None:
        known = dict(model.named_parameters(remove_duplicate=False))
        self.weights, self.parts = weights, dict[int, Tensor]()
        for name, z in direction.items():
            if name not in known or id(known[name]) not in weights.places or z.shape != known[name].shape:
                fault = f"has the shape {list(z.shape)}" if name in known else "is for no parameter of the model"
                raise DldwError(
                    f"the direction's {name!r} {fault}. Give one tensor for each trainable parameter to be moved."
                )
            self.parts[weights.places[id(known[name])]] = z.detach().to(known[name])
        square = sum(float(z.double().square().sum()) for z in self.parts.values())
        if not square:
            raise DldwError("the direction is zero, along which nothing changes. Give a tensor that is not.")
        self.length = math.sqrt(square / sum(z.numel() for z in self.parts.values()))

    def __call__(self, length: float) -> list[Tensor]:
        tensors: list[Tensor] = list(self.weights.tensors)
        for i, z in self.parts.items():
            tensors[i] = torch.add(tensors[i].detach(), z, alpha=length)
        return tensors
