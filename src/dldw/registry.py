"""Every method by name: one line each. The command line, the contract tests and the default comparison read it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dldw.errors import DldwError, UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dldw.card import Card
    from dldw.learner import Learner
    from dldw.source import Loss

METHODS = {
    "backprop": "dldw.sources.backprop:Backprop",
    "weight-perturbation": "dldw.sources.weight_perturbation:WeightPerturbation",
    "finite-difference": "dldw.sources.finite_difference:FiniteDifference",
    "spsa": "dldw.sources.spsa:SPSA",
    "evolution-strategy": "dldw.sources.evolution_strategy:EvolutionStrategy",
    "low-rank-evolution": "dldw.sources.low_rank_evolution:LowRankEvolution",
    "mezo": "dldw.sources.mezo:MeZO",
    "one-sided-batch": "dldw.sources.one_sided_batch:OneSidedBatch",
    "sparse-mezo": "dldw.sources.sparse_mezo:SparseMeZO",
    "per-example-perturbation": "dldw.sources.per_example_perturbation:PerExamplePerturbation",
    "forward-gradient": "dldw.sources.forward_gradient:ForwardGradient",
    "reinforce": "dldw.sources.reinforce:Reinforce",
    "contrastive-divergence": "dldw.sources.contrastive_divergence:ContrastiveDivergence",
    "perceptron": "dldw.sources.perceptron:Perceptron",
    "random-search": "dldw.searchers.random_search:RandomSearch",
    "hill-climb": "dldw.searchers.hill_climb:HillClimb",
    "particle-swarm": "dldw.searchers.particle_swarm:ParticleSwarm",
    "genetic-algorithm": "dldw.searchers.genetic_algorithm:GeneticAlgorithm",
    "differential-evolution": "dldw.searchers.differential_evolution:DifferentialEvolution",
    "cma-es": "dldw.searchers.cmaes:CMAES",
    "feedback-alignment": "dldw.sources.feedback_alignment:FeedbackAlignment",
    "node-perturbation": "dldw.sources.node_perturbation:NodePerturbation",
    "local-backprop": "dldw.sources.local_backprop:LocalBackprop",
    "head-only": "dldw.sources.head_only:HeadOnly",
    "activity-forward-gradient": "dldw.sources.activity_forward_gradient:ActivityForwardGradient",
    "forward-forward": "dldw.learners.forward_forward:ForwardForward",
    "mono-forward": "dldw.learners.mono_forward:MonoForward",
    "lora": "dldw.learners.lora:LoRA",
    "coordinate-wise": "dldw.sources.coordinate_wise:CoordinateWise",
}


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: As the command line has it.
        factory: The class: a ``GradientSource``, a ``Searcher``, or a learner built from model and loss; sources and
            learners whose card says that they need no loss have no such argument.
    """

    name: str
    factory: type[Any]

    @property
    def card(self) -> Card:
        """What the method claims, needs and costs."""
        card: Card = self.factory.card
        return card

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name with its default; those of the optimizer come with gradient sources."""
        from dldw.learner import make_optimizer

        functions = [self.factory] + ([make_optimizer] if self.is_source else [])
        parameters = [p for f in functions for p in inspect.signature(f).parameters.values()]
        return {
            p.name: None if p.default is p.empty else p.default
            for p in parameters
            if p.name not in ("model", "generator") and not (p.name in ("loss", "layers") and p.default is p.empty)
        }

    @property
    def is_source(self) -> bool:
        """Whether the method is a source of dL/dw, which an optimizer has to follow."""
        from dldw.source import GradientSource

        return issubclass(self.factory, GradientSource)

    @property
    def takes_loss(self) -> bool:
        """Whether the method is built from the loss of the task."""
        return self.card.needs != "no loss"

    def build(
        self, model: nn.Module, loss: Loss, /, generator: torch.Generator | None = None, **settings: Any
    ) -> Learner:
        """A learner that trains ``model`` with this method.

        Args:
            model: The model to train.
            loss: ``loss(model, batch)``; not handed to a method that needs none.
            generator: Where the method draws from.
            **settings: The method's own, and ``lr``, ``optimizer`` and ``momentum`` where it is a gradient source;
                the optimizer ``forward-only`` makes a ``dldw.ForwardOnly`` of it.

        Raises:
            UnknownNameError: A setting this method does not have.
        """
        from dldw.learner import Descent, Search, make_optimizer
        from dldw.searcher import Searcher

        known, objective = self.settings, {"loss": loss} if self.takes_loss else {}
        for name in settings:
            if name not in known:
                raise UnknownNameError(unknown("setting", name, known, of=self.name))
        if not self.is_source:
            if issubclass(self.factory, Searcher):
                return Search(model, loss, self.factory(generator=generator, **settings))
            learner: Learner = self.factory(model, **objective, generator=generator, **settings)
            return learner
        own = inspect.signature(self.factory).parameters
        arguments = {k: v for k, v in settings.items() if k in own}
        optimizer = {"lr": 0.1} | {k: v for k, v in settings.items() if k not in own}
        source = self.factory(**objective, generator=generator, **arguments)
        if optimizer.get("optimizer") == "forward-only":
            from dldw.learners.forward_only import ForwardOnly

            return ForwardOnly(model, source, optimizer["lr"], momentum=optimizer.get("momentum", 0.0))
        return Descent(model, source, make_optimizer(model, **optimizer))


def methods() -> dict[str, Method]:
    """All registered methods by name, each with its card.

    Example:
        >>> import dldw
        >>> dldw.methods()["spsa"].card.forwards
        '2 * directions if two_sided else directions + 1'
    """
    return {name: method(name) for name in METHODS}


def method(name: str) -> Method:
    """The method registered as ``name``.

    Raises:
        UnknownNameError: There is none; the text has the list and the nearest match.
    """
    if name not in METHODS:
        raise UnknownNameError(unknown("method", name, METHODS))
    module, _, attribute = METHODS[name].partition(":")
    return Method(name, getattr(import_module(module), attribute))


def unknown(kind: str, name: str, known: Any, of: str = "") -> str:
    """The text of an error about a name that does not exist."""
    near = get_close_matches(name, list(known), n=1)
    where = f" of {of}" if of else ""
    return (
        f"there is no {kind} {name!r}{where}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + (f" Known: {', '.join(known)}." if known else f" {of or 'It'} has none.")
    )


__all__ = ["METHODS", "DldwError", "Method", "method", "methods", "unknown"]
