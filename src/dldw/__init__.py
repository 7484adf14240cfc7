"""Train neural networks with any source of dL/dw, and see what each one costs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dldw.lazy import attributes

if TYPE_CHECKING:
    from dldw import nn as nn
    from dldw import optim as optim
    from dldw import testing as testing
    from dldw.card import Card as Card
    from dldw.checking import CheckResult as CheckResult
    from dldw.checking import check as check
    from dldw.checking import check_function as check_function
    from dldw.checking import directional_curvature as directional_curvature
    from dldw.checking import hessian_diagonal as hessian_diagonal
    from dldw.compare.quality import Quality as Quality
    from dldw.compare.quality import quality as quality
    from dldw.directional import Directional as Directional
    from dldw.errors import AccumulationError as AccumulationError
    from dldw.errors import DldwError as DldwError
    from dldw.errors import NonFiniteLossError as NonFiniteLossError
    from dldw.evaluate import Evaluator as Evaluator
    from dldw.learner import Descent as Descent
    from dldw.learner import Learner as Learner
    from dldw.learner import Search as Search
    from dldw.learners.forward_forward import ForwardForward as ForwardForward
    from dldw.learners.forward_only import ForwardOnly as ForwardOnly
    from dldw.learners.forward_only import RecentMomentum as RecentMomentum
    from dldw.learners.forward_only import replay as replay
    from dldw.learners.lora import LoRA as LoRA
    from dldw.learners.mono_forward import MonoForward as MonoForward
    from dldw.minimum import Minimum as Minimum
    from dldw.minimum import minimize as minimize
    from dldw.minimum import replay_search as replay_search
    from dldw.ranks import Ranks as Ranks
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
    from dldw.sources.activity_forward_gradient import ActivityForwardGradient as ActivityForwardGradient
    from dldw.sources.backprop import Backprop as Backprop
    from dldw.sources.contrastive_divergence import ContrastiveDivergence as ContrastiveDivergence
    from dldw.sources.coordinate_wise import CoordinateWise as CoordinateWise
    from dldw.sources.evolution_strategy import EvolutionStrategy as EvolutionStrategy
    from dldw.sources.feedback_alignment import FeedbackAlignment as FeedbackAlignment
    from dldw.sources.finite_difference import FiniteDifference as FiniteDifference
    from dldw.sources.forward_gradient import ForwardGradient as ForwardGradient
    from dldw.sources.head_only import HeadOnly as HeadOnly
    from dldw.sources.local_backprop import LocalBackprop as LocalBackprop
    from dldw.sources.low_rank_evolution import LowRankEvolution as LowRankEvolution
    from dldw.sources.mezo import MeZO as MeZO
    from dldw.sources.node_perturbation import NodePerturbation as NodePerturbation
    from dldw.sources.one_sided_batch import OneSidedBatch as OneSidedBatch
    from dldw.sources.per_example_perturbation import PerExamplePerturbation as PerExamplePerturbation
    from dldw.sources.perceptron import Perceptron as Perceptron
    from dldw.sources.reinforce import Reinforce as Reinforce
    from dldw.sources.sparse_mezo import SparseMeZO as SparseMeZO
    from dldw.sources.sparse_perturbation import SparsePerturbation as SparsePerturbation
    from dldw.sources.spsa import SPSA as SPSA
    from dldw.sources.svrg import SVRG as SVRG
    from dldw.sources.weight_perturbation import WeightPerturbation as WeightPerturbation

__version__ = "0.1.0"

_HOMES = {
    "Card": "dldw.card",
    "CheckResult": "dldw.checking",
    "check": "dldw.checking",
    "check_function": "dldw.checking",
    "directional_curvature": "dldw.checking",
    "hessian_diagonal": "dldw.checking",
    "Quality": "dldw.compare.quality",
    "quality": "dldw.compare.quality",
    "Directional": "dldw.directional",
    "AccumulationError": "dldw.errors",
    "DldwError": "dldw.errors",
    "NonFiniteLossError": "dldw.errors",
    "Evaluator": "dldw.evaluate",
    "Descent": "dldw.learner",
    "Learner": "dldw.learner",
    "Search": "dldw.learner",
    "ForwardOnly": "dldw.learners.forward_only",
    "RecentMomentum": "dldw.learners.forward_only",
    "replay": "dldw.learners.forward_only",
    "ForwardForward": "dldw.learners.forward_forward",
    "MonoForward": "dldw.learners.mono_forward",
    "LoRA": "dldw.learners.lora",
    "Minimum": "dldw.minimum",
    "minimize": "dldw.minimum",
    "replay_search": "dldw.minimum",
    "Ranks": "dldw.ranks",
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
    "ActivityForwardGradient": "dldw.sources.activity_forward_gradient",
    "Backprop": "dldw.sources.backprop",
    "ContrastiveDivergence": "dldw.sources.contrastive_divergence",
    "CoordinateWise": "dldw.sources.coordinate_wise",
    "EvolutionStrategy": "dldw.sources.evolution_strategy",
    "FeedbackAlignment": "dldw.sources.feedback_alignment",
    "FiniteDifference": "dldw.sources.finite_difference",
    "ForwardGradient": "dldw.sources.forward_gradient",
    "HeadOnly": "dldw.sources.head_only",
    "LocalBackprop": "dldw.sources.local_backprop",
    "LowRankEvolution": "dldw.sources.low_rank_evolution",
    "MeZO": "dldw.sources.mezo",
    "OneSidedBatch": "dldw.sources.one_sided_batch",
    "PerExamplePerturbation": "dldw.sources.per_example_perturbation",
    "NodePerturbation": "dldw.sources.node_perturbation",
    "Perceptron": "dldw.sources.perceptron",
    "Reinforce": "dldw.sources.reinforce",
    "SparseMeZO": "dldw.sources.sparse_mezo",
    "SparsePerturbation": "dldw.sources.sparse_perturbation",
    "SPSA": "dldw.sources.spsa",
    "SVRG": "dldw.sources.svrg",
    "WeightPerturbation": "dldw.sources.weight_perturbation",
}
_ROOMS = ("nn", "optim", "testing")
__all__ = [*_HOMES, *_ROOMS, "__version__"]
_get, _names = attributes(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that ``dldw --help`` need not wait for torch."""
    return import_module(f"dldw.{name}") if name in _ROOMS else _get(name)


def __dir__() -> list[str]:
    return sorted({*_names(), *_ROOMS})
