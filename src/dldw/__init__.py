"""Train neural networks with any source of dL/dw, and see what each one costs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dldw.card import Card as Card
    from dldw.checking import CheckResult as CheckResult
    from dldw.checking import check as check
    from dldw.checking import check_function as check_function
    from dldw.compare.quality import Quality as Quality
    from dldw.compare.quality import quality as quality
    from dldw.directional import Directional as Directional
    from dldw.errors import AccumulationError as AccumulationError
    from dldw.errors import DldwError as DldwError
    from dldw.errors import NonFiniteLossError as NonFiniteLossError
    from dldw.learner import Descent as Descent
    from dldw.learner import Learner as Learner
    from dldw.learner import Search as Search
    from dldw.minimum import Minimum as Minimum
    from dldw.minimum import minimize as minimize
    from dldw.minimum import replay as replay
    from dldw.registry import methods as methods
    from dldw.rollout import Rollout as Rollout
    from dldw.searcher import Searcher as Searcher
    from dldw.searchers import CMAES as CMAES
    from dldw.searchers import DifferentialEvolution as DifferentialEvolution
    from dldw.searchers import GeneticAlgorithm as GeneticAlgorithm
    from dldw.searchers import HillClimb as HillClimb
    from dldw.searchers import ParticleSwarm as ParticleSwarm
    from dldw.searchers import RandomSearch as RandomSearch
    from dldw.source import GradientSource as GradientSource
    from dldw.sources.backprop import Backprop as Backprop
    from dldw.sources.evolution_strategy import EvolutionStrategy as EvolutionStrategy
    from dldw.sources.finite_difference import FiniteDifference as FiniteDifference
    from dldw.sources.forward_gradient import ForwardGradient as ForwardGradient
    from dldw.sources.low_rank_evolution import LowRankEvolution as LowRankEvolution
    from dldw.sources.reinforce import Reinforce as Reinforce
    from dldw.sources.spsa import SPSA as SPSA
    from dldw.sources.weight_perturbation import WeightPerturbation as WeightPerturbation

__version__ = "0.1.0"

_HOMES = {
    "Card": "dldw.card",
    "CheckResult": "dldw.checking",
    "check": "dldw.checking",
    "check_function": "dldw.checking",
    "Quality": "dldw.compare.quality",
    "quality": "dldw.compare.quality",
    "Directional": "dldw.directional",
    "AccumulationError": "dldw.errors",
    "DldwError": "dldw.errors",
    "NonFiniteLossError": "dldw.errors",
    "Descent": "dldw.learner",
    "Learner": "dldw.learner",
    "Search": "dldw.learner",
    "Minimum": "dldw.minimum",
    "minimize": "dldw.minimum",
    "replay": "dldw.minimum",
    "methods": "dldw.registry",
    "Rollout": "dldw.rollout",
    "Searcher": "dldw.searcher",
    "CMAES": "dldw.searchers",
    "DifferentialEvolution": "dldw.searchers",
    "GeneticAlgorithm": "dldw.searchers",
    "HillClimb": "dldw.searchers",
    "ParticleSwarm": "dldw.searchers",
    "RandomSearch": "dldw.searchers",
    "GradientSource": "dldw.source",
    "Backprop": "dldw.sources.backprop",
    "EvolutionStrategy": "dldw.sources.evolution_strategy",
    "FiniteDifference": "dldw.sources.finite_difference",
    "ForwardGradient": "dldw.sources.forward_gradient",
    "LowRankEvolution": "dldw.sources.low_rank_evolution",
    "Reinforce": "dldw.sources.reinforce",
    "SPSA": "dldw.sources.spsa",
    "WeightPerturbation": "dldw.sources.weight_perturbation",
}
_MODULES = ("testing",)
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that ``dldw --help`` need not wait for torch."""
    if name in _MODULES:
        return import_module(f"dldw.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'dldw' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
