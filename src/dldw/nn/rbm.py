"""Restricted Boltzmann machines: two layers of units, every one of the one connected to every one of the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dldw.errors import DldwError, NonFiniteLossError
from dldw.nn.likelihood import LogLikelihood, Method, log_likelihood
from dldw.nn.units import BernoulliUnits, GaussianUnits, Units, bernoulli

VisibleUnits = Literal["bernoulli", "gaussian"]


class RBM(nn.Module):
    """A density over v with binary hidden units h: p(v) = sum_h exp(-E(v, h)) / Z.

        E(v, h) = -b·v - c·h - hᵀWv                                        (Bernoulli units)
        E(v, h) = sum_i (v_i - b_i)² / 2σ_i² - c·h - hᵀW(v/σ²)              (Gaussian units)

    Units of one layer are independent given the other layer: p(h = 1 | v) = sigmoid(c + Wv), which is what ``forward``
    returns, and p(v = 1 | h) = sigmoid(b + Wᵀh). Train it with ``dldw.ContrastiveDivergence``. Decay, momentum and schedules
    are the optimizer's; a penalty on ``rbm(v)``, such as one for sparsity, is back-propagated into the same ``.grad``.

    Source: Smolensky 1986; Hinton 2002; Gaussian units as in Cho, Ilin & Raiko 2011.

    Args:
        visible: Number of visible units.
        hidden: Number of hidden units.
        visible_units: ``bernoulli`` or ``gaussian``.
        variance: σ² of Gaussian units, at first.
        learn_variance: Whether the variances are trained.

    Raises:
        DldwError: An argument that no such machine can have.

    Example:
        >>> import torch, dldw
        >>> rbm = dldw.nn.RBM(6, 3)
        >>> learner = dldw.Descent(rbm, dldw.ContrastiveDivergence(), torch.optim.SGD(rbm.parameters(), lr=0.1))
        >>> bars = torch.tensor([[1., 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).repeat(50, 1)
        >>> for _ in range(300):
        ...     reconstruction_error = learner.step(bars)
        >>> bool(rbm.log_likelihood(bars).mean > -2)    # nats; log(1/64) = -4.2 untrained
        True
        >>> half = torch.tensor([1., 1, torch.nan, torch.nan, torch.nan, 0])    # NaN: not known
        >>> rbm.sample(4, steps=20, clamp=half).shape, rbm.fill(half).round().tolist()
        (torch.Size([4, 6]), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        visible: int,
        hidden: int,
        *,
        visible_units: VisibleUnits = "bernoulli",
        variance: float = 1.0,
        learn_variance: bool = False,
    ) -> None:
        super().__init__()
        if visible < 1 or hidden < 1:
            raise DldwError(
                f"a machine needs visible and hidden units, got {visible} and {hidden}. Give at least 1 of each."
            )
        if visible_units not in ("bernoulli", "gaussian"):
            raise DldwError(
                f"visible_units must be bernoulli (values in [0, 1]) or gaussian (real values), got {visible_units!r}."
            )
        if not variance > 0:
            raise DldwError(f"variance must be positive, got {variance}. With standardised data, 1 is a good start.")
        if visible_units == "bernoulli" and (learn_variance or variance != 1.0):
            raise DldwError(
                "Bernoulli units have no variance of their own: it follows from their mean. "
                "Leave variance and learn_variance out, or use visible_units='gaussian'."
            )
        self.visible, self.hidden = visible, hidden
        self.weight = nn.Parameter(torch.randn(hidden, visible) * 0.01)
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        gaussian = visible_units == "gaussian"
        self.units: Units = GaussianUnits(visible, variance, learn_variance) if gaussian else BernoulliUnits()

    def extra_repr(self) -> str:
        return f"visible={self.visible}, hidden={self.hidden}"

    def hidden_field(self, v: Tensor) -> Tensor:
        """c + W scaled(v), the log-odds of each hidden unit, [..., hidden]."""
        return F.linear(self.units.scaled(v), self.weight, self.hidden_bias)

    def visible_field(self, h: Tensor) -> Tensor:
        """b + Wᵀh, [..., visible]."""
        return F.linear(h, self.weight.t(), self.visible_bias)

    def forward(self, v: Tensor) -> Tensor:
        """p(h = 1 | v), [..., hidden]: the features."""
        return self.hidden_field(v).sigmoid()

    def visible_mean(self, h: Tensor) -> Tensor:
        """E[v | h], [..., visible]."""
        return self.units.mean_(self.visible_field(h))

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)), so that log p(v) = -F(v) - log Z; [...] for v [..., visible]."""
        return self.units.energy(v, self.visible_bias) - F.softplus(self.hidden_field(v)).sum(-1)

    def log_likelihood(
        self,
        v: Tensor,
        method: Method = "auto",
        *,
        chains: int = 100,
        temperatures: int = 1000,
        generator: torch.Generator | None = None,
    ) -> LogLikelihood:
        """log p(v) in nats, exact or with an interval; see ``dldw.nn.likelihood``.

        Args:
            v: Examples [B, visible].
            method: ``exact`` by enumeration of the smaller layer, ``ais`` by annealed importance sampling; ``auto`` is exact
                where that layer has at most 20 units.
            chains: Of annealed importance sampling.
            temperatures: Of annealed importance sampling.
            generator: What the chains draw from; the global random state by default.
        """
        return log_likelihood(self, v, method, chains=chains, temperatures=temperatures, generator=generator)

    def gibbs(
        self,
        start: Tensor,
        *,
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Gibbs sampling without end: after each step E[v | h] and v, both [n, visible].

        Args:
            start: Where the chains start, [n, visible].
            clamp: Values that visible units are held at, [visible] or [n, visible]; NaN where a unit is free.
            generator: What is drawn from; the global random state by default.
        """
        self.require(start, "start")
        v, free = start, None
        if clamp is not None:
            self.require(clamp, "clamp", start.shape)
            clamp = clamp.expand(start.shape)
            free = clamp.isnan()
            v = torch.where(free, v, clamp)
        while True:
            with torch.no_grad():
                h = bernoulli(self(v), generator)
                mean = self.visible_mean(h)
                v = self.units.draw(mean, generator)
                if clamp is not None and free is not None:
                    mean, v = torch.where(free, mean, clamp), torch.where(free, v, clamp)
            yield mean, v

    def sample(
        self,
        n: int,
        steps: int = 1000,
        *,
        clamp: Tensor | None = None,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The states [n, visible] of ``n`` chains after so many steps of Gibbs sampling.

        Args:
            n: How many chains.
            steps: How many steps each makes.
            clamp: Values that visible units are held at, [visible] or [n, visible]; NaN where a unit is free. The others are
                drawn given these: in-painting.
            start: Where the chains start, [n, visible]; by default they are drawn as if there were no hidden units.
            generator: What is drawn from; the global random state by default.

        Raises:
            DldwError: Not one chain or one step, or tensors of another shape.
        """
        if n < 1 or steps < 1:
            raise DldwError(f"sample needs at least one chain and one step, got n={n} and steps={steps}.")
        if start is None:
            start = self._independent(n, generator)
        elif start.shape != (n, self.visible):
            raise DldwError(f"start must have one row for each of the {n} chains, got shape {list(start.shape)}.")
        return next(islice(self.gibbs(start, clamp=clamp, generator=generator), steps - 1, None))[1]

    def fill(
        self, v: Tensor, *, steps: int = 200, burn_in: int = 50, generator: torch.Generator | None = None
    ) -> Tensor:
        """``v`` [..., visible] with the NaN in it replaced by E[missing | known], estimated by Gibbs sampling.

        Args:
            v: Examples; NaN where a value is missing.
            steps: Steps that the conditional means are averaged over.
            burn_in: Steps before these.
            generator: What is drawn from; the global random state by default.
        """
        if steps < 1 or burn_in < 0:
            raise DldwError(f"fill needs at least one step after a burn-in of at least 0, got {steps} and {burn_in}.")
        self.require(v, "v")
        rows = v.reshape(-1, self.visible)
        chain = self.gibbs(self._independent(len(rows), generator), clamp=rows, generator=generator)
        total = torch.zeros_like(rows)
        for mean, _ in islice(chain, burn_in, burn_in + steps):
            total += mean
        return torch.where(rows.isnan(), total / steps, rows).view(v.shape)

    def require(self, v: Tensor, name: str, shape: torch.Size | None = None) -> bool:
        """Whether values of ``v`` are missing (NaN), after a check that the others are what the visible units can be.

        Raises:
            NonFiniteLossError: A value is infinite.
            DldwError: It is not of shape [..., visible] (or does not broadcast to ``shape``), or not of this machine's dtype,
                or holds values that the units cannot have.
        """
        if not isinstance(v, Tensor) or v.ndim == 0 or v.shape[-1] != self.visible or v.numel() == 0:
            found = f"shape {list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise DldwError(
                f"{name} must be a tensor [..., {self.visible}], one column for each visible unit, got {found}. "
                "Flatten images first (images.flatten(1)), and leave labels out (batch[0])."
            )
        weight = self.weight
        if v.device != weight.device:
            raise DldwError(
                f"{name} is on {v.device} but the model is on {weight.device}. Move one to the other's device first, e.g. "
                "batch.to(device)."
            )
        if v.dtype != weight.dtype:
            raise DldwError(
                f"{name} is of type {v.dtype}, the weights of {weight.dtype}. Convert one of them, e.g. batch.to(rbm.weight)."
            )
        if shape is not None and v.shape != shape[-v.ndim :]:
            raise DldwError(
                f"{name} of shape {list(v.shape)} does not fit chains of shape {list(shape)}; give a row for each."
            )
        low, high = (float(bound) for bound in v.aminmax())
        missing = math.isnan(low)
        if missing:
            known = v[~v.isnan()]
            low, high = (float(bound) for bound in known.aminmax()) if known.numel() else (0.0, 0.0)
        if math.isinf(low) or math.isinf(high):
            raise NonFiniteLossError(
                f"values of {name} are infinite (inf), and so is their energy. Look for them in the data."
            )
        self.units.check(low, high)
        return missing

    @torch.no_grad()
    def _independent(self, n: int, generator: torch.Generator | None) -> Tensor:
        return self.units.draw(self.units.mean_(self.visible_bias.repeat(n, 1)), generator)
