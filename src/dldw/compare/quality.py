"""How good an estimate of the gradient is, and what it buys."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dldw.compare.sampled import Drawing, Interval, Steps, Sums, trainable
from dldw.compare.sigma import Sweep, sweep
from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.source import Batch, GradientSource, Loss
from dldw.sources.backprop import Backprop
from dldw.weights import Weights

BLOCKS = 10
"""Independent means of estimates from which the bias is told from noise."""

HELD = 1 << 24
"""Numbers that these means may take together; for larger models there is one sum, and the bias is not told."""

TRIED = 24
"""Estimates along which steps are tried: the first half chooses the length, the second gives the decrease."""


@dataclass(frozen=True)
class Part:
    """The estimate of one tensor's gradient: like the fields of ``Quality``."""

    name: str
    weights: int
    cosine: float | None
    variance: float | None
    bias: float | None


@dataclass(frozen=True)
class Quality:
    """How good estimates are. Variance, bias and error are relative to the length of the gradient.

    Attributes:
        weights: d.
        draws: Estimates drawn.
        exact: Whether they were held against a gradient; if not, against their own mean, whose bias nobody knows.
        cosine: To the gradient, the mean over draws; without a gradient that to their mean.
        cosine_interval: 95 %.
        cosine_rms: Its root mean square, which is what ``predicted_cosine`` predicts.
        variance: E|ghat - E ghat|² / |g|²; None where estimates have no common scale, as ranks have not.
        variance_interval: 95 %; None where it is not known.
        predicted_variance: The closed form on the card, where it has one.
        bias: |E ghat - g| / |g|; None where it is not known, as with more than a million weights.
        bias_interval: 95 %; it begins at 0 where the bias may be 0.
        parts: The same for every tensor.
        forwards: Forward-equivalents of one estimate, by the card.
        seconds: Of one estimate, the median.
        directions: Directions of one estimate.
        decrease: Of the loss by one step along an estimate, at the best length; None where it was not tried.
        decrease_interval: 95 %.
        lr: The learning rate of that step.
    """

    weights: int
    draws: int
    exact: bool
    cosine: float
    cosine_interval: Interval
    variance: float | None
    predicted_variance: float | None
    bias: float | None
    bias_interval: Interval | None
    parts: tuple[Part, ...]
    forwards: float
    seconds: float
    directions: int
    decrease: float | None = None
    decrease_interval: Interval | None = None
    lr: float | None = None
    variance_interval: Interval | None = None
    cosine_rms: float | None = None
    _asked: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def error(self) -> float | None:
        """sqrt(E|ghat - g|²) / |g|, the relative error of one estimate."""
        if self.variance is None or self.bias is None:
            return None
        return math.sqrt(self.variance + self.bias**2)

    @property
    def predicted_cosine(self) -> float | None:
        """1 / sqrt(1 + variance), by the closed form of the variance: the root mean square of the cosine."""
        return None if self.predicted_variance is None else 1 / math.sqrt(1 + self.predicted_variance)

    @property
    def decrease_per_forward(self) -> float | None:
        """The figure that decides: how much loss one forward-equivalent takes away, at the best step length."""
        return None if self.decrease is None else self.decrease / self.forwards

    def directions_for(self, cosine: float) -> int:
        """How many directions have to be averaged for their mean to reach ``cosine``, by the measured variance.

        Raises:
            DldwError: ``cosine`` is not between 0 and 1.
        """
        if not 0 < cosine < 1:
            raise DldwError(f"cosine must be between 0 and 1, got {cosine}: 1 itself is not reached by any number.")
        noise = self.variance if self.variance is not None else 1 / self.cosine**2 - 1 if self.cosine else math.inf
        if not math.isfinite(noise):
            raise DldwError(
                "the estimates have no direction in common with the gradient, so no number of them is enough."
            )
        return max(1, math.ceil(self.directions * noise * cosine**2 / (1 - cosine**2)))

    def sweep(self, sigma: Sequence[float] | None = None) -> Sweep:
        """The error of the slopes against sigma: truncation on one side, rounding on the other, a valley between.

        Args:
            sigma: Which; by default powers of two from below rounding to above the size of the weights.

        Raises:
            DldwError: The source has no sigma, or there is no gradient to compare with.
        """
        source, gradient, model, batch = self._asked
        return sweep(source, gradient, model, batch, sigma)

    def __str__(self) -> str:
        def interval(found: Interval | None) -> str:
            return "" if found is None else f" [{found[0]:.3g}, {found[1]:.3g}]"

        against = "the gradient" if self.exact else "their own mean, as there is no exact gradient"
        lines = [f"{self.draws} estimates of {self.weights:,} weights against {against}"]
        predicted = ""
        if self.predicted_cosine is not None and self.cosine_rms is not None:
            predicted = f", root mean square {self.cosine_rms:.3g}, predicted {self.predicted_cosine:.3g}"
        lines.append(f"cosine {self.cosine:.3g}{interval(self.cosine_interval)}{predicted}")
        if self.variance is not None:
            closed = "" if self.predicted_variance is None else f", predicted {self.predicted_variance:.4g}"
            lines.append(f"variance {self.variance:.4g} of |g|²{interval(self.variance_interval)}{closed}")
        if self.bias is not None:
            lines.append(f"bias {self.bias:.3g} of |g|{interval(self.bias_interval)}")
        lines.append(f"{self.forwards:g} forwards and {self.seconds:.3g} s an estimate")
        if self.decrease is not None:
            lines.append(
                f"one step at lr {self.lr:.3g} takes {self.decrease:.3g}{interval(self.decrease_interval)} off the loss, "
                f"{self.decrease_per_forward:.3g} a forward"
            )
        width = max(len(part.name) for part in self.parts)
        for part in self.parts:
            cells = [("cosine", part.cosine), ("variance", part.variance), ("bias", part.bias)]
            shown = ", ".join(f"{name} {value:.3g}" for name, value in cells if value is not None)
            lines.append(f"  {part.name.ljust(width)}  {shown}")
        return "\n".join(lines)

    def plot(self) -> Any:
        """The cosine of every tensor as an Altair chart (extra ``compare``)."""
        import altair as alt

        rows = [{"tensor": p.name, "cosine": p.cosine, "variance": p.variance, "bias": p.bias} for p in self.parts]
        return (
            alt.Chart(alt.InlineData(values=[row for row in rows if row["cosine"] is not None]))
            .mark_bar()
            .encode(
                x=alt.X("cosine:Q", title="cosine to the exact gradient"),
                y=alt.Y("tensor:N", sort=None, title=None),
                tooltip=["tensor:N", "cosine:Q", "variance:Q", "bias:Q"],
            )
        )


