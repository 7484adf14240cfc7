"""The card: what a method claims, what it needs and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Claim = Literal["exact", "unbiased", "biased", "search"]
Needs = Literal["autograd", "forward mode", "loss values", "no loss", "episodes", "layers"]


@dataclass(frozen=True)
class Float:
    """A real setting to tune, between ``low`` and ``high`` (both included)."""

    low: float
    high: float
    log: bool = True


@dataclass(frozen=True)
class Choice:
    """A setting to tune that takes one of a few values."""

    options: tuple[Any, ...]


class Published(TypedDict):
    """What a paper reports of a method on images."""

    settings: dict[str, Any]  # those of the method's that the paper has; none where it is any
    accuracy: float  # on test images, in per cent
    backprop: float | None  # the same of back-propagation on the same network, where the paper gives it
    data: str
    network: str
    source: str


@dataclass(frozen=True)
class Card:
    """What a method says of itself; the contract tests hold it to every line.

    Attributes:
        summary: One sentence.
        claim: ``exact`` equals the derivative; ``unbiased`` equals it on average (``note`` says of which loss);
            ``biased`` does neither; ``search`` does not estimate a derivative.
        needs: What the model and the loss must offer; ``layers`` are loss values, and noise on what layers put out.
        forwards: Cost of one step in forward-pass equivalents, a formula in the constructor's arguments and ``d``, the
            number of trainable weights. A reverse pass counts as two forwards, a forward-mode product as two.
        memory: Peak beyond the loaded model and one forward, in words and symbols: ``d`` weights, ``a`` activations kept
            for one backward pass, ``n`` the number of directions or candidates held at a time.
        paper: Authors, year and where to find it.
        additive: Whether the estimates of micro-batches add up to the estimate of their union. Ranks and z-scores do not.
        space: The settings that ``dldw compare --tune`` searches, the optimizer's included.
        note: What a user has to know and the fields above cannot say.
        scale: What the estimate has to be multiplied with for its mean to be the gradient, a formula like ``forwards``.
        variance: E|ghat - g|² / |g|² on a linear loss, a formula like ``forwards``; empty where no closed form is known.
        published: Accuracies that papers report, to stand beside what is reached here.
    """

    summary: str
    claim: Claim
    needs: Needs
    forwards: str
    memory: str
    paper: str
    additive: bool = True
    space: Mapping[str, Float | Choice] = field(default_factory=dict)
    note: str = ""
    scale: str = "1"
    variance: str = ""
    published: tuple[Published, ...] = ()

    def count_forwards(self, arguments: Mapping[str, Any], d: int) -> float:
        """The formula of ``forwards`` worked out for these constructor arguments and ``d`` trainable weights."""
        return _evaluated(self.forwards, arguments, d)

    def find_scale(self, arguments: Mapping[str, Any], d: int) -> float:
        """The formula of ``scale`` worked out like that of ``forwards``."""
        return _evaluated(self.scale, arguments, d)

    def predict_variance(self, arguments: Mapping[str, Any], d: int) -> float | None:
        """The formula of ``variance`` worked out like that of ``forwards``; None where there is none."""
        return _evaluated(self.variance, arguments, d) if self.variance else None


def _evaluated(formula: str, arguments: Mapping[str, Any], d: int) -> float:
    names = {**arguments, "d": d, "ceil": math.ceil, "floor": math.floor, "log": math.log}
    return float(eval(compile(formula, "<card>", "eval"), {"__builtins__": {}}, names))
