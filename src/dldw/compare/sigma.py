"""Which sigma: truncation on one side, rounding on the other, and a valley between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.evaluate import Evaluator
from dldw.objective import Objective
from dldw.slopes import Central, OneSided
from dldw.source import Batch, GradientSource
from dldw.weights import Weights

DIRECTIONS = 8
"""Directions along which the slopes are compared."""

SLACK = 2.0
"""Errors of so many times the least count as in the valley; the middle of it is recommended."""


@dataclass(frozen=True)
class Sweep:
    """Errors of measured slopes against sigma.

    Attributes:
        sigma: Those that were tried, ascending.
        error: The error of the slope over the slope, root mean squares; infinite where the loss was not finite.
        recommended: The middle of the valley.
    """

    sigma: tuple[float, ...]
    error: tuple[float, ...]
    recommended: float

    def __str__(self) -> str:
        rows = [f"{'sigma':>10s} {'error of the slope':>20s}"]
        for sigma, error in zip(self.sigma, self.error, strict=True):
            rows.append(f"{sigma:10.2e} {error:20.2e}" + ("  recommended" if sigma == self.recommended else ""))
        return "\n".join(rows)

    def plot(self) -> Any:
        """The valley as an Altair chart (extra ``compare``)."""
        import altair as alt

        pairs = zip(self.sigma, self.error, strict=True)
        rows = [{"sigma": s, "error": e} for s, e in pairs if math.isfinite(e) and e > 0]
        x = alt.X("sigma:Q", scale=alt.Scale(type="log"))
        y = alt.Y("error:Q", scale=alt.Scale(type="log"), title="error of the slope, relative")
        line = alt.Chart(alt.InlineData(values=rows)).mark_line(point=True).encode(x=x, y=y)
        rule = alt.Chart(alt.InlineData(values=[{"sigma": self.recommended}])).mark_rule(strokeDash=[2, 3])
        return line + rule.encode(x=alt.X("sigma:Q"))


def sweep(
    source: GradientSource,
    gradient: Tensor | None,
    model: nn.Module,
    batch: Batch,
    sigma: Sequence[float] | None,
    directions: int = DIRECTIONS,
) -> Sweep:
    """The error of the slopes that ``source`` measures, for every sigma along the same directions.

    What is compared is the slope along each direction with that of ``gradient``, and not the estimate, whose variance over
    directions is the same for every sigma and would hide the valley.

    Args:
        source: A directional source whose slopes are differences at w + sigma z.
        gradient: The exact gradient [d], in the order of ``model.named_parameters()``.
        model: The model.
        batch: Handed to the loss.
        sigma: Which; by default powers of two around the size of the weights.
        directions: How many, each a direction of the source or as many as it draws together.

    Raises:
        DldwError: The source measures no differences, there is no gradient or it is zero, or ``sigma`` is empty.
    """
    slope = source._slope if isinstance(source, Directional) else None
    if not isinstance(source, Directional) or not isinstance(slope, Central | OneSided):
        raise DldwError(
            f"{type(source).__name__} does not measure differences at w + sigma z, so there is no sigma to choose. "
            "Sweep a source such as dldw.SPSA or dldw.EvolutionStrategy."
        )
    if gradient is None:
        raise DldwError(
            "there is no exact gradient here, so the error of a slope cannot be told. On a network of hard steps choose "
            "sigma by training: dldw compare TASK --tune 20."
        )
    weights = Weights.of(model)
    size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in weights.tensors) / weights.size) or 1.0
    eps = torch.finfo(weights.dtype).eps
    lowest, highest = round(math.log2(eps * size)), round(math.log2(4 * size))
    chosen = sorted(sigma) if sigma is not None else [2.0**power for power in range(lowest, highest + 1)]
    if not chosen:
        raise DldwError("sigma is empty, so there is nothing to sweep. Leave it out for powers of two.")
    named = [p for p in model.parameters() if p.requires_grad]
    own = {id(p): g for p, g in zip(named, gradient.split([p.numel() for p in named]), strict=True)}
    generator = torch.Generator(weights.device).manual_seed(0)
    errors = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        objective = Objective(model, source.loss, batch, weights)
        drawn = [source._directions.draw(weights, generator, 0, 1) for _ in range(directions)]
        slopes = [_slope(own, weights, direction.tangents(weights, 0)) for direction in drawn]
        exact = torch.tensor(slopes, dtype=torch.float64)
        if not exact.any():
            raise DldwError(
                "the exact gradient is zero here, so the error of a slope has nothing to be relative to. Choose sigma by "
                "training: dldw compare TASK --tune 20."
            )
        for value in chosen:
            found = []
            for direction in drawn:
                try:
                    (row,), stencil, (step,) = type(slope)(value).measure(
                        objective, direction, Evaluator("sequential"), [value]
                    )
                except DldwError:
                    found.append(math.inf)
                else:
                    found.append(sum(loss * weight for loss, weight in zip(row, stencil, strict=True)) / step)
            off = (
                torch.tensor(found, dtype=torch.float64) - exact
            ).square().mean().sqrt() / exact.square().mean().sqrt()
            errors.append(float(off))
    least = min(errors)
    valley = [value for value, error in zip(chosen, errors, strict=True) if error <= SLACK * least]
    return Sweep(tuple(chosen), tuple(errors), valley[len(valley) // 2])


def _slope(gradient: dict[int, Tensor], weights: Weights, direction: Sequence[Tensor]) -> float:
    pairs = zip(weights.tensors, direction, strict=True)
    return sum(float(gradient[id(p)].dot(z.flatten().double())) for p, z in pairs)
