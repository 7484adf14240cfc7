"""Simultaneous perturbation: one random direction over all weights at once."""

from __future__ import annotations

from typing import Literal

import torch

from dldw.card import Card, Choice, Float
from dldw.directional import Directional
from dldw.directions import Directions, Gaussian, Rademacher, Sphere
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode
from dldw.slopes import Central, OneSided
from dldw.source import Loss

Distribution = Literal["rademacher", "gaussian", "sphere"]
_DISTRIBUTIONS: dict[str, type[Gaussian] | type[Rademacher] | type[Sphere]] = {
    "rademacher": Rademacher,
    "gaussian": Gaussian,
    "sphere": Sphere,
}


class SPSA(Directional):
    """Slopes along random directions over all weights.

        ghat = 1/n · sum_i  (L(w + σ z_i) - L(w - σ z_i)) / 2σ · z_i          (two-sided)
        ghat = 1/n · sum_i  (L(w + σ z_i) - L(w)) / σ · z_i                    (one-sided)

    with E[z zᵀ] = I, so that E[ghat] = dL/dw + O(σ²). On a linear loss the relative variance E‖ghat - g‖²/‖g‖² is
    (d - 1)/n for signs and the sphere and (d + 1)/n for Gaussians: it grows with the number of weights.

    Cost: 2 n forwards (two-sided) or n + 1; n times d for the directions and one perturbed copy of the weights.

    Source: Spall 1992, IEEE TAC 37(3); Gaussians as in Nesterov & Spokoiny 2017 and MeZO (arXiv 2305.17333).

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Length of the step along z, in units of the weights.
        directions: n.
        distribution: ``rademacher`` (signs), ``gaussian`` or ``sphere`` (radius sqrt(d)).
        two_sided: Central differences; one-sided ones take n + 1 forwards and are off by O(σ).
        evaluate: ``auto``, ``sequential`` or ``batched``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> spsa = dldw.SPSA(lambda m, x: m(x).square().sum(1), sigma=1e-2)
        >>> loss = spsa(model, torch.ones(4, 2))
        >>> model.weight.grad.abs().std().item() < 1e-6    # signs: one size for all weights
        True
    """

    card = Card(
        summary="All weights moved at once along a random direction, forth and back.",
        claim="unbiased",
        needs="loss values",
        forwards="2 * directions if two_sided else directions + 1",
        memory="2 d for each direction held",
        paper="Spall 1992, IEEE TAC 37(3); MeZO, arXiv 2305.17333",
        variance="(d + 1 if distribution == 'gaussian' else d - 1) / directions",
        space={"lr": Float(1e-4, 1.0), "sigma": Float(1e-4, 1.0), "optimizer": Choice(("sgd", "adam"))},
        note="Unbiased up to O(sigma²), exactly on a quadratic; one-sided: up to O(sigma). Variance grows with d.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-3,
        directions: int = 1,
        distribution: Distribution = "rademacher",
        two_sided: bool = True,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if distribution not in _DISTRIBUTIONS:
            raise DldwError(
                f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {distribution!r}: the directions need "
                "E[z zᵀ] = I for the estimate to have the size of the gradient."
            )
        drawn: Directions = _DISTRIBUTIONS[distribution](directions)
        slope = Central(sigma) if two_sided else OneSided(sigma)
        super().__init__(loss, drawn, slope, evaluate=evaluate, generator=generator)
        self.sigma, self.directions, self.distribution, self.two_sided = sigma, directions, distribution, two_sided
