"""f(a + d) - f(a) of what acts on every number alone, without a difference of two nearly equal numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dldw.differences.changes import Column
from dldw.differences.tensor import Difference, Run, base, rule

Moves = Callable[..., Tensor]
"""``moves(a, d, *arguments)`` is f(a + d) - f(a); d has the members in a leading dimension, a may lack it.

It is ``NotImplemented`` for arguments that it is not written for.
"""


def elementwise(*names: str) -> Callable[[Moves], Moves]:
    """Makes a function the rule of these operations."""

    def register(moves: Moves) -> Moves:
        @rule(*names)
        def of_all(run: Run, func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(x, Difference) or any(isinstance(a, Difference) for a in (*args, *kwargs.values())):
                return NotImplemented
            if isinstance(x.change, Column):
                a, d = x.change.of(x.base), x.change.values
            else:
                a, d = x.base, x.dense
            moved = moves(a, d, *args, **kwargs)
            if moved is NotImplemented:
                return NotImplemented
            change = Column(x.change.dim, x.change.index, moved) if isinstance(x.change, Column) else moved
            return Difference(func(x.base, *base(args), **kwargs), change, run, apart=x.apart)

        return moves

    return register


@elementwise("tanh")
def _tanh(a: Tensor, d: Tensor) -> Tensor:
    step, t, falls = torch.tanh(d), torch.tanh(a), torch.cosh(a).pow(-2)
    return step.mul(falls).div_(step.mul(t).add_(1))


@elementwise("sigmoid")
def _sigmoid(a: Tensor, d: Tensor) -> Tensor:
    grown, s = torch.expm1(d), torch.sigmoid(a)
    return grown.mul(s * torch.sigmoid(-a)).div_(grown.mul(s).add_(1))


@elementwise("exp", "expm1")
def _exp(a: Tensor, d: Tensor) -> Tensor:
    return torch.expm1(d).mul_(a.exp())


@elementwise("log")
def _log(a: Tensor, d: Tensor) -> Tensor:
    return torch.log1p(d / a)


@elementwise("log1p")
def _log1p(a: Tensor, d: Tensor) -> Tensor:
    return torch.log1p(d / (1 + a))


@elementwise("sqrt")
def _sqrt(a: Tensor, d: Tensor) -> Tensor:
    return d / ((a + d).sqrt() + a.sqrt())


@elementwise("rsqrt")
def _rsqrt(a: Tensor, d: Tensor) -> Tensor:
    moved = a + d
    return -d / (moved * a.sqrt() + a * moved.sqrt())


@elementwise("reciprocal")
def _reciprocal(a: Tensor, d: Tensor) -> Tensor:
    return -d / (a * (a + d))


@elementwise("sin")
def _sin(a: Tensor, d: Tensor) -> Tensor:
    return 2 * torch.sin(d / 2) * torch.cos(a + d / 2)


@elementwise("cos")
def _cos(a: Tensor, d: Tensor) -> Tensor:
    return -2 * torch.sin(d / 2) * torch.sin(a + d / 2)


@elementwise("neg")
def _neg(a: Tensor, d: Tensor) -> Tensor:
    return -d


@elementwise("pow")
def _power(a: Tensor, d: Tensor, exponent: float) -> Any:
    if exponent == 2:
        return d * (2 * a + d)
    if exponent == 3:
        return d * (3 * a * (a + d) + d * d)
    known: dict[float, Moves] = {1: lambda a, d: d, 0.5: _sqrt, -0.5: _rsqrt, -1: _reciprocal}
    return known[exponent](a, d) if exponent in known else NotImplemented


# --- straight pieces ------------------------------------------------------------------------------------------------


@elementwise("clamp")
def _clamp(a: Tensor, d: Tensor, min: float | None = None, max: float | None = None) -> Any:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return NotImplemented
    low, high = min, max
    held = torch.clamp(a, low, high)
    out = d + (a - held)
    if low is not None:
        out = torch.maximum(out, low - held)
    return out if high is None else torch.minimum(out, high - held)


@elementwise("relu")
def _relu(a: Tensor, d: Tensor) -> Tensor:
    held = a.clamp(min=0)
    return torch.maximum(d + (a - held), -held)


@elementwise("clamp_min")
def _clamp_min(a: Tensor, d: Tensor, low: float) -> Tensor:
    return _clamp(a, d, low)


@elementwise("hardtanh")
def _hardtanh(a: Tensor, d: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return _clamp(a, d, low, high)


@elementwise("leaky_relu")
def _leaky_relu(a: Tensor, d: Tensor, slope: float = 0.01) -> Tensor:
    above = _relu(a, d)
    return above + slope * (d - above)


@elementwise("abs")
def _absolute(a: Tensor, d: Tensor) -> Tensor:
    return 2 * _relu(a, d) - d


@elementwise("elu")
def _elu(a: Tensor, d: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    if input_scale != 1:
        return NotImplemented
    above = _relu(a, d)
    return scale * (above + alpha * (torch.expm1(d - above) * a.clamp(max=0).exp()))


# --- smooth steps ----------------------------------------------------------------------------------------------------


@elementwise("softplus")
def softplus(a: Tensor, d: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """The rule of softplus, which torch has straight beyond a threshold."""
    bent = torch.log1p(torch.sigmoid(beta * a) * torch.expm1(beta * d)) / beta
    return torch.where(beta * a > threshold, d, bent)


@rule("log_sigmoid_forward")
def _log_sigmoid(run: Run, func: Any, x: Difference) -> Any:
    out, buffer = func(x.base)
    return Difference(out, -softplus(-x.base, -x.dense), run, apart=x.apart), buffer


@elementwise("silu")
def _silu(a: Tensor, d: Tensor) -> Tensor:
    step = _sigmoid(a, d)
    return d * (torch.sigmoid(a) + step) + a * step


def longest(d: Tensor) -> float:
    """The largest magnitude."""
    return float(torch.stack(torch.aminmax(d)).abs().max()) if d.numel() else 0.0


def growth(d: Tensor) -> Tensor:
    """exp(d) - 1, of short steps by the two terms that are left of its series."""
    return torch.addcmul(d, d, d, value=0.5) if longest(d) ** 2 < torch.finfo(d.dtype).eps else torch.expm1(d)


def polynomial(d: Tensor, coefficients: list[Tensor]) -> Tensor:
    """The sum of coefficients[k] d^(k + 1)."""
    out = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        out = torch.addcmul(c, out, d)
    return out * d


def normal_series(a: Tensor, d: Tensor) -> list[Tensor] | None:
    """Coefficients of Φ(a + d) - Φ(a): Hermite polynomials times the density. None where ``d`` is too long for few terms."""
    length = longest(d)
    if not length < _SHORT:
        return None
    eps, terms = torch.finfo(d.dtype).eps, 1
    while (4 * length) ** terms > eps / 8 * math.factorial(terms + 1):
        terms += 1
    hermite = [torch.ones_like(a), a]
    for k in range(1, terms - 1):
        hermite.append(a * hermite[k] - k * hermite[k - 1])
    density = torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi)
    return [h * density * ((-1) ** k / math.factorial(k + 1)) for k, h in enumerate(hermite[:terms])]


_SHORT = 0.05
"""Steps up to which the series is used: its terms are few there, and beyond little cancels."""


@elementwise("erf")
def _erf(a: Tensor, d: Tensor) -> Tensor:
    series = normal_series(a * math.sqrt(2), d * math.sqrt(2))
    return torch.erf(a + d) - torch.erf(a) if series is None else 2 * polynomial(d * math.sqrt(2), series)


@elementwise("gelu")
def _gelu(a: Tensor, d: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "none":
        series = normal_series(a, d)
        phi: Tensor = torch.special.ndtr(a)
        if series is None:
            moved: Tensor = torch.special.ndtr(a + d)
            return d * moved + a * (moved - phi)
        return polynomial(d, [phi + a * series[0], *(c + a * following for c, following in pairwise(series))])
    c, cubic = math.sqrt(2 / math.pi), 0.044715
    inner = c * (a + cubic * a**3)
    step = _tanh(inner, c * d * (1 + cubic * (3 * a * (a + d) + d * d)))
    return 0.5 * (d * (1 + torch.tanh(inner) + step) + a * step)
