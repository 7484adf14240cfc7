"""Individuals as chains of seeds: vectors that are made when they are looked at, and not held."""

from __future__ import annotations

import torch
from torch import Tensor

from dldw.searchers.sampling import thinned

Chain = tuple[int, ...]


class Chains:
    """Vectors x0 + sigma z(s_0) + mutation_sigma (m(s_1) o z(s_1) + ..), each held as its seeds s (Such et al. 2017).

    An index gives one vector [d], a slice some [n, d], bit for bit the same every time. The parent of the vector made last
    is kept, so that siblings beside each other cost one draw each.

    Args:
        x0: The start point [d].
        sigma: Standard deviation of the first mutation.
        mutation_sigma: That of all later ones.
        mutation_rate: Probability that a coordinate changes in one of them.
        chains: The seeds of each individual; none for the start point itself.
    """

    def __init__(
        self, x0: Tensor, sigma: float, mutation_sigma: float, mutation_rate: float, chains: list[Chain]
    ) -> None:
        self.x0, self.sigma, self.mutation_sigma, self.mutation_rate = x0, sigma, mutation_sigma, mutation_rate
        self.chains = chains
        self._noise = torch.Generator(x0.device)
        self._parent: tuple[Chain, Tensor] = (), x0

    def __len__(self) -> int:
        return len(self.chains)

    def __getitem__(self, at: int | slice) -> Tensor:
        if isinstance(at, int):
            return self._vector(self.chains[at])
        vectors = self.x0.new_empty((len(self.chains[at]), self.x0.numel()))
        for row, chain in zip(vectors, self.chains[at], strict=True):
            row.copy_(self._vector(chain))
        return vectors

    def _vector(self, chain: Chain) -> Tensor:
        if not chain:
            return self.x0.clone()
        if self._parent[0] != chain[:-1]:
            x = self.x0.clone()
            for k in range(len(chain) - 1):
                self._mutate(x, chain[k], first=k == 0)
            self._parent = chain[:-1], x
        return self._mutate(self._parent[1].clone(), chain[-1], first=len(chain) == 1)

    def _mutate(self, x: Tensor, seed: int, *, first: bool) -> Tensor:
        z = torch.empty_like(x).normal_(generator=self._noise.manual_seed(seed))
        if first:
            return x.add_(z, alpha=self.sigma)
        return x.add_(thinned(z, self.mutation_rate, self._noise), alpha=self.mutation_sigma)
