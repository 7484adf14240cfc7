"""Particle swarm optimisation with constriction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dldw.card import Card, Choice, Float
from dldw.errors import DldwError
from dldw.searcher import Searcher
from dldw.searchers.sampling import Bounds, Box, random_bytes


class ParticleSwarm(Searcher):
    """Minimises with particles that are drawn to the best point each has seen and to the best its neighbours have seen.

        v_i <- inertia * v_i + cognitive * r1 o (p_i - x_i) + social * r2 o (g_i - x_i),      r1, r2 ~ U(0, 1)^d
        x_i <- x_i + v_i

    p_i is the best point of particle i, g_i that of its neighbourhood: all particles, or itself and the two beside it in a
    ring. The defaults are the constriction chi = 0.7298 of 2.05 + 2.05. Each coordinate of v is clamped to half the width
    of the bounds, or to 2 sigma where there are none; at a bound a particle is reflected, and its velocity with it.

    Cost: one evaluation a particle, 3 d numbers held for each.

    Source: Kennedy & Eberhart 1995; Clerc & Kennedy 2002, IEEE Transactions on Evolutionary Computation 6(1).

    Args:
        particles: Candidates in one ``ask``.
        inertia: Share of the velocity that is kept.
        cognitive: Greatest pull to the particle's own best point.
        social: Greatest pull to the neighbourhood's.
        topology: ``global`` or ``ring``; the ring is slower and less easily caught in a local minimum.
        sigma: Standard deviation of the first swarm around the start point, in units of x; by default it is spread evenly
            over the bounds, or 1 where there are none.
        bounds: Lower and upper bound, each a number or one for each coordinate.
        generator: See ``Searcher``.

    Raises:
        DldwError: A setting is out of range; from ``reset``, the start point lies outside the bounds.

    Example:
        >>> import torch, dldw
        >>> swarm = dldw.ParticleSwarm(particles=16, generator=torch.Generator().manual_seed(0))
        >>> swarm.reset(torch.zeros(2))
        >>> for _ in range(40):
        ...     swarm.tell((swarm.ask() - 1).square().sum(1))
        >>> swarm.best[1] < 1e-3
        True
    """

    card = Card(
        summary="Particles drawn to the best points that they and their neighbours have seen.",
        claim="search",
        needs="loss values",
        forwards="particles + 1 + ceil(particles / 8)",
        memory="3 d for each particle",
        paper="Kennedy & Eberhart 1995; Clerc & Kennedy 2002, IEEE Transactions on Evolutionary Computation 6(1)",
        space={
            "sigma": Float(1e-2, 3.0),
            "inertia": Float(0.4, 0.9, log=False),
            "topology": Choice(("global", "ring")),
        },
        note="In training the best point and, in turn, an eighth of the personal bests are evaluated again on each batch.",
    )
    _keeps = ("_x", "_v", "_own", "_losses")

    def __init__(
        self,
        *,
        particles: int = 32,
        inertia: float = 0.7298,
        cognitive: float = 1.49618,
        social: float = 1.49618,
        topology: Literal["global", "ring"] = "global",
        sigma: float | None = None,
        bounds: Bounds | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(generator)
        sigma = 1.0 if sigma is None and bounds is None else sigma
        if particles < 2 or not (sigma is None or sigma > 0):
            raise DldwError(f"a swarm needs at least 2 particles and a positive sigma, got {particles} and {sigma}.")
        if not 0 <= inertia < 1 or cognitive < 0 or social < 0:
            raise DldwError(
                f"inertia must lie in [0, 1), or velocities grow without end; cognitive and social must not be negative; "
                f"got {inertia}, {cognitive} and {social}."
            )
        if topology not in ("global", "ring"):
            raise DldwError(f"topology must be global or ring, got {topology!r}.")
        self.particles, self.inertia, self.cognitive, self.social = particles, inertia, cognitive, social
        self.topology, self.sigma, self.bounds = topology, sigma, bounds
        self._x = self._v = self._own = self._losses = torch.empty(0)

    def _reset(self, x0: Tensor) -> None:
        self._x0, self._box = x0, Box(self.bounds, x0)
        half = self._box.width / 2
        self._fastest = half if half.ndim else float(half)  # clamping to a number takes a ninth of the time
        if self.sigma is not None and not self._box.bounded:
            self._fastest = 2 * self.sigma
        self._block = max(1, (1 << 20) // x0.numel())
        self._v = x0.new_zeros((self.particles, x0.numel()))
        self._losses = torch.full((self.particles,), torch.inf, dtype=torch.float64, device=x0.device)

    def _ask(self, generator: torch.Generator) -> Tensor:
        if not self._told:
            self._x = self._box.population(self._x0, self.particles, self.sigma, generator)
            self._own = self._x.clone()
            return self._x
        weights, social, x = random_bytes(2, self._x, generator), self._attractor(), torch.empty_like(self._x)
        share, pull = torch.empty_like(x[: self._block]), torch.empty_like(x[: self._block])
        for start in range(0, self.particles, self._block):  # which bounds what is held beside the swarm
            at = slice(start, start + self._block)
            was, v = self._x[at], self._v[at].mul_(self.inertia)
            share, pull = share[: len(v)], pull[: len(v)]
            for r, best, scale in (
                (weights[0, at], self._own[at], self.cognitive),
                (weights[1, at], social if social.ndim == 1 else social[at], self.social),
            ):
                v.addcmul_(torch.sub(best, was, out=pull), share.copy_(r).add_(0.5), value=scale / 256)
            if isinstance(self._fastest, Tensor):
                torch.minimum(torch.maximum(v, -self._fastest, out=v), self._fastest, out=v)
            else:
                v.clamp_(-self._fastest, self._fastest)
            torch.add(was, v, out=x[at])
        if self._box.bounded:
            outside = (x < self._box.low) | (x > self._box.high)
            self._box.reflect(x)
            self._v[outside] *= -1
        self._x = x
        return x

    def _attractor(self) -> Tensor:
        """The best point of each particle's neighbourhood, [d] or [n, d]."""
        if self.topology == "global":
            return self._incumbent
        losses, rows = self._losses, torch.arange(self.particles, device=self._losses.device)
        ring = torch.stack([rows, rows.roll(1), rows.roll(-1)])
        return self._own.index_select(0, ring.gather(0, losses[ring].argmin(0)[None])[0])

    def _tell(self, candidates: Tensor, losses: Tensor) -> None:
        self._x = candidates
        better = (losses < self._losses).nonzero()[:, 0]
        self._own.index_copy_(0, better, candidates.index_select(0, better))
        self._losses.index_copy_(0, better, losses.index_select(0, better))

    def _memory(self) -> tuple[Tensor, Tensor] | None:
        return (self._own, self._losses) if self._told else None
