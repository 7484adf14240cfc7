"""Estimators of scikit-learn: its own checks, what they promise beyond, and what they refuse."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import dldw
from dldw.errors import DldwError, UnknownNameError
from dldw.integrations.sklearn import DldwClassifier, DldwRegressor

X, Y = load_iris(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)
BOTH = [DldwClassifier, DldwRegressor]


def linear(features: int, outputs: int) -> nn.Module:
    return nn.Linear(features, outputs)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("backprop", {"forwards": 150, "settings": {"lr": 0.03}}),
        ("spsa", {"forwards": 200, "settings": {"lr": 0.03}}),
        ("evolution-strategy", {"forwards": 800}),
        ("particle-swarm", {"forwards": 1000}),
        ("genetic-algorithm[seeds=true]", {"forwards": 600}),
        ("cma-es", {"forwards": 400, "module": linear}),
    ],
)
def test_scikit_learns_own_checks_pass(make, method, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a check that scikit-learn leaves out
        found = check_estimator(make(method, **settings), on_fail=None)
    assert len(found) > 50
    assert [(r["check_name"], r["exception"]) for r in found if r["status"] == "failed"] == []


# --- what is learned ---


def test_a_linear_module_and_the_exact_gradient_give_logistic_regression():
    x, y = X[Y > 0, :2], Y[Y > 0]  # these classes overlap, so that the most probable weights are finite
    mine = DldwClassifier(module=linear, forwards=900, batch_size=100, settings={"lr": 0.1}).fit(x, y)
    theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(x, y)
    assert np.abs(mine.predict_proba(x) - theirs.predict_proba(x)).max() < 1e-3


def test_a_linear_module_and_the_exact_gradient_give_least_squares_in_the_unit_of_the_target():
    x, y = make_regression(100, 3, noise=20, bias=1000, random_state=0)
    mine = DldwRegressor(module=linear, forwards=1800, batch_size=100).fit(x, y)
    theirs = LinearRegression().fit(x, y)
    assert np.abs(mine.predict(x) - theirs.predict(x)).max() < 1e-3 * y.std()
    assert mine.score(x, y) == pytest.approx(theirs.score(x, y))


def test_labels_of_any_kind_come_back_and_probabilities_are_in_the_order_of_classes():
    names = np.array(["virginica", "setosa", "versicolor"])[Y]
    fitted = DldwClassifier(forwards=1500, random_state=0).fit(X, names)
    assert fitted.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    proba = fitted.predict_proba(X)
    assert (fitted.classes_[proba.argmax(1)] == fitted.predict(X)).all()
    assert np.allclose(proba.sum(1), 1)
    assert fitted.score(X, names) > 0.9


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(("given", "kept"), [(np.float32, "float32"), (np.float64, "float64"), (np.int32, "float64")])
def test_the_weights_have_the_type_of_the_rows(make, given, kept):
    fitted = make(forwards=30).fit((10 * X).astype(given), Y)
    assert {str(p.dtype) for p in fitted.module_.parameters()} == {f"torch.{kept}"}
    found = fitted.predict_proba(X) if make is DldwClassifier else fitted.predict(X)
    assert str(found.dtype) == kept


def test_names_of_columns_are_kept_and_other_names_refused():
    table = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    fitted = DldwClassifier(forwards=30).fit(table, Y)
    assert fitted.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert fitted.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.predict(table[["d", "b", "c", "a"]])


# --- what it costs ---


@pytest.mark.parametrize(("method", "step"), [("backprop", 3), ("spsa[directions=4]", 8), ("random-search", 16)])
def test_the_budget_is_spent_and_never_exceeded(method, step):
    fitted = DldwClassifier(method, forwards=100).fit(X, Y)
    assert fitted.forwards_ == 100 // step * step
    assert fitted.learner_.model is fitted.module_


def test_a_pass_takes_every_row_once_in_batches_of_equal_size():
    seen = []

    class Seen(nn.Linear):
        def forward(self, x):
            if self.training:
                seen.append(x.detach().clone())
            return super().forward(x)

    DldwClassifier(module=Seen, forwards=9, batch_size=60, random_state=0).fit(X, Y)
    assert [len(x) for x in seen] == [50, 50, 50]
    rows = torch.cat(seen)
    assert not torch.equal(rows, torch.tensor(X))
    assert torch.equal(rows[np.lexsort(rows.T.numpy())], torch.tensor(X[np.lexsort(X.T)]))


def test_patience_ends_the_training_at_the_weights_with_the_lowest_held_out_loss():
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2  # labels that nothing tells apart
    losses = []

    class Watched(DldwClassifier):
        @staticmethod
        def _loss(module, batch):
            loss = DldwClassifier._loss(module, batch)
            if not module.training:
                losses.append(float(loss.mean()))
                held.append(batch)
            return loss

    held = []
    fitted = Watched(forwards=1e6, settings={"lr": 0.1}, validation=0.25, patience=5, random_state=0).fit(x, y)
    assert fitted.forwards_ < 1000
    assert len(losses) == fitted.n_iter_ == 1 + 5 + int(np.argmin(losses))
    assert len(held[-1][1]) == 10
    with torch.no_grad():
        assert float(DldwClassifier._loss(fitted.module_, held[-1]).mean()) == min(losses)


# --- what is repeated ---


def dropping(features: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, outputs))


@pytest.mark.parametrize("method", ["backprop", "spsa", "particle-swarm"])
def test_the_random_state_decides_everything_and_the_global_one_is_left_alone(method):
    torch.manual_seed(7)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, same, other = (
        DldwClassifier(method, module=dropping, forwards=200, random_state=seed).fit(X, Y).predict_proba(X)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    "method", ["backprop", "spsa", "evolution-strategy", "particle-swarm", "genetic-algorithm[seeds=true]", "cma-es"]
)
def test_a_pickled_estimator_goes_on_as_the_original_does(make, method):
    def passed(estimator, count):
        for _ in range(count):
            estimator.partial_fit(X, Y, **({"classes": [0, 1, 2]} if make is DldwClassifier else {}))
        return estimator

    def found(estimator):
        return np.concatenate([p.detach().numpy().ravel() for p in estimator.module_.parameters()])

    module = dropping if method == "backprop" else linear
    estimator = passed(make(method, module=module, batch_size=40, random_state=3), 2)
    other = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(found(other), found(estimator))
    estimator.set_params(method="random-search")  # what was fitted stays what it was
    again = pickle.loads(pickle.dumps(estimator))
    for copied in (other, again):
        assert np.array_equal(found(passed(copied, 2)), found(passed(pickle.loads(pickle.dumps(estimator)), 2)))
    assert not np.array_equal(found(other), found(estimator))


def test_partial_fit_goes_on_and_fit_starts_over():
    def started():
        return DldwClassifier(batch_size=150, random_state=0)

    going = started()
    for i in range(1, 4):
        going.partial_fit(X, Y, classes=[0, 1, 2])
        assert (going.n_iter_, going.forwards_, len(going.loss_curve_)) == (i, 3 * i, i)
    assert going.loss_curve_[2] < going.loss_curve_[0]
    at_once = started().set_params(forwards=9).fit(X, Y)
    assert np.array_equal(going.predict_proba(X), at_once.predict_proba(X))
    going.set_params(forwards=9).fit(X, Y)
    assert np.array_equal(going.predict_proba(X), at_once.predict_proba(X))


def test_a_class_may_come_in_a_later_part():
    going = DldwClassifier("spsa", random_state=0)
    going.partial_fit(X[Y < 2], Y[Y < 2], classes=[0, 1, 2])
    going.partial_fit(X[Y == 2], Y[Y == 2])
    assert going.predict_proba(X).shape == (150, 3)


def test_a_target_that_never_changes_is_predicted():
    assert DldwRegressor(forwards=300).fit(X, np.full(150, 3.0)).predict(X) == pytest.approx(3.0, abs=0.5)


def test_clones_pipelines_and_grids_take_methods_and_settings():
    estimator = DldwClassifier("spsa", settings={"sigma": 0.01}, forwards=60, random_state=0)
    assert clone(estimator).get_params() == estimator.get_params()
    grid = GridSearchCV(
        make_pipeline(StandardScaler(), estimator),
        {"dldwclassifier__method": ["spsa", "backprop"], "dldwclassifier__settings": [{"lr": 0.003}, {"lr": 0.03}]},
        cv=2,
    ).fit(X, Y)
    assert grid.best_params_["dldwclassifier__method"] == "backprop"
    assert grid.best_estimator_[-1].learner_.optimizer.param_groups[0]["lr"] == 0.03


def test_settings_reach_method_and_optimizer_and_those_given_last_count():
    fitted = DldwClassifier("spsa[sigma=0.5,directions=2]", settings={"sigma": 0.25, "lr": 0.5}, forwards=8).fit(X, Y)
    assert (fitted.learner_.source.sigma, fitted.learner_.source.directions) == (0.25, 2)
    assert isinstance(fitted.learner_.optimizer, torch.optim.Adam)
    assert fitted.learner_.optimizer.param_groups[0]["lr"] == 0.5
    fitted.set_params(method="backprop", settings={"optimizer": "sgd", "momentum": 0.9}).fit(X, Y)
    assert fitted.learner_.optimizer.param_groups[0]["momentum"] == 0.9


# --- what is refused ---


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"method": "spsaa"}, UnknownNameError, "there is no method 'spsaa'. Did you mean 'spsa'?"),
        ({"method": "spsa[sigma"}, DldwError, "write name or name.setting=value"),
        ({"settings": {"sigma": 1}}, UnknownNameError, "there is no setting 'sigma' of backprop"),
        ({"method": "reinforce"}, DldwError, "use a method that needs loss values alone"),
        ({"method": "finite-difference"}, DldwError, r"one step .* on the \d+ weights .* forwards is 200. Raise it"),
        ({"module": lambda n, k: torch.zeros(n, k)}, DldwError, r"makes a torch\.nn\.Module, and it made Tensor"),
        (
            {"module": lambda n, k: nn.Linear(n, k + 2)},
            DldwError,
            r"rows \[B, 4\] to \[B, \d\], .* maps 2 rows to shape \[2, \d\]",
        ),
        ({"module": lambda n, k: nn.Flatten()}, DldwError, "Flatten has no trainable parameter"),
        ({"batch_size": 0}, DldwError, "batch_size and patience must be at least 1 .* got 0, None and 0.1"),
        ({"patience": 0}, DldwError, "got 128, 0 and 0.1. Use patience=None for no early stopping"),
        ({"validation": 1.0}, DldwError, "a share between 0 and 1"),
        ({"validation": 0.999, "patience": 1}, DldwError, "of 150 rows none is left to train on"),
    ],
)
def test_what_cannot_be_used_is_said(make, settings, kind, text):
    with pytest.raises(kind, match=text):
        make(**{"forwards": 200, **settings}).fit(X, Y)


def test_classes_that_do_not_fit_are_refused():
    with pytest.raises(DldwError, match="at least two classes, and y has one class: 1"):
        DldwClassifier().fit(X[:5], [1] * 5)
    with pytest.raises(DldwError, match="the first call of partial_fit does not know which classes"):
        DldwClassifier().partial_fit(X, Y)
    going = DldwClassifier().partial_fit(X, Y, classes=[0, 1, 2])
    with pytest.raises(DldwError, match=r"classes are \[0 1\] and were \[0 1 2\] in the first call"):
        going.partial_fit(X, Y, classes=[0, 1])
    with pytest.raises(DldwError, match=r"not among the classes \[0 1 2\]: \[5\]"):
        going.partial_fit(X, np.where(Y == 2, 5, Y))


def test_without_scikit_learn_the_estimators_name_the_extra():
    code = """
import sys
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
import dldw.integrations.sklearn as package
for name in package.__all__:
    try:
        getattr(package, name)
    except package.DldwError as error:
        print(error)
"""
    path = str(Path(dldw.__file__).parents[1])
    program = f"import sys; sys.path.insert(0, {path!r})\n{code}"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for name in ("DldwClassifier", "DldwRegressor"):
        assert f"{name} is an estimator of scikit-learn, which is not installed" in out
    assert "pip install 'dldw[sklearn]'" in out


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    import dldw.integrations.sklearn as package

    assert {"DldwClassifier", "DldwRegressor"} <= set(dir(package))
    with pytest.raises(AttributeError, match=r"dldw\.integrations\.sklearn' has no attribute 'DldwCluster'"):
        _ = package.DldwCluster
