"""However many methods there are, the default comparison plans no more than its total, and says what it left out."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from dldw.compare.budget import BUDGETS, parse_budget
from dldw.compare.item import SECONDS_PER_FORWARD
from dldw.compare.meter import Metering
from dldw.compare.notes import notes
from dldw.compare.plan import BASELINES, Plan, make_plan
from dldw.compare.share import curves_within, fitting, ranked
from dldw.compare.spec import parse_all
from dldw.compare.studies import FIRST
from dldw.compare.train import Training
from dldw.compare.width import Widening
from dldw.registry import METHODS
from dldw.tasks import load_task
from dldw.tasks.digits import Digits
from dldw.tasks.task import tuned
from tests.many_methods import MANY

DEFAULT = BUDGETS["default"]


def registry(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As if that many more methods were registered."""
    for name, home in islice(MANY.items(), count):
        monkeypatch.setitem(METHODS, name, home)
    known = load_task("digits").settings
    monkeypatch.setattr(Digits, "settings", {**known, **{name: {} for name in islice(MANY, count)}})


def seconds(plan: Plan) -> float:
    """Counted from the pieces of work themselves: two processes share the training, the meter runs alone."""
    side_by_side = sum(item.weight for item in plan.studies({}, {}))
    return side_by_side / 2 + sum(item.weight for item in plan.metering({}))


@pytest.mark.parametrize("more", [0, 10, 20, 40])
def test_the_default_run_is_planned_within_six_minutes_however_many_methods_there_are(
    monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    registry(monkeypatch, more)
    plan = make_plan("digits", [], budget=DEFAULT)
    assert len(plan.specs) == len(tuned("digits")["settings"]) + more + 1
    assert seconds(plan) <= DEFAULT.total * SECONDS_PER_FORWARD / 2 < 330


def test_every_method_has_its_learning_curves_and_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 40)
    plan = make_plan("digits", [], budget=DEFAULT)
    runs = [i for i in plan.studies({}, {}) if isinstance(i, Training) and i.study == "curves" and i.task == "digits"]
    for spec in plan.specs:
        assert sorted(r.seed for r in runs if r.spec == spec) == [0, 1, 2]
    assert len({r.forwards for r in runs}) == 1
    assert 6_000 < runs[0].forwards <= DEFAULT.forwards
    metered = {i.label for i in plan.metering({}) if isinstance(i, Metering) and i.task == "digits"}
    assert metered == {spec.label for spec in plan.specs}


def test_the_dearest_study_keeps_what_is_asked_about_and_one_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 40)
    plan = make_plan("digits", [], budget=DEFAULT)
    widened = {i.spec for i in plan.studies({}, {}) if isinstance(i, Widening)}
    assert {"backprop", "weight-perturbation"} <= {s.label for s in widened}
    kinds = [(s.method.card.claim, s.method.card.needs) for s in widened if s.label not in FIRST]
    assert len(set(kinds)) == len(kinds) > 0


def test_the_curves_and_the_costs_of_todays_methods_are_not_cut() -> None:
    plan = make_plan("digits", [], budget=DEFAULT)
    assert (plan.seeds, plan.budget.forwards) == (DEFAULT.seeds, DEFAULT.forwards)
    assert not {"cost", "wider cost", "learning-rate", "estimate"} & set(plan.left_out())


def test_the_plan_is_the_same_whenever_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 40)
    plans = [make_plan("digits", [], budget=DEFAULT) for _ in range(2)]
    first, second = ([i.keys for i in (*p.studies({}, {}), *p.metering({}))] for p in plans)
    assert first == second
    assert plans[0].config("0") == plans[1].config("0")
    assert plans[0].config("0")["budget"]["forwards"] == plans[0].budget.forwards


def test_what_was_left_out_is_named_with_the_command_that_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 40)
    plan = make_plan("digits", [], budget=DEFAULT)
    texts = [str(n["text"]) for n in notes(plan, [], resumed=False) if n["kind"] == "note"]
    assert any(f"Shared out over {len(plan.specs)} methods, each has 3 learning curves of" in t for t in texts)
    widths = next(t for t in texts if t.startswith("Training over widths was left out"))
    done = {i.label for i in plan.studies({}, {}) if isinstance(i, Widening)}
    for spec in plan.specs:
        if spec.method.is_source and spec.tuned_as == spec:
            assert (f" {spec.label}," in widths or f" {spec.label}." in widths) != (spec.label in done)
    names = widths.partition("dldw compare digits ")[2].partition(". ")[0].split()
    shown = make_plan("digits", names, budget=DEFAULT)
    assert set(names) <= {s.label for s in shown.shares["width"]}


def test_a_number_of_seeds_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 40)
    plan = make_plan("digits", [], budget=DEFAULT, seeds=8)
    assert plan.seeds == 8
    assert plan.budget.forwards < DEFAULT.forwards / 2
    assert seconds(plan) < 330


def test_the_study_and_a_budget_given_as_a_number_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    registry(monkeypatch, 40)
    for budget in (BUDGETS["full"], parse_budget("12000")):
        plan = make_plan("digits", [], budget=budget)
        assert plan.left_out() == {}
        assert (plan.seeds, plan.budget) == (budget.seeds, budget)


def test_first_come_those_named_and_then_one_of_each_kind_in_turn() -> None:
    given = ["random-search", "spsa", "spsa[directions=2]", "evolution-strategy", "forward-gradient", "backprop"]
    order = [s.label for s in ranked(parse_all(given), ("backprop", "random-search"))]
    assert order[:3] == ["backprop", "random-search", "spsa"]
    assert order[-1] == "spsa[directions=2]", "the second of its kind waits for the first of every other"
    assert sorted(order) == sorted(given)


def test_methods_are_taken_from_the_first_on_while_they_fit() -> None:
    specs = parse_all(["spsa", "backprop", "random-search"])
    assert fitting(specs, lambda _: 2.0, 5.0) == (specs[:2], 4.0)
    assert fitting(specs, lambda _: 2.0, 1.0) == ([], 0.0)


def test_more_methods_have_fewer_seeds_then_fewer_forwards_and_never_more_together() -> None:
    for methods in (1, 7, 20, 33, 60, 200):
        seeds, forwards = curves_within(1e6, methods, 5, 10_000, fixed=False, start=100)
        assert methods * seeds * (forwards + 100) <= 1e6 or methods == 1
        assert 3 <= seeds <= 5
        assert forwards == 10_000 or seeds == 3


# ---- a step dearer than a trial


def test_a_method_of_which_no_trial_can_be_made_is_named_and_not_searched() -> None:
    small = replace(DEFAULT, tune_forwards=100)
    plan = make_plan("digits", [], budget=small, trials=2)
    assert "tuning finite-difference" not in [item.what for item in plan.tuning()]
    texts = [str(n["text"]) for n in notes(plan, [], resumed=False) if n["kind"] == "note"]
    assert any(
        t.startswith("finite-difference was not tuned on digits: one step takes 4,820 forward passes, and a trial")
        for t in texts
    )


def test_shipped_settings_that_lack_a_method_say_why() -> None:
    plan = make_plan("digits-wide", [], budget=DEFAULT)
    lacking = {s.label for s in plan.specs if s.method.card.space and s.tuned_as.target not in plan.task.settings}
    assert lacking == set(plan.untuned()) == {"finite-difference"}
    assert set(BASELINES) <= {s.label for s in plan.specs}
