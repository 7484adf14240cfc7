"""The question's method: nudge one random weight, predict twice, divide."""

from __future__ import annotations

import torch

from dldw.card import Card, Float
from dldw.directional import Directional
from dldw.directions import RandomCoordinates
from dldw.evaluate import Evaluator, Mode
from dldw.slopes import OneSided, Uniform
from dldw.source import Loss


class WeightPerturbation(Directional):
    """dL/dw of one random weight from two predictions.

    Pick a weight w uniformly over all trainable weights, draw dw ~ U(low, high), predict with w and with w + dw, and let

        dL = L_updated - L_original,     .grad[w] += dL / dw.

    All other weights get 0. A draw of dw = 0 is repeated. With ``weights`` = k, k weights are nudged one after the other
    and L_original is shared.

    The text leaves two things open. *The sign of γ*: the loss falls along w ← w - γ dL/dw, which is what every optimizer
    of ``torch.optim`` does with ``.grad``; "update w by γ dL/dw" read literally, with a plus, climbs. *The step*: a one-sided
    difference is off by dw/2 · L''(w) + O(dw²), so with dw up to 0.1 the estimate is biased wherever the loss is curved;
    the bias averages to zero over ±dw when L''' is negligible. Over the choice of the weight, E[ghat] = k/d · dL/dw.

    Cost: 1 + k forwards, and a copy of one weight tensor.

    Source: "How is back-propagation useful in neural networks?", AI Stack Exchange, 2020.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        low: Lower end of the nudge, in units of the weight.
        high: Upper end.
        weights: How many weights are nudged in one call.
        evaluate: ``auto``, ``sequential`` or ``batched``; see ``dldw.evaluate.Evaluator``.
        generator: See ``GradientSource``.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 1)
        >>> nudge = dldw.WeightPerturbation(lambda m, x: m(x).square().sum(1))
        >>> loss = nudge(model, torch.ones(4, 2))
        >>> sum(int(p.grad.count_nonzero()) for p in model.parameters())
        1
    """

    card = Card(
        summary="One random weight nudged by dw ~ U(-0.1, 0.1), predict twice, dL/dw = (L' - L)/dw on that weight.",
        claim="biased",
        needs="loss values",
        forwards="1 + weights",
        memory="one weight tensor",
        paper="AI Stack Exchange 2020, 'How is back-propagation useful in neural networks?'",
        scale="d / weights",
        variance="(d - 1) / weights",
        space={"lr": Float(0.1, 100.0)},
        note="One weight a step: E[estimate] = weights/d * dL/dw; one-sided, so off by dw/2 times the curvature.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        low: float = -0.1,
        high: float = 0.1,
        weights: int = 1,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        slope = OneSided(Uniform(low, high))
        super().__init__(loss, RandomCoordinates(weights), slope, evaluate=evaluate, generator=generator)
        self.low, self.high, self.weights = low, high, weights
