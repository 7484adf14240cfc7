"""Random search: the floor every other method has to beat."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dldw.card import Card, Float
from dldw.errors import DldwError
from dldw.searcher import Searcher


class RandomSearch(Searcher):
    """Minimises by trying independent points around the start, and learns nothing from their losses but the best.

        x_i = x0 + sigma * z_i,      z ~ N(0, I)  or  U(-1, 1)

    Cost: one evaluation a candidate.

    Source: Brooks 1958, Operations Research 6(2).

    Args:
        sigma: Scale of the distribution, in units of x.
        population: Candidates in one ``ask``.
        distribution: ``gaussian`` or ``uniform``.
        generator: See ``Searcher``.

    Example:
        >>> import torch, dldw
        >>> search = dldw.RandomSearch(sigma=1.0, population=64)
        >>> search.reset(torch.zeros(2))
        >>> search.tell((search.ask() - 1).square().sum(1))
        >>> search.best[1] < 1
        True
    """

    card = Card(
        summary="Independent random weights around the start; keep the best.",
        claim="search",
        needs="loss values",
        forwards="population + 1",
        memory="d for each candidate held",
        paper="Brooks 1958, Operations Research 6(2)",
        space={"sigma": Float(1e-2, 3.0)},
        note="In training the incumbent is evaluated again on each batch: one forward more than candidates.",
    )

    def __init__(
        self,
        *,
        sigma: float = 1.0,
        population: int = 15,
        distribution: Literal["gaussian", "uniform"] = "gaussian",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        if not sigma > 0 or population < 1:
            raise DldwError(f"sigma and population must be positive, got {sigma} and {population}.")
        if distribution not in ("gaussian", "uniform"):
            raise DldwError(f"distribution must be gaussian or uniform, got {distribution!r}.")
        self.sigma, self.population, self.distribution = sigma, population, distribution
        self._x0 = torch.empty(0)

    def _reset(self, x0: Tensor) -> None:
        self._x0 = x0

    def _ask(self, generator: torch.Generator) -> Tensor:
        z = torch.empty((self.population, self._x0.numel()), dtype=self._x0.dtype, device=self._x0.device)
        if self.distribution == "gaussian":
            z.normal_(generator=generator)
        else:
            z.uniform_(-1, 1, generator=generator)
        return z.mul_(self.sigma).add_(self._x0)

    def _tell(self, candidates: Tensor, losses: Tensor) -> None:
        pass
