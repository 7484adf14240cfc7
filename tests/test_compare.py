"""The comparison: specs, budgets, runs, statistics and what is measured, each against something independent of it."""

from __future__ import annotations

import json
import math
import re
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dldw.compare.budget import BUDGETS, parse_budget
from dldw.compare.displacement import Displacing
from dldw.compare.estimate import Estimating, Nudging, Sweeping, exact_gradient, trained_point
from dldw.compare.generation import generation
from dldw.compare.landscape import Mapping2d, TwoWeights
from dldw.compare.meter import Metering, flops, peak_bytes
from dldw.compare.plan import BASELINES, make_plan
from dldw.compare.run import run
from dldw.compare.sampled import distance
from dldw.compare.sizes import widths_of
from dldw.compare.spec import Spec, parse, parse_all
from dldw.compare.statistics import log_spaced, mean_interval, median_time, share_interval, t95
from dldw.compare.summary import summarise
from dldw.compare.train import Curve, Training, train
from dldw.compare.tune import SEED, Tuning, trial_score
from dldw.compare.width import FACTORS, Widening
from dldw.errors import DldwError, UnknownNameError
from dldw.learner import Search
from dldw.registry import method, methods
from dldw.searcher import Searcher
from dldw.tasks import load_task
from dldw.tasks.digits import Digits
from dldw.tasks.task import tuned
from tests.harness import OF_ANOTHER_KIND, TINY, Silent, lines

METHODS = [name for name in methods() if name not in OF_ANOTHER_KIND]
"""Those that can run on a network of several layers."""
TUNED = list(tuned("digits")["settings"])
"""Those of the default comparison."""

# ---- specs


@pytest.mark.parametrize(
    ("text", "target", "given"),
    [
        ("spsa", "spsa", {}),
        ("spsa[]", "spsa", {}),
        ("spsa[sigma=1e-3,directions=8]", "spsa", {"sigma": 0.001, "directions": 8}),
        (" spsa[ sigma = 1 , two_sided = False ] ", "spsa", {"sigma": 1.0, "two_sided": False}),
        ("backprop[checkpoint=true]", "backprop", {"checkpoint": True}),
        ("backprop[lr=0.5,optimizer=adam]", "backprop", {"lr": 0.5, "optimizer": "adam"}),
        ("backprop[momentum=0.9]", "backprop", {"momentum": 0.9}),
        ("finite-difference[step=none]", "finite-difference", {"step": None}),
        ("weight-perturbation[low=-0.2]", "weight-perturbation", {"low": -0.2}),
    ],
)
def test_a_spec_is_a_name_with_settings(text: str, target: str, given: dict[str, object]) -> None:
    spec = parse(text)
    assert (spec.target, dict(spec.given)) == (target, given)
    assert [type(v) for v in dict(spec.given).values()] == [type(v) for v in given.values()]
    assert parse(spec.label) == spec


