"""CMA-ES: a Gaussian whose covariance learns the shape of the function."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.searcher import Searcher
from dldw.searchers.evolution import Evolution
from dldw.searchers.sampling import Bounds, Box


class CMAES(Searcher):
    """Minimises by sampling a Gaussian and moving its mean, step size and covariance to where the losses are low.

        x_i = m + sigma y_i,      y_i = B D z_i,      z_i ~ N(0, I),      C = B D² Bᵀ
        m       <- m + sigma <y>,      <y> = sum of w_i y_i over the better half
        p_sigma <- (1 - c_s) p_sigma + sqrt(c_s (2 - c_s) mu_eff) C^(-1/2) <y>
        sigma   <- sigma exp(c_s / d_s (|p_sigma| / E|N(0, I)| - 1))
        p_c     <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) <y>
        C       <- (1 - c_1 - c_mu sum w) C + c_1 p_c p_cᵀ + c_mu sum of w_i y_i y_iᵀ over all candidates

    The worse half has negative weights in the last line, the active update, each divided by |z_i|² / d; h is 0 while p_sigma
    is long. ``diagonal`` adapts the variances alone, at a greater rate. With restarts, a run that meets a criterion of
    ``stop`` gives way to the next at once, from a random point of the bounds or else from x0: ``ipop`` doubles the
    population each time, ``bipop`` does so in turn with runs of a small population and a small sigma, which spend as many
    evaluations. With bounds, candidates are mirrored at the walls.

    Cost: one evaluation a candidate; 4 n d² operations, and of the order of 10 d³ for an eigendecomposition about every
    1 / (2 d (c_1 + c_mu)) generations. Diagonal: a multiple of n d. All in float64, whatever the dtype of x0.

    Source: Hansen 2016, arXiv 1604.00772; Ros & Hansen 2008 (diagonal); Auger & Hansen 2005 (ipop); Hansen 2009 (bipop).

    Args:
        sigma: First step size, in units of x: a third of the distance within which the minimum is expected.
        population: Candidates in one ``ask``; 4 + 3 ln d by default.
        diagonal: Whether to adapt a diagonal covariance only, for large or separable problems.
        restarts: ``ipop`` or ``bipop``.
        bounds: Lower and upper bound, each a number or one for each coordinate.
        generator: See ``Searcher``.

    Raises:
        DldwError: A setting is out of range; from ``reset``, the start point lies outside the bounds.

    Example:
        >>> import torch, dldw
        >>> cma = dldw.CMAES(0.5, generator=torch.Generator().manual_seed(0))
        >>> cma.reset(torch.zeros(4))
        >>> while not cma.stop() and (cma.mean - 1).norm() > 1e-3:
        ...     cma.tell((cma.ask() - 1).square().sum(1))
        >>> cma.best[1] < 1e-5
        True
    """

    card = Card(
        summary="A Gaussian that learns from the ranks of losses where to sample, how far, and in which shape.",
        claim="search",
        needs="loss values",
        forwards="(population or 4 + floor(3 * log(d))) + 1",
        memory="3 d² and 2 d for each candidate, in float64; diagonal: 6 d and 2 d for each candidate",
        paper="Hansen 2016, arXiv 1604.00772",
        space={"sigma": Float(1e-2, 3.0), "diagonal": Choice((False, True))},
        note="In training the incumbent is evaluated again on each batch. Later runs of ipop and bipop have more candidates.",
    )

    def __init__(
        self,
        sigma: float = 0.5,
        *,
        population: int | None = None,
        diagonal: bool = False,
        restarts: Literal["ipop", "bipop"] | None = None,
        bounds: Bounds | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        if not (sigma > 0 and math.isfinite(sigma)):
            raise DldwError(
                f"sigma must be positive and finite, got {sigma}. Take a third of the distance the minimum may be at."
            )
        if population is not None and population < 4:
            raise DldwError(
                f"population must be at least 4, got {population}: the ranks of fewer say too little. "
                "Leave it out for 4 + 3 ln d."
            )
        if restarts not in (None, "ipop", "bipop"):
            raise DldwError(f"restarts must be ipop, bipop or None, got {restarts!r}.")
        self.sigma, self.population, self.diagonal = sigma, population, diagonal
        self.restarts, self.bounds = restarts, bounds

    def _reset(self, x0: Tensor) -> None:
        self._box, self._x0 = Box(self.bounds, x0), x0
        self._doublings, self._small, self._spent, self._limit = 0, True, [0, 0], math.inf
        self.runs = 1
        """Runs begun since ``reset``."""
        self._first = self.population or 4 + int(3 * math.log(len(x0)))
        self._run = Evolution(x0, self.sigma, self._first, self.diagonal)

    @property
    def mean(self) -> Tensor:
        """The mean of the Gaussian [d], within the bounds.

        Raises:
            DldwError: ``reset`` was not called.
        """
        if self._start is None:
            raise DldwError("there is no mean before reset: the search does not know where to start. Call reset(x0).")
        return self._box.reflect(self._run.m.to(self._run.dtype, copy=True)[None])[0]

    def stop(self) -> dict[str, Any]:
        """The criteria that end the search, by the names of pycma, with the values that met them; with restarts none does."""
        return {} if self.restarts or self._start is None else self._run.stop()

    def _ask(self, generator: torch.Generator) -> Tensor:
        return self._box.reflect(self._run.sample(generator).to(self._run.dtype))

    def _tell(self, candidates: Tensor, losses: Tensor) -> None:
        self._spent[self._small] += len(losses)
        self._limit -= len(losses)
        self._run.learn(losses)
        if self.restarts and (self._limit <= 0 or self._run.stop()):
            self._restart()

    def _restart(self) -> None:
        """Begins the next run; with ``bipop`` the regime that spent less, small populations or large, has its turn."""
        x0, first, generator = self._x0, self._first, self.generator
        self._small = self.restarts == "bipop" and self._spent[True] < self._spent[False]
        self._doublings += not self._small
        population, sigma, self._limit = first * 2**self._doublings, self.sigma, math.inf
        if self._small:
            u, v = torch.rand(2, dtype=torch.float64, generator=generator, device=x0.device).tolist()
            population, sigma = int(first * 2 ** (self._doublings * u * u)), sigma * 0.01**v
            self._limit = self._spent[False] / 2
        if self.bounds is not None:
            x0 = self._box.low + self._box.width * torch.empty_like(x0).uniform_(generator=generator)
        self._run = Evolution(x0, sigma, population, self.diagonal)
        self.runs += 1

    def _state(self) -> dict[str, Any]:
        if self._start is None:
            return {}
        numbers = [
            self._doublings,
            self._small,
            *self._spent,
            self._limit,
            self.runs,
            self._run.sigma0,
            self._run.population,
        ]
        return self._run.state() | {"search": torch.tensor(numbers, dtype=torch.float64)}

    def _load_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        doublings, small, large_spent, small_spent, limit, runs, sigma, population = state["search"].tolist()
        self._doublings, self._small, self._spent = int(doublings), bool(small), [int(large_spent), int(small_spent)]
        self._limit, self.runs = limit, int(runs)
        self._run = Evolution(self._x0, sigma, int(population), self.diagonal)
        self._run.load(state)
