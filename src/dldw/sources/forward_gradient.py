"""Forward gradients: the exact slope along a random direction, by forward-mode differentiation."""

from __future__ import annotations

import torch

from dldw.card import Card, Choice, Float
from dldw.directional import Directional
from dldw.directions import Gaussian
from dldw.slopes import Jvp
from dldw.source import Loss


class ForwardGradient(Directional):
    """The exact directional derivative along Gaussian directions, without a backward pass.

        ghat = 1/n · sum_i (∇L(w) · z_i) z_i,      z_i ~ N(0, I)

    Unbiased, with relative variance (d + 1)/n; no sigma, no truncation and no cancellation. Where fused attention has no
    forward-mode rule, the mathematical kernel of ``scaled_dot_product_attention`` runs instead.

    Cost: three forwards a direction (values, and tangents of both factors of every product); twice a forward's memory.

    Source: Baydin et al. 2022, arXiv 2202.08587.

    Args:
        loss: ``loss(model, batch)``, differentiable, a scalar or one value per example [B].
        directions: n.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> loss = dldw.ForwardGradient(lambda m, x: m(x).square().sum(1))(model, torch.ones(4, 2))
        >>> model.weight.grad.shape
        torch.Size([1, 2])
    """

    card = Card(
        summary="The exact slope along a random direction, by forward-mode differentiation.",
        claim="unbiased",
        needs="forward mode",
        forwards="3 * directions",
        memory="d for each direction held, and the tangents of one layer",
        paper="Baydin et al. 2022, arXiv 2202.08587",
        variance="(d + 1) / directions",
        space={"lr": Float(1e-4, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Variance grows with d, as with every random direction; the slope itself is exact.",
    )

    def __init__(self, loss: Loss, *, directions: int = 1, generator: torch.Generator | None = None) -> None:
        super().__init__(loss, Gaussian(directions), Jvp(), generator=generator)
        self.directions = directions
