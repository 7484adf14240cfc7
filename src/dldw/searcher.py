"""The second concept: a searcher, which asks for losses of vectors and knows nothing of networks or derivatives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from dldw.card import Card
from dldw.errors import DldwError


class Searcher(ABC):
    """Minimises: ``ask`` for candidates, ``tell`` their losses, lower is better; negate a score that should rise.

    Args:
        generator: Where the method draws its randomness from, on the device of the start point. By default one is made at
            ``reset`` and seeded with ``torch.initial_seed()``.
    """

    card: ClassVar[Card]

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self._start: Tensor | None = None
        self._asked: Tensor | None = None
        self._best: tuple[Tensor, float] | None = None

    @property
    def best(self) -> tuple[Tensor, float]:
        """The best candidate ever evaluated [d], and its loss.

        Raises:
            DldwError: Nothing was told yet.
        """
        if self._best is None:
            raise DldwError("there is no best candidate yet: no finite loss was told. Call ask, then tell.")
        return self._best

    def reset(self, x0: Tensor) -> None:
        """Starts over at ``x0`` [d], floating point.

        Raises:
            DldwError: ``x0`` is not a floating-point vector.
        """
        if x0.ndim != 1 or not x0.is_floating_point() or not x0.numel():
            raise DldwError(
                f"the start point must be a floating-point vector [d], got {x0.dtype} of shape {list(x0.shape)}. "
                "Convert and flatten it: x0.float().flatten()."
            )
        self._start, self._asked, self._best = x0.detach().clone(), None, None
        if self.generator is None:
            self.generator = torch.Generator(x0.device).manual_seed(torch.initial_seed())
        self._reset(self._start)

    @property
    def waiting(self) -> Tensor | None:
        """The candidates that were asked for and still wait for their losses [n, d], if there are any."""
        return self._asked

    def ask(self) -> Tensor:
        """The candidates to evaluate next [n, d].

        Raises:
            DldwError: ``reset`` was not called, or the last candidates still wait for their losses.
        """
        if self._start is None or self.generator is None:
            raise DldwError("ask was called before reset: the searcher does not know where to start. Call reset(x0).")
        if self._asked is not None:
            raise DldwError("ask was called twice in a row: the last candidates still wait for tell(losses).")
        self._asked = self._ask(self.generator)
        return self._asked

    def tell(self, losses: Tensor) -> None:
        """The losses [n] of the candidates last asked for; NaN counts as infinity and never becomes ``best``.

        Raises:
            DldwError: Nothing was asked for, or there is not one floating-point loss for each candidate.
        """
        if self._asked is None:
            raise DldwError("tell was called before ask: there are no candidates these losses could belong to.")
        if losses.shape != self._asked.shape[:1] or not losses.is_floating_point():
            raise DldwError(
                f"tell needs one floating-point loss for each of the {len(self._asked)} candidates, got "
                f"{losses.dtype} of shape {list(losses.shape)}."
            )
        losses = torch.where(losses.isfinite(), losses, torch.inf).to(self._asked.device)
        candidates, self._asked = self._asked, None
        at = int(losses.argmin())
        loss = float(losses[at])
        if loss < (self._best[1] if self._best else torch.inf):
            self._best = candidates[at].clone(), loss
        self._tell(candidates, losses)

    @abstractmethod
    def _reset(self, x0: Tensor) -> None:
        """Sets up the method's own state."""

    @abstractmethod
    def _ask(self, generator: torch.Generator) -> Tensor:
        """New candidates [n, d]."""

    @abstractmethod
    def _tell(self, candidates: Tensor, losses: Tensor) -> None:
        """Learns from the losses, which are finite or +inf."""

    def _state(self) -> dict[str, Any]:
        """The method's own state."""
        return {}

    def _load_state(self, state: dict[str, Any]) -> None:
        """Restores the method's own state."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what later calls give."""
        return {
            "start": self._start,
            "asked": self._asked,
            "best": self._best,
            "generator": None if self.generator is None else self.generator.get_state(),
            "own": self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        if state["start"] is not None:
            self.reset(state["start"])
        self._asked, self._best = state["asked"], state["best"]
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])
        self._load_state(state["own"])

    def forwards(self, d: int) -> float:
        """Cost of one ask-evaluate-tell in forward-pass equivalents."""
        return self.card.count_forwards(vars(self), d)
