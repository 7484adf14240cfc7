"""Handwritten digits of 8 x 8 pixels: small enough that every method can be run to the end."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from dldw.tasks.classification import Classification

VALIDATION = 287


class Digits(Classification):
    """scikit-learn's 1,797 digits scaled to 0..1; a 64-32-10 network with tanh.

    Split once and for all, stratified: 1,437 to train (287 of them to tune on), 360 to test.
    """

    name = "digits"
    summary = "8 x 8 handwritten digits (scikit-learn), MLP 64-32-10 with tanh, batches of 128."
    target = 0.90
    width = 32
    companion: ClassVar[str | None] = "step-digits"
    wider: ClassVar[str | None] = "digits-wide"

    def __init__(self) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        x, x_test, y, y_test = train_test_split(pixels, labels, test_size=360, stratify=labels, random_state=0)
        x, x_held, y, y_held = train_test_split(x, y, test_size=VALIDATION, stratify=y, random_state=0)
        scaled = [torch.tensor(p / 16.0, dtype=torch.float32) for p in (x, x_held, x_test)]
        truth = [torch.tensor(t, dtype=torch.int64) for t in (y, y_held, y_test)]
        train = torch.cat(scaled[:2]), torch.cat(truth[:2])
        super().__init__(train, (scaled[2], truth[2]), validation=VALIDATION)

    def network(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
