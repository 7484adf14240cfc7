"""Genetic algorithms: selection, crossover and Gaussian mutation."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.noise import normal
from dldw.searcher import Searcher
from dldw.searchers.chains import Chain, Chains
from dldw.searchers.sampling import Crossover, around, share_of_the_father, thinned

Selection = Literal["truncation", "tournament"]
_HARDNESS = {"truncation": 0.2, "tournament": 3}
"""Of each selection, unless it is said: a share, a number of contestants."""


class GeneticAlgorithm(Searcher):
    """Minimises with a population of which the fittest have mutated offspring; the elites go on unchanged.

        x_i = mother + w o (father - mother) + mutation_sigma * m_i o z_i,      z ~ N(0, I),      m ~ Bernoulli(rate)

    The parents are drawn from the best fifth (``truncation``) or each is the best of three drawn (``tournament``); how many
    may be said: the harder the selection, the faster downhill, and the sooner all are in one local minimum. The
    share w of the father is nothing at all (no crossover), a coin for each coordinate (``uniform``), all coordinates from
    a random one on (``one-point``), or U(-1/2, 3/2) for each coordinate (``blend``). With crossover, truncation draws no
    parents: the best fifth take turns, each with the next in rank, which ends lower than couples made by chance. Elites are
    evaluated again with their offspring, so that an old lucky minibatch keeps none of them alive.

    With ``seeds``, as in deep neuroevolution, an individual is held as the chain of seeds of its mutations, memory that
    does not grow with d. Training makes the vectors as they are evaluated; ``ask`` makes all of them at once.

    Cost: one evaluation a member; with ``seeds``, also drawing each parent's whole chain every generation.

    Source: Holland 1975; Such et al. 2017 (arXiv 1712.06567), chains of seeds; Eshelman & Schaffer 1993, the blend.

    Args:
        population: Candidates in one ``ask``, the elites included.
        selection: ``truncation`` or ``tournament``; or that and the share of the population that parents are drawn from, 0.2
            by default, or the number of contestants, 3.
        elites: The best of a generation, which are members of the next.
        crossover: None, ``uniform``, ``one-point`` or ``blend``.
        mutation_sigma: Standard deviation of a mutation of all coordinates; or that and the rate, the probability that a
            coordinate mutates: few a long way lead out of local minima, all of them a short way downhill.
        sigma: Standard deviation of the first population around the start point.
        seeds: Whether to hold individuals as chains of seeds; not with crossover.
        generator: See ``Searcher``.

    Raises:
        DldwError: A setting is out of range, or ``seeds`` comes with crossover.

    Example:
        >>> import torch, dldw
        >>> genetic = dldw.GeneticAlgorithm(population=32, crossover="blend", generator=torch.Generator().manual_seed(0))
        >>> genetic.reset(torch.zeros(2))
        >>> for _ in range(40):
        ...     genetic.tell((genetic.ask() - 1).square().sum(1))
        >>> genetic.best[1] < 0.01
        True
    """

    card = Card(
        summary="The fittest have offspring, crossed over and mutated; the elites go on unchanged.",
        claim="search",
        needs="loss values",
        forwards="population + 1",
        memory="d for each parent; as chains of seeds, nothing that grows with d",
        paper="Holland 1975; Such et al. 2017 (arXiv 1712.06567)",
        space={
            "sigma": Float(1e-3, 1.0),
            "mutation_sigma": Float(1e-3, 0.3),
            "crossover": Choice((None, "uniform", "one-point", "blend")),
        },
        note="In training the best weights are evaluated again on each batch, and the elites with every generation.",
    )

    def __init__(
        self,
        *,
        population: int = 64,
        selection: Selection | tuple[Selection, float] = "truncation",
        elites: int = 1,
        crossover: Crossover | None = None,
        mutation_sigma: float | tuple[float, float] = 0.05,
        sigma: float = 0.3,
        seeds: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        kind, hardness = selection if isinstance(selection, tuple) else (selection, _HARDNESS.get(selection, 0.0))
        deviation, rate = mutation_sigma if isinstance(mutation_sigma, tuple) else (mutation_sigma, 1.0)
        if not 0 <= elites < population or population < 2:
            raise DldwError(f"population must be at least 2 and exceed the elites, got {population} and {elites}.")
        if not sigma > 0 or deviation < 0:
            raise DldwError(f"sigma must be positive, mutation_sigma not negative; got {sigma} and {deviation}.")
        if not 0 < rate <= 1:
            raise DldwError(
                f"the rate beside mutation_sigma must lie in (0, 1], got {rate}. At 1 every coordinate mutates."
            )
        if kind not in _HARDNESS:
            raise DldwError(f"selection must be truncation or tournament, got {kind!r}.")
        if kind == "truncation" and not 0 < hardness <= 1:
            raise DldwError(
                f"the share that parents are drawn from must lie in (0, 1], got {hardness}. At 1 nothing is selected."
            )
        if kind == "tournament" and (not hardness >= 1 or hardness % 1):
            raise DldwError(
                f"a tournament has a whole number of contestants, at least 1, got {hardness}. Two are usual, or three."
            )
        if crossover not in (None, "uniform", "one-point", "blend"):
            raise DldwError(f"crossover must be None, uniform, one-point or blend, got {crossover!r}.")
        if seeds and crossover is not None:
            raise DldwError(
                f"an individual held as a chain of seeds has one parent, so {crossover!r} crossover cannot be written down. "
                "Use crossover=None, or seeds=False."
            )
        self.population, self.elites, self.crossover = population, elites, crossover
        self.selection, self.hardness = kind, hardness
        self.mutation_sigma, self.mutation_rate, self.sigma, self.seeds = deviation, rate, sigma, seeds
        self._pool: Tensor | list[Chain] = []  # what parents are drawn from, the best first

    def _reset(self, x0: Tensor) -> None:
        self._x0, self._pool = x0, []

    def _ask(self, generator: torch.Generator) -> Tensor | Chains:
        pool, offspring = self._pool, self.population - self.elites
        if isinstance(pool, Tensor):
            mutants = pool.new_empty((self.population, pool.shape[1]))
            mutants[: self.elites] = pool[: self.elites]
            children = normal(mutants[self.elites :], generator).mul_(self.mutation_sigma)
            thinned(children, self.mutation_rate, generator)
            if self.crossover is None:
                parents = pool.index_select(0, self._parents(offspring, generator))
            else:
                parents, fathers = (pool.index_select(0, rows) for rows in self._couples(offspring, generator))
                parents.lerp_(fathers, share_of_the_father(self.crossover, parents, generator))
            children.add_(parents)
            return mutants
        if not self.seeds:
            return around(self._x0, self.population, self.sigma, generator)
        unchanged: list[Chain] = pool[: self.elites] if pool else [()]
        family: list[Chain] = [()] * (self.population - 1)
        if pool:  # siblings come beside each other, as the parent of the last vector made is at hand
            family = [pool[row] for row in self._parents(offspring, generator).sort().values.tolist()]
        seeds = torch.randint(2**62, (len(family),), generator=generator, device=generator.device).tolist()
        return self._grown(unchanged + [(*chain, seed) for chain, seed in zip(family, seeds, strict=True)])

    def _grown(self, chains: list[Chain]) -> Chains:
        return Chains(self._x0, self.sigma, self.mutation_sigma, self.mutation_rate, chains)

    def _parents(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows of the pool, [count]; as the best come first, the winner of a tournament is the lowest row."""
        contestants = int(self.hardness) if self.selection == "tournament" else 1
        return torch.randint(len(self._pool), (contestants, count), generator=generator, device=generator.device).amin(
            0
        )

    def _couples(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of the two parents of each child, [count] each."""
        if self.selection == "tournament":
            return self._parents(count, generator), self._parents(count, generator)
        turns = torch.arange(count, device=generator.device)
        return turns % len(self._pool), (turns + 1) % len(self._pool)

    def _tell(self, candidates: Tensor | Chains, losses: Tensor) -> None:
        share = self.hardness if self.selection == "truncation" else 1
        size = max(2, self.elites, int(share * self.population))
        order = losses.argsort(stable=True)[:size]
        if isinstance(candidates, Chains):
            self._pool = [candidates.chains[row] for row in order.tolist()]
        else:
            self._pool = candidates.index_select(0, order)

    def _state(self) -> dict[str, Any]:
        return {"pool": self._pool, "asked": self._asked.chains if isinstance(self._asked, Chains) else None}

    def _load_state(self, state: dict[str, Any]) -> None:
        self._pool = state["pool"]
        if state["asked"] is not None:
            self._asked = self._grown(state["asked"])
