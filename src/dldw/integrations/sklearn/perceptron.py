"""The averaged perceptron as an estimator of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from dldw.errors import DldwError
from dldw.learners.perceptron import OnlinePerceptron

ROWS = 256
"""Examples copied together in their new order: as many as stay in a cache."""


class PerceptronClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier by Rosenblatt's rule, predicting with the mean of its weights over all examples it met.

    For many classes this is one multi-class rule (Kesler's construction), not one against the rest: a mistake moves the
    weights of the right class and of the one it was taken for. It starts at zero, so the learning rate decides nothing.

    Cost: a pass is ``dldw.learners.perceptron.OnlinePerceptron`` over all examples, in float64.

    Source: Freund & Schapire 1999, Machine Learning 37.

    Args:
        averaged: Predict with the mean of the weights; with the last ones otherwise.
        margin: How far the own score must be above the best of the others, in units of squared examples.
        fit_intercept: Whether each class has a bias.
        max_iter: Passes that ``fit`` makes at most; it ends with the first pass without a mistake.
        shuffle: Whether ``fit`` takes the examples in a new order in every pass.
        random_state: Decides those orders.

    Attributes:
        classes_: The classes, [K].
        coef_: Weights, [K, d]; [1, d] for two classes.
        intercept_: Biases, [K] or [1].
        n_iter_: Passes made.
        mistakes_: Mistakes in each pass.
        n_features_in_: d.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from dldw.integrations.sklearn import PerceptronClassifier
        >>> x, y = load_digits(return_X_y=True)
        >>> bool(PerceptronClassifier(random_state=0).fit(x[:1400], y[:1400]).score(x[1400:], y[1400:]) > 0.9)
        True
    """

    def __init__(
        self,
        *,
        averaged: bool = True,
        margin: float = 0.0,
        fit_intercept: bool = True,
        max_iter: int = 20,
        shuffle: bool = True,
        random_state: Any = None,
    ) -> None:
        self.averaged, self.margin, self.fit_intercept = averaged, margin, fit_intercept
        self.max_iter, self.shuffle, self.random_state = max_iter, shuffle, random_state

    def fit(self, X: Any, y: Any) -> PerceptronClassifier:
        """Learns from examples X [n, d] with their classes y [n], from zero.

        Raises:
            DldwError: ``max_iter`` or ``margin`` is not what it must be, or there is only one class.
        """
        if not isinstance(self.max_iter, int | np.integer) or self.max_iter < 1:
            raise DldwError(f"max_iter must be a whole number of passes, 1 or more, got {self.max_iter!r}.")
        X, y = validate_data(self, X, y, dtype=np.float64, order="C")
        check_classification_targets(y)
        self._begin(np.unique(y))
        random = check_random_state(self.random_state)
        for _ in range(self.max_iter):
            self._pass(X, y, random.permutation(len(X)) if self.shuffle else np.arange(len(X)))
            if not self.mistakes_[-1]:
                break
        return self._finish()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> PerceptronClassifier:
        """Learns from examples X [n, d] with their classes y [n] once, in their order, going on from where it is.

        Cut into pieces or whole, the same examples in the same order give the same weights to the last bit.

        Args:
            X: Examples [n, d].
            y: Their classes [n].
            classes: All classes there will ever be; needed in the first call only.

        Raises:
            DldwError: The first call does not say which classes there are, or an example has another.
        """
        first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=np.float64, order="C", reset=first)
        check_classification_targets(y)
        if first:
            if classes is None:
                raise DldwError(
                    "the first call of partial_fit has to name all classes, as later examples may be of one that these are "
                    "not: partial_fit(X, y, classes=[...])."
                )
            self._begin(np.unique(classes))
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise DldwError(
                f"classes must be the same in every call of partial_fit: there are {self.classes_.tolist()}, and now "
                f"{np.unique(classes).tolist()}. Leave it out after the first call."
            )
        self._pass(X, y, np.arange(len(X)))
        return self._finish()

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores [n, K]; for two classes [n], above zero where it is the second."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores: np.ndarray = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of each example, [n]."""
        scores = self.decision_function(X)
        found: np.ndarray = self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]
        return found

    def _begin(self, classes: np.ndarray) -> None:
        if len(classes) < 2:
            raise DldwError(
                f"a classifier needs examples of at least two classes, got one class: {classes.tolist()}. Add examples of "
                "another."
            )
        outputs = 1 if len(classes) == 2 else len(classes)
        layer = nn.Linear(self.n_features_in_, outputs, bias=self.fit_intercept, dtype=torch.float64)
        for p in layer.parameters():
            nn.init.zeros_(p)
        self.classes_, self.mistakes_ = classes, list[int]()
        self._learner = OnlinePerceptron(layer, margin=self.margin)

    def _pass(self, X: np.ndarray, y: np.ndarray, order: np.ndarray) -> None:
        places = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        if (strange := self.classes_[places] != y).any():
            raise DldwError(
                f"an example is of the class {y[strange][0]!r}, which is none of {self.classes_.tolist()}. Name all classes "
                "in the first call of partial_fit."
            )
        before = self._learner.mistakes
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            self._learner.step((torch.from_numpy(X[rows]), torch.from_numpy(places[rows])))
        self.mistakes_.append(self._learner.mistakes - before)

    def _finish(self) -> PerceptronClassifier:
        layer: Any = self._learner.average() if self.averaged else self._learner.model
        self.coef_ = layer.weight.detach().numpy().copy()
        self.intercept_ = layer.bias.detach().numpy().copy() if self.fit_intercept else np.zeros(len(self.coef_))
        self.n_iter_ = len(self.mistakes_)
        return self
