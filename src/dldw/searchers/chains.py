"""Individuals as chains of seeds: what a population of large networks takes when its vectors are made anew each time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Chain = tuple[int, ...]


class Chains:
    """The parents of a genetic algorithm, each as the seeds of the mutations that led to it (Such et al. 2017).

    Args:
        sigma: Standard deviation of the first mutation.
        mutation_sigma: That of all later ones.
    """

    def __init__(self, sigma: float, mutation_sigma: float) -> None:
        self.sigma, self.mutation_sigma = sigma, mutation_sigma
        self._pool: list[Chain] = []
        self._asked: list[Chain] = []

    def __len__(self) -> int:
        return len(self._pool)

    def reset(self, x0: Tensor) -> None:
        """Forgets everything and starts over at ``x0`` [d]."""
        self._x0, self._pool, self._asked = x0, [], []
        self._noise = torch.Generator(x0.device)

    def ask(self, n: int, elites: int, parents: list[int], generator: torch.Generator) -> Tensor:
        """The first ``elites`` of the pool and a mutant of each parent [n, d]; at first x0 and n - 1 mutants of it."""
        family: list[Chain] = [self._pool[row] for row in parents] if self._pool else [()] * (n - 1)
        seeds = torch.randint(2**62, (len(family),), generator=generator, device=generator.device).tolist()
        self._asked = self._pool[:elites] if self._pool else [()]
        self._asked += [(*chain, seed) for chain, seed in zip(family, seeds, strict=True)]
        vectors = self._x0.new_empty((n, self._x0.numel()))
        parent: Chain = ()
        at_parent = self._x0
        for row in sorted(range(n), key=lambda row: self._asked[row][:-1]):  # siblings together: one parent is held
            chain = self._asked[row]
            if chain[:-1] != parent:
                parent, at_parent = chain[:-1], self.vector(chain[:-1])
            vectors[row] = self._mutated(at_parent.clone(), chain) if chain else self._x0
        return vectors

    def keep(self, rows: list[int]) -> None:
        """Makes those of the last asked that are in ``rows`` the pool, in this order."""
        self._pool = [self._asked[row] for row in rows]
        self._asked = []

    def vector(self, chain: Chain) -> Tensor:
        """The individual [d], made from its seeds."""
        x = self._x0.clone()
        for length in range(1, len(chain) + 1):
            self._mutated(x, chain[:length])
        return x

    def _mutated(self, x: Tensor, chain: Chain) -> Tensor:
        z = torch.empty_like(x).normal_(generator=self._noise.manual_seed(chain[-1]))
        return x.add_(z, alpha=self.sigma if len(chain) == 1 else self.mutation_sigma)

    def state_dict(self) -> dict[str, Any]:
        """The chains."""
        return {"pool": self._pool, "asked": self._asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self._pool, self._asked = state["pool"], state["asked"]
