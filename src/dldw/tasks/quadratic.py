"""A quadratic bowl: gradient, curvature and minimum are known in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dldw.tasks.task import Task, seeded


class Point(nn.Module):
    """A point w [d] that is all the model there is."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(d))

    def forward(self) -> Tensor:
        """The point itself, [d]."""
        return self.w


class Quadratic(Task):
    """Examples x ~ N(1, 0.1²) in d dimensions; the loss of one is 1/2 · sum_j a_j (w_j - x_j)², a from 1/10 to 1.

    The gradient of a batch's mean loss is a ∘ (w - mean x), its Hessian diag(a), the minimum of the expected loss w = 1.
    What is reported is the expected loss above its minimum, 1/2 · sum_j a_j (w_j - 1)², without sampling error.
    """

    name = "quadratic"
    summary = "A noisy quadratic bowl in 32 dimensions, condition number 10; everything known in closed form."
    metric = "loss"
    target = 0.05
    width = 32
    batch_size = 32
    train_examples = 1024
    test_examples = 0
    noise = 0.1

    def curvature(self, d: int) -> Tensor:
        """The eigenvalues a of the Hessian, [d]."""
        return torch.logspace(-1, 0, d)

    def model(self, seed: int, width: int | None = None) -> nn.Module:
        return seeded(seed, lambda: Point(width or self.width))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        w: Tensor = model()
        return (w - batch[:, : w.numel()]).square() @ (self.curvature(w.numel()) / 2)

    def batches(self, seed: int, tuning: bool = False) -> Iterator[Tensor]:
        """Rows are drawn afresh, so that no split has to be kept apart; 4,096 columns serve every width."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(self.batch_size, 4096, generator=generator).mul_(self.noise).add_(1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: str = "test") -> dict[str, float]:
        w: Tensor = model()
        return {"loss": float((w - 1).square() @ self.curvature(w.numel())) / 2}
