"""A classifier and a regressor that learn by any method of dldw, by its name."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from dldw.compare.spec import parse
from dldw.errors import DldwError
from dldw.learner import Learner
from dldw.tasks.task import seeded
from dldw.weights import Weights

Batch = tuple[Tensor, Tensor]
Factory = Callable[[int, int], nn.Module]
"""``module(n_features, n_outputs)`` makes a module [B, n_features] -> [B, n_outputs]."""

OPTIMIZER = {"optimizer": "adam", "lr": 0.01}
"""Follows a source of dL/dw where no other is given: its steps are of one length whatever the scale of the estimate."""
ROWS_AT_ONCE = 4096


class _Estimator(BaseEstimator):
    """A torch module trained on rows of numbers until a budget of forward passes is spent."""

    def __init__(
        self,
        method: str = "backprop",
        *,
        settings: Mapping[str, Any] | None = None,
        module: Factory | None = None,
        forwards: float = 20_000,
        batch_size: int = 128,
        validation: float = 0.1,
        patience: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.method = method
        self.settings = settings
        self.module = module
        self.forwards = forwards
        self.batch_size = batch_size
        self.validation = validation
        self.patience = patience
        self.random_state = random_state

    def _begin(self, x: NDArray[Any], outputs: int) -> None:
        """A fresh module in the type of ``x``, and what trains it."""
        if self.batch_size < 1 or not 0 < self.validation < 1 or (self.patience is not None and self.patience < 1):
            raise DldwError(
                f"batch_size and patience must be at least 1 and validation a share between 0 and 1, got "
                f"{self.batch_size}, {self.patience} and {self.validation}. Use patience=None for no early stopping."
            )
        spec = parse(self.method)
        settings = (OPTIMIZER if spec.method.is_source else {}) | dict(spec.given) | dict(self.settings or {})
        seeds = check_random_state(self.random_state).randint(2**31 - 1, size=4)
        weights, draws, order, passes = seeds.tolist()
        make = self.module or _network
        module = seeded(weights, lambda: make(x.shape[1], outputs))
        if not isinstance(module, nn.Module):
            raise DldwError(
                f"module must be a function module(n_features, n_outputs) that makes a torch.nn.Module, and it made "
                f"{type(module).__name__}. Wrap a model: module=lambda n_features, n_outputs: MyModel(...)."
            )
        self.module_ = module.to(torch.float32 if x.dtype == np.float32 else torch.float64)
        Weights.of(self.module_).require_trainable()
        with torch.no_grad():
            shape = self.module_.eval()(self._rows(x[:2])).shape
        if shape != (len(x[:2]), outputs):
            raise DldwError(
                f"module must map rows [B, {x.shape[1]}] to [B, {outputs}], one output for each class or the one target, and "
                f"maps {len(x[:2])} rows to shape {list(shape)}. Make its last layer as wide as n_outputs says."
            )
        self._built = spec, settings
        self.learner_ = self._learner(draws)
        self.forwards_, self.n_iter_, self.loss_curve_ = 0.0, 0, list[float]()
        self._step = spec.method.card.count_forwards({**spec.method.settings, **settings}, Weights.of(module).size)
        self._order, self._seed = torch.Generator().manual_seed(order), passes

    def _learner(self, seed: int) -> Learner:
        """What trains ``module_``, at its beginning."""
        (spec, settings), device = self._built, Weights.of(self.module_).device
        return spec.method.build(self.module_, self._loss, torch.Generator(device).manual_seed(seed), **settings)

    def __getstate__(self) -> dict[str, Any]:
        """A learner is kept as its state: much of it, as what the evaluator measured, is for this process alone."""
        state: dict[str, Any] = super().__getstate__()
        return state | ({"learner_": self.learner_.state_dict()} if "learner_" in state else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "learner_" in state:
            self.learner_ = self._learner(0)
            self.learner_.load_state_dict(state["learner_"])

    @staticmethod
    @abstractmethod
    def _loss(module: nn.Module, batch: Batch) -> Tensor:
        """The loss of each row [B]."""

    def _fit(self, x: Tensor, y: Tensor) -> Self:
        """Trains until the budget is spent, or the held-out rows say that it is enough."""
        if self._step > self.forwards:
            raise DldwError(
                f"one step of {self.method} takes {self._step:,.0f} forward passes on the {Weights.of(self.module_).size:,} "
                f"weights of this module, and forwards is {self.forwards:,.0f}. Raise it, or choose a cheaper method."
            )
        held, kept, least, waited = 0, None, math.inf, 0
        if self.patience is not None:
            held = math.ceil(self.validation * len(x))
            if held == len(x):
                raise DldwError(f"of {len(x)} rows none is left to train on. Use patience=None for no early stopping.")
            rows = torch.randperm(len(x), generator=self._order)
            x, y = x[rows], y[rows]
        while self.forwards_ + self._step <= self.forwards and (self.patience is None or waited < self.patience):
            self._pass(x[held:], y[held:], self.forwards)
            if not held:
                continue
            with torch.no_grad():
                loss = float(self._loss(self.module_, (x[:held], y[:held])).mean())
            waited = 0 if loss < least else waited + 1
            if loss < least or kept is None:
                least, kept = loss, copy.deepcopy(self.learner_.state_dict())
        if kept is not None:
            self.learner_.load_state_dict(kept)
        return self

    def _pass(self, x: Tensor, y: Tensor, budget: float = math.inf) -> None:
        """One pass over the rows in a new order, in batches of equal size."""
        parts = torch.tensor_split(torch.randperm(len(x), generator=self._order), math.ceil(len(x) / self.batch_size))
        parts = parts[: int((budget - self.forwards_) // self._step)] if math.isfinite(budget) else parts

        def steps() -> list[float]:
            return [float(self.learner_.step((x[rows], y[rows]))) for rows in parts]

        self.module_.train()
        losses = seeded(self._seed + self.n_iter_, steps)  # dropout draws from the global random state
        self.module_.eval()
        self.forwards_ += len(losses) * self._step
        self.n_iter_ += 1
        self.loss_curve_.append(sum(losses) / len(losses))

    def _rows(self, x: NDArray[Any]) -> Tensor:
        like = Weights.of(self.module_)
        return torch.tensor(x, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def _outputs(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        x = self._rows(validate_data(self, X, dtype=_TYPES, reset=False))
        return torch.cat([self.module_(part) for part in x.split(ROWS_AT_ONCE)]).cpu()


class DldwClassifier(ClassifierMixin, _Estimator):
    """A classifier of scikit-learn whose network learns by any method of dldw; the loss is the cross-entropy.

        argmin_w  mean_i  -log softmax(f_w(x_i))[y_i]      at most so many forward-pass equivalents, whatever the method

    Cost: ``forwards`` forward passes over a batch, in all; a backward pass counts as two.

    Args:
        method: A name, see ``dldw.methods()``, or one with settings, as ``spsa[sigma=1e-3]``.
        settings: Further settings of the method by name, and of the optimizer after a gradient source: ``lr``,
            ``optimizer`` (Adam with 0.01 where none is given) and ``momentum``.
        module: ``module(n_features, n_outputs)`` makes the network [B, n_features] -> [B, n_outputs]; by default one
            hidden layer of 32 with tanh.
        forwards: Budget of ``fit`` in forward-pass equivalents; the same budget makes methods comparable.
        batch_size: Rows in a batch; all batches of a pass are of one size, or one row less.
        validation: Share of the rows held out where ``patience`` is given.
        patience: Passes without a lower loss on the held-out rows after which ``fit`` ends, with the weights that had
            the lowest; None trains until the budget is spent.
        random_state: Decides initial weights, order and what method and dropout draw; the global state is left alone.

    The weights are float32 where X is, else float64. X is taken as it is: put a ``StandardScaler`` in front where columns
    differ in scale. ``partial_fit`` makes one pass over what it is given, from where the last call stopped.

    Attributes:
        classes_: The labels.
        module_, learner_: The trained network, and what trains it (``dldw.Learner``).
        forwards_: Forward-pass equivalents spent.
        n_iter_: Passes made over the data.
        loss_curve_: Mean loss of each pass.

    Raises:
        DldwError: From ``fit``: method, settings or module cannot be used, or the budget is less than one step.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from dldw.integrations.sklearn import DldwClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> swarm = DldwClassifier("particle-swarm", forwards=4000, random_state=0)
        >>> make_pipeline(StandardScaler(), swarm).fit(X, y).score(X, y) > 0.9
        True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Trains a fresh network on rows X [n, n_features] with labels y [n]."""
        x, labels = self._validated(X, y, first=True)
        self._classify(np.unique(labels), x)
        return self._fit(self._rows(x), self._targets(labels))

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: Sequence[Any] | NDArray[Any] | None = None) -> Self:
        """One more pass; the first call needs all ``classes`` that may ever come."""
        first = not hasattr(self, "learner_")
        x, labels = self._validated(X, y, first=first)
        if first:
            if classes is None:
                raise DldwError(
                    "the first call of partial_fit does not know which classes later rows will have. "
                    "Pass classes, all labels that may come."
                )
            self._classify(np.unique(classes), x)
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise DldwError(
                f"classes are {np.unique(classes)} and were {self.classes_} in the first call of partial_fit, and the "
                "network has one output for each. Leave classes out, or train a fresh estimator."
            )
        self._pass(self._rows(x), self._targets(labels))
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """The probability of each class, [n, n_classes], in the order of ``classes_``."""
        found: NDArray[Any] = self._outputs(X).softmax(1).numpy()
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable label of each row [n]."""
        at = self._outputs(X).argmax(1).numpy()
        found: NDArray[Any] = self.classes_[at]
        return found

    def _validated(self, X: ArrayLike, y: ArrayLike, first: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        x, labels = validate_data(self, X, y, dtype=_TYPES, reset=first)
        check_classification_targets(labels)
        return x, labels

    def _classify(self, classes: NDArray[Any], x: NDArray[Any]) -> None:
        if len(classes) < 2:
            raise DldwError(
                f"a classifier needs at least two classes, and y has one class: {classes[0]}. Add the others."
            )
        self._begin(x, len(classes))
        self.classes_ = classes

    def _targets(self, labels: NDArray[Any]) -> Tensor:
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise DldwError(
                f"y has labels that are not among the classes {self.classes_}: {unknown}. Train afresh with fit."
            )
        return torch.from_numpy(np.searchsorted(self.classes_, labels)).to(Weights.of(self.module_).device)

    @staticmethod
    def _loss(module: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        return F.cross_entropy(module(x), y, reduction="none")


class DldwRegressor(RegressorMixin, _Estimator):
    """A regressor of scikit-learn whose network learns by any method of dldw; the loss is the squared error.

        argmin_w  mean_i  (f_w(x_i) - (y_i - mean) / scale)^2

    Mean and scale are those of the y that the first call was given, so that the loss of a network that says nothing is 1
    whatever the unit of y; predictions are in that unit again. All else is as in ``DldwClassifier``.

    Args:
        method: See ``DldwClassifier``, also for all that follow.
        settings: Further settings of method and optimizer.
        module: Makes the network [B, n_features] -> [B, 1].
        forwards: Budget of ``fit`` in forward-pass equivalents.
        batch_size: Rows in a batch.
        validation: Share of the rows held out where ``patience`` is given.
        patience: Passes without a lower loss on the held-out rows after which ``fit`` ends.
        random_state: Decides all that is random.

    Attributes:
        target_mean_, target_scale_: Of y.
        module_, learner_, forwards_, n_iter_, loss_curve_: See ``DldwClassifier``.

    Raises:
        DldwError: From ``fit``: method, settings or module cannot be used, or the budget is less than one step.

    Example:
        >>> from sklearn.datasets import make_regression
        >>> from dldw.integrations.sklearn import DldwRegressor
        >>> X, y = make_regression(200, 5, random_state=0)
        >>> DldwRegressor("spsa", forwards=4000, random_state=0).fit(X, y).score(X, y) > 0.5
        True
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Trains a fresh network on rows X [n, n_features] with targets y [n]."""
        x, targets = validate_data(self, X, y, dtype=_TYPES, y_numeric=True)
        self._scale(x, targets)
        return self._fit(self._rows(x), self._targets(targets))

    def partial_fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """One more pass."""
        first = not hasattr(self, "learner_")
        x, targets = validate_data(self, X, y, dtype=_TYPES, y_numeric=True, reset=first)
        if first:
            self._scale(x, targets)
        self._pass(self._rows(x), self._targets(targets))
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The expected target of each row [n]."""
        found: NDArray[Any] = self._outputs(X)[:, 0].numpy() * self.target_scale_ + self.target_mean_
        return found

    def _scale(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        self._begin(x, 1)
        self.target_mean_, self.target_scale_ = float(y.mean()), float(y.std()) or 1.0

    def _targets(self, y: NDArray[Any]) -> Tensor:
        return self._rows((y - self.target_mean_) / self.target_scale_)

    @staticmethod
    def _loss(module: nn.Module, batch: Batch) -> Tensor:
        x, y = batch
        loss: Tensor = (module(x)[:, 0] - y).square()
        return loss


_TYPES = (np.float64, np.float32)
"""Types of X that are kept; all others become the first."""


def _network(features: int, outputs: int) -> nn.Module:
    """The network of those who bring none."""
    return nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, outputs))
