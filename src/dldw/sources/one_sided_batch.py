"""A batch of one-sided probes and one baseline for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch

from dldw.card import Card, Choice, Float
from dldw.directional import Combine, Deviations, Directional, LeaveOneOut, Mean
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode
from dldw.slopes import OneSided, ScoreFunction
from dldw.source import Loss
from dldw.streamed import Streamed

Baseline = Literal["original", "leave-one-out"]


class OneSidedBatch(Directional):
    """Many one-sided differences that share a baseline: one forward a direction instead of two.

        ghat = 1/N · sum_i (L(w + σ z_i) - b_i) / σ · z_i

    with random signs z_i and b_i = L(w) (``original``, one more forward for all), or the mean loss of the other probes
    (``leave-one-out``, none). The latter is unbiased for the smoothed loss, as b_i does not depend on z_i. On a linear loss
    the relative variance is (d - 1)/N with the original, and (d - 1)/N + (d + 1)/(N (N - 1)) with the others.

    With ``normalise`` the losses are divided by their standard deviation over the probes instead of σ, which makes the
    length of a step independent of the scale of the loss: FZOO's Adam-like step. Such estimates have no common scale and
    do not add up over micro-batches.

    Cost: N + 1 forwards, or N; 16 bytes a direction.

    Source: FZOO, Dang et al. 2025, arXiv 2506.09034; leave-one-out: Kool et al. 2019, "Buy 4 REINFORCE samples, get a
    baseline for free".

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Length of a step, in units of the weights.
        directions: N, at least 2 where the probes are each other's baseline or are normalised.
        baseline: ``original`` or ``leave-one-out``.
        normalise: Whether to divide by the standard deviation of the losses.
        evaluate: ``auto``, ``sequential`` or ``batched``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 3)
        >>> source = dldw.OneSidedBatch(lambda m, x: m(x).square().sum(1), directions=4, baseline="leave-one-out")
        >>> source.forwards(d=9)
        4.0
    """

    card = Card(
        summary="A batch of one-sided probes along random signs, against the plain loss or against each other.",
        claim="unbiased",
        needs="loss values",
        forwards="directions + (baseline == 'original')",
        memory="one tile of a weight",
        paper="FZOO, Dang et al. 2025, arXiv 2506.09034; Kool et al. 2019",
        space={
            "lr": Float(1e-4, 1.0),
            "sigma": Float(1e-3, 1.0),
            "directions": Choice((4, 8, 16)),
            "optimizer": Choice(("sgd", "adam")),
        },
        note="Unbiased up to O(sigma). With normalise=True biased, and not additive: g over the deviation of the losses.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 1e-2,
        directions: int = 8,
        baseline: Baseline = "original",
        normalise: bool = False,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if baseline not in get_args(Baseline):
            raise DldwError(f"baseline must be original or leave-one-out, got {baseline!r}.")
        others = baseline == "leave-one-out"
        if directions < 2 and (others or normalise):
            raise DldwError(
                f"directions must be at least 2 where probes are compared with each other, got {directions}. "
                "Use more, or baseline='original' without normalise."
            )
        combine: Combine = LeaveOneOut() if others else Mean()
        super().__init__(
            loss,
            Streamed(directions),
            ScoreFunction(sigma) if others else OneSided(sigma),
            Deviations(combine, sigma) if normalise else combine,
            evaluate=evaluate,
            generator=generator,
        )
        self.sigma, self.directions, self.baseline, self.normalise = sigma, directions, baseline, normalise
        if normalise:
            self.card = replace(self.card, claim="biased", additive=False)
