"""Sparse MeZO: the smallest weights alone are moved."""

from __future__ import annotations

from dataclasses import replace

import torch

from dldw.card import Choice, Float
from dldw.evaluate import Evaluator, Mode
from dldw.source import Loss
from dldw.sources.mezo import MeZO
from dldw.sources.sparse_perturbation import SparsePerturbation


class SparseMeZO(SparsePerturbation):
    """MeZO on the smallest weights of each tensor.

        ghat = 1/n · sum_i (L(w + σ m∘z_i) - L(w - σ m∘z_i)) / 2σ · m∘z_i,     m_j = 1 where |w_j| ≤ h

    h is the magnitude below which a given part of a tensor was when the model was first seen. A weight that grows beyond it
    stays where it is, so this fine-tunes; a model whose weights all begin at zero it does not train.

    Cost: 2n forwards; the mask is seen from the weights, so no memory beyond inference.

    Source: Liu et al. 2024, arXiv 2402.15751.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Half the distance between the two points.
        directions: n.
        fraction: The part of each tensor that is moved.
        evaluate: ``auto``, ``sequential`` or ``batched``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> loss = dldw.SparseMeZO(lambda m, x: m(x).square().sum(1), fraction=0.2)(model, torch.ones(4, 10))
        >>> int(model.weight.grad.count_nonzero())
        20
    """

    card = replace(
        MeZO.card,
        summary="MeZO on the smallest weights of each tensor alone.",
        claim="biased",
        paper="Liu et al. 2024, arXiv 2402.15751",
        space={**MeZO.card.space, "fraction": Choice((0.1, 0.25, 0.5)), "sigma": Float(1e-4, 1e-1)},
        note="Estimates a part of dL/dw, for fine-tuning: a weight that outgrows the small ones stays where it is.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-3,
        directions: int = 1,
        fraction: float = 0.25,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        source = MeZO(loss, sigma=sigma, directions=directions, evaluate=evaluate, generator=generator)
        super().__init__(source, "magnitude", fraction=fraction)
        self.card, self.sigma, self.directions = type(self).card, sigma, directions
