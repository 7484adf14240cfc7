"""Evolution strategies: a population of Gaussian steps, weighted by how well each did."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from dldw.card import Card, Choice, Float
from dldw.directional import CenteredRanks, Combine, Directional, Mean, Standardised
from dldw.directions import Gaussian
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode
from dldw.slopes import Central, ScoreFunction
from dldw.source import Loss

Shaping = Literal["centered_ranks", "z_score", "none"]
_SHAPINGS: dict[str, type[Combine]] = {"centered_ranks": CenteredRanks, "z_score": Standardised, "none": Mean}


class EvolutionStrategy(Directional):
    """The search gradient of a Gaussian population around the weights.

        ghat = 1/(n σ) · sum_i  u_i z_i,      z_i ~ N(0, I),      u = shaping(L(w + σ z_1), …, L(w + σ z_n))

    With ``antithetic``, half the z are the negatives of the other half. With ranks or z-scores the estimate has the
    direction of the smoothed gradient but not its size, so estimates of micro-batches do not add up; with
    ``shaping="none"`` it is unbiased for the gradient of E L(w + σ z), relative variance 2(d + 1)/n when antithetic.

    Cost: n forwards; batched: chunks within the memory bound.

    Source: Salimans et al. 2017, arXiv 1703.03864; z-scores: Mania et al. 2018, arXiv 1803.07055.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Standard deviation of the population, in units of the weights.
        population: n, even when ``antithetic``.
        shaping: ``centered_ranks``, ``z_score`` or ``none``.
        antithetic: Each step is tried with both signs.
        evaluate: ``auto``, ``sequential`` or ``batched``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> es = dldw.EvolutionStrategy(lambda m, x: m(x).square().sum(1), sigma=0.1, population=8)
        >>> loss = es(model, torch.ones(4, 2))
        >>> model.weight.grad.shape
        torch.Size([1, 2])
    """

    card = Card(
        summary="A population of Gaussian steps, averaged with the ranks of their losses as weights.",
        claim="biased",
        needs="loss values",
        forwards="population",
        memory="2 d for each member held",
        paper="Salimans et al. 2017, arXiv 1703.03864",
        additive=False,
        space={"lr": Float(1e-4, 1.0), "sigma": Float(1e-3, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Estimates the direction of the gradient, not its size; shaping='none' gives the size and adds up.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 0.05,
        population: int = 32,
        shaping: Shaping = "centered_ranks",
        antithetic: bool = True,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if shaping not in _SHAPINGS:
            raise DldwError(f"shaping must be one of {', '.join(_SHAPINGS)}, got {shaping!r}.")
        if population < 2 or (antithetic and population % 2):
            raise DldwError(
                f"population must be at least 2, and even with antithetic=True because its members come in pairs "
                f"w + sigma z and w - sigma z; got {population}. Use {max(2, population + 1)} or antithetic=False."
            )
        slope = Central(sigma) if antithetic else ScoreFunction(sigma)
        directions = Gaussian(population // 2 if antithetic else population)
        super().__init__(loss, directions, slope, _SHAPINGS[shaping](), evaluate=evaluate, generator=generator)
        self.sigma, self.population, self.shaping, self.antithetic = sigma, population, shaping, antithetic
        if shaping == "none":
            self.card = replace(self.card, claim="unbiased", additive=True)
