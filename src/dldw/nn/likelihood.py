"""The log-likelihood of a restricted Boltzmann machine, exact or with an interval, in nats.

log p(v) = -F(v) - log Z. The free energy F is a sum; Z is a sum over all states of the smaller layer, exact by enumeration up
to 20 units. Beyond, annealed importance sampling (Salakhutdinov & Murray 2008) carries chains from a machine without weights,
whose Z is known, to this one, through machines p_β with energies interpolated in β; the mean of the chains' weights is
Z / Z_0 on average.

**The interval.** Chains that miss a region of the distribution agree with each other and underestimate Z: their spread says
nothing of it. So the chains are run back too, from their own ends (bidirectional Monte Carlo, Grosse, Ghahramani & Adams
2015, arXiv 1511.02543, with approximate in place of exact samples): log Z is underestimated on average on the way forth, and
overestimated on the way back. The interval spans three standard errors of both. Neither sees what no chain ever reached, so
that with far too few temperatures an interval can be wrong, though it will be wide.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dldw.errors import DldwError
from dldw.nn.units import BernoulliUnits, bernoulli

if TYPE_CHECKING:
    from dldw.nn.rbm import RBM

Method = Literal["auto", "exact", "ais"]
ENUMERABLE = 20
"""Units that are enumerated: 2^20 states take seconds."""
CHUNK = 2**12
"""States that are held at a time."""
UNLIKELY = 1e-3
"""The chance that the lower bound of the mean weight fails where its standard error is no guide (Markov's inequality)."""


@dataclass(frozen=True)
class LogPartition:
    """log Z in nats.

    Attributes:
        value: log Z, or its estimate.
        low, high: The interval; both are ``value`` where it is exact.
        method: ``exact`` or ``ais``.
    """

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class LogLikelihood:
    """log p(v) in nats.

    Attributes:
        values: Of each example, [B], float64.
        partition: log Z, the one thing in it that may be an estimate.
    """

    values: Tensor
    partition: LogPartition

    @property
    def mean(self) -> float:
        """The mean over the examples."""
        return float(self.values.mean())

    @property
    def low(self) -> float:
        """The mean with log Z at the upper end of its interval."""
        return self.mean - (self.partition.high - self.partition.value)

    @property
    def high(self) -> float:
        """The mean with log Z at the lower end of its interval."""
        return self.mean + (self.partition.value - self.partition.low)


def log_likelihood(
    rbm: RBM, v: Tensor, method: Method, *, chains: int, temperatures: int, generator: torch.Generator | None
) -> LogLikelihood:
    """See ``RBM.log_likelihood``.

    Raises:
        DldwError: ``v`` has missing values, or as ``log_partition``.
    """
    missing = rbm.require(v, "v")
    if v.ndim != 2:
        raise DldwError(f"v must be of shape [B, {rbm.visible}], an example in each row, got {list(v.shape)}.")
    if missing:
        raise DldwError(
            "v has missing values (NaN), and the likelihood of what is known sums over all that is not. "
            "Fill them in first: rbm.fill(v)."
        )
    with torch.no_grad():
        precise = copy.deepcopy(rbm).double()
        free_energy = torch.cat([precise.free_energy(part.double()) for part in v.split(CHUNK)])
        base = rbm.units.bias_of(v.mean(0))
    found = log_partition(rbm, method, base=base, chains=chains, temperatures=temperatures, generator=generator)
    return LogLikelihood(-free_energy - found.value, found)


@torch.no_grad()
def log_partition(
    rbm: RBM,
    method: Method = "auto",
    *,
    base: Tensor | None = None,
    chains: int = 100,
    temperatures: int = 1000,
    generator: torch.Generator | None = None,
) -> LogPartition:
    """log Z.

    Args:
        rbm: The machine.
        method: ``exact``, ``ais``, or ``auto``: exact where it can be.
        base: Biases of the machine without weights that annealing starts from, [visible]; this one's by default. Those that
            give the mean of the data are better.
        chains: Of annealed importance sampling, at least 2.
        temperatures: Of annealed importance sampling, at least 2.
        generator: What the chains draw from; the global random state by default.

    Raises:
        DldwError: Too many units to enumerate, too few chains or temperatures, or another method.
    """
    if method not in ("auto", "exact", "ais"):
        raise DldwError(f"method must be auto, exact or ais, got {method!r}.")
    if method == "exact" or (method == "auto" and _enumerated(rbm) <= ENUMERABLE):
        value = float(exact_log_partition(copy.deepcopy(rbm).double()))
        return LogPartition(value, value, value, "exact")
    if chains < 2 or temperatures < 2:
        raise DldwError(
            f"annealed importance sampling needs at least 2 chains, for an interval, and 2 temperatures, got {chains} and "
            f"{temperatures}. The defaults are 100 and 1000; more temperatures make the interval narrower."
        )
    return _annealed(rbm, rbm.visible_bias if base is None else base, chains, temperatures, generator)


def exact_log_partition(rbm: RBM) -> Tensor:
    """log Z by enumeration, shape [], which autograd can follow: -F(v) - log Z is an exact objective of a small machine.

    Raises:
        DldwError: The smaller layer (with Gaussian units, the hidden one) has more than 20 units.
    """
    count = _enumerated(rbm)
    if count > ENUMERABLE:
        layer = "the hidden layer has" if count == rbm.hidden else "its smaller layer has"
        raise DldwError(
            f"the exact likelihood of this machine sums over 2^{count} states, since {layer} {count} units; up to 2^"
            f"{ENUMERABLE} can be enumerated. Use method='ais', which gives an estimate and an interval."
        )
    hidden = count == rbm.hidden
    parts = []
    for start in range(0, 2**count, CHUNK):
        states = _states(start, min(start + CHUNK, 2**count), count, rbm.weight)
        if hidden:
            field = rbm.visible_field(states)
            logs = states @ rbm.hidden_bias + rbm.units.log_integral(field, rbm.visible_bias)
        else:
            logs = -rbm.free_energy(states)
        parts.append(logs.logsumexp(0))
    return torch.stack(parts).logsumexp(0)


def _enumerated(rbm: RBM) -> int:
    return min(rbm.visible, rbm.hidden) if isinstance(rbm.units, BernoulliUnits) else rbm.hidden


def _states(start: int, stop: int, count: int, like: Tensor) -> Tensor:
    """The binary digits of the numbers from ``start`` to ``stop``, [stop - start, count]."""
    numbers = torch.arange(start, stop, device=like.device)
    return (numbers[:, None] >> torch.arange(count, device=like.device) & 1).to(like.dtype)


class _Path:
    """The machines between one without weights, at β = 0, and ``rbm``, at β = 1."""

    def __init__(self, rbm: RBM, base: Tensor, generator: torch.Generator | None) -> None:
        self.rbm, self.base, self.generator = rbm, base, generator

    def bias(self, beta: float) -> Tensor:
        return torch.lerp(self.base, self.rbm.visible_bias, beta)

    def start(self, chains: int) -> tuple[Tensor, float]:
        """Draws at β = 0, and log Z there."""
        units = self.rbm.units
        v = units.draw(units.mean_(self.base.repeat(chains, 1)), self.generator)
        return v, float(units.log_integral(self.base, self.base)) + self.rbm.hidden * math.log(2)

    def log_density(self, v: Tensor, field: Tensor, beta: float) -> Tensor:
        """log of the unnormalised density at β, [n], of v with hidden fields ``field``."""
        hidden = F.softplus(beta * field).sum(1, dtype=torch.float64)
        return hidden - self.rbm.units.energy(v, self.bias(beta)).double()

    def step(self, field: Tensor, beta: float) -> Tensor:
        """One Gibbs step at β from the state whose hidden fields are ``field``."""
        h = bernoulli((beta * field).sigmoid(), self.generator)
        mean = self.rbm.units.mean_(torch.addmm(self.bias(beta), h, self.rbm.weight, alpha=beta))
        return self.rbm.units.draw(mean, self.generator)


def _annealed(
    rbm: RBM, base: Tensor, chains: int, temperatures: int, generator: torch.Generator | None
) -> LogPartition:
    path = _Path(rbm, base, generator)
    betas = [k / temperatures for k in range(temperatures + 1)]
    v, at_base = path.start(chains)
    forth = torch.zeros(chains, dtype=torch.float64, device=v.device)
    for before, beta in pairwise(betas):
        field = rbm.hidden_field(v)
        forth += path.log_density(v, field, beta) - path.log_density(v, field, before)
        v = path.step(field, beta)
    picked = torch.multinomial((forth - forth.max()).exp(), chains, replacement=True, generator=generator)
    v = v[picked]
    back, field = torch.zeros_like(forth), rbm.hidden_field(v)
    for before, beta in zip(betas[:0:-1], betas[-2::-1], strict=True):
        v = path.step(field, before)
        field = rbm.hidden_field(v)
        back += path.log_density(v, field, beta) - path.log_density(v, field, before)
    value, low, high = _log_mean(forth)
    _, back_low, back_high = _log_mean(back)
    return LogPartition(at_base + value, at_base + min(low, -back_high), at_base + max(high, -back_low), "ais")


def _log_mean(logs: Tensor) -> tuple[float, float, float]:
    """log of the mean of exp(logs), and an interval of three standard errors of that mean."""
    top = float(logs.max())
    weights = (logs - top).exp()
    mean, error = float(weights.mean()), 3 * float(weights.std()) / math.sqrt(len(logs))
    low = max(mean - error, mean * UNLIKELY)
    return top + math.log(mean), top + math.log(low), top + math.log(mean + error)
