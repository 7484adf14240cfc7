"""Estimators of scikit-learn that stand on the methods here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dldw.errors import DldwError

if TYPE_CHECKING:
    from dldw.integrations.sklearn.estimators import DldwClassifier as DldwClassifier
    from dldw.integrations.sklearn.estimators import DldwRegressor as DldwRegressor
    from dldw.integrations.sklearn.perceptron import PerceptronClassifier as PerceptronClassifier
    from dldw.integrations.sklearn.rbm import BernoulliRBM as BernoulliRBM

_HOMES = {
    "DldwClassifier": "estimators",
    "DldwRegressor": "estimators",
    "PerceptronClassifier": "perceptron",
    "BernoulliRBM": "rbm",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Imports an estimator on first use, so that what is missing is said in one line."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dldw.integrations.sklearn' has no attribute {name!r}")
    try:
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise DldwError(
            f"{name} is an estimator of scikit-learn, which is not installed. "
            "Install it with: pip install 'dldw[sklearn]'"
        ) from error
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
