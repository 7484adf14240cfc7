"""Estimates of a source, drawn alike: their sums, and losses after steps along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dldw.compare.statistics import mean_interval, t95
from dldw.objective import Objective
from dldw.source import Batch, GradientSource, Loss, repeatable
from dldw.weights import Weights

SHORTEST, LONGEST, LENGTHS = 2.0**-14, 2.0**4, 37
"""Steps that are tried: their lengths over that of the weights, and how many, a factor of √2 apart."""

Interval = tuple[float, float]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weights by name; every vector [d] here lists them in this order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Drawing:
    """Estimates of one source, each from the same buffers and the same global random state."""

    def __init__(self, source: GradientSource, model: nn.Module, batch: Batch) -> None:
        self.source, self.model, self.batch = source, model, batch
        self.weights = list(trainable(model).values())
        self.scale = source.card.find_scale(vars(source), sum(p.numel() for p in self.weights))

    def draw(self) -> Tensor:
        """One estimate [d], scaled so that its mean may be the gradient."""
        held = [p.grad for p in self.weights]
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        device = self.weights[0].device if self.weights else torch.device("cpu")
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                for p in self.weights:
                    p.grad = None
                self.source(self.model, self.batch)
                return torch.cat([_grad(p).flatten() for p in self.weights]).double() * self.scale
            finally:
                for p, grad in zip(self.weights, held, strict=True):
                    p.grad = grad
                with torch.no_grad():
                    for buffer, kept in buffers:
                        buffer.copy_(kept)

    def state(self) -> Tensor:
        """That of the source's generator; where it has made none yet, that of the one it will make."""
        generator = self.source.generator or repeatable(self.weights[0].device)
        return generator.get_state()


