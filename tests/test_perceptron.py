"""The perceptron: its rule, its criterion, its theorem, and the same rule at the speed of matrix products."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import Perceptron
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

import dldw
from dldw.integrations import sklearn as estimators
from dldw.integrations.sklearn import PerceptronClassifier
from dldw.learners.perceptron import OnlinePerceptron
from dldw.tasks import load_task


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(d: int, outputs: int, *, bias: bool = True, zero: bool = True) -> nn.Linear:
    made = nn.Linear(d, outputs, bias=bias, dtype=torch.float64)
    for p in made.parameters():
        nn.init.zeros_(p) if zero else nn.init.normal_(p, generator=seeded(1))
    return made


def examples(n: int, d: int, classes: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, d, dtype=torch.float64, generator=seeded(seed))
    return x, torch.randint(classes, (n,), generator=seeded(seed + 1))


def criterion(scores: torch.Tensor, y: torch.Tensor, margin: float) -> torch.Tensor:
    """The mean over examples of max(0, margin - own + best other), from its definition; two classes may share a score."""
    if scores.shape[1] == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], 1)
    terms = []
    for s, k in zip(scores, y.tolist(), strict=True):
        others = [s[j] for j in range(len(s)) if j != k]
        terms.append(torch.relu(margin - s[k] + torch.stack(others).max()))
    return torch.stack(terms).mean()


def estimate(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], margin: float = 0.0) -> list[torch.Tensor]:
    model.zero_grad()
    dldw.Perceptron(margin)(model, batch)
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def one_by_one(x, y, outputs: int, *, margin: float = 0.0, bias: bool = True):
    """Rosenblatt's rule as a textbook has it, from zero: weights, biases, the sum of each over time, and mistakes."""
    weights, biases = np.zeros((outputs, x.shape[1])), np.zeros(outputs)
    late, late_biases, mistakes = weights.copy(), biases.copy(), 0
    for t in range(len(x)):
        scores = weights @ x[t] + biases
        if outputs == 1:
            scores = np.array([0.0, scores[0]])
        own, scores[y[t]] = scores[y[t]], -np.inf
        rival = int(scores.argmax())
        if own - scores[rival] <= margin:
            mistakes += 1
            for kind, sign in ((y[t], 1.0), (rival, -1.0)):
                row = kind - 1 if outputs == 1 else kind
                if row >= 0:
                    weights[row] += sign * x[t]
                    late[row] += sign * t * x[t]
                    if bias:
                        biases[row] += sign
                        late_biases[row] += sign * t
    return weights, biases, late, late_biases, mistakes


