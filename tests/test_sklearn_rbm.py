"""The Boltzmann machine as a transformer of scikit-learn: its conventions, and its published example."""

from __future__ import annotations

import logging
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy.ndimage import shift
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import minmax_scale
from sklearn.utils.estimator_checks import check_estimator

import dldw.integrations.sklearn
from dldw import DldwError
from dldw.integrations.sklearn import BernoulliRBM

HALVES = np.repeat([[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]], 50, axis=0).astype(np.float64)


@pytest.mark.filterwarnings("ignore:Bernoulli units are:UserWarning")  # their data are no probabilities
@pytest.mark.parametrize("settings", [{}, {"persistent": True}], ids=str)
def test_estimator_keeps_the_conventions_of_scikit_learn(settings):
    check_estimator(BernoulliRBM(**settings), on_skip=None)


def test_published_digits_example_is_above_92_percent_with_features_and_below_80_without():
    x, y = load_digits(return_X_y=True)
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    shifted = [shift(image, move, order=0) for move in moves for image in x.reshape(-1, 8, 8)]
    x = minmax_scale(np.reshape(shifted, (-1, 64)).astype(np.float32))
    x, x_test, y, y_test = train_test_split(x, np.tile(y, 5), test_size=0.2, random_state=0)

    def logistic(c):  # its tol=1 was a bound on the sum of gradients; now it is one on their mean
        return LogisticRegression(solver="newton-cg", C=c, tol=1 / len(x))

    rbm = BernoulliRBM(100, learning_rate=0.06, n_iter=10, random_state=0)
    features = make_pipeline(rbm, logistic(6000.0)).fit(x, y).score(x_test, y_test)
    raw = logistic(100.0).fit(x, y).score(x_test, y_test)
    assert features >= 0.92
    assert raw <= 0.80


def test_transform_and_scores_are_those_of_the_machine():
    rbm = BernoulliRBM(4, n_iter=5, random_state=0).fit(HALVES)
    odds = HALVES @ rbm.components_.T + rbm.intercept_hidden_
    assert np.allclose(rbm.transform(HALVES), 1 / (1 + np.exp(-odds)))
    energies = -(HALVES @ rbm.intercept_visible_) - np.logaddexp(0, odds).sum(1)
    states = np.array(np.meshgrid(*[[0, 1]] * 6)).reshape(6, -1).T
    z = np.exp(
        states @ rbm.intercept_visible_ + np.logaddexp(0, states @ rbm.components_.T + rbm.intercept_hidden_).sum(1)
    )
    assert np.allclose(rbm.score_samples(HALVES), -energies - np.log(z.sum()))
    assert rbm.get_feature_names_out().tolist() == [f"bernoullirbm{i}" for i in range(4)]


def test_scores_of_a_machine_too_large_to_enumerate_are_the_same_in_any_company_and_near_the_truth():
    x = np.tile(HALVES, (1, 5))
    rbm = BernoulliRBM(25, n_iter=2, random_state=0).fit(x)
    scores = rbm.score_samples(x)
    assert rbm.log_partition().method == "ais"
    assert np.allclose(rbm.score_samples(x[3:4]), scores[3:4])
    assert -30 * np.log(2) < scores.mean() < -np.log(2)


def test_data_become_likelier_with_passes_and_samples_look_like_them():
    few, many = (BernoulliRBM(2, n_iter=n, random_state=0).fit(HALVES) for n in (1, 60))
    assert few.score_samples(HALVES).mean() < -3
    assert many.score_samples(HALVES).mean() > -1.5
    drawn = many.sample(200, steps=30)
    assert np.mean((drawn[:, :3] == drawn[:, :1]).all(1) & (drawn[:, 3:] == 1 - drawn[:, :1]).all(1)) > 0.4
    half = many.sample(200, steps=30, clamp=[1, 1, np.nan, np.nan, np.nan, 0])
    assert (half[:, [0, 1, 5]] == [1, 1, 0]).all()
    assert half[:, 2].mean() > 0.8 > 0.2 > half[:, 3:5].mean()


def test_random_state_decides_and_the_global_one_is_left():
    before = torch.get_rng_state()
    a, b, c = (BernoulliRBM(3, n_iter=1, random_state=seed).fit(HALVES).components_ for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def test_partial_fit_goes_on_and_so_does_a_pickled_copy():
    rbm = BernoulliRBM(3, persistent=True, random_state=0)
    for part in np.split(HALVES, 10):
        rbm.partial_fit(part)
    twin = pickle.loads(pickle.dumps(rbm))
    before = rbm.components_
    for one in (rbm, twin):
        one.partial_fit(HALVES[40:60])
    assert np.array_equal(rbm.components_, twin.components_)
    assert not np.array_equal(rbm.components_, before)


def test_type_of_the_data_is_kept():
    for dtype in (np.float32, np.float64):
        rbm = BernoulliRBM(3, n_iter=1, random_state=0).fit(HALVES.astype(dtype))
        assert rbm.components_.dtype == dtype
        assert rbm.transform(HALVES.astype(dtype)).dtype == dtype


def test_verbose_logs_and_prints_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="dldw"):
        BernoulliRBM(3, n_iter=2, verbose=True, random_state=0).fit(HALVES)
    assert [record.getMessage()[:11] for record in caplog.records] == ["pass 1 of 2", "pass 2 of 2"]
    assert capsys.readouterr().out == ""


def test_values_outside_of_the_unit_interval_are_clipped_with_a_warning():
    with pytest.warns(UserWarning, match=r"values from 0 to 16.*MinMaxScaler\(clip=True\)"):
        loud = BernoulliRBM(3, n_iter=1, random_state=0).fit(16 * HALVES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = BernoulliRBM(3, n_iter=1, random_state=0).fit(HALVES)
    assert np.array_equal(loud.components_, quiet.components_)


@pytest.mark.parametrize("settings", [{"n_iter": 0}, {"batch_size": 0}, {"learning_rate": 0.0}], ids=str)
def test_arguments_with_which_nothing_is_learnt(settings):
    with pytest.raises(DldwError, match=r"n_iter, batch_size and learning_rate must be positive.*nothing is learnt"):
        BernoulliRBM(3, **settings).fit(HALVES)


def test_names_are_imported_on_first_use():
    assert "BernoulliRBM" in dir(dldw.integrations.sklearn)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        dldw.integrations.sklearn.Nothing  # noqa: B018
