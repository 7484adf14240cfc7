"""Some weights, each by its own difference quotient, with what the forward pass of the others gives used again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dldw.card import Card, Float, Published
from dldw.directions import SomeCoordinates
from dldw.errors import DldwError
from dldw.evaluate import Evaluator, Mode
from dldw.single_weights import SingleWeights
from dldw.source import Loss
from dldw.weights import Weights, masks_of_parameters


class CoordinateWise(SingleWeights):
    """Coordinate-wise estimates of a part of dL/dw.

        ghat_i = (L(w + σ e_i) - L(w)) / σ   for i in S,      0 elsewhere

    It is ``FiniteDifference`` on S: a part of all weights that is drawn anew for each estimate, so that every weight has
    its turn, or a mask such as pruning before training gives. Features are reused: the forward pass up to the changed layer
    is taken once for all weights, and the change alone goes on from there (``path`` says how).

    Cost: |S| + 1 forwards where weights are nudged one by one, 2 |S| two-sided; less where features are reused.

    Source: DeepZero, Chen et al. 2024, arXiv 2310.02025.

    Args:
        loss: ``loss(model, batch)``, a scalar or one value per example [B].
        sigma: Length of the step, in units of the weights.
        select: ``random``, or one boolean tensor for each parameter by name; parameters left out stay still.
        fraction: The part of the weights that ``random`` draws.
        central: Two-sided differences.
        reuse: Whether features are reused.
        evaluate: ``auto``, or ``sequential`` or ``batched``, which follow no changes.
        generator: See ``GradientSource``.

    Raises:
        DldwError: ``fraction`` is no part, or a mask does not fit its parameter.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> source = dldw.CoordinateWise(lambda m, x: m(x).square().sum(1), fraction=0.2)
        >>> loss = source(model, torch.ones(4, 10))
        >>> int(model.weight.grad.count_nonzero())
        20
    """

    card = Card(
        summary="A part of the weights, each by its own difference quotient, features of the forward pass reused.",
        claim="biased",
        needs="loss values",
        forwards="ceil(fraction * d) * (2 if central else 1) + (not central)",
        memory="chunks within the memory bound",
        paper="DeepZero, Chen et al. 2024, arXiv 2310.02025",
        scale="d / ceil(fraction * d)",
        variance="d / ceil(fraction * d) - 1",
        space={"lr": Float(1e-2, 100.0)},
        note="A part of the weights a step: E[estimate] = fraction * dL/dw; with a mask dL/dw on the mask.",
        published=(
            Published(
                settings={},
                accuracy=86.94,
                backprop=91.4,
                data="CIFAR-10",
                network="ResNet-20",
                source="Chen et al. 2023, arXiv 2310.02025",
            ),
        ),
    )

    def __init__(
        self,
        loss: Loss,
        *,
        sigma: float = 5e-3,
        select: Literal["random"] | Mapping[str, Tensor] = "random",
        fraction: float = 0.1,
        central: bool = False,
        reuse: bool = True,
        evaluate: Mode | Evaluator = "auto",
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(select, str) and select != "random":
            raise DldwError(f"select must be random or a mask for each parameter by name, got {select!r}.")
        if not 0 < fraction <= 1:
            raise DldwError(f"fraction must be above 0 and at most 1, got {fraction}: it is the part that is moved.")
        self._some = SomeCoordinates(fraction)
        super().__init__(loss, self._some, sigma, central, reuse=reuse, evaluate=evaluate, generator=generator)
        self.sigma, self.select, self.fraction = sigma, select, fraction

    def forwards(self, d: int) -> float:
        if isinstance(self.select, str):
            return super().forwards(d)
        count = sum(int(mask.count_nonzero()) for mask in self.select.values())
        return 2 * count if self.central else count + 1

    def _prepare(self, model: nn.Module) -> Weights:
        weights = super()._prepare(model)
        if not isinstance(self.select, str):
            masks = masks_of_parameters(model, self.select)
            flat = [masks.get(id(p), torch.zeros_like(p, dtype=torch.bool)).flatten().cpu() for p in weights.tensors]
            self._some.given = torch.cat(flat).nonzero().squeeze(1).tolist()
            if not self._some.given:
                raise DldwError("the masks select no trainable weight, so there is nothing to nudge. Set some entries.")
        return weights
