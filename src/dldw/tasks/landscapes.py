"""Functions that everybody in black-box optimisation knows, rotated and shifted: minimum 0, at a point that is not 0."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import pi

import torch
from torch import Tensor


class Landscape:
    """A function of points [..., d] with its minimum 0 at 0, rotated and shifted: f(R (x - optimum)).

    Args:
        name: ``sphere``, ``ellipsoid`` (condition number 1e6), ``rosenbrock`` or ``rastrigin``.
        d: Dimensions, at least 2.
        seed: Of the rotation R and of the optimum, which is drawn from U(-4, 4)^d.

    Example:
        >>> import dldw
        >>> swarm = dldw.ParticleSwarm(generator=torch.Generator().manual_seed(0))
        >>> dldw.minimize(Landscape("sphere", d=5), [0.0] * 5, swarm, budget=5000).loss < 1e-8
        True
    """

    def __init__(self, name: str, d: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.function = FUNCTIONS[name]
        self.optimum = torch.empty(d, dtype=torch.float64).uniform_(-4, 4, generator=generator)
        self.rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=generator))[0]

    def __call__(self, x: Tensor) -> Tensor:
        """The function at x [..., d]: [...]."""
        return self.function((x - self.optimum.to(x)) @ self.rotation.to(x))


def _ellipsoid(z: Tensor) -> Tensor:
    return z.square() @ torch.logspace(0, 6, z.shape[-1], dtype=z.dtype, device=z.device)


def _rosenbrock(z: Tensor) -> Tensor:
    z = z + 1
    return 100 * (z[..., 1:] - z[..., :-1].square()).square().sum(-1) + (1 - z[..., :-1]).square().sum(-1)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sphere": lambda z: z.square().sum(-1),
    "ellipsoid": _ellipsoid,
    "rosenbrock": _rosenbrock,
    "rastrigin": lambda z: (z.square() + 10 - 10 * torch.cos(2 * pi * z)).sum(-1),
}
landscape = cache(Landscape)
"""The same, made once: a rotation in 1,000 dimensions takes a while."""
