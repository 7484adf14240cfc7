"""Digits by the error rate itself: what is trained is what is reported, and it has no derivative."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.tasks.digits import Digits


class ErrorRate(Digits):
    """As ``digits``, with a loss of 1 for each digit that is taken for another and 0 for each that is not.

    The mean over a batch moves in steps of 1/128: a method that looks for a slope must reach far enough to cross one.
    """

    name = "error-rate"
    summary = "8 x 8 handwritten digits (scikit-learn), MLP 64-32-10 with tanh; the loss is the error rate itself."
    companion = None
    wider = None

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        guess: Tensor = model(x).argmax(1)
        return (guess != y).float()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        accuracy = super().evaluate(model, split)["accuracy"]
        return {"loss": 1 - accuracy, "accuracy": accuracy}