# --- the source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("outputs", [1, 2, 3, 7])
def test_estimate_is_what_autograd_makes_of_the_perceptron_criterion(outputs, margin):
    model, (x, y) = layer(4, outputs, zero=False), examples(40, 4, max(2, outputs))
    wanted = torch.autograd.grad(criterion(model(x), y, margin), list(model.parameters()))
    for got, g in zip(estimate(model, (x, y), margin), wanted, strict=True):
        assert g.any()
        assert torch.allclose(got, g, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("margin", [0.0, 0.7])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("zero", [True, False], ids=["all tied", "drawn"])
def test_estimate_is_a_subgradient_where_autograd_has_no_say(outputs, margin, zero):
    model, (x, y) = layer(4, outputs, zero=zero), examples(9, 4, max(2, outputs))
    gradient = estimate(model, (x, y), margin)
    assert any(g.any() for g in gradient), "a tie is a mistake: nothing would ever start at zero"
    here = criterion(model(x), y, margin)
    for seed in range(200):
        moves = [torch.randn(g.shape, dtype=g.dtype, generator=seeded(seed)) * 4.0 ** (seed % 5 - 3) for g in gradient]
        there = copy.deepcopy(model)
        with torch.no_grad():
            for p, move in zip(there.parameters(), moves, strict=True):
                p.add_(move)
        below = here + sum((g * move).sum() for g, move in zip(gradient, moves, strict=True))
        assert criterion(there(x), y, margin) >= below - 1e-12


@pytest.mark.parametrize("outputs", [1, 3])
def test_loss_is_the_mean_criterion(outputs):
    model, (x, y) = layer(4, outputs, zero=False), examples(40, 4, max(2, outputs))
    for margin in (0.0, 2.0):
        loss = dldw.Perceptron(margin)(model, (x, y))
        assert float(loss) == pytest.approx(criterion(model(x), y, margin).item(), rel=1e-12)


@pytest.mark.parametrize("margin", [0.0, 1.5])
@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_sgd_in_batches_of_one_is_rosenblatts_rule(outputs, margin):
    x, y = examples(120, 5, max(2, outputs))
    model = layer(5, outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for i in range(len(x)):
        optimizer.zero_grad()
        dldw.Perceptron(margin)(model, (x[i : i + 1], y[i : i + 1]))
        optimizer.step()
    weights, biases, *_, mistakes = one_by_one(x.numpy(), y.numpy(), outputs, margin=margin)
    assert 10 < mistakes < 120
    assert np.allclose(model.weight.detach().numpy(), weights, rtol=1e-12)
    assert np.allclose(model.bias.detach().numpy(), biases, rtol=1e-12)


def test_many_classes_are_the_binary_perceptron_on_keslers_construction():
    x, y = examples(60, 3, 4)
    model = layer(3, 4, bias=False)
    learner = dldw.Descent(model, dldw.Perceptron(), torch.optim.SGD(model.parameters(), lr=1.0))
    flat = torch.zeros(12, dtype=torch.float64)
    for i in range(len(x)):
        learner.step((x[i : i + 1], y[i : i + 1]))
        built = {}
        for k in set(range(4)) - {int(y[i])}:
            built[k] = torch.zeros(4, 3, dtype=torch.float64)
            built[k][y[i]], built[k][k] = x[i], -x[i]
        worst = min(built, key=lambda k: (float(flat @ built[k].flatten()), k))
        if flat @ built[worst].flatten() <= 0:
            flat += built[worst].flatten()
    assert torch.allclose(model.weight.detach().flatten(), flat, rtol=1e-12)


def test_layer_learns_on_fixed_features_and_they_stay_as_they_are():
    features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()).double().requires_grad_(False)
    model = nn.Sequential(*features, layer(8, 3, zero=False))
    x, y = torch.randn(10, 1, 4, 4, dtype=torch.float64, generator=seeded()), torch.arange(10) % 3
    wanted = torch.autograd.grad(criterion(model(x), y, 0.0), list(model[-1].parameters()))
    for got, g in zip(estimate(model, (x, y)), wanted, strict=True):
        assert torch.allclose(got, g, rtol=1e-12, atol=1e-15)
    assert model[0].weight.grad is None


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), "ends in one, got Sequential of Linear, Tanh: its rule has to see"),
        (nn.Sequential(nn.Linear(4, 3), nn.Sequential()), "got Sequential of Linear, Sequential"),
        (nn.Conv1d(4, 3, 1), r"a perceptron is one nn\.Linear, .* got Conv1d: .* such as dldw\.Backprop"),
        (Scaled(4, 3), "got Scaled"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
            r"other trainable weights \(0\.weight, 0\.bias\).*Freeze them",
        ),
        (nn.Sequential(*[nn.Linear(4, 4)] * 2), r"other trainable weights \(0\.weight, 0\.bias\)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), r"other trainable weights \(.*original0.*\)"),
    ],
)
def test_model_that_is_no_perceptron_is_an_error(model, text):
    batch = torch.ones(2, 4), torch.tensor([0, 1])
    with pytest.raises(dldw.DldwError, match=text):
        dldw.Perceptron()(model, batch)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.ones(2, 4), r"a batch \(x, y\) of examples .*, got Tensor: .* Give it both tensors"),
        ((torch.ones(2, 4), [0, 1]), r"a batch \(x, y\)"),
        (
            (torch.ones(2, 4), torch.ones(2)),
            r"one whole number for each of the 2 examples, got torch\.float32.*y\.long",
        ),
        ((torch.ones(2, 4), torch.zeros(3, dtype=torch.int64)), r"for each of the 2 examples, .* shape \[3\]"),
        ((torch.ones(2, 4), torch.tensor([0, 3])), "must be 0 to 2 for a layer of 3 outputs, got 0 to 3"),
        ((torch.ones(2, 4), torch.tensor([-1, 1])), r"got -1 to 1\. Number them from 0 \(for two classes 0 and 1"),
        ((torch.ones(2, 5, 4), torch.tensor([0, 1])), r"one row of features .*, got \[2, 5, 4\]\. Put nn\.Flatten\(\)"),
        ((torch.ones(0, 4), torch.ones(0, dtype=torch.int64)), "the batch has no examples"),
    ],
)
def test_batch_that_a_perceptron_cannot_learn_from_is_an_error(batch, text):
    model = nn.Linear(4, 3)
    with pytest.raises(dldw.DldwError, match=text):
        dldw.Perceptron()(model, batch)
    assert model.weight.grad is None


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf, "wide", lambda model, batch: model(batch)])
def test_margin_that_is_none_is_an_error_and_so_is_a_loss(margin):
    for make in (dldw.Perceptron, lambda margin: OnlinePerceptron(layer(2, 2), margin=margin)):
        text = r"margin must be a finite number .*, got .* A perceptron takes no loss; .* Use margin=0\.0"
        with pytest.raises(dldw.DldwError, match=text):
            make(margin)


