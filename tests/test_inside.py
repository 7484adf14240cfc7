"""What is seen inside models as they train: angles, layers, images, the bias of sampling, ways to run the same weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

import dldw
from dldw.compare.contrastive import Sampling, estimates, exact_gradient
from dldw.compare.crossed import Crossing, crossed
from dldw.compare.displacement import Displacing
from dldw.compare.inside import Inside, angle, angles_of, features, layer_accuracies
from dldw.compare.plan import HOMES, make_plan
from dldw.compare.spec import parse
from dldw.compare.train import train
from dldw.errors import DldwError
from dldw.learner import Descent
from dldw.sources.perceptron import Perceptron
from dldw.tasks import load_task
from dldw.tasks.digits import Digits
from dldw.tasks.digits_64_64 import Digits6464
from dldw.tasks.duplication import Duplication
from dldw.tasks.picture import Picture, pictures_of
from dldw.tasks.rbm_digits import RbmDigits
from dldw.tasks.two_bars import TwoBars
from tests.harness import TINY


def inside(task: str, method: str, forwards: float, **settings: Any) -> dict[str, Any]:
    given = {**dict(parse(method).given), **settings}
    (record,) = Inside(task, None, parse(method), tuple(given.items()), 0, forwards, 6).run()
    assert record["kind"] == "inside", record
    return json.loads(json.dumps(record, allow_nan=False))


# ---- angles


def test_angles_are_those_of_geometry() -> None:
    a = torch.tensor([1.0, 0.0, 0.0])
    assert angle(a, 7 * a) == 0.0
    assert angle(a, -a) == pytest.approx(180.0)
    assert angle(a, torch.tensor([0.0, 2.0, 0.0])) == pytest.approx(90.0)
    assert angle(a, torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(45.0)
    assert angle(a, 0 * a) is None
    assert angle(a, torch.tensor([math.inf, 0.0, 0.0])) is None


def test_the_angle_of_feedback_alignment_is_that_of_its_formula() -> None:
    """One hidden linear layer: the exact first-layer gradient is W2ᵀ e xᵀ, that of feedback alignment B e xᵀ."""

    class Linear(Digits6464):
        def network(self, width: int) -> nn.Module:
            return nn.Sequential(nn.Linear(64, width, bias=False), nn.Linear(width, 10, bias=False))

        width = 8

    task = Linear()
    model, (x, y) = task.model(0), next(task.batches(0))
    source = dldw.FeedbackAlignment(task.loss, mode="random", generator=torch.Generator().manual_seed(3))
    found = angles_of(task, Descent(model, source, torch.optim.SGD(model.parameters(), lr=0.1)), (x, y))
    feedback = torch.empty(10, 8).normal_(generator=torch.Generator().manual_seed(3)) * 10**-0.5
    with torch.no_grad():
        error = model(x).softmax(1) - nn.functional.one_hot(y, 10)
        exact, aligned = ((error @ b).T @ x for b in (model[1].weight, feedback))
    cosine = float((exact * aligned).sum() / exact.norm() / aligned.norm())
    assert found["first"] == pytest.approx(math.degrees(math.acos(cosine)), abs=0.01)
    assert found["angle"] < found["first"]  # the output layer's gradient is exact


def test_with_the_true_transpose_the_angle_is_nought() -> None:
    task = Digits6464()
    model = task.model(0)
    learner = Descent(model, dldw.FeedbackAlignment(task.loss, mode="transpose"), torch.optim.SGD(model.parameters()))
    found = angles_of(task, learner, next(task.batches(0)))
    assert found["angle"] == pytest.approx(0.0, abs=0.1)
    assert found["first"] == pytest.approx(0.0, abs=0.1)


def test_weights_come_to_align_with_random_feedback() -> None:
    angles = inside("digits-64-64", "feedback-alignment[mode=random]", 1500, lr=3e-3, optimizer="adam")["angles"]
    assert 75 < angles[0]["first"] < 105
    assert min(a["first"] for a in angles) < angles[0]["first"] - 15


def test_looking_does_not_change_what_is_learnt() -> None:
    settings: dict[str, Any] = {"lr": 3e-3, "optimizer": "adam", "mode": "random"}
    spec = parse("feedback-alignment[mode=random]")
    alone = train(load_task("digits-64-64"), spec, settings, 0, forwards=90)
    seen = inside("digits-64-64", spec.label, 90, **settings)
    assert seen["metric"] == alone.points[-1]["accuracy"]


def test_exact_sources_and_tasks_without_a_gradient_have_no_angles() -> None:
    assert inside("digits-64-64", "backprop", 30, lr=0.1)["angles"] == []
    assert inside("error-rate", "spsa", 10)["angles"] == []


def test_a_run_that_diverges_becomes_a_note() -> None:
    (record,) = Inside("digits-64-64", None, parse("backprop"), (("lr", 1e6),), 0, 60, 6).run()
    assert record["kind"] == "note"
    assert "The model that backprop trains on digits-64-64 was not looked into: the loss is" in dict(record)["text"]


# ---- layers


def test_layers_are_read_out_by_ridge_regression_and_the_output_by_itself() -> None:
    task = Digits6464()
    model: Any = task.model(0)
    for batch in islice(task.batches(0), 30):
        Descent(model, dldw.Backprop(task.loss), torch.optim.SGD(model.parameters(), lr=0.5)).step(batch)
    found = layer_accuracies(task, model, 0.5)
    assert [(f["layer"], f["features"]) for f in found] == [(0, 64), (1, 64), (2, 64), (3, 10)]
    assert found[-1]["accuracy"] == 0.5
    (x, y), (x_test, y_test) = ((a.numpy(), b.numpy()) for a, b in (task.examples(s) for s in ("train", "test")))
    with torch.no_grad():
        hidden, hidden_test = (model[:2](torch.from_numpy(a)).numpy() for a in (x, x_test))
    for place, (a, b) in enumerate(((x, x_test), (hidden, hidden_test))):
        a, b = (np.c_[t, np.ones(len(t))].astype(float) for t in (a, b))
        ridge = Ridge(alpha=1.0, fit_intercept=False).fit(a, np.eye(10)[y])
        assert found[place]["accuracy"] == pytest.approx((ridge.predict(b).argmax(1) == y_test).mean())


def test_a_rule_that_predicts_in_its_own_way_counts_as_it_predicts() -> None:
    record = inside("digits-64-64", "forward-forward", 900, lr=3e-3)
    assert record["layers"][-1]["accuracy"] == record["metric"] > 0.6  # the last layer itself is never trained


def test_what_a_layer_hands_on_includes_the_non_linearity() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randn(5, 1, 4, 4)
    pixels, hidden, output = features(model, x)
    assert torch.equal(pixels, x.flatten(1))
    assert torch.equal(hidden, model[:3](x))
    assert torch.equal(output, model(x))


def test_training_examples_of_a_read_out_stop_before_the_validation_split() -> None:
    task = Digits()
    x, y = task.examples("train")
    held, _ = task.splits["validation"]
    assert len(x) == len(y) == 1437 - 287
    assert not (x[:, None] == held[None, :5]).all(2).any()


# ---- images


def drawn(rbm: dldw.nn.RBM) -> dict[str, Picture]:
    images = RbmDigits().splits["test"][0]
    return {p.name: p for p in pictures_of(rbm, images, torch.Generator().manual_seed(0))}


def test_filters_are_the_weights_of_the_units_with_zero_in_the_middle() -> None:
    rbm = dldw.nn.RBM(64, 12)
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.weight[5, 10], rbm.weight[7, 63] = 4.0, -2.0
    found = drawn(rbm)["filters"]
    assert found.pixels.shape == (3, 4, 8, 8)
    assert (int(found.pixels[1, 1, 1, 2]), int(found.pixels[1, 3, 7, 7])) == (255, 128 - 64)
    assert int((found.pixels != 128).sum()) == 2
    assert (found.signed, found.figures["largest weight"]) == (True, 4.0)


def test_a_machine_without_weights_fills_in_the_mean_and_forgets_at_once() -> None:
    images = RbmDigits().splits["test"][0]
    rbm = dldw.nn.RBM(64, 12)
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.visible_bias.copy_(images.mean(0).clamp(1e-4, 1 - 1e-4).logit())
    found = drawn(rbm)
    occluded, chains = found["occluded"], found["chains"]
    assert occluded.figures["error"] == pytest.approx(occluded.figures["error of the mean image"], rel=1e-3)
    assert torch.equal(occluded.pixels[0].view(10, 64), (255 * images[:10]).byte())
    assert torch.equal(occluded.pixels[1, :, :4], occluded.pixels[0, :, :4])
    assert set(occluded.pixels[1, :, 4:].flatten().tolist()) == {128}
    assert torch.equal(chains.pixels[:, 0].reshape(5, 64), (255 * images[:5]).byte())
    assert abs(chains.figures["left after 1"]) < 0.02
    assert chains.columns[-1] == "1,000"


def test_a_machine_that_copies_its_units_keeps_the_first_image() -> None:
    rbm = dldw.nn.RBM(64, 64)
    with torch.no_grad():
        rbm.weight.copy_(40 * torch.eye(64))
        rbm.hidden_bias.fill_(-20.0)
        rbm.visible_bias.fill_(-20.0)
    assert drawn(rbm)["chains"].figures["left after 1000"] == pytest.approx(1.0, abs=1e-3)


def test_the_images_of_a_trained_machine_are_in_the_record() -> None:
    record = inside("rbm-digits", "contrastive-divergence", 300, lr=0.1)
    assert [p["name"] for p in record["pictures"]] == ["filters", "samples", "chains", "occluded"]
    for picture in record["pictures"]:
        assert picture["size"] == [8, 8]
        assert {len(image) for line in picture["pixels"] for image in line} == {64}
    assert record["layers"] == []


# ---- the bias of sampling


def test_on_a_machine_without_weights_one_step_of_sampling_is_unbiased() -> None:
    """There the visible units do not depend on the hidden ones: after one step they are drawn from the machine itself."""
    torch.manual_seed(0)
    rbm = dldw.nn.RBM(9, 4)
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.visible_bias.normal_()
    v = TwoBars().enumerable()[1].repeat(20, 1)
    g = exact_gradient(rbm, v)
    mean, square = estimates(dldw.ContrastiveDivergence(generator=torch.Generator().manual_seed(0)), rbm, v, draws=100)
    assert torch.cosine_similarity(mean, g, dim=0) > 0.999
    assert math.sqrt(square) == pytest.approx(float(g.norm()), rel=0.01)


def test_the_bias_of_contrastive_divergence_is_recorded_for_every_estimator() -> None:
    item = Sampling("two-bars", None, draws=3)
    records = [dict(r) for r in item.run()]
    assert {("sampling", r["task"], r["step"], r["estimator"]) for r in records} == set(item.keys)
    at = {(r["step"], r["estimator"]): r["cosine"] for r in records}
    assert at[300, "CD-1"] < at[300, "CD-10"]
    assert not [i for i in make_plan("digits", ["spsa"], budget=TINY).studies({}, {}) if isinstance(i, Sampling)]


# ---- what methods without a loss follow


def followed(task: str, method: str, **settings: Any) -> dict[str, Any]:
    home = load_task(task)
    (record,) = Displacing(task, None, parse(method), tuple(settings.items()), seed=0, width=home.width, steps=10).run()
    return dict(record)


def test_the_update_of_the_perceptron_is_a_subgradient_of_its_criterion() -> None:
    found = followed("separable", "perceptron", lr=0.1, margin=1.0)
    assert found["criterion_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert found["off_criterion"] < 1e-6
    assert (found["needs"], found["forwards_per_step"]) == ("no loss", 2.0)


def test_an_update_that_is_none_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Perceptron.criterion
    monkeypatch.setattr(Perceptron, "criterion", lambda self, model, batch: 1.1 * right(self, model, batch))
    assert followed("separable", "perceptron", lr=0.1, margin=1.0)["off_criterion"] > 1e-3


@pytest.mark.parametrize("outputs", [1, 4])
def test_the_criterion_of_the_perceptron_is_what_its_call_returns(outputs: int) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, outputs).double(), torch.randn(20, 5).double(), torch.arange(20) % max(2, outputs)
    source = Perceptron(margin=0.3)
    value = source(model, (x, y))
    criterion = source.criterion(model, (x, y)).mean()
    assert criterion.item() == pytest.approx(value.item())
    wanted = torch.autograd.grad(criterion, list(model.parameters()))
    for p, g in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-14)


def test_contrastive_divergence_is_held_against_the_likelihood_where_it_can_be_enumerated() -> None:
    found = followed("two-bars", "contrastive-divergence", lr=0.1)
    assert 0.2 < found["criterion_cosine"] < 0.999
    assert found["off_criterion"] > 1e-3
    large = dldw.nn.RBM(30, 30)
    with pytest.raises(DldwError, match="sums over 2\\^30 states"):
        dldw.ContrastiveDivergence().criterion(large, torch.zeros(2, 30))
    with pytest.raises(DldwError, match="trains a restricted Boltzmann machine"):
        dldw.ContrastiveDivergence().criterion(nn.Linear(2, 2), torch.zeros(2, 2))


def test_what_cannot_run_on_a_task_is_followed_on_one_of_its_own_in_a_default_comparison() -> None:
    plan = make_plan("digits", [], budget=TINY)
    at_home = {i.label: i.task for i in plan.studies({}, {}) if isinstance(i, Displacing) and i.task != "digits"}
    assert at_home == HOMES
    assert make_plan("digits", ["spsa"], budget=TINY).elsewhere == ()
    assert [s.label for s in make_plan("two-bars", [], budget=TINY).elsewhere] == ["perceptron"]


# ---- ways to run the same weights


def small() -> Duplication:
    task = Duplication(half=16)
    task.symbols, task.width, task.chunk, task.heads, task.batch_size = 8, 16, 8, 2, 4
    return task


def test_a_model_trained_in_one_way_is_evaluated_in_all() -> None:
    task, losses = small(), []
    torch.manual_seed(0)
    found = crossed(task, "2", steps=60, lr=1e-2, progress=lambda step, loss: losses.append((step, loss)))
    assert list(found) == ["full", "8", "4", "2", "1"]
    assert [step for step, _ in losses] == list(range(1, 61))
    assert losses[-1][1] < losses[0][1]
    assert all(0 <= share <= 1 for share in found.values())
    model: Any = task.model(0)
    for way, hashes in (("full", None), ("8", 8), ("1", 1)):
        task.choose(model, way)
        assert model.hashes == hashes


def test_the_record_has_the_published_figure_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    item = Crossing("duplication", None, "4", 1, 1e-3)
    monkeypatch.setattr(Crossing, "loaded", lambda self: small())
    records = [dict(r) for r in item.run()]
    published = {r["evaluated"]: r["published"] for r in records}
    assert published == pytest.approx({"full": 0.008, "8": 1.0, "4": 0.999, "2": 0.994, "1": 0.919})
    assert [("crossed", r["task"], r["trained"], r["evaluated"]) for r in records] == item.keys


def test_fewer_hashes_are_trained_for_longer() -> None:
    plan = make_plan("duplication", ["backprop"], budget=replace(TINY, crossed_forwards=120))
    steps = {i.trained: i.steps for i in plan.studies({}, {}) if isinstance(i, Crossing)}
    assert steps == {"full": 40, "4": 40, "2": 80, "1": 160}


def test_a_task_with_one_way_says_so() -> None:
    task = load_task("digits")
    with pytest.raises(
        DldwError, match=r"digits has one way to run its model: there is no '4'. Name a task that has ways"
    ):
        task.choose(task.model(0), "4")


# ---- a falling learning rate


@pytest.mark.parametrize(("task", "last"), [("digits-64-64", 0.0), ("digits", 0.1)])
def test_a_task_that_anneals_ends_at_no_learning_rate(task: str, last: float) -> None:
    rates = []

    def look(point: Any, learner: Any) -> None:
        rates.append(learner.optimizer.param_groups[0]["lr"])

    train(load_task(task), parse("backprop"), {"lr": 0.1}, 0, forwards=300, per_decade=3, progress=look)
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(last, abs=1e-6)
    assert rates == sorted(rates, reverse=True)
