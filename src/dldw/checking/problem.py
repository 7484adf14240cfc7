"""A gradient in question beside the loss it claims to be the gradient of, here or on a copy in float64."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dldw.checking.quotient import Direction
from dldw.errors import DldwError
from dldw.objective import Objective
from dldw.source import Batch, Loss
from dldw.weights import Weights


class BackwardError(DldwError):
    """The backward pass raised."""


class Unavailable(DldwError):
    """There is no such derivative, so nothing is claimed of it."""


@dataclass
class Spent:
    """Passes taken so far."""

    forwards: int = 0
    backwards: int = 0


class Claim(ABC):
    """What is claimed about the derivative."""

    tensors: Sequence[Tensor | None] | None = None
    """The gradient, one tensor for each weight (None where there is none), if the claim is made as a whole."""
    eps: float
    """The machine epsilon of the dtype it is made in."""

    @abstractmethod
    def along(self, direction: Direction) -> float:
        """The slope along ``direction`` by what is claimed."""


class Gradient(Claim):
    """A gradient, one tensor for each weight.

    Args:
        tensors: The gradient; None counts as zero.
        loss: The mean loss of the forward pass that came before, if there was one.
        order: When each weight was last used on the way to the loss, those alone to which autograd found a path.
    """

    def __init__(
        self, tensors: Sequence[Tensor | None], loss: float | None = None, order: dict[int, int] | None = None
    ) -> None:
        self.tensors: list[Tensor | None] = [None if t is None else t.detach().to_dense() for t in tensors]
        self.loss, self.order = loss, order
        self.eps = max((torch.finfo(t.dtype).eps for t in self.tensors if t is not None), default=0.0)

    def along(self, direction: Direction) -> float:
        return direction.dot(self.tensors)


class ForwardMode(Claim):
    """The slopes that forward-mode differentiation gives."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.eps = max(torch.finfo(p.dtype).eps for p in objective.weights.tensors)

    def along(self, direction: Direction) -> float:
        weights = self._objective.weights.tensors
        tangents = [z.to(p.dtype) for z, p in zip(direction.tangents(), weights, strict=True)]
        try:
            return self._objective.jvp(tangents, plain=False)[1]
        except RuntimeError as error:
            raise Unavailable(f"forward mode raises: {error}") from error


Claims = Callable[["Problem"], Claim]


@dataclass
class Problem:
    """A loss as a function of the weights of ``model``, and what is claimed of its derivative.

    Attributes:
        model: Holds the weights.
        loss: ``loss(model, batch)``.
        batch: Handed to ``loss``.
        make: Makes the claim of a problem.
        chosen: Which weights are in question, by their place in ``Weights.tensors``.
        names: The name of every weight.
        spent: Counts the passes, also of copies.
    """

    model: nn.Module
    loss: Loss
    batch: Batch
    make: Claims
    chosen: tuple[int, ...]
    names: tuple[str, ...]
    spent: Spent = field(default_factory=Spent)

    def __post_init__(self) -> None:
        self.weights = Weights.of(self.model)
        self.objective = Objective(self.model, self._counted, self.batch, self.weights)
        self.objective.rewind()  # every evaluation from here on starts from the random state of now

    def _counted(self, model: nn.Module, batch: Batch) -> Tensor:
        self.spent.forwards += 1
        return self.loss(model, batch)

    def claim(self) -> Claim:
        """What is claimed, at the weights as they are."""
        self.objective.rewind()
        return self.make(self)

    def copied(self, *, moved: float = 0.0, seed: int = 0) -> Problem:
        """The same on a copy in float64, whose weights are moved by so much times random signs.

        Raises:
            Exception: Whatever the model raises when it is copied or converted.
        """
        self.objective.rewind()
        model = copy.deepcopy(self.model).double()
        batch = tree_map(_wide, self.batch)
        for p in model.parameters():
            p.grad = None
        problem = Problem(model, self.loss, batch, self.make, self.chosen, self.names, self.spent)
        if len(problem.weights.tensors) != len(self.weights.tensors):
            raise DldwError("a copy of the model does not have the same trainable weights")
        if moved:
            generator = torch.Generator(self.weights.device).manual_seed(seed)
            with torch.no_grad():
                for p in problem.weights.tensors:
                    p.add_(torch.empty_like(p).uniform_(-1, 1, generator=generator), alpha=moved)
        return problem


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def backward(problem: Problem) -> Gradient:
    """What ``loss.backward()`` puts into ``.grad``; gradients, buffers and random state are left as they were.

    Raises:
        BackwardError: The backward pass raised.
        DldwError: The loss is not a scalar or one value per example.
    """
    with _left_as_it_was(problem):
        return _backward(problem)


def twice(problem: Problem) -> Gradient:
    """Like ``backward``, after another backward pass whose traces in the buffers are left in place."""
    with _left_as_it_was(problem):
        _backward(problem)
        return _backward(problem)


def _backward(problem: Problem) -> Gradient:
    objective, tensors = problem.objective, problem.weights.tensors
    for p in tensors:
        p.grad = None
    with torch.enable_grad():
        losses = objective.at(tensors)
        objective.check(losses)
        value = losses.mean() if losses.is_floating_point() else losses.double().mean()
        order = _order(value, tensors)
        if value.requires_grad:
            problem.spent.backwards += 1
            try:
                torch.autograd.backward(value)
            except RuntimeError as error:
                raise BackwardError(str(error).strip()) from error
    return Gradient([p.grad for p in tensors], float(losses.detach().double().mean()), order)


@contextmanager
def _left_as_it_was(problem: Problem) -> Iterator[None]:
    """Gradients and buffers are put back, also those that a backward pass writes."""
    held = [p.grad for p in problem.weights.tensors]
    buffers = [(b, b.clone(), b._version) for b in problem.model.buffers()]
    try:
        yield
    finally:
        for p, grad in zip(problem.weights.tensors, held, strict=True):
            p.grad = grad
        with torch.no_grad():
            for buffer, kept, version in buffers:
                if buffer._version != version:
                    buffer.copy_(kept)


def _order(value: Tensor, tensors: Sequence[Tensor]) -> dict[int, int]:
    """When each of ``tensors`` was last used in the graph of ``value``, those alone that it leads to."""
    places = {id(t): i for i, t in enumerate(tensors)}
    order: dict[int, int] = {}
    stack: list[Any] = [value.grad_fn]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            place = places.get(id(getattr(following, "variable", None)))
            if place is not None:
                order[place] = max(order.get(place, 0), node._sequence_nr())
            stack.append(following)
    return order