# --- the theorem ---------------------------------------------------------------------------------------------------


def separable(margin: float, classes: int, d: int, seed: int, n: int = 120):
    """Unit vectors that weights of norm 1 separate by ``margin`` at least: x [n, d], classes [n], the margin they have."""
    rng = np.random.default_rng(seed)
    rows = 1 if classes == 2 else classes
    truth = rng.normal(size=(rows, d))
    truth /= np.linalg.norm(truth)
    x, y, least = [], [], math.inf
    while len(x) < n:
        point = rng.normal(size=d)
        point /= np.linalg.norm(point)
        scores = truth @ point
        if rows == 1:
            lead, kind = abs(scores[0]), int(scores[0] > 0)
        else:
            second, first = np.sort(scores)[-2:]
            lead, kind = first - second, int(scores.argmax())
        if lead >= margin:
            x, y, least = [*x, point], [*y, kind], min(least, lead)
    return torch.tensor(np.array(x)), torch.tensor(y), least


@settings(max_examples=25, deadline=None)
@given(
    gamma=st.floats(0.02, 0.3), classes=st.sampled_from([2, 3, 5]), d=st.integers(3, 8), seed=st.integers(0, 10**6),
    margin=st.sampled_from([0.0, 0.5, 2.0]),
)  # fmt: skip
def test_mistakes_on_separable_data_are_at_most_the_bound_of_the_theorem(gamma, classes, d, seed, margin):
    x, y, gamma = separable(gamma, classes, d, seed)
    squared_norm = 1 if classes == 2 else 2  # of e_y ⊗ x - e_r ⊗ x
    learner = OnlinePerceptron(layer(d, 1 if classes == 2 else classes, bias=False), margin=margin)
    before = -1
    while learner.mistakes > before:
        before = learner.mistakes
        learner.step((x, y))
        assert learner.mistakes <= (squared_norm + 2 * margin) / gamma**2  # without a margin (R/γ)²
    assert criterion(learner.model(x), y, margin).item() == 0.0


def test_the_bound_is_reached_where_every_example_points_another_way():
    x, y = torch.eye(16, dtype=torch.float64), torch.ones(16, dtype=torch.int64)
    learner = OnlinePerceptron(layer(16, 1, bias=False))
    for _ in range(2):
        learner.step((x, y))
    gamma = 1 / math.sqrt(16)  # of the weights (1, ..., 1) / 4
    assert learner.mistakes == 16 == (1 / gamma) ** 2


