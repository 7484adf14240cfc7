"""The second concept: a searcher, which asks for losses of vectors and knows nothing of networks or derivatives."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from dldw.card import Card
from dldw.errors import DldwError
from dldw.memory import keep_freed_memory


class Proposals(Protocol):
    """Candidates [n, d]: a tensor, or what makes them when it is indexed, [d] by a number and [n, d] by a slice."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: Any, /) -> Tensor: ...


class Searcher(ABC):
    """Minimises: ``ask`` for candidates, ``tell`` their losses, lower is better; negate a score that should rise.

    Args:
        generator: Where the method draws its randomness from, on the device of the start point. By default one is made at
            ``reset`` and seeded with ``torch.initial_seed()``.
    """

    card: ClassVar[Card]
    _keeps: ClassVar[tuple[str, ...]] = ()
    """Attributes that are the method's own state."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self._start: Tensor | None = None
        self._asked: Proposals | None = None
        self._last: tuple[Proposals, Tensor] | None = None
        self._best: tuple[Tensor, float] | None = None  # at first the start point, at an infinite loss
        self._told = 0
        self._turn = 0

    @property
    def best(self) -> tuple[Tensor, float]:
        """The best candidate ever evaluated [d], and its loss; by their latest losses, where these were retold.

        Raises:
            DldwError: Nothing was told yet.
        """
        if self._best is None or self._best[1] == torch.inf:
            raise DldwError("there is no best candidate yet: no finite loss was told. Call ask, then tell.")
        return self._best

    @property
    def _incumbent(self) -> Tensor:
        """The vector of ``best``; at first the start point."""
        if self._best is None:
            raise DldwError("nothing is remembered before reset: the searcher has no start point. Call reset(x0).")
        return self._best[0]

    @property
    def mean(self) -> Tensor | None:
        """The centre of the search distribution [d], where the method has one."""
        return None

    def stop(self) -> dict[str, Any]:
        """Why the search should end, by the usual name of each criterion; empty while it should go on."""
        return {}

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
        keep_freed_memory()
        self._start, self._asked, self._told, self._turn = x0.detach().clone(), None, 0, 0
        self._last = None
        self._best = self._start, torch.inf
        if self.generator is None:
            self.generator = torch.Generator(x0.device).manual_seed(torch.initial_seed())
        self._reset(self._start)

    @property
    def waiting(self) -> Proposals | None:
        """The candidates that were asked for and still wait for their losses [n, d], if there are any."""
        return self._asked

    @property
    def last(self) -> tuple[Proposals, Tensor] | None:
        """The candidates last told [n, d] and their losses [n], to look at; none while others wait for theirs."""
        return self._last

    def ask(self) -> Tensor:
        """The candidates to evaluate next [n, d].

        Raises:
            DldwError: ``reset`` was not called, or the last candidates still wait for their losses.
        """
        return self.propose()[:]

    def propose(self) -> Proposals:
        """Like ``ask``, but where the method can make its candidates one by one, they are made when they are indexed."""
        if self._start is None or self.generator is None:
            raise DldwError("ask was called before reset: the searcher does not know where to start. Call reset(x0).")
        if self._asked is not None:
            raise DldwError("ask was called twice in a row: the last candidates still wait for tell(losses).")
        self._last = None  # let go before others are made: two populations are never held at a time
        self._asked = self._ask(self.generator)
        return self._asked

    def tell(self, losses: Tensor) -> None:
        """The losses [n] of the candidates last asked for; NaN counts as infinity and never becomes ``best``.

        Raises:
            DldwError: Nothing was asked for, or there is not one floating-point loss for each candidate.
        """
        if self._asked is None:
            raise DldwError("tell was called before ask: there are no candidates these losses could belong to.")
        if losses.shape != (len(self._asked),) or not losses.is_floating_point():
            raise DldwError(
                f"tell needs one floating-point loss for each of the {len(self._asked)} candidates, got "
                f"{losses.dtype} of shape {list(losses.shape)}."
            )
        losses = _worst_if_not_finite(losses, self._incumbent.device)
        candidates, self._asked = self._asked, None
        self._offer(candidates, losses)
        self._tell(candidates, losses)
        self._last = candidates, losses
        self._told += 1

    def remembered(self) -> Tensor:
        """What new candidates are compared with [k, d]: ``best`` (at first the start point), then others.

        Where the function changes, as the loss does with every minibatch, the losses told before are stale, and a candidate
        that was lucky once would stay ``best`` for ever. So evaluate these rows again along with the candidates, and
        ``retell`` them before ``tell``. ``best`` comes every time; of the other points that the method holds a loss of
        (personal bests, parents) an eighth comes in turn, so that no loss is older than eight generations.

        Raises:
            DldwError: ``reset`` was not called.
        """
        best, memory = self._incumbent[None], self._memory()
        if memory is None:
            return best
        return torch.cat([best, memory[0].index_select(0, self._in_turn(memory[1]))])

    def retell(self, losses: Tensor) -> None:
        """The losses [k], as the function is now, of what ``remembered`` gives; ``best`` is the best of them.

        Raises:
            DldwError: ``reset`` was not called, or there is not one floating-point loss for each row of ``remembered``.
        """
        best, memory = self._incumbent, self._memory()
        rows = () if memory is None else self._in_turn(memory[1])
        if losses.shape != (1 + len(rows),) or not losses.is_floating_point():
            raise DldwError(
                f"retell needs one floating-point loss for each of the {1 + len(rows)} rows of remembered(), got "
                f"{losses.dtype} of shape {list(losses.shape)}."
            )
        losses = _worst_if_not_finite(losses, best.device)
        self._best = best, float(losses[0])
        if memory is not None:
            points, held = memory
            again = torch.full_like(held, torch.inf)
            again[rows] = held[rows] = losses[1:]
            self._offer(points, again)
            self._turn = (self._turn + len(rows)) % len(held)

    def _offer(self, points: Proposals, losses: Tensor) -> None:
        at = int(losses.argmin())
        loss = float(losses[at])
        if self._best is None or loss < self._best[1]:
            self._best = points[at].clone(), loss

    def _in_turn(self, losses: Tensor) -> Tensor:
        """The rows of the method's memory that are to be evaluated again: an eighth."""
        n = len(losses)
        return (torch.arange(-(-n // 8), device=losses.device) + self._turn) % n

    @abstractmethod
    def _reset(self, x0: Tensor) -> None:
        """Sets up the method's own state."""

    @abstractmethod
    def _ask(self, generator: torch.Generator) -> Proposals:
        """New candidates [n, d]."""

    @abstractmethod
    def _tell(self, candidates: Any, losses: Tensor) -> None:
        """Learns from the losses, which are finite or +inf."""

    def _memory(self) -> tuple[Tensor, Tensor] | None:
        """The points [m, d], other than the best alone, whose losses the method holds, and those losses [m], by reference."""
        return None

    def _state(self) -> dict[str, Any]:
        """The method's own state."""
        return {name: getattr(self, name) for name in self._keeps}

    def _load_state(self, state: dict[str, Any]) -> None:
        """Restores the method's own state."""
        for name in self._keeps:
            setattr(self, name, state[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what later calls give."""
        return {
            "start": self._start,
            "asked": self._asked if isinstance(self._asked, Tensor) else None,
            "best": self._best,
            "told": self._told,
            "turn": self._turn,
            "generator": None if self.generator is None else self.generator.get_state(),
            "own": copy.deepcopy(self._state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        if state["start"] is not None:
            self.reset(state["start"])
        self._asked, self._best = state["asked"], state["best"]
        self._told, self._turn = state["told"], state["turn"]
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])
        self._load_state(copy.deepcopy(state["own"]))

    def forwards(self, d: int) -> float:
        """Cost of one ask-evaluate-tell in forward-pass equivalents."""
        return self.card.count_forwards(vars(self), d)


def _worst_if_not_finite(losses: Tensor, device: torch.device) -> Tensor:
    losses = losses.detach().to(device, torch.float64)
    return losses.nan_to_num(torch.inf, torch.inf, torch.inf)
