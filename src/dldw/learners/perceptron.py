"""The perceptron's rule one example after another, at the speed of matrix products."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dldw.errors import DldwError, NonFiniteLossError
from dldw.source import Batch
from dldw.top_layer import Readout, require_margin
from dldw.weights import Weights

BLOCK = 32
"""Examples scored at once: more are repaired more often, fewer take more calls."""


class OnlinePerceptron:
    """Rosenblatt's rule over the examples of a batch in their order, each with the weights that the ones before it left.

        where s_y - s_r <= margin:   w_y += x,   w_r -= x,   b_y += 1,   b_r -= 1         s = W x + b, r the best but y

    is what ``dldw.Perceptron`` and SGD with a learning rate of 1 do in batches of one. Here a block is scored by one matrix
    product, and each mistake repairs the scores of the examples after it by x·x'. ``average`` predicts with the mean of the
    weights over all examples seen, 1/T · sum_t W_t, from one sum that only mistakes touch: W_T - 1/T · sum_t (t - 1) ΔW_t.

    Weights, sums and the count of mistakes have the same bits as those of the rule above with s = W @ x + b by numpy,
    however the examples are cut into batches: the score of a block is trusted only where s_y - s_r is farther from the
    margin, and r from its runner-up, than rounding in any order of summation can carry it. Other examples are scored again
    by W @ x, once it is their turn. The loss that ``step`` returns is equal but for rounding.

    Cost: one forward, and for each mistake a product of half a block's examples with its own; once more the weights.

    Source: Rosenblatt 1958, Psychological Review 65; averaged: Freund & Schapire 1999, Machine Learning 37.

    Args:
        model: As ``dldw.Perceptron`` takes it, in float64 on the CPU.
        margin: How far the own score must be above its rival.

    Attributes:
        seen: Examples so far, T.
        mistakes: How many of them were mistakes: the weights have changed that often.

    Raises:
        DldwError: The model is not fixed features with one trainable ``nn.Linear`` on top, or not in float64 on the CPU.

    Example:
        >>> import torch
        >>> from dldw.learners.perceptron import OnlinePerceptron
        >>> learner = OnlinePerceptron(torch.nn.Linear(2, 1, dtype=torch.float64))
        >>> x = torch.tensor([[2.0, 1.0], [-1.0, -2.0]], dtype=torch.float64)
        >>> for _ in range(9):
        ...     loss = learner.step((x, torch.tensor([1, 0])))
        >>> learner.average()(x).flatten() > 0
        tensor([ True, False])
    """

    def __init__(self, model: nn.Module, *, margin: float = 0.0) -> None:
        Weights.of(model).require_trainable()
        self._readout = Readout.of(model)
        layer = self._readout.layer
        require_margin(margin)
        for name, p in layer.named_parameters():
            _require_double(p, f"the {name}")
            if not p.requires_grad:
                raise DldwError(
                    f"the {name} of the layer that is to learn is frozen, and the rule changes it with every mistake. Call "
                    "requires_grad_() on it, or make the layer without one: bias=False."
                )
        self.model, self.margin = model, margin
        self.seen, self.mistakes = 0, 0
        self._unit = 0.0 if layer.bias is None else 1.0  # the input that belongs to the bias
        self._no_bias = layer.weight.new_zeros(layer.out_features, requires_grad=False)
        self._sums = [torch.zeros_like(p) for p in self._parameters()]

    @torch.no_grad()
    def step(self, batch: Batch) -> Tensor:
        """Learns from the examples of ``batch``, one after another.

        Returns:
            The mean over them of max(0, margin - (s_y - s_r)) as each was met, shape [].

        Raises:
            NonFiniteLossError: An example or the weights are NaN or infinite, or too large to be scored.
            DldwError: The batch is not a pair (x, y) of float64 examples [B, ...] and classes [B].
        """
        x, y = self._readout.features(batch)
        _require_double(x, "what the layer is given")
        rows, classes = x.detach().contiguous().numpy(), y.numpy()
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        if not np.isfinite(norms).all():
            raise NonFiniteLossError(
                "an example is NaN, infinite or too large for its square, so that it cannot be scored; the weights are as "
                "they were. Check the batch, and scale it."
            )
        total = 0.0
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            total += self._learn(rows[part], classes[part], float(norms[part].max()))
        return torch.scalar_tensor(total / len(rows), dtype=x.dtype)

    def average(self) -> nn.Linear:
        """A copy of the layer with the mean of its weights over all examples seen."""
        layer = copy.deepcopy(self._readout.layer)
        with torch.no_grad():
            for p, sums in zip(layer.parameters(), self._sums, strict=False):
                p.sub_(sums / max(1, self.seen))
        return layer

    def state_dict(self) -> dict[str, Any]:
        """Model, sums and counts."""
        sums = [s.clone() for s in self._sums]
        return {"model": self.model.state_dict(), "sums": sums, "seen": self.seen, "mistakes": self.mistakes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self._sums = [s.clone() for s in state["sums"]]
        self.seen, self.mistakes = state["seen"], state["mistakes"]

    def _learn(self, x: np.ndarray, y: np.ndarray, longest: float) -> float:
        """Learns from a block of examples [m, d] of norm ``longest`` at most; returns the sum of their losses."""
        weights, bias = (p.numpy() for p in self._parameters())
        sums, bias_sums = (s.numpy() for s in self._sums)
        lowest = 1 if len(weights) == 1 else 0  # the class of the first row: of two classes, 0 has none, and scores 0
        slack = _slack(weights, bias, len(x), longest)
        limit, loss = self.margin + slack, 0.0

        everyone, labels, m = np.arange(len(y)), y.tolist(), len(y)
        scores = np.zeros((lowest + len(weights), m))
        np.matmul(weights, x.T, out=scores[lowest:])
        scores[lowest:] += bias[:, None]
        barred = np.zeros_like(scores)  # no class is its own rival
        barred[y, everyone] = -np.inf
        lead = scores[y, everyone] - (scores + barred).max(0)
        i = 0
        while i < m:
            i += int((lead[i:] <= limit).argmax())
            if lead[i] > limit:
                break
            k, at, rivals = labels[i], lead[i], scores[:, i] + barred[:, i]
            r = int(rivals.argmax())
            if at > self.margin - slack or np.count_nonzero(rivals >= rivals[r] - slack) > 1:
                single = np.zeros(len(scores))
                single[lowest:] = weights @ x[i] + bias
                rivals = single + barred[:, i]
                r = int(rivals.argmax())
                at = single[k] - rivals[r]
            if at <= self.margin:
                loss += self.margin - at
                self.mistakes += 1
                before, later = self.seen + i, slice(i + 1, m)
                product, waited = x[later] @ x[i] + self._unit, before * x[i]
                for kind, sign, moved in ((k, 1, np.add), (r, -1, np.subtract)):
                    row = kind - lowest
                    if row >= 0:
                        moved(weights[row], x[i], out=weights[row])
                        moved(sums[row], waited, out=sums[row])
                        bias[row] += sign * self._unit
                        bias_sums[row] += sign * before * self._unit
                        moved(scores[kind, later], product, out=scores[kind, later])
                lead[later] = scores[y[later], everyone[later]] - (scores[:, later] + barred[:, later]).max(0)
            i += 1
        self.seen += m
        return loss

    def _parameters(self) -> tuple[Tensor, Tensor]:
        layer = self._readout.layer
        return layer.weight.detach(), self._no_bias if layer.bias is None else layer.bias.detach()


def _slack(weights: np.ndarray, bias: np.ndarray, m: int, longest: float) -> float:
    """How far a lead in the scores of a block can be from that in scores taken one by one.

    A sum of n products is off by n u |a|·|b| at most, in whatever order it is taken (Higham 2002, section 3.1; u is half of
    eps). The block's score, the one taken alone, the repairs and the rounding of the weights are 2 (d + m + 2) such terms
    for each of two scores. The leading factor is twice that: it covers the higher orders and the rounding in this function.
    """
    row = math.sqrt(np.einsum("ij,ij->i", weights, weights).max())
    reach = row + float(abs(bias).max()) + m * (longest + 1)
    off: float = 4 * (weights.shape[1] + m + 2) * reach * (longest + 1)
    if not math.isfinite(off):
        raise NonFiniteLossError(
            "the weights are NaN, infinite or too large, so that no example can be scored. Start from others, and scale the "
            "examples."
        )
    return off * sys.float_info.epsilon


def _require_double(tensor: Tensor, what: str) -> None:
    if tensor.dtype != torch.float64 or tensor.device.type != "cpu":
        raise DldwError(
            f"{what} must be in float64 on the CPU, got {tensor.dtype} on {tensor.device}: the rule is sequential, and its "
            "ties are decided by the last bits. Convert model and examples with .double().cpu(), or use dldw.Perceptron."
        )
