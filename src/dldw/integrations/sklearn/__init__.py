"""Estimators of scikit-learn that stand on the methods here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dldw.errors import DldwError
from dldw.lazy import attributes

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
_get, __dir__ = attributes(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})


def __getattr__(name: str) -> Any:
    """Imports an estimator on first use, so that what is missing is said in one line."""
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        raise DldwError(
            f"{name} is an estimator of scikit-learn, which is not installed. "
            "Install it with: pip install 'dldw[sklearn]'"
        ) from error
