"""A restricted Boltzmann machine as a transformer of scikit-learn."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from dldw.errors import DldwError
from dldw.gemm import product
from dldw.learner import Descent
from dldw.nn.likelihood import LogPartition, log_partition
from dldw.nn.rbm import RBM
from dldw.sources.contrastive_divergence import ContrastiveDivergence

_log = logging.getLogger("dldw")


class BernoulliRBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Features p(h = 1 | v) of a restricted Boltzmann machine, learnt without labels by contrastive divergence.

    In the place of ``sklearn.neural_network.BernoulliRBM``, with its arguments and attributes. What differs: k steps of
    sampling; chains that start at the examples unless ``persistent``; a last batch of another size counts as it should;
    ``score_samples`` is the log-likelihood, exact or estimated, in place of a pseudo-likelihood; training is in the type of
    the data, float32 or float64, in a new order in every pass; values outside [0, 1] are taken for 0 or 1, with a warning.

    Source: Hinton 2002, Neural Computation 14; persistent: Tieleman 2008, ICML.

    Args:
        n_components: Number of hidden units.
        learning_rate: Of gradient descent.
        batch_size: Examples in a batch.
        n_iter: Passes over the data.
        k: Steps of Gibbs sampling.
        persistent: Whether the chains go on from batch to batch.
        verbose: Whether the reconstruction error of each pass is logged (logger ``dldw``, level INFO).
        random_state: Decides initial weights, orders, samples.

    Attributes:
        components_: Weights, [n_components, n_features].
        intercept_hidden_: Biases of the hidden units, [n_components].
        intercept_visible_: Biases of the visible units, [n_features].
        n_features_in_: Number of visible units.
        rbm_: The ``dldw.nn.RBM``, for what scikit-learn has no name for.

    Example:
        >>> import numpy as np
        >>> from dldw.integrations.sklearn import BernoulliRBM
        >>> x = np.repeat([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]], 50, axis=0).astype(float)
        >>> rbm = BernoulliRBM(2, n_iter=50, random_state=0).fit(x)
        >>> rbm.transform(x).shape, rbm.sample(3, steps=10).shape
        ((100, 2), (3, 6))
        >>> bool(rbm.score_samples(x).mean() > -2)
        True
    """

    _partition: LogPartition | None

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float = 0.1,
        batch_size: int = 10,
        n_iter: int = 10,
        k: int = 1,
        persistent: bool = False,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.n_components, self.learning_rate = n_components, learning_rate
        self.batch_size, self.n_iter = batch_size, n_iter
        self.k, self.persistent, self.verbose, self.random_state = k, persistent, verbose, random_state

    def fit(self, X: Any, y: Any = None) -> BernoulliRBM:
        """Learns from X [n, n_features], from new weights.

        Raises:
            DldwError: ``batch_size``, ``n_iter`` or ``learning_rate`` is not positive, or an argument is none of a machine.
        """
        X = self._checked(X, reset=True)
        if self.n_iter < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise DldwError(
                f"n_iter, batch_size and learning_rate must be positive, got {self.n_iter}, {self.batch_size} and "
                f"{self.learning_rate}: without passes, examples or steps nothing is learnt."
            )
        self._begin(X)
        for i in range(self.n_iter):
            order = torch.randperm(len(X), generator=self._generator)
            batches = order.split(self.batch_size)
            error = sum(float(self._learner.step(X[rows])) * len(rows) for rows in batches) / len(X)
            if self.verbose:
                _log.info("pass %d of %d: reconstruction error %.4g", i + 1, self.n_iter, error)
        return self._finish()

    def partial_fit(self, X: Any, y: Any = None) -> BernoulliRBM:
        """Makes one step from X [n, n_features], going on from where it is."""
        first = not hasattr(self, "rbm_")
        X = self._checked(X, reset=first)
        if first:
            self._begin(X)
        self._learner.step(X.to(self.rbm_.weight.dtype))
        return self._finish()

    def transform(self, X: Any) -> np.ndarray:
        """p(h = 1 | v) for X [n, n_features], [n, n_components]."""
        X = self._fitted(X)
        weight, bias = (p.detach().to(X.dtype) for p in (self.rbm_.weight, self.rbm_.hidden_bias))
        found: np.ndarray = product(X, weight.t(), bias).sigmoid_().numpy()
        return found

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(v) in nats for X [n, n_features], [n]; an estimate where neither layer can be enumerated."""
        X = self._fitted(X).double()
        with torch.no_grad():
            energies: np.ndarray = self._precise.free_energy(X).numpy()
        return -energies - self.log_partition().value

    def log_partition(self) -> LogPartition:
        """log Z, with its interval where it is estimated."""
        check_is_fitted(self, "rbm_")
        if self._partition is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._partition = log_partition(self.rbm_, base=self._base, generator=generator)
        return self._partition

    def sample(self, n_samples: int = 1, *, steps: int = 1000, clamp: Any = None) -> np.ndarray:
        """States [n_samples, n_features] of so many chains after ``steps`` of Gibbs sampling.

        Args:
            n_samples: How many chains.
            steps: How many steps each makes.
            clamp: Values that visible units are held at, [n_features] or [n_samples, n_features], NaN where one is free.
        """
        check_is_fitted(self, "rbm_")
        held = None if clamp is None else torch.as_tensor(np.asarray(clamp), dtype=self.rbm_.weight.dtype)
        found: np.ndarray = self.rbm_.sample(n_samples, steps, clamp=held, generator=self._generator).numpy()
        return found

    def _checked(self, X: Any, reset: bool) -> Any:
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=reset)
        X = torch.from_numpy(np.require(X, requirements=["C", "W"]))
        low, high = X.aminmax()
        if low < 0 or high > 1:
            warnings.warn(
                f"Bernoulli units are 0 or 1, or a probability between, and X has values from {float(low):.3g} to "
                f"{float(high):.3g}: those outside are taken for 0 or 1. Scale X first, e.g. with MinMaxScaler(clip=True).",
                UserWarning,
                stacklevel=3,
            )
            X = X.clamp(0, 1)
        return X

    def _fitted(self, X: Any) -> Any:
        check_is_fitted(self, "rbm_")
        return self._checked(X, reset=False)

    def _begin(self, X: Any) -> None:
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self._generator = torch.Generator().manual_seed(self._seed)
        with torch.random.fork_rng(devices=[]):
            self.rbm_ = RBM(X.shape[1], self.n_components).to(X.dtype)
        with torch.no_grad():
            self.rbm_.weight.normal_(std=0.01, generator=self._generator)
        source = ContrastiveDivergence(self.k, persistent=self.persistent, generator=self._generator)
        self._learner = Descent(self.rbm_, source, self.learning_rate)
        self._base = self.rbm_.units.bias_of(X.mean(0))

    def _finish(self) -> BernoulliRBM:
        names = {"components_": "weight", "intercept_hidden_": "hidden_bias", "intercept_visible_": "visible_bias"}
        for name, parameter in names.items():
            setattr(self, name, getattr(self.rbm_, parameter).detach().numpy().copy())
        self._n_features_out = len(self.components_)
        self._precise = copy.deepcopy(self.rbm_).double()
        self._partition = None
        return self
