"""Hill climbing: a random step from the best point, kept if it is better."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.searcher import Searcher


class HillClimb(Searcher):
    """Minimises by random steps from the best point so far; the best of them is kept if it is better.

        x <- x + dw  if  L(x + dw) < L(x),      dw ~ N(0, sigma^2 I),  U(-sigma, sigma)^d,  or U(-sigma, sigma) on one weight

    ``one-weight`` is the question's own proposal - pick a random weight, nudge it by U(-0.1, 0.1), predict twice - with
    *accept if better* in place of gamma * dL/dw. The start point counts from when its loss is told (``minimize`` and
    ``Search`` do so with ``retell``); until then the first proposal takes its place.

    Cost: one evaluation a proposal.

    Source: Rastrigin 1963, Automation and Remote Control 24 (random search with steps from the best point).

    Args:
        step: ``gaussian``, ``uniform`` or ``one-weight``.
        sigma: Standard deviation of the Gaussian step, or half the width of the uniform ones, in units of x.
        proposals: Candidates in one ``ask``.
        generator: See ``Searcher``.

    Raises:
        DldwError: A setting is out of range.

    Example:
        >>> import torch, dldw
        >>> climb = dldw.HillClimb(step="one-weight", generator=torch.Generator().manual_seed(0))
        >>> climb.reset(torch.zeros(2))
        >>> for _ in range(200):
        ...     climb.tell((climb.ask() - 1).square().sum(1))
        >>> climb.best[1] < 0.01
        True
    """

    card = Card(
        summary="A random step from the best weights so far, kept if it is better.",
        claim="search",
        needs="loss values",
        forwards="proposals + 1",
        memory="d, and d for each proposal held",
        paper="Rastrigin 1963, Automation and Remote Control 24",
        space={"sigma": Float(1e-3, 1.0), "step": Choice(("gaussian", "uniform", "one-weight"))},
        note="In training the best weights are evaluated again on each batch: one forward more than proposals.",
    )

    def __init__(
        self,
        *,
        step: Literal["gaussian", "uniform", "one-weight"] = "gaussian",
        sigma: float = 0.1,
        proposals: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        if not sigma > 0 or proposals < 1:
            raise DldwError(f"sigma and proposals must be positive, got {sigma} and {proposals}.")
        if step not in ("gaussian", "uniform", "one-weight"):
            raise DldwError(f"step must be gaussian, uniform or one-weight, got {step!r}.")
        self.step, self.sigma, self.proposals = step, sigma, proposals

    def _reset(self, x0: Tensor) -> None:
        pass

    def _ask(self, generator: torch.Generator) -> Tensor:
        x = self._incumbent
        if self.step == "one-weight":
            candidates = x.repeat(self.proposals, 1)
            weights = torch.randint(len(x), (self.proposals, 1), generator=generator, device=x.device)
            nudges = x.new_empty((self.proposals, 1)).uniform_(-self.sigma, self.sigma, generator=generator)
            return candidates.scatter_add_(1, weights, nudges)
        steps = x.new_empty((self.proposals, len(x)))
        if self.step == "gaussian":
            steps.normal_(generator=generator).mul_(self.sigma)
        else:
            steps.uniform_(-self.sigma, self.sigma, generator=generator)
        return steps.add_(x)

    def _tell(self, candidates: Tensor, losses: Tensor) -> None:
        pass  # the best point, which the next steps start from, is kept by every searcher