def test_two_spellings_of_one_method_are_one_method() -> None:
    specs = parse_all(["spsa[sigma=1e-3]", "spsa[ sigma=0.001 ]", "spsa", "spsa[]"])
    assert [s.label for s in specs] == ["spsa[sigma=0.001]", "spsa"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("backprob", UnknownNameError, r"no method 'backprob'. Did you mean 'backprop'\? Known: backprop, weight-pert"),
        (
            "spsa[sigm=1]",
            UnknownNameError,
            r"no setting 'sigm' of spsa. Did you mean 'sigma'\? Known: sigma, directions",
        ),
        ("spsa[generator=1]", UnknownNameError, r"no setting 'generator' of spsa"),
        ("random-search[lr=1]", UnknownNameError, r"no setting 'lr' of random-search.*Known: sigma, population"),
        ("spsa[sigma]", DldwError, r"'sigma' in .* is no setting: write setting=value"),
        ("spsa[sigma=1", DldwError, r"is no method: write name or name\[setting=value"),
        ("spsa[sigma=1,sigma=2]", DldwError, r"gives sigma twice"),
        ("spsa[sigma=big]", DldwError, r"setting sigma of spsa must be a number, got 'big'. Its default is 0.001"),
        ("spsa[directions=1.5]", DldwError, r"setting directions of spsa must be a whole number, got 1.5"),
        ("spsa[two_sided=3]", DldwError, r"setting two_sided of spsa must be true or false, got 3"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_and_what_to_do(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(text)


def test_settings_that_change_the_cost_alone_share_the_tuning_of_the_plain_method() -> None:
    tuned = {"backprop": {"lr": 0.5, "optimizer": "adam"}}
    assert parse("backprop[checkpoint=true]").settings(tuned) == {"lr": 0.5, "optimizer": "adam", "checkpoint": True}
    assert parse("backprop[lr=2]").settings(tuned) == {"lr": 2, "optimizer": "adam"}


METHOD = """
import dldw
from dldw.sources.spsa import SPSA

class Half(SPSA):
    card = dldw.Card(summary="Half of SPSA.", claim="biased", needs="loss values", forwards="2 * directions",
                     memory="2 d", paper="-")
    def __call__(self, model, batch):
        loss = super().__call__(model, batch)
        for p in model.parameters():
            p.grad.mul_(0.5)
        return loss

class Bare:
    pass
"""


def test_a_method_of_the_users_own_is_compared_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    spec = parse(f"{tmp_path / 'mine.py'}:Half[sigma=0.01,lr=0.02]")
    same = train(load_task("digits"), parse("spsa"), {"sigma": 0.01, "lr": 0.01}, 0, forwards=60)
    mine = train(load_task("digits"), spec, dict(spec.given), 0, forwards=60)
    assert mine.points[-1]["loss"] == pytest.approx(same.points[-1]["loss"], rel=1e-6)


def test_a_method_without_a_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    with pytest.raises(DldwError, match=r"has no card: give Bare a class attribute card = dldw.Card\(...\)"):
        parse(f"{tmp_path / 'mine.py'}:Bare")


# ---- budgets and statistics


def test_budgets_have_names_or_are_numbers() -> None:
    assert parse_budget("default") is BUDGETS["default"]
    assert parse_budget("5e3").forwards == 5000
    assert parse_budget("500").width_forwards == 500
    with pytest.raises(
        UnknownNameError, match=r"no budget 'ful'. Did you mean 'full'\?.*A number gives the forward passes"
    ):
        parse_budget("ful")
    for bad in ("0", "-3", "inf", "nan"):
        with pytest.raises(DldwError, match=r"must be at least 1 forward pass and finite"):
            parse_budget(bad)


def test_t_quantiles_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 40), 60, 120, 1000):
        assert t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_intervals_of_means_and_shares_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    sample = np.random.default_rng(0).normal(size=7)
    wanted = stats.t.interval(0.95, 6, loc=sample.mean(), scale=stats.sem(sample))
    assert mean_interval(sample.tolist()) == pytest.approx((sample.mean(), *wanted), rel=1e-3)
    for successes, trials in ((0, 5), (3, 5), (7, 7)):
        wanted = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert share_interval(successes, trials) == pytest.approx((wanted.low, wanted.high), abs=1e-3)


def test_a_run_that_missed_the_target_counts_as_infinitely_long() -> None:
    assert median_time([1.0, None, 2.0]) == 2.0
    assert median_time([None, None, 2.0]) == math.inf
    assert median_time([1.0, 3.0]) == 2.0
    assert median_time([1.0, None]) == math.inf


def test_evaluations_are_spaced_evenly_on_a_logarithmic_scale() -> None:
    steps = log_spaced(20_000, 2, 20)
    assert (steps[0], steps[-1]) == (0, 10_000)
    late = [b / a for a, b in pairwise(steps[40:])]
    assert np.allclose(late, 10 ** (1 / 20), rtol=0.02)
    assert log_spaced(3, 5, 20) == [0]


# ---- training runs


def test_the_untrained_model_is_the_same_for_every_method() -> None:
    task, model = load_task("digits"), nn.Linear(64, 10)
    plain = [m for m in METHODS if method(m).build(model, task.loss).model is model]  # not one that reads it out anew
    starts = [train(task, parse(m), task.settings.get(m, {}), 7, forwards=40).points[0] for m in plain]
    assert {"backprop", "spsa", "particle-swarm", "mono-forward"} <= set(plain)
    assert {(p["step"], p["forwards"], p["loss"]) for p in starts} == {(0, 0.0, starts[0]["loss"])}


POPULATION = {"generation_best", "generation_median", "diversity"}


def test_a_curve_of_a_searcher_tells_of_its_generations() -> None:
    task = load_task("digits")
    curve = train(task, parse("random-search[population=9]"), {"sigma": 0.1, "population": 9}, 0, forwards=40)
    assert not POPULATION & curve.points[0].keys()
    for point in curve.points[1:]:
        assert point["diversity"] == pytest.approx(0.1 * (8 / 9) ** 0.5, rel=0.03)  # of nine Gaussian points about one
        assert 0 < point["generation_best"] < point["generation_median"] < 5


def test_a_generation_of_losses_known_beforehand_is_told_as_it_was() -> None:
    class Three(Searcher):
        card = methods()["random-search"].card

        def _reset(self, x0: torch.Tensor) -> None: ...

        def _ask(self, generator: torch.Generator) -> torch.Tensor:
            return torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]])

        def _tell(self, candidates: Any, losses: torch.Tensor) -> None: ...

    learner = Search(nn.Linear(1, 2, bias=False), lambda m, b: m.weight[0, 0].log().where(m.weight[0, 0] < 5, torch.nan),
                     Three())  # fmt: skip
    assert generation(learner) == {}
    learner.step(torch.zeros(1))
    told = generation(learner)
    assert told["generation_best"] == pytest.approx(0.0)
    assert told["generation_median"] == pytest.approx(math.log(2))
    assert told["diversity"] == pytest.approx(math.sqrt((4 + 1 + 9) / 6))  # 1, 2 and 6 about 3; 5 about 5