# --- the task with a known margin -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task():
    return load_task("separable")


def of_rows(away: torch.Tensor) -> nn.Linear:
    """The layer of rows (-w, w)."""
    model = nn.Linear(len(away), 2, bias=False, dtype=away.dtype)
    with torch.no_grad():
        model.weight.copy_(torch.stack([-away, away]))
    return model


def test_no_layer_has_a_larger_margin_than_the_known_one_on_any_split(task):
    for split in ("validation", "test"):
        assert task.evaluate(of_rows(task.truth), split)["margin"] == pytest.approx(1, rel=1e-5)
        assert task.evaluate(of_rows(-task.truth), split)["margin"] < -1
        for seed in range(200):
            shift = torch.randn(20, generator=seeded(seed)) * 10.0 ** (seed % 4 - 4)
            assert task.evaluate(of_rows(task.truth + shift), split)["margin"] < 1 + 1e-6


def test_examples_are_unit_vectors_at_the_gap_or_beyond(task):
    x, y = task.train
    assert torch.allclose(x.norm(dim=1), torch.ones(len(x)))
    along = (2 * y - 1) * (x @ task.truth)
    assert along.min() == pytest.approx(0.1, rel=1e-5)
    assert len(x) == 768
    assert 300 < int(y.sum()) < 468
    assert not {tuple(row) for row in x.tolist()} & {tuple(row) for row in task.splits["test"][0].tolist()}


def test_perceptron_separates_the_task_within_a_hundred_mistakes_and_its_margin_is_not_the_largest(task):
    x, y = task.train
    model = layer(20, 2, bias=False)
    learner, before = OnlinePerceptron(model), -1
    while learner.mistakes > before:
        before = learner.mistakes
        learner.step((x.double(), y))
    assert 10 < learner.mistakes <= 100
    found = task.evaluate(model.float(), "validation")
    assert (found["accuracy"], found["mistakes"]) == (1.0, 0.0)
    assert 0 < found["margin"] < 0.5
    assert task.evaluate(task.model(0), "validation")["mistakes"] > 100


def test_perceptron_with_a_margin_of_one_takes_the_exact_gradient_of_the_tasks_loss(task):
    model, batches = task.model(0), task.batches(0)
    for _ in range(30):
        batch = next(batches)
        (wanted,) = torch.autograd.grad(task.loss(model, batch).mean(), list(model.parameters()))
        (got,) = estimate(model, batch, margin=1.0)
        assert wanted.any()
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            model.weight.sub_(0.3 * got)


# --- the same rule at the speed of matrix products -----------------------------------------------------------------


def numbers(kind: str, n: int, d: int) -> np.ndarray:
    """Examples that are drawn, or on a grid of tenths or of ones, where scores tie all the time but for rounding."""
    rng = np.random.default_rng(5)
    if kind == "drawn":
        return rng.normal(size=(n, d))
    return rng.integers(-2, 3, size=(n, d)) * (0.1 if kind == "tenths" else 1.0)


