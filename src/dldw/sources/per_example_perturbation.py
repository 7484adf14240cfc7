"""A direction of its own for each example of a batch, in one forward pass."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from dldw.card import Card, Choice, Float
from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode
from dldw.layers import require_independent_examples
from dldw.low_rank import LowRank
from dldw.slopes import EachExample
from dldw.source import Loss
from dldw.weights import Weights

Baseline = Literal["antithetic", "original", "leave-one-out"]


class PerExamplePerturbation(Directional):
    """Signs of rank 1 in every weight matrix, other ones for each example, and the example's own loss.

        s_b = (L_b(w + σ z_b) - L_b(w - σ z_b)) / 2σ,      ghat = 1/B · sum_b s_b z_b,      Z_b = a_b c_bᵀ

    A batch of B examples probes B directions in the forwards that one direction takes: a layer makes x Wᵀ once for the whole
    batch and adds σ (x_b · c_b) a_b to the row of each example. On a linear loss the relative variance is, for one m x n
    weight, (mn - 1) · mean‖g_b‖² / (B ‖g‖²), where a single direction has mn - 1.

    The baseline is the example itself, moved the other way or not at all, or the mean of the other examples' losses, which
    takes one forward and lets the differences between examples in as noise of their size over σ: for large σ alone.

    Cost: 2 forwards (1 with ``leave-one-out``); m + n numbers an example for each m x n weight.

    Source: flipout, Wen et al. 2018, arXiv 1803.04386, for directions of their own in one product; GRZO for signs of their
    own in zeroth-order training.

    Args:
        loss: ``loss(model, batch)``, one value per example [B]; every tensor of the batch is [B, ...].
        sigma: Length of a step, in units of the weights.
        baseline: ``antithetic``, ``original`` or ``leave-one-out``.
        evaluate: ``sequential`` takes one example after the other, ``auto`` and ``batched`` all at once where vmap can go.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 3)
        >>> source = dldw.PerExamplePerturbation(lambda m, x: m(x).square().sum(1))
        >>> loss = source(model, torch.ones(4, 2))
        >>> len(source.estimate(model, torch.ones(4, 2)).coefficients)
        4
    """

    per_example = True
    card = Card(
        summary="Signs of rank 1 for each example of the batch, all in one forward, there and back.",
        claim="unbiased",
        needs="loss values",
        forwards="1 + (baseline != 'leave-one-out')",
        memory="m + n numbers an example for each m x n weight",
        paper="Flipout, Wen et al. 2018, arXiv 1803.04386; GRZO",
        space={
            "lr": Float(1e-4, 1.0),
            "sigma": Float(1e-3, 1e-1),
            "optimizer": Choice(("sgd", "adam")),
        },
        note="Unbiased up to O(sigma²), exactly on a quadratic. Needs the loss of each example.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-2,
        baseline: Baseline = "antithetic",
        evaluate: Mode = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if baseline not in get_args(Baseline):
            raise DldwError(f"baseline must be one of {', '.join(get_args(Baseline))}, got {baseline!r}.")
        evaluator = Evaluator(evaluate, memory=1 << 60)  # the directions of a batch belong to one pass
        super().__init__(loss, LowRank(1), EachExample(sigma, baseline), evaluate=evaluator, generator=generator)
        self.sigma, self.baseline = sigma, baseline

    def _checked(self, model: nn.Module) -> Weights:
        require_independent_examples(model, "PerExamplePerturbation", "")
        return super()._checked(model)