def test_what_has_no_population_tells_of_none() -> None:
    task = load_task("digits")
    for name in ("backprop", "evolution-strategy", "hill-climb"):
        points = train(task, parse(name), {}, 0, forwards=130).points
        assert len(points) > 1
        assert not any(POPULATION & point.keys() for point in points), method


def test_following_steps_begins_with_the_families_that_the_discussion_names() -> None:
    plan = make_plan("digits", [], budget=parse_budget("default"))
    first = [spec.label for spec in plan.shares["displacement"]]
    others = [label for label in first if label not in ("backprop", "weight-perturbation", "random-search")]
    assert others[:2] == ["particle-swarm", "genetic-algorithm"]


def test_a_seed_gives_the_same_curve_and_another_seed_another() -> None:
    task = load_task("digits")
    losses = [[p["loss"] for p in train(task, parse("spsa"), {"lr": 0.01}, s, forwards=100).points] for s in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    ("name", "unit"), [("backprop", 3), ("weight-perturbation", 2), ("evolution-strategy", 32), ("random-search", 16)]
)
def test_every_method_sees_the_same_batches_and_counts_what_its_card_says(name: str, unit: int) -> None:
    task, seen = load_task("digits"), []
    original = task.loss

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append(tuple(batch[1].tolist()))
        return original(model, batch)

    task.loss = loss
    curve = train(task, parse(name), {}, 3, forwards=100)
    steps = 100 // unit
    assert curve.points[-1]["forwards"] == steps * unit
    assert curve.points[-1]["examples"] == steps * 128
    assert list(dict.fromkeys(seen)) == [tuple(y.tolist()) for _, y in islice(task.batches(3), steps)]


