"""One run of CMA-ES, from a start point to a criterion that ends it; ``cmaes.py`` has the method and its restarts."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dldw.noise import normal
from dldw.searchers.covariance import Constants, Covariance, Diagonal, Full

TOLFUN, TOLFUNHIST, TOLX, TOLFACUPX, TOLUPSIGMA, CONDITIONCOV = 1e-11, 1e-12, 1e-12, 1e3, 1e20, 1e14
_TENSORS = ("m", "path_sigma", "path_c", "z")
_NUMBERS = ("sigma", "generation", "refreshed", "lowest", "highest")
_LONGEST = 20_000  # generations that stagnation looks back at most


class Evolution:
    """Samples around a mean, moves it, and adapts step size and covariance, in float64.

    Args:
        m: Start of the mean [d]; its dtype is that of the candidates.
        sigma: Start of the step size.
        population: Candidates in a generation.
        diagonal: Whether the covariance is diagonal.
    """

    def __init__(self, m: Tensor, sigma: float, population: int, diagonal: bool) -> None:
        self.dtype, self.m = m.dtype, m.to(torch.float64, copy=True)
        d, device = len(m), m.device
        self.sigma = self.sigma0 = sigma
        self.population = population
        self.constants = Constants.of(d, population, diagonal, device)
        self.covariance: Covariance = Diagonal(d, device) if diagonal else Full(d, device)
        self.path_sigma, self.path_c = torch.zeros_like(self.m), torch.zeros_like(self.m)
        self.z = self.m.new_zeros((population, d))
        self.generation, self.refreshed = 0, 0
        self.lowest, self.highest = -math.inf, math.inf  # losses of the last generation
        self.history: list[tuple[float, float]] = []  # best and median loss by generation

    def sample(self, generator: torch.Generator) -> Tensor:
        """New points x = m + sigma y [n, d] in float64."""
        if self.generation > self.refreshed and self.generation - self.refreshed >= self.constants.gap:
            self.covariance.refresh()
            self.refreshed = self.generation
            self._balance()
        # drawn in float32, which takes a seventh of the time and resolves more than a sample of this size can tell
        self.z.copy_(normal(torch.empty_like(self.z, dtype=torch.float32), generator))
        return self.covariance.points(self.m, self.sigma, self.z)

    def _balance(self) -> None:
        """Moves the covariance's scale to sigma: on long runs the active update lets it drift, to 0 in the end."""
        scale, model = float(self.covariance.D.max()), self.covariance
        if not 1e-9 < scale < 1e9:
            model.C.div_(scale).div_(scale)
            model.D.div_(scale)
            self.path_c.div_(scale)
            self.sigma *= scale

    def learn(self, losses: Tensor) -> None:
        """The update of the method from the losses [n] of the points last sampled; if none is finite, they teach nothing."""
        k, d, model = self.constants, len(self.m), self.covariance
        ranked, order = losses.sort(stable=True)
        values: list[float] = ranked.tolist()
        self.lowest, self.highest = values[0], values[-1]
        self.history.append((values[0], values[len(values) // 2]))
        del self.history[:-_LONGEST]
        self.generation += 1
        if self.lowest == math.inf:
            return

        weights = torch.empty_like(k.weights).index_copy_(0, order, k.weights)
        drift, step = model.moves(weights.clamp(min=0), self.z)
        self.m.add_(step, alpha=self.sigma)

        self.path_sigma.mul_(1 - k.cs).add_(drift, alpha=math.sqrt(k.cs * (2 - k.cs) * k.mass))
        length = float(torch.linalg.vector_norm(self.path_sigma))
        settled = length / math.sqrt(1 - (1 - k.cs) ** (2 * self.generation)) < (1.4 + 2 / (d + 1)) * k.chi
        self.path_c.mul_(1 - k.cc)
        if settled:
            self.path_c.add_(step, alpha=math.sqrt(k.cc * (2 - k.cc) * k.mass))

        squares = torch.linalg.vector_norm(self.z, dim=1).square_().clamp_(min=1e-100)
        scaled = torch.where(weights < 0, weights * d / squares, weights)
        lost = 0.0 if settled else k.cc * (2 - k.cc)
        decay = 1 - k.c1 * (1 - lost) - k.cmu * k.total
        model.update(decay, scaled * k.cmu, self.z, k.c1, self.path_c)
        self.sigma *= math.exp(min(1.0, k.cs / k.damping * (length / k.chi - 1)))

    def stop(self) -> dict[str, float]:
        """The criteria that are met, each with the value that met it."""
        if not self.generation:
            return {}
        model, d = self.covariance, len(self.m)
        deviations = model.variances().sqrt() * self.sigma
        widest, step = float(deviations.max()), self.sigma * float(self.path_c.abs().max())
        axes = model.D.max(), model.D.min()
        condition, growth = float(axes[0] / axes[1]) ** 2, self.sigma / self.sigma0 * float(axes[0])
        window = 10 + math.ceil(30 * d / self.population)
        recent = [best for best, _ in self.history[-window:]]
        full = len(recent) == window
        past = max(recent) - min(recent) if full else math.inf
        present = max(*recent, self.highest) - min(recent) if full else math.inf
        axis = model.axis(self.generation % d) * (0.1 * self.sigma)
        met = {
            "tolfun": (present < TOLFUN, present),
            "tolfunhist": (past < TOLFUNHIST, past),
            "flatfitness": (full and max(*recent, self.highest) == min(recent), recent[-1]),
            "tolx": (max(widest, step) < TOLX * self.sigma0, widest),
            "tolfacupx": (widest > TOLFACUPX * self.sigma0, widest),
            "tolupsigma": (growth > TOLUPSIGMA, growth),
            "conditioncov": (condition > CONDITIONCOV, condition),
            "noeffectaxis": (self._is_lost(axis).all(), self.sigma),
            "noeffectcoord": (self._is_lost(deviations * 0.2).any(), self.sigma),
            "stagnation": (self._stagnates(), recent[-1]),
        }
        return {name: value for name, (holds, value) in met.items() if holds}

    def _is_lost(self, step: Tensor) -> Tensor:
        """Where adding ``step`` [d] to the mean changes nothing at the resolution of the candidates."""
        return (self.m + step).to(self.dtype) == self.m.to(self.dtype)

    def _stagnates(self) -> bool:
        """Whether neither best nor median loss got better from the first to the last 30 % of the recent generations."""
        least = 120 + 30 * len(self.m) / self.population
        span = min(_LONGEST, int(max(least, 0.2 * self.generation)))
        if self.generation < least or len(self.history) < span:
            return False
        part = int(0.3 * span)
        old, new = self.history[-span:][:part], self.history[-part:]
        return all(median(row[i] for row in new) >= median(row[i] for row in old) for i in (0, 1))

    def state(self) -> dict[str, Any]:
        """Everything that decides how the run goes on, as tensors that do not move with it."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors |= {name: getattr(self.covariance, name) for name in ("C", "B", "D")}
        numbers = torch.tensor([float(getattr(self, name)) for name in _NUMBERS], dtype=torch.float64)
        history = torch.tensor(self.history, dtype=torch.float64).reshape(-1, 2)
        return {name: t.clone() for name, t in tensors.items()} | {"numbers": numbers, "history": history}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what ``state`` gave."""
        for name in _TENSORS:
            setattr(self, name, state[name].clone())
        for name in ("C", "B", "D"):
            setattr(self.covariance, name, state[name].clone())
        for name, value in zip(_NUMBERS, state["numbers"].tolist(), strict=True):
            setattr(self, name, type(getattr(self, name))(value))
        self.history = [(best, middle) for best, middle in state["history"].tolist()]
