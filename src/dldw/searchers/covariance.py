"""What CMA-ES adapts: its constants, and the covariance of its Gaussian, full or diagonal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.gemm import mkl_is_at_home

_BLOCK = 512
_LARGEST = 5_000
"""Weights up to which a decomposition takes about a minute and the matrices fit in the memory of a laptop."""


@dataclass(frozen=True)
class Constants:
    """The constants of arXiv 1604.00772, table 1, for d coordinates and n candidates; for the diagonal, as in Ros & Hansen.

    Attributes:
        weights: Recombination weights by rank [n], the first ``parents`` positive, the others zero or negative.
        total: Their sum.
        mass: mu_eff, the variance effective number of parents.
        c1: Learning rate of the rank-one update.
        cmu: Learning rate of the rank-mu update.
        cc: Rate of the covariance's evolution path.
        cs: Rate of the step size's evolution path.
        damping: d_sigma, by which changes of the step size are damped.
        chi: E||N(0, I)||.
        gap: Generations between two decompositions of the covariance, which changes little in them.
    """

    weights: Tensor
    total: float
    mass: float
    c1: float
    cmu: float
    cc: float
    cs: float
    damping: float
    chi: float
    gap: float

    @classmethod
    def of(cls, d: int, n: int, diagonal: bool, device: torch.device) -> Constants:
        """The defaults for ``d`` coordinates and ``n`` candidates."""
        raw = [math.log((n + 1) / 2) - math.log(i) for i in range(1, n + 1)]
        parents = sum(w > 0 for w in raw)
        positive, negative = sum(raw[:parents]), -sum(raw[parents:])
        mass = positive**2 / sum(w * w for w in raw[:parents])
        mass_negative = negative**2 / sum(w * w for w in raw[parents:])
        surplus = 0.25 + mass + 1 / mass - 2
        if diagonal:
            c1 = 1 / (d + 2 * math.sqrt(d) + mass / d)
            cmu = min(1 - c1, surplus / (d + 4 * math.sqrt(d) + mass / 2))
            cc = (1 + 1 / d + mass / d) / (math.sqrt(d) + 1 / d + 2 * mass / d)
        else:
            c1 = min(1, n / 6) * 2 / ((d + 1.3) ** 2 + mass)
            cmu = min(1 - c1, 2 * surplus / ((d + 2) ** 2 + mass))
            cc = (4 + mass / d) / (d + 4 + 2 * mass / d)
        alpha = min(1 + c1 / cmu, 1 + 2 * mass_negative / (mass + 2), (1 - c1 - cmu) / (d * cmu))
        scales = [1 / positive] * parents + [alpha / negative] * (n - parents)
        weights = torch.tensor([w * s for w, s in zip(raw, scales, strict=True)], dtype=torch.float64, device=device)
        cs = (mass + 2) / (d + mass + 5)
        damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (d + 1)) - 1) + cs
        chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))
        return cls(
            weights,
            float(weights.sum()),
            mass,
            c1,
            cmu,
            cc,
            cs,
            damping,
            chi,
            0.0 if diagonal else 0.5 / d / (c1 + cmu),
        )


class Covariance(ABC):
    """A covariance C, decomposed at the last ``refresh`` as B D² Bᵀ with the standard deviations D of the principal axes."""

    C: Tensor
    B: Tensor
    D: Tensor

    @abstractmethod
    def refresh(self) -> None:
        """Decomposes C as it is now."""

    @abstractmethod
    def points(self, m: Tensor, sigma: float, z: Tensor) -> Tensor:
        """x = m + sigma B D z for each row of ``z`` [n, d]."""

    @abstractmethod
    def moves(self, weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """B and B D times the sum of weights_i z_i, two vectors [d]."""

    @abstractmethod
    def update(self, decay: float, weights: Tensor, z: Tensor, rate: float, path: Tensor) -> None:
        """C <- decay C + rate path pathᵀ + sum_i weights_i y_i y_iᵀ for y_i = B D z_i, as last decomposed."""

    @abstractmethod
    def axis(self, i: int) -> Tensor:
        """The i-th principal axis, as long as its standard deviation [d]."""

    @abstractmethod
    def variances(self) -> Tensor:
        """Variance of each coordinate [d]."""


class Full(Covariance):
    """A full covariance [d, d], of which the lower triangle is kept.

    Raises:
        DldwError: d is above 5,000.
    """

    def __init__(self, d: int, device: torch.device) -> None:
        if d > _LARGEST:
            raise DldwError(
                f"the full covariance of {d:,} weights takes {8e-9 * d * d:,.0f} GB, and as much again for its eigenvectors, "
                "which cost O(d^3). Use diagonal=True, the separable form, which takes two vectors."
            )
        self.C = torch.eye(d, dtype=torch.float64, device=device)
        self.B, self.D = self.C.clone(), torch.ones(d, dtype=torch.float64, device=device)
        self._y: Tensor | None = None  # of the points last made, and a row for the path: no state, as z gives it

    def refresh(self) -> None:
        values, self.B = _decomposed(self.C)
        self.D = values.clamp_(min=1e-16 * float(values[-1])).sqrt_()

    def points(self, m: Tensor, sigma: float, z: Tensor) -> Tensor:
        return torch.add(m, self._shaped(z)[:-1], alpha=sigma)

    def _shaped(self, z: Tensor) -> Tensor:
        y = self._y = z.new_empty((len(z) + 1, len(self.D))) if self._y is None else self._y
        torch.mm(z * self.D, self.B.T, out=y[:-1])
        return y

    def moves(self, weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        y = self._shaped(z) if self._y is None else self._y
        return self.B @ (weights @ z), weights @ y[:-1]

    def update(self, decay: float, weights: Tensor, z: Tensor, rate: float, path: Tensor) -> None:
        y = self._shaped(z) if self._y is None else self._y
        y[-1] = path
        weighted, d = torch.cat([weights, weights.new_tensor([rate])])[:, None] * y, len(self.C)
        if d <= _BLOCK:
            self.C.addmm_(weighted.T, y, beta=decay)
            return
        for start in range(0, d, _BLOCK):  # blocks above the diagonal, which nobody reads, are left out
            stop = min(start + _BLOCK, d)
            self.C[start:stop, :stop].addmm_(weighted[:, start:stop].T, y[:, :stop], beta=decay)

    def axis(self, i: int) -> Tensor:
        return self.B[:, i] * self.D[i]

    def variances(self) -> Tensor:
        return self.C.diagonal()


def _decomposed(C: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, from the least up, and eigenvectors of a symmetric matrix of which the lower triangle is given.

    Of thousands of weights NumPy's LAPACK takes seven tenths of the time of torch's where MKL is not at home.
    """
    if len(C) > _BLOCK and C.is_cpu and not mkl_is_at_home():
        values, vectors = map(torch.from_numpy, np.linalg.eigh(C.numpy()))
    else:
        values, vectors = torch.linalg.eigh(C)
    return values, vectors


class Diagonal(Covariance):
    """A diagonal covariance: C and D are vectors [d], and B is the identity."""

    def __init__(self, d: int, device: torch.device) -> None:
        self.C = torch.ones(d, dtype=torch.float64, device=device)
        self.B, self.D = self.C[:0], self.C.clone()

    def refresh(self) -> None:
        self.D = self.C.sqrt()

    def points(self, m: Tensor, sigma: float, z: Tensor) -> Tensor:
        return torch.addcmul(m, z, self.D, value=sigma)

    def moves(self, weights: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = weights @ z
        return mean, mean * self.D

    def update(self, decay: float, weights: Tensor, z: Tensor, rate: float, path: Tensor) -> None:
        spread = (weights @ z.square()).mul_(self.D).mul_(self.D)
        self.C.mul_(decay).add_(spread).addcmul_(path, path, value=rate)

    def axis(self, i: int) -> Tensor:
        axis = torch.zeros_like(self.D)
        axis[i] = self.D[i]
        return axis

    def variances(self) -> Tensor:
        return self.C
