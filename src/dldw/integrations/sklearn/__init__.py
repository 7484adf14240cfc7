"""Estimators of scikit-learn that stand on the methods here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dldw.integrations.sklearn.perceptron import PerceptronClassifier as PerceptronClassifier
    from dldw.integrations.sklearn.rbm import BernoulliRBM as BernoulliRBM

_HOMES = {
    "BernoulliRBM": "dldw.integrations.sklearn.rbm",
    "PerceptronClassifier": "dldw.integrations.sklearn.perceptron",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Imports an estimator on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dldw.integrations.sklearn' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