def _grad(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


@dataclass(frozen=True)
class Figures:
    """What the sums over draws say of some entries of the gradient."""

    cosine: float | None
    interval: Interval
    variance: float | None
    variance_interval: Interval | None
    bias: float | None
    bias_interval: Interval | None
    rms: float | None = None
    """The root mean square of the cosine."""


class Sums:
    """Sums over estimates [d]: in blocks, from which bias is told from noise, and by tensor."""

    def __init__(self, gradient: Tensor | None, sizes: Sequence[int], blocks: int) -> None:
        self.gradient, self.sizes = gradient, list(sizes)
        self.count = 0
        self._blocks = torch.zeros(blocks, sum(sizes), dtype=torch.float64)
        self._counts = torch.zeros(blocks, dtype=torch.float64)
        self._squares: list[Tensor] = []  # [tensors] of every draw
        self._dots: list[Tensor] = []

    def add(self, estimate: Tensor) -> None:
        """One more estimate."""
        row = self.count % len(self._blocks)
        self._blocks[row] += estimate.cpu()
        self._counts[row] += 1
        self.count += 1
        self._squares.append(self._by_tensor(estimate, estimate))
        if self.gradient is not None:
            self._dots.append(self._by_tensor(estimate, self.gradient))

    def _by_tensor(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([x.dot(y) for x, y in zip(a.split(self.sizes), b.split(self.sizes), strict=True)]).cpu()

    def narrow(self, share: float) -> bool:
        """Whether the interval of the cosine is narrower than so much of it."""
        found = self.figures()
        half = (found.interval[1] - found.interval[0]) / 2
        return found.cosine is not None and half <= share * abs(found.cosine)

    def figures(self, tensor: int | None = None) -> Figures:
        """Of one tensor, or of all."""
        at = slice(None) if tensor is None else slice(sum(self.sizes[:tensor]), sum(self.sizes[: tensor + 1]))
        which = slice(None) if tensor is None else slice(tensor, tensor + 1)
        n, used = self.count, int((self._counts > 0).sum())
        means = self._blocks[:used, at] / self._counts[:used, None]
        mean = self._blocks[:, at].sum(0) / n
        squares = torch.stack(self._squares)[:, which].sum(1)
        spread = 0.0 if n == 1 else max(0.0, float(squares.sum()) - n * float(mean.square().sum())) / (n - 1)
        known = used > 1 or n == 1  # one block of many estimates does not tell bias from noise
        if self.gradient is None:
            square, low, high = (
                distance(means) if known else (float(mean.square().sum()) - spread / n, -math.inf, math.inf)
            )
            whole = float(squares.mean())
            lengths = [math.sqrt(max(0.0, value) / whole) if whole else 0.0 for value in (square, low, high)]
            variance = spread / square if square > 0 else None
            return Figures(lengths[0], (lengths[1], min(1.0, lengths[2])), variance, None, None, None, lengths[0])
        g = self.gradient[at].cpu()
        length = float(g.norm())
        if not length:
            return Figures(None, (0.0, 0.0), None, None, None, None)
        dots = torch.stack(self._dots)[:, which].sum(1)
        cosines = (dots / (squares.sqrt() * length)).nan_to_num().tolist()
        cosine, *interval = mean_interval(cosines) if n > 1 else (cosines[0], cosines[0], cosines[0])
        rms = math.sqrt(sum(value**2 for value in cosines) / n)
        figures = Figures(cosine, (interval[0], interval[1]), spread / length**2, None, None, None, rms)
        if n > 1:
            half = mean_interval(((squares - 2 * dots) / length**2).tolist())  # of |ghat - g|², but for a constant
            off = (half[2] - half[1]) / 2
            figures = replace(figures, variance_interval=(max(0.0, spread / length**2 - off), spread / length**2 + off))
        if known:
            bias, *between = (math.sqrt(max(0.0, value)) / length for value in distance(means - g))
            figures = replace(figures, bias=bias, bias_interval=(between[0], between[1]))
        return figures


def distance(errors: Tensor) -> tuple[float, float, float]:
    """|E error|² from independent means of errors [k, d], and its 95 % interval.

    The product of two independent errors is |E error|² on average, however large their variance. Products of one mean with
    the others have an effect of that mean in common, and only the rest of them is independent: the variance of their mean
    is 4 var(effect) / k + 2 var(rest) / k (k - 1), as of every U-statistic of degree two (Hoeffding 1948).
    """
    k = len(errors)
    products = (errors @ errors.T).fill_diagonal_(0)
    if k == 1:
        square = float(errors.square().sum())
        return square, square, square
    mean = float(products.sum()) / (k * (k - 1))
    if k < 4:
        return mean, -math.inf, math.inf
    rows = products.sum(1) / (k - 1) - mean
    effects = rows * (k - 1) / (k - 2)
    rest = products - mean - effects[:, None] - effects[None]
    left = float(rest.fill_diagonal_(0).square().sum()) / (k * (k - 3))
    effect = max(0.0, float(effects.square().sum()) / (k - 1) - left / (k - 2))
    half = t95(k - 1) * math.sqrt(4 * effect / k + 2 * left / (k * (k - 1)))
    return mean, mean - half, mean + half


class Steps:
    """Losses after steps of many lengths along estimates."""

    def __init__(self, loss: Loss, model: nn.Module, batch: Batch) -> None:
        self._named = list(trainable(model).values())
        self._objective = Objective(model, loss, batch, Weights.of(model))
        self._objective.rewind()
        self._rates: Tensor | None = None
        self._rows: list[list[float]] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            self._here = self._objective.any_mean_at(self._objective.weights.tensors)

    def add(self, estimate: Tensor) -> None:
        """Tries all lengths along one more estimate [d]."""
        tensors: list[Tensor] = list(self._objective.weights.tensors)
        places = self._objective.weights.places
        if self._rates is None:
            size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in self._named)) or 1.0
            lengths = torch.logspace(math.log2(SHORTEST), math.log2(LONGEST), LENGTHS, base=2, dtype=torch.float64)
            self._rates = lengths * size / (float(estimate.norm()) or 1.0)
        parts = estimate.split([p.numel() for p in self._named])
        row = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for rate in self._rates.tolist():
                for p, part in zip(self._named, parts, strict=True):
                    tensors[places[id(p)]] = p - rate * part.view_as(p).to(p)
                row.append(self._here - self._objective.any_mean_at(tensors))
        self._rows.append(row)

    def best(self) -> tuple[float, Interval | None, float]:
        """The decrease of the loss at the best length, its interval, and the rate that gives it."""
        rows = torch.tensor(self._rows, dtype=torch.float64).nan_to_num(nan=-math.inf)
        half = max(1, len(rows) // 2)
        at = int(rows[:half].mean(0).argmax())
        gains = rows[half:, at] if len(rows) > half else rows[:, at]
        mean, low, high = mean_interval(gains.tolist())
        return mean, (low, high) if len(gains) > 1 else None, float(self._rates[at]) if self._rates is not None else 0.0
