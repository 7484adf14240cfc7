"""Low-rank evolution: perturbations that cost no more than inference, on models of any size."""

from __future__ import annotations

import torch

from dldw.card import Card, Choice, Float
from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode
from dldw.low_rank import LowRank, Noise
from dldw.slopes import Central
from dldw.source import Loss


class LowRankEvolution(Directional):
    """Antithetic evolution strategies whose noise has low rank in every weight matrix.

        ghat = 2/n · sum_i (L(W + σ Z_i) - L(W - σ Z_i)) / 2σ · Z_i,      Z_i = A_i B_iᵀ / sqrt(r)

    The noise is never added to the weights: a layer makes y = x Wᵀ + σ (x B) Aᵀ / sqrt(r), two thin products beside its
    own, so a step takes the time of n forwards and the memory of one. Each tensor and each member has noise of its own.
    On an m x n weight and a linear loss the relative variance is 2/n times mn - 1 for signs at rank 1 and times
    mn + 1 + 2(m + n + 1)/r for Gaussians: as good as full noise, up to lower-order terms.

    Cost: n forwards; m + k numbers a direction for each m x k weight.

    Source: EGGROLL, Sarkar et al. 2025, arXiv 2511.16652.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Standard deviation of the noise, in units of the weights.
        population: n, even: members come in pairs.
        rank: r.
        noise: ``sign`` or ``gaussian`` entries of A and B.
        evaluate: ``auto``, ``sequential`` or ``batched``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 3)
        >>> source = dldw.LowRankEvolution(lambda m, x: m(x).square().sum(1), sigma=0.1, population=2)
        >>> loss = source(model, torch.ones(4, 2))
        >>> int(torch.linalg.matrix_rank(model.weight.grad))
        1
    """

    card = Card(
        summary="A population whose noise has low rank in every weight matrix and is added inside the layer.",
        claim="unbiased",
        needs="loss values",
        forwards="population",
        memory="m + n numbers a direction for each m x n weight",
        paper="Sarkar et al. 2025, arXiv 2511.16652",
        space={"lr": Float(1e-4, 1.0), "sigma": Float(1e-3, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Unbiased up to O(sigma²), exactly on a quadratic. Variance grows with the size of the largest weight.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-2,
        population: int = 32,
        rank: int = 1,
        noise: Noise = "sign",
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if population < 2 or population % 2:
            raise DldwError(
                f"population must be at least 2 and even because its members come in pairs W + sigma Z and W - sigma Z; "
                f"got {population}. Use {max(2, population + 1)}."
            )
        directions = LowRank(population // 2, rank, noise)
        super().__init__(loss, directions, Central(sigma), evaluate=evaluate, generator=generator)
        self.sigma, self.population, self.rank, self.noise = sigma, population, rank, noise
