"""MeZO: SPSA for models whose perturbation may not take any memory."""

from __future__ import annotations

import torch

from dldw.card import Card, Choice, Float
from dldw.directional import Directional
from dldw.evaluate import Evaluator, Mode
from dldw.noise import Distribution
from dldw.slopes import Central
from dldw.source import Loss
from dldw.streamed import Streamed


class MeZO(Directional):
    """Two-sided differences along random vectors that are made again wherever they are needed.

        ghat = 1/q · sum_i (L(w + σ z_i) - L(w - σ z_i)) / 2σ · z_i,      z_i ~ N(0, I)

    The published rule writes σ z into the weights, -2σ z, and σ z again, which drifts in low precision. Here the weights
    are never written: a layer reads W ± σ z a tile at a time, each tile made from its counter, and ``.grad``, or the
    update of ``ForwardOnly``, is made from the same counters. On a linear loss the relative variance is (d + 1)/q, for
    signs (d - 1)/q.

    Cost: 2q forwards; one tile of a weight and 16 bytes a direction. Gaussian numbers are made three times, which takes a
    quarter of a forward of few tokens; random signs cost a tenth of that.

    Source: Malladi et al. 2023, arXiv 2305.17333.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Length of a step, in units of the weights.
        directions: q.
        distribution: ``gaussian``, as published, or ``rademacher``.
        evaluate: ``auto``, ``sequential`` or ``batched``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 3)
        >>> source = dldw.MeZO(lambda m, x: m(x).square().sum(1))
        >>> loss = source(model, torch.ones(4, 2))
        >>> model.weight.grad.shape
        torch.Size([3, 2])
    """

    card = Card(
        summary="Two-sided differences along Gaussian vectors made from a counter: no memory beyond inference.",
        claim="unbiased",
        needs="loss values",
        forwards="2 * directions",
        memory="one tile of a weight",
        paper="Malladi et al. 2023, arXiv 2305.17333",
        space={
            "lr": Float(1e-4, 1.0),
            "sigma": Float(1e-4, 1e-1),
            "directions": Choice((1, 4, 16)),
            "optimizer": Choice(("sgd", "adam")),
        },
        note="Unbiased for the loss averaged over N(0, sigma² I), of the loss itself up to O(sigma²). In a model of "
        "less than a tile, 2^20 numbers, the noise is held: 2 d.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-3,
        directions: int = 1,
        distribution: Distribution = "gaussian",
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            loss, Streamed(directions, distribution), Central(sigma), evaluate=evaluate, generator=generator
        )
        self.sigma, self.directions, self.distribution = sigma, directions, distribution
