"""The density of handwritten digits: what a Boltzmann machine learns from pixels without labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.nn.rbm import RBM
from dldw.tasks.digits import Digits
from dldw.tasks.picture import Picture, pictures_of
from dldw.tasks.task import Task, seeded

READOUT_DECAY = 1.0


class RbmDigits(Task):
    """scikit-learn's digits in black and white, an RBM of 64 + 12 units; judged by the log-likelihood of the test split.

    The gradient of the likelihood is beyond reach where neither layer can be enumerated. So the loss that other methods
    descend is the pseudo-likelihood, -sum_i log p(v_i | all other pixels) without sampling, whose best weights are those of
    the likelihood where the machine can represent the data (Besag 1975). What they learn is judged by the likelihood itself,
    by enumeration for up to 20 hidden units and by annealed importance sampling for more. Beside it: the mean squared error
    of a reconstruction, and the accuracy of a linear readout of the hidden units.
    """

    name = "rbm-digits"
    summary = "8 x 8 digits in black and white (scikit-learn), an RBM of 64 + 12 units, judged by its log-likelihood."
    metric = "log-likelihood"
    target = -21.0
    width = 12
    batch_size = 64

    def __init__(self) -> None:
        digits = Digits()
        x, self.labels = digits.train
        self.images = (x >= 0.5).float()
        self.splits = {name: ((x >= 0.5).float(), y) for name, (x, y) in digits.splits.items()}
        self.train_examples, self.test_examples = digits.train_examples, digits.test_examples
        self._fitted = self.train_examples - len(self.splits["validation"][0])

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        return seeded(seed, lambda: RBM(64, width or 12))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        rbm = cast(RBM, model)
        field, flip = rbm.hidden_field(batch), 1 - 2 * batch
        flipped = field[:, None, :] + flip[:, :, None] * rbm.weight.t()  # each pixel by itself, [B, visible, hidden]
        change = F.softplus(flipped).sum(2) - F.softplus(field).sum(1)[:, None]
        return F.softplus(change + flip * rbm.visible_bias).sum(1)

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Tensor]:
        """Every image once in each pass, in a new order; what does not fill a batch is left out of that pass."""
        generator = torch.Generator().manual_seed(seed)
        count = self._fitted if tuning else self.train_examples
        while True:
            order = torch.randperm(count, generator=generator)
            yield from (self.images[rows] for rows in order.split(self.batch_size) if len(rows) == self.batch_size)

    def pictures(self, model: nn.Module, generator: torch.Generator) -> list[Picture]:
        return pictures_of(cast(RBM, model), self.splits["test"][0], generator)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        rbm = cast(RBM, model)
        v, y = self.splits[split]
        found = rbm.log_likelihood(v, temperatures=300, generator=torch.Generator().manual_seed(0))
        ones = [F.pad(rbm(images), (0, 1), value=1.0).double() for images in (self.images[: self._fitted], v)]
        square = ones[0].T @ ones[0] + READOUT_DECAY * torch.eye(ones[0].shape[1], dtype=torch.float64)
        readout = torch.linalg.solve(square, ones[0].T @ F.one_hot(self.labels[: self._fitted], 10).double())
        return {
            "loss": float(self.loss(rbm, v).mean()),
            "log-likelihood": found.mean,
            "reconstruction": float((v - rbm.visible_mean(rbm(v))).square().mean()),
            "accuracy": float(((ones[1] @ readout).argmax(1) == y).float().mean()),
        }