@pytest.mark.parametrize("kind", ["drawn", "tenths", "ones"])
@pytest.mark.parametrize("margin", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_online_rule_has_the_bits_of_the_rule_one_by_one_however_the_examples_are_cut(outputs, bias, margin, kind):
    x = numbers(kind, 300, 7)
    y = np.random.default_rng(6).integers(max(2, outputs), size=300)
    weights, biases, late, late_biases, mistakes = one_by_one(x, y, outputs, margin=margin, bias=bias)
    assert mistakes > 100
    for cut in (1, 5, 32, 300):
        model = layer(7, outputs, bias=bias)
        learner = OnlinePerceptron(model, margin=margin)
        for start in range(0, 300, cut):
            learner.step((torch.tensor(x[start : start + cut]), torch.tensor(y[start : start + cut])))
        assert learner.mistakes == mistakes
        assert np.array_equal(model.weight.detach().numpy(), weights)
        average = learner.average()
        assert np.array_equal(average.weight.detach().numpy(), weights - late / 300)
        if bias:
            assert np.array_equal(model.bias.detach().numpy(), biases)
            assert np.array_equal(average.bias.detach().numpy(), biases - late_biases / 300)


def test_the_layout_of_the_examples_decides_no_bit():
    x, y = numbers("tenths", 300, 7), np.random.default_rng(6).integers(5, size=300)
    weights, *_ = one_by_one(x, y, 5)
    model = layer(7, 5)
    columns = torch.from_numpy(np.asfortranarray(x)).requires_grad_()
    OnlinePerceptron(model, margin=np.float32(0)).step((columns, torch.tensor(y)))
    assert np.array_equal(model.weight.detach().numpy(), weights)


def test_average_is_the_mean_of_the_weights_after_each_example_exactly():
    x = torch.tensor(numbers("ones", 64, 6))
    y = torch.randint(3, (64,), generator=seeded(2))
    model = layer(6, 3, zero=False)
    with torch.no_grad():
        model.weight.round_()
        model.bias.round_()
    learner = OnlinePerceptron(model)
    assert torch.equal(learner.average().weight, model.weight), "before any example it is what it starts from"
    total = 0
    for i in range(64):
        learner.step((x[i : i + 1], y[i : i + 1]))
        total = total + torch.cat([model.weight, model.bias[:, None]], 1).detach()
    average = learner.average()
    assert torch.equal(torch.cat([average.weight, average.bias[:, None]], 1), total / 64)


def test_online_rule_is_the_source_with_sgd_in_batches_of_one_and_returns_its_mean_loss():
    x, y = examples(50, 4, 3)
    online = OnlinePerceptron(layer(4, 3, zero=False), margin=0.5)
    loss = online.step((x, y))
    model = layer(4, 3, zero=False)
    descent = dldw.Descent(model, dldw.Perceptron(0.5), torch.optim.SGD(model.parameters(), lr=1.0))
    losses = [float(descent.step((x[i : i + 1], y[i : i + 1]))) for i in range(50)]
    assert torch.allclose(online.model.weight, model.weight, rtol=1e-12)
    assert torch.allclose(online.model.bias, model.bias, rtol=1e-12)
    assert float(loss) == pytest.approx(sum(losses) / 50, rel=1e-12)
    assert loss.shape == ()
    assert not loss.requires_grad


def test_online_rule_resumed_equals_uninterrupted_bit_for_bit():
    x, y = examples(90, 4, 3)
    whole = OnlinePerceptron(layer(4, 3))
    assert isinstance(whole, dldw.Learner)
    for part in range(0, 90, 30):
        whole.step((x[part : part + 30], y[part : part + 30]))
    first, second = OnlinePerceptron(layer(4, 3)), OnlinePerceptron(layer(4, 3, zero=False))
    first.step((x[:30], y[:30]))
    state = first.state_dict()
    state["model"] = {name: t.clone() for name, t in state["model"].items()}
    first.step((x[60:], y[60:]))
    second.load_state_dict(state)
    second.step((x[30:], y[30:]))
    assert torch.equal(second.model.weight, whole.model.weight)
    assert torch.equal(second.average().weight, whole.average().weight)
    assert (second.seen, second.mistakes) == (whole.seen, whole.mistakes)


def test_online_rule_on_fixed_features():
    model = nn.Sequential(nn.Linear(4, 6, dtype=torch.float64).requires_grad_(False), nn.Tanh(), layer(6, 3))
    x, y = examples(40, 4, 3)
    OnlinePerceptron(model).step((x, y))
    weights, *_ = one_by_one(model[:-1](x).numpy(), y.numpy(), 3)
    assert np.array_equal(model[-1].weight.detach().numpy(), weights)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            nn.Linear(2, 3),
            r"the weight must be in float64 on the CPU, got torch\.float32 on cpu: .*\.double\(\)\.cpu\(\)",
        ),
        (nn.Linear(2, 3, dtype=torch.float64, device="meta"), "got torch.float64 on meta"),
        (nn.Tanh(), "Tanh has no trainable parameter"),
        (nn.Sequential(nn.Linear(2, 3), nn.Tanh()), "a perceptron is one nn.Linear"),
    ],
)
def test_model_that_the_online_rule_cannot_train_is_an_error(model, text):
    with pytest.raises(dldw.DldwError, match=text):
        OnlinePerceptron(model)


