"""Differential evolution."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.searcher import Searcher
from dldw.searchers.sampling import Bounds, Box, coins, others


class DifferentialEvolution(Searcher):
    """Minimises with a population whose differences are the steps; a trial replaces its parent if it is no worse.

        m_i = x_a + mutation * (x_b - x_c)      rand/1: a, b, c distinct and not i;  best/1: x_a is the best point so far
        u_ij = m_ij with probability crossover, and for one j at random; else x_ij      (bin)
        x_i <- u_i  if  L(u_i) <= L(x_i)

    Cost: one evaluation a member, 2 d numbers held for each.

    Source: Storn & Price 1997, Journal of Global Optimization 11.

    Args:
        population: Candidates in one ``ask``.
        mutation: Scale F of the differences.
        crossover: Probability CR that a coordinate is the mutant's.
        strategy: ``rand/1/bin``, or ``best/1/bin``, which is faster and more easily caught in a local minimum.
        sigma: Standard deviation of the first population around the start point, in units of x; by default it is spread
            evenly over the bounds, or 1 where there are none.
        bounds: Lower and upper bound, each a number or one for each coordinate; what a mutant has beyond
            them is drawn anew within, which keeps a population alive that reflection lets shrink.
        generator: See ``Searcher``.

    Raises:
        DldwError: A setting is out of range; from ``reset``, the start point lies outside the bounds.

    Example:
        >>> import torch, dldw
        >>> evolution = dldw.DifferentialEvolution(population=16, generator=torch.Generator().manual_seed(0))
        >>> evolution.reset(torch.zeros(2))
        >>> for _ in range(40):
        ...     evolution.tell((evolution.ask() - 1).square().sum(1))
        >>> evolution.best[1] < 1e-3
        True
    """

    card = Card(
        summary="Differences between members of a population are the steps of the others.",
        claim="search",
        needs="loss values",
        forwards="population + 1 + ceil(population / 8)",
        memory="2 d for each member",
        paper="Storn & Price 1997, Journal of Global Optimization 11",
        space={
            "sigma": Float(1e-2, 3.0),
            "mutation": Float(0.2, 1.0, log=False),
            "crossover": Float(0.1, 1.0, log=False),
            "strategy": Choice(("rand/1/bin", "best/1/bin")),
        },
        note="In training the best point and, in turn, an eighth of the parents are evaluated again on each batch.",
    )
    _keeps = ("_x", "_losses")

    def __init__(
        self,
        *,
        population: int = 32,
        mutation: float = 0.5,
        crossover: float = 0.9,
        strategy: Literal["rand/1/bin", "best/1/bin"] = "rand/1/bin",
        sigma: float | None = None,
        bounds: Bounds | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        sigma = 1.0 if sigma is None and bounds is None else sigma
        if population < 4 or not (sigma is None or sigma > 0):
            raise DldwError(
                f"population must be at least 4, a parent and three others, and sigma positive, got {population} and {sigma}."
            )
        if not 0 < mutation <= 2 or not 0 <= crossover <= 1:
            raise DldwError(f"mutation must lie in (0, 2] and crossover in [0, 1], got {mutation} and {crossover}.")
        if strategy not in ("rand/1/bin", "best/1/bin"):
            raise DldwError(f"strategy must be rand/1/bin or best/1/bin, got {strategy!r}.")
        self.population, self.mutation, self.crossover = population, mutation, crossover
        self.strategy, self.sigma, self.bounds = strategy, sigma, bounds
        self._x = self._losses = torch.empty(0)

    def _reset(self, x0: Tensor) -> None:
        self._x0, self._box = x0, Box(self.bounds, x0)

    def _ask(self, generator: torch.Generator) -> Tensor:
        if not self._told:
            return self._box.population(self._x0, self.population, self.sigma, generator)
        x, n = self._x, self.population
        a, b, c = others(n, 3, generator)
        mutants = x.index_select(0, b).sub_(x.index_select(0, c)).mul_(self.mutation)
        mutants.add_(self._incumbent if self.strategy == "best/1/bin" else x.index_select(0, a))
        self._box.redraw(mutants, generator)
        share = coins(self.crossover, x, generator)
        share.scatter_(1, torch.randint(x.shape[1], (n, 1), generator=generator, device=x.device), 1)
        return torch.lerp(x, mutants, share)

    def _tell(self, candidates: Tensor, losses: Tensor) -> None:
        if not self._told:
            self._x, self._losses = candidates.clone(), losses
            return
        better = (losses <= self._losses).nonzero()[:, 0]
        self._x.index_copy_(0, better, candidates.index_select(0, better))
        self._losses.index_copy_(0, better, losses.index_select(0, better))

    def _memory(self) -> tuple[Tensor, Tensor] | None:
        return (self._x, self._losses) if self._told else None
