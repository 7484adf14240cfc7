"""The perceptron's rule: no loss and no derivative, and yet a subgradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dldw.card import Card, Choice, Float
from dldw.errors import NonFiniteLossError
from dldw.source import Batch, GradientSource
from dldw.top_layer import Readout, require_margin
from dldw.weights import add_to_grad


class Perceptron(GradientSource):
    """Moves a linear layer towards the class an example has and away from the class it was taken for.

    With features x, scores s_k = w_k·x + b_k, own class y and r the best of the others (its rival), an example is a
    mistake where s_y - s_r <= margin, and

        ghat = 1/B · sum over mistakes of  (e_r - e_y) xᵀ,      so that one example and a step of lr are Rosenblatt's rule
        w_y += lr · x,    w_r -= lr · x.

    This is an exact subgradient of the perceptron criterion, the mean of max(0, margin - (s_y - s_r)), which is what the
    call returns; a tie is a mistake, or nothing would ever start at zero. The pair (y, r) is one example of Kesler's
    construction, which writes many classes as two: the binary perceptron on e_y ⊗ x - e_r ⊗ x. A layer with one output is
    the binary perceptron itself: class 1 above zero, class 0 below, s_y - s_r = ± s. On separable data examples one by one
    bring at most (R/γ)² mistakes, R the largest norm and γ the margin of what the construction gives.

    Cost: one forward, and a product of the size of the layer's own.

    Source: Rosenblatt 1958, Psychological Review 65; Kesler's construction: Nilsson 1965, Learning Machines; bound: Novikoff
    1962; margin: Krauth & Mézard 1987, J. Phys. A 20.

    Args:
        margin: How far the own score must be above its rival, in units of the scores.
        generator: Not drawn from; taken so that every source is built alike.

    Raises:
        DldwError: From the call: the model is not fixed features with one ``nn.Linear`` on top, or the batch no pair (x, y)
            of examples [B, ...] and classes [B].

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(2, 3)
        >>> learner = dldw.Descent(model, dldw.Perceptron(), torch.optim.SGD(model.parameters(), lr=1.0))
        >>> x, y = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]]), torch.arange(3)
        >>> for _ in range(20):
        ...     loss = learner.step((x, y))
        >>> loss.item(), model(x).argmax(1).tolist()
        (0.0, [0, 1, 2])
    """

    card = Card(
        summary="A linear layer moves towards the class an example has and away from the class it was taken for.",
        claim="biased",
        needs="no loss",
        forwards="2",
        memory="d",
        paper="Rosenblatt 1958, Psychological Review 65",
        space={"lr": Float(1e-3, 3.0), "margin": Choice((0.0, 0.1, 1.0))},
        note=(
            "Another objective: an exact subgradient of the perceptron criterion, whatever the loss of the task. Trains one "
            "nn.Linear, alone or after fixed parts."
        ),
    )

    def __init__(self, margin: float = 0.0, *, generator: torch.Generator | None = None) -> None:
        super().__init__(generator=generator)
        require_margin(margin)
        self.margin = margin

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self._prepare(model)
        readout = Readout.of(model)
        with torch.no_grad():
            x, y = readout.features(batch)
            scores = readout.layer(x)
            if not bool(scores.isfinite().all()):
                bad = scores[~scores.isfinite()][0].item()
                raise NonFiniteLossError(
                    f"a score is {bad} at the model's own weights, so that right cannot be told from wrong; .grad is as it "
                    "was. Lower the learning rate, or check the batch for NaN."
                )
            lead, away = leads(scores, y)
            away[lead > self.margin] = 0
            for p, moved in ((readout.layer.weight, away.T @ x), (readout.layer.bias, away.sum(0))):
                if p is not None and p.requires_grad:
                    moved /= len(y)
                    add_to_grad(p, moved)
            return (self.margin - lead).clamp(min=0).mean()

    def criterion(self, model: nn.Module, batch: Batch) -> Tensor:
        """The perceptron criterion of each example, max(0, margin - lead) [B], for autograd to differentiate."""
        readout = Readout.of(model)
        x, y = readout.features(batch)
        return (self.margin - leads(readout.layer(x), y)[0]).clamp(min=0)


def leads(scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """By how much the own score leads the best of the others [B], and e_r - e_y, minus its derivative [B, K]."""
    own = y[:, None]
    if scores.shape[1] == 1:
        away = (1 - 2 * own).to(scores.dtype)
        return -(away * scores)[:, 0], away
    best, rival = scores.scatter(1, own, -torch.inf).max(1, keepdim=True)
    return (scores.gather(1, own) - best)[:, 0], torch.zeros_like(scores).scatter_(1, rival, 1).scatter_(1, own, -1)
