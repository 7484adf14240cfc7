"""Every registered source with its defaults, and variants of those that have more than one face."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

import dldw
from dldw.searcher import Searcher
from dldw.source import GradientSource, Loss
from tests.contract import problems

Make = Callable[[Loss, torch.Generator | None], GradientSource]

_SETTINGS: dict[str, list[dict[str, object]]] = {
    "backprop": [{"checkpoint": True}],
    "weight-perturbation": [{"weights": 3}],
    "finite-difference": [{"central": False}, {"evaluate": "sequential"}, {"evaluate": "batched"}],
    "coordinate-wise": [{"central": True, "fraction": 0.5}, {"reuse": False}],
    "spsa": [
        {"distribution": "gaussian"},
        {"distribution": "sphere"},
        {"two_sided": False},
        {"directions": 8},
        {"directions": 8, "evaluate": "sequential"},
        {"directions": 8, "evaluate": "batched"},
        {"directions": 8, "distribution": "gaussian", "two_sided": False, "evaluate": "sequential"},
        {"directions": 8, "distribution": "sphere", "two_sided": False, "evaluate": "batched"},
    ],
    "evolution-strategy": [
        {"evaluate": "sequential"},
        {"evaluate": "batched"},
        {"antithetic": False},
        {"shaping": "z_score"},
        {"shaping": "none"},
        {"shaping": "none", "antithetic": False, "sigma": 0.2, "population": 128},
    ],
    "low-rank-evolution": [
        {"evaluate": "sequential", "population": 4},
        {"evaluate": "batched"},
        {"rank": 2, "noise": "gaussian"},
    ],
    "mezo": [{"directions": 4, "distribution": "rademacher"}, {"directions": 8, "evaluate": "batched"}],
    "one-sided-batch": [
        {"baseline": "leave-one-out"},
        {"normalise": True},
        {"directions": 2, "evaluate": "sequential"},
    ],
    "per-example-perturbation": [{"baseline": "original"}, {"baseline": "leave-one-out", "sigma": 0.3}],
    "forward-gradient": [{"directions": 4}],
    "feedback-alignment": [{"mode": "random"}, {"mode": "sign-symmetric"}, {"mode": "transpose"}],
    "activity-forward-gradient": [{"local": False}, {"groups": 1}],
    "node-perturbation": [{"per_example": False}, {"layers": "nodes"}, {"layers": "weights"}],
    "contrastive-divergence": [{"k": 3}, {"persistent": True}],
}
DETERMINISTIC = {"backprop", "finite-difference", "perceptron"}


@dataclass(frozen=True)
class Variant:
    """A registered source with some of its settings; calling it makes the source."""

    method: str
    settings: tuple[tuple[str, object], ...] = ()

    def __call__(self, loss: Loss, generator: torch.Generator | None = None) -> GradientSource:
        method = dldw.methods()[self.method]
        given = (loss,) if method.takes_loss else ()
        source: GradientSource = method.factory(*given, generator=generator, **dict(self.settings))
        return source

    def __str__(self) -> str:
        inside = ",".join(f"{k}={v}" for k, v in self.settings)
        return f"{self.method}[{inside}]" if inside else self.method

    @property
    def sample(self) -> GradientSource:
        return self(lambda model, batch: model(batch))

    @property
    def homes(self) -> tuple[problems.Build, ...]:
        """The problems that the source is at home on; the first is where it keeps the contract."""
        return problems.homes(self.method)

    @property
    def deterministic(self) -> bool:
        return self.method in DETERMINISTIC

    @property
    def mode(self) -> object:
        return dict(self.settings).get("evaluate", "auto")


METHODS = {  # the problems here have no episodes; see tests/test_control.py
    name: method for name, method in dldw.methods().items() if method.card.needs != "episodes"
}
_SOURCES = [
    Variant(name, tuple(settings.items()))
    for name, method in METHODS.items()
    if method.is_source
    for settings in [{}, *_SETTINGS.get(name, [])]
]
SOURCES = [v for v in _SOURCES if METHODS[v.method].takes_loss]
LOSS_FREE = [v for v in _SOURCES if not METHODS[v.method].takes_loss]
"""What needs no loss runs on models of its own kind, so it keeps the contract there: ``problems.LOSS_FREE``."""


def claiming(*claims: str) -> list[Variant]:
    """The variants whose card claims one of these."""
    return [v for v in _SOURCES if v.sample.card.claim in claims]


_SEARCHER_SETTINGS: dict[str, list[dict[str, object]]] = {
    "random-search": [{"distribution": "uniform"}, {"population": 1}],
    "hill-climb": [{"step": "uniform", "proposals": 4}, {"step": "one-weight"}],
    "particle-swarm": [{"topology": "ring"}, {"bounds": (-3.0, 3.0), "particles": 7}],
    "genetic-algorithm": [
        {"selection": "tournament", "crossover": "uniform", "elites": 3},
        {"crossover": "one-point", "elites": 0},
        {"crossover": "blend"},
        {"seeds": True},
    ],
    "cma-es": [{"diagonal": True}, {"restarts": "bipop", "bounds": (-3.0, 3.0)}],
    "differential-evolution": [{"strategy": "best/1/bin", "population": 9}, {"bounds": (-3.0, 3.0)}],
}
SEARCHERS = [
    (name, settings)
    for name, method in dldw.methods().items()
    if issubclass(method.factory, Searcher)
    for settings in [{}, *_SEARCHER_SETTINGS.get(name, [])]
]
"""Every registered searcher by name and settings: its defaults, and variants of those that have more than one face."""