def quality(
    source: GradientSource,
    against: GradientSource | None = None,
    *,
    model: nn.Module,
    batch: Batch,
    draws: int = 1000,
    narrow: float = 0.05,
) -> Quality:
    """Draws estimates and says how good they are: cosine, variance, bias, what they cost, and what a step along one buys.

    The model, its ``.grad`` and buffers, and the global random state are left as they were; every estimate sees the same
    dropout masks. Drawing stops once the interval of the cosine is narrow.

    Cost: ``draws`` estimates, one exact gradient, and 889 forwards to find the best step.

    Source: Berahas, Cao, Choromanski & Scheinberg 2022, arXiv 1905.01332, compare such estimates by their errors.

    Args:
        source: What estimates.
        against: A source whose one estimate counts as the gradient; by default backprop. Where that finds none, as on a
            network of hard steps or for a source that needs no loss, estimates are held against their own mean.
        model: The model.
        batch: Handed to the loss.
        draws: At most so many estimates.
        narrow: Half the cosine's interval over the cosine at which drawing stops; 0 draws all.

    Raises:
        DldwError: ``draws`` is less than 2, or the source cannot run on the model.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(9, 1, bias=False)
        >>> spsa = dldw.SPSA(lambda model, x: model(x).sum(1), generator=torch.Generator().manual_seed(0))
        >>> found = dldw.quality(spsa, model=model, batch=torch.ones(2, 9), draws=200)
        >>> found.predicted_variance, 5 < found.variance < 11
        (8.0, True)
    """
    if draws < 2:
        raise DldwError(f"draws must be at least 2, got {draws}: the variance of one estimate cannot be seen.")
    loss: Loss | None = getattr(source, "loss", None)
    exact = Backprop(loss) if against is None and loss is not None else against
    gradient = None if exact is None else _gradient(exact, model, batch, required=against is not None)
    return measure(source, gradient, model, batch, draws=draws, narrow=narrow, loss=loss)


def _gradient(against: GradientSource, model: nn.Module, batch: Batch, *, required: bool) -> Tensor | None:
    """What ``against`` estimates, [d]; None where it finds nothing and nobody asked for it in particular."""
    try:
        found = Drawing(against, model, batch).draw()
    except DldwError:
        if required:
            raise
        return None
    return found if bool(found.any()) or required else None


def measure(
    source: GradientSource,
    gradient: Tensor | None,
    model: nn.Module,
    batch: Batch,
    *,
    draws: int,
    narrow: float,
    loss: Loss | None = None,
) -> Quality:
    """``quality`` against ``gradient`` [d]; where there is a ``loss``, steps along the first estimates say what they buy."""
    drawing = Drawing(source, model, batch)
    named = trainable(model)
    sizes = [p.numel() for p in named.values()]
    total = Sums(gradient, sizes, min(BLOCKS, draws) if BLOCKS * sum(sizes) <= HELD else 1)
    steps = None if loss is None else Steps(loss, model, batch)
    seconds: list[float] = []
    for i in range(draws):
        before, start = drawing.state(), time.perf_counter()
        estimate = drawing.draw()
        seconds.append(time.perf_counter() - start)
        total.add(estimate)
        if steps is not None and i < TRIED:
            steps.add(estimate)
        if torch.equal(before, drawing.state()):
            break  # nothing was drawn: the next one would be the same
        if narrow and i >= 2 * BLOCKS and i % BLOCKS == BLOCKS - 1 and total.narrow(narrow):
            break
    d, whole, sized, parts = sum(sizes), total.figures(), source.additive, []
    for i, (name, size) in enumerate(zip(named, sizes, strict=True)):
        own = total.figures(i)
        parts.append(Part(name, size, own.cosine, own.variance if sized else None, own.bias if sized else None))
    bought = steps.best() if steps is not None else None
    return Quality(
        weights=d,
        draws=total.count,
        exact=gradient is not None,
        cosine=whole.cosine if whole.cosine is not None else 0.0,
        cosine_interval=whole.interval,
        variance=whole.variance if sized else None,
        predicted_variance=source.card.predict_variance(vars(source), d),
        bias=whole.bias if sized else None,
        bias_interval=whole.bias_interval if sized else None,
        parts=tuple(parts),
        forwards=source.forwards(d),
        seconds=float(np.median(seconds)),
        directions=source._directions.count(Weights.of(model)) if isinstance(source, Directional) else 1,
        decrease=bought[0] if bought else None,
        decrease_interval=bought[1] if bought else None,
        lr=bought[2] * drawing.scale if bought else None,
        variance_interval=whole.variance_interval if sized else None,
        cosine_rms=whole.rms,
        _asked=(source, gradient, model, batch),
    )