def test_the_curve_of_backprop_is_that_of_a_loop_written_by_hand() -> None:
    task = load_task("digits")
    model, batches = task.model(2), task.batches(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for x, y in islice(batches, 10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    curve = train(task, parse("backprop"), {"lr": 0.5}, 2, forwards=30)
    x, y = task.splits["test"]
    assert curve.points[-1]["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    assert curve.points[-1]["loss"] == pytest.approx(float(nn.functional.cross_entropy(model(x), y).detach()), rel=1e-5)


def test_a_step_dearer_than_the_budget_is_not_made() -> None:
    curve = train(load_task("digits"), parse("finite-difference"), {}, 0, forwards=100)
    assert [p["step"] for p in curve.points] == [0]


def test_a_run_that_may_stop_at_the_target_does() -> None:
    task = load_task("digits")
    stopped = train(task, parse("backprop"), {"lr": 1.0}, 0, forwards=3000, stop_at_target=True)
    assert stopped.reason == "target"
    assert stopped.points[-1] == stopped.to_target
    assert stopped.points[-1]["accuracy"] >= 0.9 > stopped.points[-2]["accuracy"]


def test_a_learning_rate_that_blows_up_is_recorded_as_diverged() -> None:
    quadratic = load_task("quadratic")
    curve = train(quadratic, parse("backprop"), {"lr": 1e6}, 0, forwards=300)
    assert curve.reason == "diverged"
    assert curve.to_target is None
    json.dumps(curve.points, allow_nan=False)


def test_an_error_in_the_middle_of_a_run_is_recorded_with_its_place() -> None:
    task = load_task("digits")
    original, calls = task.loss, iter(range(5))

    def loss(model: nn.Module, batch: object) -> torch.Tensor:
        if next(calls, None) is None:
            raise RuntimeError("the sensor came off")
        return original(model, batch)

    task.loss = loss
    curve = train(task, parse("backprop"), {}, 0, forwards=300)
    assert curve.reason == "error"
    assert "test_compare.py, line" in str(curve.error)
    assert "raised RuntimeError: the sensor came off" in str(curve.error)


def test_learning_rates_of_the_study_are_multiples_of_the_tuned_one() -> None:
    common = {"study": "learning-rate", "seed": 0, "width": 32, "forwards": 30, "per_decade": 5, "stop_at_target": True}
    scaled = Training("digits", None, parse("backprop"), (("lr", 0.2),), factor=3.0, **common).run()
    direct = Training("digits", None, parse("backprop"), (("lr", 0.2 * 3.0),), factor=1.0, **common).run()
    assert [r.get("loss") for r in scaled] == [r.get("loss") for r in direct]


def test_each_width_takes_the_fastest_of_three_learning_rates() -> None:
    task = load_task("digits")
    item = Widening("digits", None, parse("backprop"), (("lr", 0.1),), width=16, seeds=1, forwards=600, per_decade=20)
    rates = {
        factor: train(
            task,
            parse("backprop"),
            {"lr": 0.1 * factor},
            SEED,
            forwards=600,
            width=16,
            stop_at_target=True,
            tuning=True,
        ).points[-1]["forwards"]
        for factor in FACTORS
    }
    end = item.run()[-1]
    assert end["kind"] == "end"
    assert end["lr"] == pytest.approx(0.1 * min(rates, key=lambda factor: rates[factor])) == pytest.approx(0.3)


def test_a_loss_far_above_the_untrained_one_counts_as_diverged() -> None:
    curve = train(load_task("quadratic"), parse("backprop"), {"lr": 3.0}, 0, forwards=300)
    assert curve.reason == "diverged"
    assert 20 * curve.points[0]["loss"] < curve.points[-1]["loss"] < 1e6 * curve.points[0]["loss"]


# ---- the plan


def test_the_baselines_are_always_there() -> None:
    plan = make_plan("digits", ["spsa"], budget=TINY)
    assert {s.label for s in plan.specs} == {"spsa", *BASELINES}
    assert {s.label for s in make_plan("digits", [], budget=TINY).specs} == {*TUNED, "backprop[checkpoint=true]"}


def test_a_baseline_that_cannot_run_is_left_out_with_the_reason() -> None:
    plan = make_plan("quadratic", [], budget=TINY, trials=1)
    dropped = {text.split()[0]: text for text in plan.dropped}
    assert {s.label for s in plan.specs} == {*METHODS, "backprop[checkpoint=true]"} - set(dropped)
    assert "is not there, because it cannot run on quadratic: checkpoint=True" in dropped["backprop[checkpoint=true]"]
    assert "is not there, because it cannot run on quadratic: a perceptron is one nn.Linear" in dropped["perceptron"]
    assert "a rule for Linear and Conv layers, and Point runs none" in dropped["feedback-alignment"]


def test_what_has_no_tuned_settings_is_not_in_the_default_comparison_and_is_named() -> None:
    plan = make_plan("digits", [], budget=TINY)
    (reason,) = plan.dropped
    missing = set(METHODS) - set(TUNED)
    assert missing
    assert missing <= set(re.split(r",? ", reason))
    assert "are not there, because digits has no settings tuned for them: name the methods to compare, or let" in reason
    assert {"mezo"} < {s.label for s in make_plan("digits", ["mezo"], budget=TINY).specs}


def test_what_shares_its_tuning_is_tuned_once() -> None:
    plan = make_plan("digits", [], budget=TINY, trials=3)
    dear = {"coordinate-wise", "finite-difference", "genetic-algorithm"}  # one step is more than a trial
    assert sorted(item.what for item in plan.tuning()) == sorted(f"tuning {name}" for name in set(METHODS) - dear)


def test_every_piece_of_work_is_there_once() -> None:
    plan = make_plan("digits", [], budget=BUDGETS["default"])
    settings = plan.task.settings
    keys = [key for item in plan.studies(settings, settings) + plan.metering(settings) for key in item.keys]
    assert len(set(keys)) == len(keys)
    kinds = {"end", "estimate", "sigma", "displacement", "bias", "inside", "landscape", "path", "cost"}
    assert {k[0] for k in keys} == kinds


def test_settings_a_method_cannot_be_built_with_are_found_before_any_work() -> None:
    with pytest.raises(
        DldwError, match=r"evolution-strategy\[population=7\]: population must be .* even with antithetic"
    ):
        make_plan("digits", ["evolution-strategy[population=7]"], budget=TINY)
    with pytest.raises(DldwError, match=r"--seeds must be at least 1"):
        make_plan("digits", [], budget=TINY, seeds=0)


TASK = """
import torch
from dldw.tasks.quadratic import Quadratic

class Raising(Quadratic):
    def loss(self, model, batch):
        return model.weights.sum()

class Scalar(Quadratic):
    def loss(self, model, batch):
        return super().loss(model, batch).mean()

class Silent(Quadratic):
    metric = "accuracy"
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Raising", r"mine.py, line 7, raised AttributeError: 'Point' object has no attribute 'weights'"),
        ("Scalar", r"loss must return one value per example, shape \[B\], and returned shape \[\]. Leave the mean out"),
        ("Silent", r"evaluate must return 'loss' and the task's metric 'accuracy', and returned \['loss'\]"),
    ],
)
def test_a_task_that_cannot_work_is_refused_before_any_work(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "mine.py").write_text(TASK)
    with pytest.raises(DldwError, match=text):
        make_plan(f"{tmp_path / 'mine.py'}:{name}", [], budget=TINY)


# ---- what is measured


def test_flops_of_a_forward_are_those_of_its_matrix_products() -> None:
    task = load_task("digits")
    model, batch = task.model(0), next(task.batches(0))
    with torch.no_grad():
        assert flops(lambda: task.loss(model, batch)) == 2 * 128 * (64 * 32 + 32 * 10)


@pytest.mark.parametrize(
    ("name", "forwards"),
    # Backprop needs no gradient for its input, so the first layer's backward is one product and not two.
    [
        ("backprop", 1 + 1 + 320 / 2368),
        ("backprop[checkpoint=true]", 2 + 1 + 320 / 2368 - 320 / 2368),
        ("weight-perturbation", 2),
        ("spsa", 2),
        ("forward-gradient", 3),
        ("evolution-strategy[evaluate=sequential]", 32),
        # The first layer's product is taken once for the weights and once for each of 16 directions, not for 32 members.
        ("evolution-strategy[evaluate=batched]", (17 * 2048 + 32 * 320) / 2368),
    ],
)
def test_flops_count_under_autograd_recomputation_forward_mode_and_vmap(name: str, forwards: float) -> None:
    spec = parse(name)
    (record,) = Metering("digits", None, spec, spec.given, 32, 0.0).run()
    assert record["kind"] == "cost"
    assert record["forwards_measured"] == pytest.approx(forwards, rel=0.01)


def test_the_allocators_peak_is_what_is_held_at_once_and_not_the_sum() -> None:
    model = nn.Linear(1, 1)

    def action() -> None:
        for _ in range(3):
            a = torch.empty(1_000_000)
            b = torch.empty(500_000)
            del a, b

    assert peak_bytes(action, model) == pytest.approx(6_000_000, rel=0.01)


def test_a_method_that_cannot_run_at_a_width_becomes_a_note() -> None:
    (record,) = Metering("digits-wide", None, parse("cma-es"), (), 512, 0.0).run()
    assert record["kind"] == "note"
    assert "full covariance of 38,410 weights" in record["text"]


def test_a_step_too_long_to_measure_becomes_a_note() -> None:
    (record,) = Metering("digits-wide", None, parse("finite-difference"), (), 1024, 0.0).run()
    assert record["kind"] == "note"
    assert "one step takes 153,620 forward passes on 76,810 weights" in record["text"]


@pytest.mark.parametrize("name", ["backprop", "finite-difference"])
def test_an_exact_source_points_along_the_gradient_with_no_variance(name: str) -> None:
    (record,) = Estimating("digits", None, parse(name), (), seed=0, width=4, draws=50).run()
    assert record["kind"] == "estimate"
    assert record["cosine"] == pytest.approx(1, abs=1e-5)
    assert (record["relative_variance"], record["draws"]) == (0, 1)
    assert record["relative_bias"] is not None
    assert record["relative_bias"] < 1e-2


@pytest.mark.parametrize("name", ["spsa", "forward-gradient", "weight-perturbation"])
def test_the_variance_of_a_random_direction_is_that_of_theory(name: str) -> None:
    settings = {"weight-perturbation": (("low", -1e-3), ("high", 1e-3))}.get(name, ())
    (record,) = Estimating("digits", None, parse(name), settings, seed=0, width=4, draws=1500).run()
    assert record["kind"] == "estimate"
    assert record["relative_variance"] == pytest.approx(record["theory_variance"], rel=0.2)
    assert record["theory_variance"] in (309, 311)
    assert record["relative_bias"] == pytest.approx(0, abs=0.3)


def test_every_point_has_a_stream_of_its_own() -> None:
    """One seed for all would let the same chance speak at every point."""
    cosines = set()
    for label in ("spsa", "spsa[sigma=0.01]", "spsa[evaluate=sequential]"):  # the same method by three names
        (record,) = Estimating("digits", None, parse(label), (("sigma", 0.01),), seed=0, width=4, draws=5).run()
        assert record["kind"] == "estimate"
        cosines.add(record["cosine"])
    assert len(cosines) == 3


def test_what_a_step_buys_is_measured_at_the_width_of_the_task() -> None:
    (exact,) = Estimating("digits", None, parse("backprop"), (), seed=0, width=32, draws=30).run()
    (rough,) = Estimating("digits", None, parse("spsa"), (), seed=0, width=32, draws=30).run()
    (other,) = Estimating("digits", None, parse("spsa"), (), seed=0, width=4, draws=3).run()
    assert exact["kind"] == rough["kind"] == other["kind"] == "estimate"
    assert (exact["forwards"], rough["forwards"]) == (3, 2)
    assert (exact["decrease"] or 0) / 3 > 5 * (rough["decrease"] or 0) / 2
    assert (exact["decrease"] or 0) > 0
    assert other["decrease"] is None


class Square(Digits):
    """Digits with as many hidden layers' weights as the square of the width."""

    def network(self, width: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(64, width), torch.nn.Linear(width, width), torch.nn.Linear(width, 10)
        )


class Convolving(Digits):
    """Digits with a convolution, each weight of which meets many pixels."""

    def network(self, width: int) -> torch.nn.Module:
        layers = torch.nn.Conv2d(1, width, 3), torch.nn.Flatten(), torch.nn.Linear(width * 36, 10)
        return torch.nn.Sequential(torch.nn.Unflatten(1, (1, 8, 8)), *layers)


@pytest.mark.parametrize("task", [Digits, Square])
def test_widths_far_from_the_own_one_have_about_so_many_weights(task: type[Digits]) -> None:
    made = task()
    found = widths_of(made, (10**4, 10**5, 10**6))
    for width, size in found:
        assert sum(p.numel() for p in made.network(width).parameters()) == pytest.approx(size, rel=0.05)
    assert [size for _, size in found] == [10**4, 10**5, 10**6]
    assert widths_of(load_task("digits"), (100,)) == [(1, 100)]


def test_networks_that_would_take_longer_than_an_mlp_of_that_size_are_left_out() -> None:
    assert [size for _, size in widths_of(Convolving(), (10**3, 10**5, 10**6))] == [10**3, 10**5]
    assert widths_of(load_task("quadratic"), (10**3,)) == []


def test_far_from_the_own_width_fewer_estimates_are_drawn_of_cheap_methods_with_a_closed_form() -> None:
    plan = make_plan("digits", ["spsa", "evolution-strategy", "finite-difference"], budget=BUDGETS["default"])
    far = [item for item in plan.studies({}, {}) if isinstance(item, Estimating) and item.size]
    assert {item.label for item in far} == {"spsa"}
    assert {item.size: item.draws for item in far} == {10**2: 200, 10**5: 200, 10**6: 20}
    swept = [item.width for item in plan.studies({}, {}) if isinstance(item, Sweeping)]
    assert sorted(swept, key=str) == sorted([32, *{item.width for item in far}], key=str)
    assert max(BUDGETS["full"].sizes) == 10**7


def test_truncation_of_the_slope_grows_with_the_square_of_sigma_at_every_width() -> None:
    for width, size in ((4, 0), (8, 609)):
        (record,) = Sweeping("digits", None, width, size).run()
        assert record["kind"] == "sigma"
        errors = dict(zip(record["sigma"], record["error"], strict=True))
        assert (errors[4.0**-2] or 0) / (errors[4.0**-3] or 1) == pytest.approx(16, rel=0.15)
        assert errors[record["recommended"]] == pytest.approx(min(e for e in errors.values() if e is not None), rel=1)
        assert 1e-4 < record["recommended"] < 1e-2


def test_ranks_have_a_direction_and_no_size_to_judge() -> None:
    (record,) = Estimating("digits", None, parse("evolution-strategy"), (), seed=0, width=4, draws=5).run()
    assert record["kind"] == "estimate"
    assert (record["relative_variance"], record["relative_bias"]) == (None, None)
    assert 0 < record["cosine"] < 1


def test_bias_is_seen_through_noise_and_not_made_up_from_it() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(10, 1000, generator=generator)
    assert distance(noise)[1] < 4**2
    assert distance(noise + 1)[0] == pytest.approx(1000, rel=0.15)


def test_the_quotient_on_a_quadratic_is_off_by_half_the_nudge_times_the_curvature() -> None:
    task = load_task("quadratic")
    records = Nudging("quadratic", None, (0.1, 1.0), 32).run()
    model, batch = trained_point(task, 0)
    rms = float(exact_gradient(task, model, batch).square().mean().sqrt())
    for record in records:
        assert record["kind"] == "bias"
        middle = float(np.median(10 ** np.linspace(-1, 0, 32))) * record["nudge"] / 2 / rms
        assert record["relative_error"] == pytest.approx(middle, rel=0.02)


@pytest.mark.parametrize(
    ("task", "why"), [("int8-digits", "derivative is zero"), ("error-rate", "no exact derivative")]
)
def test_a_task_without_a_derivative_has_no_quotient_to_compare_and_says_so(task: str, why: str) -> None:
    (record,) = Nudging(task, None, (0.1,), 4).run()
    assert record["kind"] == "note"
    assert why in record["text"]


def test_the_landscape_is_the_loss_with_two_weights_replaced() -> None:
    task = load_task("digits")
    model, batch = trained_point(task, 0, 4)
    pair = TwoWeights(task.model(0, 4), (5, 262))
    pair.whole.load_state_dict(model.state_dict())
    assert pair.names == ["0.weight[0, 5]", "2.weight[0, 2]"]
    with torch.no_grad():
        pair.pair.copy_(torch.tensor([0.7, -0.3]))
        model[0].weight[0, 5], model[2].weight[0, 2] = 0.7, -0.3
        assert torch.allclose(task.loss(pair, batch), task.loss(model, batch), atol=1e-6)


def test_every_path_starts_at_one_point_and_the_exact_one_descends() -> None:
    methods = tuple((Spec(name), ()) for name in ("backprop", "spsa", "weight-perturbation", "evolution-strategy"))
    landscape, *paths = Mapping2d("digits", None, methods, 5, 96).run()
    assert landscape["kind"] == "landscape"
    assert (len(landscape["loss"]), len(landscape["loss"][0])) == (5, 5)
    assert len({(p["x"][0], p["y"][0]) for p in paths if p["kind"] == "path"}) == 1
    for path in paths:
        assert path["kind"] == "path"
        assert path["loss"][-1] < path["loss"][0]
        assert path["forwards"][-1] <= 96


# ---- tuning


def curve_of(*accuracies: float, target_at: float | None = None) -> Curve:
    points = [{"accuracy": a, "forwards": 10.0**i} for i, a in enumerate(accuracies)]
    return Curve(points=points, to_target={"forwards": target_at} if target_at else None)


def test_a_trial_scores_by_its_error_at_the_end_and_its_time_to_the_target() -> None:
    task = load_task("digits")
    assert trial_score(task, curve_of(0.1, 0.9, 0.9, 0.9), 1000) == pytest.approx(1)
    assert trial_score(task, curve_of(0.1, 0.99, 0.99, 0.99, target_at=10), 1000) == pytest.approx(2 + 2)
    assert trial_score(task, curve_of(0.1), 1000) is None
    assert trial_score(task, Curve(points=curve_of(0.1, 0.5).points, reason="diverged"), 1000) is None


def test_a_rate_that_rushes_and_stays_noisy_loses_to_one_that_arrives() -> None:
    task = load_task("digits")
    rushing = trial_score(task, curve_of(0.1, 0.91, 0.85, 0.85, 0.85, target_at=3400), 20_000)
    arriving = trial_score(task, curve_of(0.1, 0.5, 0.96, 0.96, 0.96, target_at=4000), 20_000)
    assert rushing is not None
    assert arriving is not None
    assert rushing < arriving


def test_tuning_searches_the_card_and_marks_the_best_trial() -> None:
    spec = parse("backprop[optimizer=sgd]")
    item = Tuning("digits", None, spec, spec.given, 5, 60)
    records = item.run()
    assert [r["trial"] for r in records if r["kind"] == "tuning"] == list(range(5))
    assert len({r["settings"]["lr"] for r in records if r["kind"] == "tuning"}) == 5
    assert all(r["settings"]["optimizer"] == "sgd" for r in records if r["kind"] == "tuning")
    scores = [r["score"] for r in records if r["kind"] == "tuning"]
    assert [r["chosen"] for r in records if r["kind"] == "tuning"] == [s == max(scores) for s in scores]
    assert [_without_clock(r) for r in records] == [_without_clock(r) for r in item.run()]


def test_a_tuned_run_trains_with_what_tuning_chose(tmp_path: Path) -> None:
    plan = make_plan("quadratic", ["spsa"], budget=TINY, seeds=1, trials=3)
    records = run(plan, tmp_path, jobs=2, progress=Silent())
    trials = [r for r in lines(tmp_path) if r["kind"] == "tuning"]
    assert {r["method"] for r in trials} == {"spsa", "backprop", "random-search"}
    assert all(sum(r["method"] == m for r in trials) == 3 for m in ("spsa", "backprop", "random-search"))
    best = {r["method"]: r["settings"] for r in trials if r["chosen"]}
    used = {r["method"]: r["settings"] for r in lines(tmp_path) if r["kind"] == "method"}
    assert used["spsa"] == best["spsa"]
    written = json.loads((tmp_path / "settings.json").read_text())
    assert (written["settings"], written["trials"], written["record"]) == (best, 3, trials)
    rows = {row.method: row for row in summarise(records).rows}
    assert rows["spsa"].tuning_forwards == sum(r["forwards"] for r in trials if r["method"] == "spsa") > 0


def _without_clock(record: object) -> dict[str, object]:
    return {k: v for k, v in dict(record).items() if k != "seconds"}


# ---- where steps lead


def displacement(name: str, **settings: object) -> dict[str, Any]:
    given = tuple(settings.items())
    (record,) = Displacing("digits", None, parse(name), given, seed=0, width=4, steps=40).run()
    assert record["kind"] == "displacement"
    return dict(record)


def test_a_step_of_gradient_descent_leads_straight_down() -> None:
    record = displacement("backprop", lr=0.01)
    assert record["cosine_low"] == pytest.approx(1.0, abs=1e-4)
    assert (record["steps"], record["still"]) == (40, 0)


def test_a_step_along_one_random_direction_leads_down_by_chance_of_one_over_the_root_of_the_weights() -> None:
    record = displacement("spsa", lr=1e-3)
    weights = 65 * 4 + 5 * 10
    # |N(0, 1)| / sqrt(d) has this mean; the standard error of 40 such steps is 0.006
    assert record["cosine"] == pytest.approx(math.sqrt(2 / math.pi / weights), abs=0.02)


def test_a_step_that_moves_nothing_counts_as_none() -> None:
    record = displacement("backprop", lr=0.0)
    assert (record["cosine"], record["still"]) == (0.0, 40)


def test_where_the_derivative_is_zero_no_step_can_be_held_against_it() -> None:
    given = (("lr", 1e-3),)
    (record,) = Displacing("int8-digits", None, parse("spsa"), given, seed=0, width=None, steps=3).run()
    assert record["kind"] == "note"
    assert "the exact derivative is zero" in record["text"]
