"""The whole gradient, coordinate by coordinate, from loss values."""

from __future__ import annotations

import torch

from dldw.card import Card, Float
from dldw.directions import AllCoordinates
from dldw.evaluate import Evaluator, Mode
from dldw.single_weights import SingleWeights
from dldw.source import Loss


class FiniteDifference(SingleWeights):
    """Every component of dL/dw by a difference quotient.

        central:    ghat_i = (L(w + h e_i) - L(w - h e_i)) / 2h        error O(h²) + O(eps |L| / h)
        one-sided:  ghat_i = (L(w + h e_i) - L(w)) / h                 error O(h)  + O(eps |L| / h)

    Both errors balance near h = eps^(1/3) and eps^(1/2); the default is the nearest power of two, so that h itself is exact.
    Where the model allows, changes are followed through it, nothing cancels, and the second error is not there: see
    ``dldw.single_weights`` for the three ways to the same quotients; ``path`` says which one an estimate took.

    Cost: 2 d forwards (central) or d + 1 where weights are nudged one by one; a tenth to a hundredth of their time where
    changes are followed.

    Source: Nocedal & Wright 2006, Numerical Optimization, section 8.1.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        step: h, in units of the weights; by default chosen from the coarsest dtype among them, and for the path.
        central: Two-sided differences; one-sided ones take half the forwards and are less exact.
        evaluate: ``auto``, or ``sequential`` or ``batched``, which follow no changes.
        generator: Not drawn from; taken so that every source is built alike.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> loss = dldw.FiniteDifference(lambda m, x: m(x).square().sum(1))(model, torch.ones(1, 1).double())
        >>> torch.allclose(model.weight.grad, 2 * model.weight, rtol=1e-15)
        True
    """

    card = Card(
        summary="Every weight nudged in turn: the full numerical gradient.",
        claim="biased",
        needs="loss values",
        forwards="2 * d if central else d + 1",
        memory="one weight tensor; batched: chunks within the memory bound",
        paper="Nocedal & Wright 2006, Numerical Optimization, 8.1",
        variance="0",
        space={"lr": Float(1e-2, 10.0)},
        note="Deterministic; off by O(step²) and by rounding, 1e-9 of the gradient in float64, 1e-15 by differences.",
    )

    def __init__(
        self,
        loss: Loss,
        *,
        step: float | None = None,
        central: bool = True,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(loss, AllCoordinates(), step, central, evaluate=evaluate, generator=generator)
