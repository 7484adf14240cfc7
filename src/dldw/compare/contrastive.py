"""How biased contrastive divergence is: its mean estimate against the exact gradient of the log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor

from dldw.compare.item import Identity, Item
from dldw.compare.records import Record
from dldw.nn.likelihood import exact_log_partition
from dldw.nn.rbm import RBM
from dldw.sources.contrastive_divergence import ContrastiveDivergence


@dataclass(frozen=True)
class Bias:
    """The expectation of the estimates beside the exact gradient g of the mean negative log-likelihood.

    It is that of ``draws`` estimates, and what noise adds to the length of their mean is taken off.

    Attributes:
        step: Steps of exact gradient descent before.
        estimator: ``CD-k`` or ``PCD-k``.
        cosine: Between the expectation and g.
        norm: Norm of the expectation over that of g.
        error: Norm of their difference over that of g.
    """

    step: int
    estimator: str
    cosine: float
    norm: float
    error: float


REPEATED = 200
"""Copies of the data in a batch: each has noise of its own, and there are few examples where all can be summed up."""
STEPS, K = (100, 200, 300, 500), (1, 3, 10)


@dataclass(frozen=True)
class Sampling(Item):
    """The bias of contrastive divergence on the machine of a task that can be enumerated.

    Attributes:
        draws: Estimates that are averaged at every point.
    """

    draws: int

    @property
    def weight(self) -> float:
        return 1.5e-3 * max(STEPS) + 1e-3 * self.draws * len(STEPS) * (sum(K) + 1)

    @property
    def keys(self) -> list[Identity]:
        return [("sampling", self.task, step, name) for step in STEPS for name in (*(f"CD-{n}" for n in K), "PCD-1")]

    @property
    def what(self) -> str:
        return "bias of contrastive divergence"

    def run(self) -> list[Record]:
        found = self.loaded().enumerable()
        if found is None:
            return []
        rbm, v = found
        generator = torch.Generator().manual_seed(0)
        records: list[Any] = [
            {"kind": "sampling", "task": self.task, **asdict(bias)}
            for bias in biases(
                cast(RBM, rbm), v.repeat(REPEATED, 1), steps=STEPS, k=K, draws=self.draws, generator=generator
            )
        ]
        return cast(list[Record], records)


def exact_gradient(rbm: RBM, v: Tensor) -> Tensor:
    """The gradient of the mean negative log-likelihood of ``v`` [B, visible] by enumeration, [d]."""
    loss = rbm.free_energy(v).mean() + exact_log_partition(rbm)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, _trainable(rbm))])


def estimates(source: ContrastiveDivergence, rbm: RBM, v: Tensor, draws: int) -> tuple[Tensor, float]:
    """The mean of ``draws`` estimates, [d], and the squared norm of their expectation, without the noise of that mean.

    All go from the same persistent chains where there are any; ``.grad`` is spent.
    """
    chains = source.state_dict()["chains"]
    total, squares = 0.0 * exact_gradient(rbm, v), 0.0
    for _ in range(draws):
        for p in rbm.parameters():
            p.grad = None
        source.load_state_dict({"generator": source.state_dict()["generator"], "chains": chains})
        source(rbm, v)
        drawn = torch.cat([p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in _trainable(rbm)])
        total += drawn
        squares += float(drawn.square().sum())
    source.load_state_dict({"generator": source.state_dict()["generator"], "chains": chains})
    for p in rbm.parameters():
        p.grad = None
    # products of different draws have no noise on average
    pairs = (float(total.square().sum()) - squares) / (draws * (draws - 1))
    return total / draws, max(0.0, pairs)


def biases(
    rbm: RBM,
    v: Tensor,
    *,
    steps: Sequence[int] = (0, 100, 300, 1000),
    k: Sequence[int] = (1, 3, 10),
    lr: float = 0.5,
    draws: int = 30,
    generator: torch.Generator,
) -> list[Bias]:
    """The bias of CD-k for each k, and of PCD-1, at some points of a training by the exact gradient.

    The chains of PCD follow that training from its start, one step of sampling for each of it: at fixed weights they would
    come to sample the machine exactly, and it is that they lag behind which makes PCD biased.

    Args:
        rbm: The machine, which is trained; min(visible, hidden) at most 20.
        v: The data [B, visible], all of it in every step; repeat the rows of a small set for less noise.
        steps: After how many steps of training the bias is taken, rising.
        k: Steps of sampling.
        lr: Learning rate of the training.
        draws: Estimates that are averaged, two at least.
        generator: What the estimators draw from.
    """
    estimators = {f"CD-{n}": ContrastiveDivergence(n, generator=generator) for n in k}
    persistent = ContrastiveDivergence(1, persistent=True, generator=generator)
    found = []
    for step in range(max(steps) + 1):
        g = exact_gradient(rbm, v)
        if step in steps:
            for name, source in {**estimators, "PCD-1": persistent}.items():
                mean, square = estimates(source, rbm, v, draws)
                along, length = float(mean @ g / g.square().sum()), math.sqrt(square) / float(g.norm())
                cosine = max(-1.0, min(1.0, along / length)) if length else 0.0
                found.append(Bias(step, name, cosine, length, math.sqrt(max(0.0, length**2 - 2 * along + 1))))
        persistent(rbm, v)  # its chains go on; its estimate is not followed
        rbm.zero_grad()
        with torch.no_grad():
            parts = g.split([p.numel() for p in _trainable(rbm)])
            for p, part in zip(_trainable(rbm), parts, strict=True):
                p.sub_(part.view_as(p), alpha=lr)
    return found


def _trainable(rbm: RBM) -> list[torch.nn.Parameter]:
    return [p for p in rbm.parameters() if p.requires_grad]