def test_frozen_bias_is_an_error_of_the_online_rule():
    model = layer(2, 3)
    model.bias.requires_grad_(False)
    with pytest.raises(dldw.DldwError, match=r"the bias of the layer that is to learn is frozen, .* bias=False"):
        OnlinePerceptron(model)


def test_examples_in_another_type_are_an_error_of_the_online_rule():
    with pytest.raises(dldw.DldwError, match=r"what the layer is given must be in float64 .* got torch\.float32"):
        OnlinePerceptron(layer(2, 3)).step((torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_example_that_cannot_be_scored_is_an_error_and_leaves_the_weights(bad):
    learner = OnlinePerceptron(layer(2, 3))
    x, y = examples(100, 2, 3)
    x[77, 1] = bad
    with pytest.raises(dldw.NonFiniteLossError, match=r"an example is NaN, infinite or too large .* scale it"):
        learner.step((x, y))
    assert not learner.model.weight.any()
    assert learner.seen == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_weights_that_cannot_score_are_an_error(bad):
    learner = OnlinePerceptron(layer(2, 3))
    with torch.no_grad():
        learner.model.weight[1, 1] = bad
    with pytest.raises(dldw.NonFiniteLossError, match="the weights are NaN, infinite or too large"):
        learner.step(examples(10, 2, 3))


# --- in scikit-learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"averaged": False, "fit_intercept": False}, {"margin": 1.0, "shuffle": False, "max_iter": 3}],
    ids=str,
)
def test_classifier_passes_the_checks_of_scikit_learn(settings):
    check_estimator(PerceptronClassifier(**settings), on_skip=None)


def test_digits_are_told_apart_at_least_as_well_as_promised_and_better_than_by_scikit_learn():
    task = load_task("digits")
    (x, y), (test_x, test_y) = ([t.numpy() for t in split] for split in (task.train, task.splits["test"]))
    ours = PerceptronClassifier(random_state=0).fit(x, y).score(test_x, test_y)
    theirs = Perceptron(random_state=0).fit(x, y).score(test_x, test_y)
    assert ours >= 0.960 > theirs


def test_digits_are_told_apart_as_well_in_the_mean_over_splits_and_better_than_without_averaging():
    data = load_digits(return_X_y=True)
    scores = []
    for seed in range(6):
        x, test_x, y, test_y = train_test_split(*data, test_size=0.2, stratify=data[1], random_state=seed)
        models = PerceptronClassifier(random_state=0), PerceptronClassifier(averaged=False, random_state=0)
        scores.append([model.fit(x, y).score(test_x, test_y) for model in models])
    averaged, last = np.mean(scores, axis=0)
    assert averaged >= 0.960
    assert averaged > last + 0.01


def test_classifier_by_passes_has_the_weights_of_the_rule_one_by_one():
    x, y = numbers("drawn", 200, 5), np.random.default_rng(1).integers(3, size=200)
    model = PerceptronClassifier(shuffle=False, max_iter=2).fit(x, y)
    _, _, _, _, once = one_by_one(x, y, 3)
    weights, biases, late, late_biases, twice = one_by_one(np.tile(x, (2, 1)), np.tile(y, 2), 3)
    assert np.array_equal(model.coef_, weights - late / 400)
    assert np.array_equal(model.intercept_, biases - late_biases / 400)
    assert model.mistakes_ == [once, twice - once]
    assert model.n_iter_ == 2


@pytest.mark.parametrize("averaged", [True, False])
def test_partial_fits_have_the_bits_of_one_fit_in_the_same_order(averaged):
    x, y = numbers("drawn", 500, 5), np.array(["a", "b", "c"])[np.random.default_rng(1).integers(3, size=500)]
    whole = PerceptronClassifier(averaged=averaged, shuffle=False, max_iter=1).fit(x, y)
    pieces = PerceptronClassifier(averaged=averaged)
    for start in (0, 7, 300):
        stop = {0: 7, 7: 300, 300: 500}[start]
        pieces.partial_fit(x[start:stop], y[start:stop], classes=["c", "a", "b"])
    assert np.array_equal(pieces.coef_, whole.coef_)
    assert np.array_equal(pieces.intercept_, whole.intercept_)
    assert (pieces.n_iter_, sum(pieces.mistakes_)) == (3, whole.mistakes_[0])
    assert pieces.classes_.tolist() == ["a", "b", "c"]


def test_random_state_decides_the_orders():
    x, y = numbers("drawn", 100, 5), np.random.default_rng(1).integers(3, size=100)
    first, again, other = (PerceptronClassifier(random_state=seed, max_iter=3).fit(x, y) for seed in (1, 1, 2))
    assert np.array_equal(first.coef_, again.coef_)
    assert not np.array_equal(first.coef_, other.coef_)


def test_fit_ends_with_the_first_pass_without_a_mistake_and_starts_over_each_time():
    x, y, _ = separable(0.1, 2, 4, seed=0)
    model = PerceptronClassifier(max_iter=500, averaged=False, fit_intercept=False, random_state=0)
    for _ in range(2):
        model.fit(x.numpy(), y.numpy())
        assert model.mistakes_[-1] == 0 not in model.mistakes_[:-1]
        assert model.n_iter_ == len(model.mistakes_) < 500
        assert model.score(x.numpy(), y.numpy()) == 1.0
    assert model.coef_.shape == (1, 4)
    assert np.array_equal(model.predict(x.numpy()), (model.decision_function(x.numpy()) > 0).astype(int))


def test_wrong_use_of_the_classifier_is_an_error_with_its_reason():
    x, y = numbers("drawn", 20, 3), np.arange(20) % 3
    with pytest.raises(dldw.DldwError, match=r"first call of partial_fit has to name all classes.*classes=\[\.\.\.\]"):
        PerceptronClassifier().partial_fit(x, y)
    with pytest.raises(dldw.DldwError, match=r"of the class .*2.*, which is none of \[0, 1\]\. Name all classes"):
        PerceptronClassifier().partial_fit(x, y, classes=[0, 1])
    model = PerceptronClassifier().partial_fit(x, y, classes=[0, 1, 2])
    with pytest.raises(dldw.DldwError, match=re.escape("there are [0, 1, 2], and now [0, 1]. Leave it out")):
        model.partial_fit(x, y, classes=[0, 1])
    with pytest.raises(dldw.DldwError, match=r"at least two classes, got one class: \[1\]\. Add examples of another"):
        PerceptronClassifier().fit(x, np.ones(20, dtype=int))
    for passes in (0, 1.5):
        with pytest.raises(dldw.DldwError, match=f"max_iter must be a whole number of passes, 1 or more, got {passes}"):
            PerceptronClassifier(max_iter=passes).fit(x, y)
    with pytest.raises(dldw.DldwError, match="margin must be a finite number that is not negative, got -1"):
        PerceptronClassifier(margin=-1).fit(x, y)


def test_estimators_are_imported_by_name():
    assert set(estimators.__all__) <= set(dir(estimators))
    assert estimators.PerceptronClassifier is PerceptronClassifier
    with pytest.raises(AttributeError, match="has no attribute 'Percptron'"):
        _ = estimators.Percptron
