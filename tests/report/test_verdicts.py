"""Every claim gets every ruling from made-up results whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dldw.report.estimates import over_points
from dldw.report.growth import growth_of_noise, growth_of_ratio
from dldw.report.intervals import Reach, bootstrap, ratio
from dldw.report.results import Results, read
from dldw.report.verdicts import (
    CLAIMS,
    Verdict,
    disadvantage,
    headline,
    noise,
    only_without_gradient,
    passes,
    price,
    relieved,
    same_logic,
    scaling,
)
from tests.made_up import BACKPROP, CHECKPOINT, NUDGE, World, made_up, save

HOLDS, PARTLY, NOT, OPEN = "holds", "holds partly", "does not hold", "not shown in this run"


def world(**changes: Any) -> World:
    """A world in which the entries of these dictionaries differ, or these values."""
    made = World()
    for name, change in changes.items():
        now = getattr(made, name)
        setattr(made, name, {**now, **change} if isinstance(now, dict) else change)
    return made


def other(name: str, needs: str = "loss values") -> tuple[str, str, str, str, float, dict[str, Any]]:
    return (name, "search", needs, "population", 16.0, {})


REVERSED = "backprop[reversible=True]"
REVERSIBLE = {REVERSED: ("backprop", "exact", "autograd", "4", 4.0, {"checkpoint": False, "reversible": True})}
LEAN = (5e5, 4e3, 1.34, 3e-7)
FOUR = {
    "swarm": other("particle-swarm"),
    "rbm": other("contrastive-divergence", "no loss"),
    "genes": other("genetic-algorithm"),
    "perceptron": other("perceptron", "no loss"),
}
SWARM = {"swarm": FOUR["swarm"]}
ALL_HEAVY = dict.fromkeys(World().peak, 900_000) | {BACKPROP: 180_000}
NO_FAILURES = dict.fromkeys((BACKPROP, NUDGE), (0.001, 1000.0))

CASES = [
    (disadvantage, HOLDS, world(), {}),
    (disadvantage, HOLDS, world(work={NUDGE: math.inf}), {}),
    (disadvantage, PARTLY, world(work={NUDGE: 2.4e3}), {}),
    (disadvantage, PARTLY, world(seeds=2), {}),
    (disadvantage, NOT, world(work={NUDGE: 6e2}), {}),
    (disadvantage, OPEN, world(), {"without": ["end"]}),
    (disadvantage, OPEN, world(work={NUDGE: math.inf, BACKPROP: math.inf}), {}),
    (scaling, HOLDS, world(), {}),
    (scaling, PARTLY, world(growth={NUDGE: 0.3}, spread=1.2), {}),
    (scaling, PARTLY, world(), {"studies": ["curves"]}),
    (scaling, PARTLY, world(seeds=2), {}),
    (scaling, NOT, world(growth={NUDGE: -0.5}), {}),
    (scaling, NOT, world(cosine_power=0.0), {"studies": ["curves"]}),
    (scaling, OPEN, world(), {"studies": ["curves"], "without": ["estimate"]}),
    (passes, HOLDS, world(ratio={BACKPROP: 0.9}, operations={BACKPROP: 1.9}), {}),
    (passes, PARTLY, world(), {}),
    (passes, PARTLY, world(ratio={BACKPROP: 0.9}), {}),
    (passes, NOT, world(operations={NUDGE: 1.0}), {}),
    (passes, OPEN, world(), {"without": ["cost"]}),
    (noise, HOLDS, world(), {}),
    (noise, PARTLY, world(rate_window=NO_FAILURES), {}),
    (noise, PARTLY, world(), {"studies": ["curves"]}),
    (noise, PARTLY, world(), {"without": ["estimate", "bias"]}),
    (noise, NOT, world(rate_window=NO_FAILURES, cosine={NUDGE: 1.0}, cosine_power=0.0, quotient=1e-4), {}),
    (noise, OPEN, world(), {"studies": ["curves"], "without": ["estimate", "bias"]}),
    (noise, OPEN, world(cosine={NUDGE: 1.0}, cosine_power=0.0, quotient=1e-4), {"studies": ["curves"]}),
    (price, HOLDS, world(), {}),
    (price, PARTLY, world(ratio={BACKPROP: 5.0}), {}),
    (price, NOT, world(ratio={BACKPROP: 5.0}, operations={BACKPROP: 9.0}), {}),
    (price, OPEN, world(), {"without": ["cost"]}),
    (only_without_gradient, HOLDS, world(peak=ALL_HEAVY), {}),
    (only_without_gradient, PARTLY, world(), {}),
    (only_without_gradient, PARTLY, world(peak=ALL_HEAVY, seeds=2), {}),
    (only_without_gradient, NOT, world(step_score={BACKPROP: 0.97}), {}),
    (only_without_gradient, NOT, world(work={"spsa": 6e2}), {}),
    (only_without_gradient, OPEN, world(step_score=dict.fromkeys(World().step_score, 0.9)), {"studies": ["width"]}),
    (same_logic, HOLDS, world(extra=FOUR, downhill=dict.fromkeys(FOUR, 0.1), work=dict.fromkeys(FOUR, 1e5)), {}),
    (same_logic, PARTLY, world(extra=FOUR, downhill=dict.fromkeys(FOUR, 0.1) | {"rbm": 0.0}), {}),
    (same_logic, PARTLY, world(extra=SWARM, downhill={"swarm": 0.1}), {}),
    (same_logic, NOT, world(extra=SWARM, downhill={"swarm": 0.001}), {}),
    (same_logic, OPEN, world(), {}),
    (same_logic, OPEN, world(extra=SWARM, downhill={"swarm": 0.1}), {"without": ["displacement"]}),
    (relieved, OPEN, world(), {}),
    (relieved, OPEN, world(extra=REVERSIBLE, deep={REVERSED: LEAN}), {"without": ["depth"]}),
    (relieved, HOLDS, world(extra=REVERSIBLE, deep={REVERSED: LEAN}), {}),
    (relieved, HOLDS, world(extra=REVERSIBLE, deep={REVERSED: LEAN}, work={REVERSED: 2.4e3}), {}),
    (relieved, PARTLY, world(extra=REVERSIBLE, deep={REVERSED: (5e5, 4e3, 1.9, 3e-7)}), {}),
    (relieved, PARTLY, world(extra=REVERSIBLE, deep={REVERSED: (5e5, 6e5, 1.3, 3e-7)}), {}),
    (relieved, NOT, world(extra=REVERSIBLE, deep={REVERSED: (5e5, 4e3, 1.3, 9e-7)}), {}),
    (relieved, NOT, world(extra=REVERSIBLE, deep={REVERSED: (5e5, 1.5e6, 1.3, 3e-7)}), {}),
    (relieved, NOT, world(extra=REVERSIBLE, deep={REVERSED: LEAN}, work={REVERSED: math.inf}), {}),
]


@pytest.mark.parametrize(("claim", "ruling", "truth", "options"), CASES)
def test_the_ruling_follows_from_the_truth(
    results: Any, claim: Callable[[Results], Verdict], ruling: str, truth: World, options: dict[str, Any]
) -> None:
    verdict = claim(results(truth, **options))
    assert verdict.ruling == ruling, verdict
    assert verdict.claim.endswith(".")
    assert len(verdict.rule) > 80
    if ruling != OPEN:
        assert verdict.figure != "–"
        assert verdict.interval
        assert verdict.meaning.endswith(".")


def test_claim_four_has_the_variance_with_its_interval_beside_the_closed_form(results: Any) -> None:
    said = noise(results(world(seeds=2, cosine={NUDGE: 0.02}))).meaning
    assert "a variance of 2,450 (2,100 to 2,800) times the squared gradient, where the closed form says 2,410;" in said


def test_claim_six_has_what_a_forward_buys_with_and_without_the_gradient(tmp_path: Path) -> None:
    exact = dict.fromkeys((BACKPROP,), 1.0)
    save(made_up(world(seeds=1, cosine=exact | {"spsa": 0.1}, cosine_power=0.0)), tmp_path)
    said = only_without_gradient(read(tmp_path)).meaning
    assert "each forward spent on evolution-strategy, the best of them, takes 0.0072 (0.0036 to 0.011) off the" in said
    assert "and each spent on back-propagation 0.5 (0.25 to 0.75)." in said


def test_what_was_measured_at_two_points_is_put_together_as_independent() -> None:
    both = [{"x": 10.0, "low": 7.0, "high": 13.0, "per": 2.0}, {"x": 14.0, "low": 10.0, "high": 18.0, "per": 2.0}]
    assert over_points(both, "x", "low", "high") == (12.0, 9.5, 14.5)
    assert over_points(both, "x", "low", "high", "per") == (6.0, 4.75, 7.25)
    many = over_points(both * 8, "x", "low", "high")
    assert many is not None
    assert many.value == 12
    assert 11 <= many.low < 11.5 < 12.5 < many.high <= 13
    assert over_points([{"x": None}], "x", "low", "high") is None


FOLLOWED = world(
    extra=FOUR,
    downhill={"swarm": 0.04, "genes": 0.03, "rbm": 0.2, "perceptron": 0.5, BACKPROP: 1.0, NUDGE: 0.02},
    work={"swarm": 2.4e4, "genes": math.inf},
    seeds=4,
    spread=0.0,
)


def test_the_same_logic_is_told_by_family_in_values_an_update_direction_and_work(results: Any) -> None:
    said = same_logic(results(FOLLOWED)).meaning
    for part in (
        "swarm: 16 loss values, cosine 0.04 (0.035 to 0.045), 10\u00a0× the forward passes of back-propagation",
        "genes: 16 loss values, cosine 0.03 (0.025 to 0.035), more than 420\u00a0×",
        "rbm: no loss value, cosine 0.2 (0.2 to 0.21);",
        "perceptron: no loss value, cosine 0.5 (0.49 to 0.51);",
        "Beside them, weight-perturbation: 2 loss values, cosine 0.02 (0.015 to 0.025), 75\u00a0×",
        "backprop: one loss value and its derivative, cosine 1 (0.99 to 1).",
    ):
        assert part in said, (part, said)
    assert "Not in this run" not in said


def test_a_method_that_learns_on_a_task_of_its_own_counts_there(tmp_path: Path) -> None:
    records = made_up(FOLLOWED)
    for record in records:
        if record["kind"] == "displacement" and record["method"] == "rbm":
            record["task"] = "rbm-digits"
    save(records, tmp_path)
    verdict = same_logic(read(tmp_path))
    assert verdict.ruling == HOLDS
    assert "rbm on rbm-digits: no loss value, cosine 0.2 (0.2 to 0.21);" in verdict.meaning


def without_losses(tmp_path: Path, off: float) -> Results:
    """A run on a network, in which the two methods without a loss were followed on tasks of their own."""
    records = made_up(World(extra=SWARM | {"genes": FOUR["genes"]}, downhill={"swarm": 0.04, "genes": 0.03}))
    for method, task, cosine, distance in (
        ("perceptron", "separable", 1.0, off),
        ("contrastive-divergence", "two-bars", 0.71, 0.3),
    ):
        records += [
            {"kind": "displacement", "task": task, "method": method, "seed": 0, "steps": 10, "still": 0}
            | {"cosine": 0.6, "cosine_low": 0.5, "cosine_high": 0.7, "needs": "no loss", "forwards_per_step": 2.0}
            | {"criterion_cosine": cosine, "off_criterion": distance}
        ]
    save(records, tmp_path)
    return read(tmp_path)


def test_methods_that_cannot_run_on_the_task_complete_the_families(tmp_path: Path) -> None:
    verdict = same_logic(without_losses(tmp_path, off=3e-8))
    assert verdict.ruling == HOLDS
    for part in (
        "perceptron on separable: no loss value, cosine 0.6 (0.5 to 0.7);",
        "contrastive-divergence on two-bars: no loss value, cosine 0.6 (0.5 to 0.7);",
        "The update of perceptron is an exact subgradient of the perceptron criterion: the largest difference of any entry "
        "is 3e-08.",
        "The estimate of contrastive-divergence has a cosine of 0.71 with the exact gradient of the log-likelihood.",
    ):
        assert part in verdict.meaning, (part, verdict.meaning)


def test_an_update_that_differs_from_the_subgradient_is_not_called_one(tmp_path: Path) -> None:
    said = same_logic(without_losses(tmp_path, off=1e-3)).meaning
    assert "exact subgradient" not in said
    assert "The estimate of perceptron has a cosine of 1 with the exact gradient of the perceptron criterion." in said


def test_where_a_method_was_followed_on_several_tasks_that_of_the_run_counts(tmp_path: Path) -> None:
    records = made_up(FOLLOWED)
    elsewhere = [
        {**r, "task": "step-digits", "cosine": -0.9}
        for r in records
        if r["kind"] == "displacement" and r["method"] == "swarm"
    ]
    save(records[:1] + elsewhere + records[1:], tmp_path)
    assert "swarm: 16 loss values, cosine 0.04 (" in same_logic(read(tmp_path)).meaning


def test_every_claim_is_tried_with_every_ruling() -> None:
    for claim in CLAIMS:
        assert {ruling for made, ruling, *_ in CASES if made is claim} == {HOLDS, PARTLY, NOT, OPEN}, claim.__name__


def test_a_ratio_has_its_true_value_inside_its_interval(results: Any) -> None:
    found = results()
    own, base = (
        Reach.of([e for e in found.ends if e["method"] == m and e["study"] == "curves" and e["task"] == "digits"])
        for m in (NUDGE, BACKPROP)
    )
    interval = ratio(own, base)
    assert interval is not None
    assert interval.low < 1.8e5 / 2.4e3 < interval.high
    assert interval.low < interval.value < interval.high


def test_a_missed_target_makes_the_ratio_a_lower_bound() -> None:
    own = Reach({0: 1000.0, 1: 1000.0, 2: 1000.0}, dict.fromkeys(range(3), math.inf))
    base = Reach(dict.fromkeys(range(3), 10.0), dict.fromkeys(range(3), 10.0))
    found = ratio(own, base)
    assert found is not None
    assert (found.value, found.low, found.high, found.bound) == (100.0, 100.0, math.inf, "at least")
    turned = ratio(base, own)
    assert turned is not None
    assert (turned.value, turned.low, turned.high, turned.bound) == (0.01, 0.0, 0.01, "at most")


def test_one_missed_seed_of_five_leaves_the_median_and_widens_the_interval() -> None:
    spent = {0: 90.0, 1: 100.0, 2: 110.0, 3: 120.0, 4: 500.0}
    base = Reach(dict.fromkeys(range(5), 10.0), dict.fromkeys(range(5), 10.0))
    found = ratio(Reach(spent, {**spent, 4: math.inf}), base)
    assert found is not None
    assert found.value == 11.0
    assert found.bound == ""
    assert math.isinf(found.high)


def test_two_methods_that_both_missed_have_no_ratio() -> None:
    missed = Reach(dict.fromkeys(range(3), 5.0), dict.fromkeys(range(3), math.inf))
    assert ratio(missed, missed) is None
    assert ratio(missed, Reach({}, {})) is None


def test_the_fitted_exponents_are_those_of_the_made_up_world(results: Any) -> None:
    found = results(world(growth={NUDGE: 0.7}, budget=1e9))
    growth, noisy = growth_of_ratio(found, NUDGE), growth_of_noise(found, NUDGE)
    assert growth is not None
    assert noisy is not None
    assert growth.exponent.low < 0.7 < growth.exponent.high
    assert growth.exponent.high - growth.exponent.low < 0.2
    assert noisy.exponent.value == pytest.approx(1.0, abs=1e-6)


def test_the_bootstrap_interval_covers_the_mean_and_is_always_the_same() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 10.0]
    found = bootstrap(values)
    assert found == bootstrap(values)
    assert 1.0 < found.low < 4.0 == found.value < found.high < 10.0
    assert not bootstrap([1.0, 2.0]).known


def test_the_headline_is_computed(results: Any) -> None:
    text = headline(results())
    assert "On digits, back-propagation reached 90\u00a0% after 2," in text
    assert "nudging one random weight at a time took" in text
    assert "more than" in headline(results(world(work={NUDGE: math.inf})))
    assert "missed 90\u00a0%" in headline(results(world(work={BACKPROP: math.inf, CHECKPOINT: math.inf})))
    assert "no finished training" in headline(results(without=["end"]))


def test_a_bound_of_memory_is_told_with_claims_three_five_and_six_where_it_was_tried(results: Any) -> None:
    tried = results()
    said = [claim(tried).meaning for claim in (passes, price, only_without_gradient)]
    assert "With 2,410 weights, steps over two bare forwards of their batch: " in said[0]
    assert f"{BACKPROP} 1.6\u00a0× in 3 passes, {CHECKPOINT} 2.1\u00a0× in 4 passes" in said[0]
    assert "the best that takes gradients, " in said[1]
    assert (
        f"within 97.7\u00a0KiB, accuracy 0.100 at first: the best that takes gradients, {CHECKPOINT}, ended at"
        in said[2]
    )
    assert "the best that sees only losses, spsa, ended at 0.9" in said[2]
    assert f"Not even one row fits with {BACKPROP}." in said[2]
    untried = results(without=["fit"])
    assert not any("With 2,410 weights" in claim(untried).meaning for claim in (passes, price, only_without_gradient))
