"""Policies in simulators: episodes are gymnasium's own, a population plays what its members would play one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dldw
from dldw.compare.budget import Budget, parse_budget
from dldw.compare.plan import make_plan
from dldw.compare.run import run_record
from dldw.compare.spec import parse
from dldw.compare.train import reached, train
from dldw.errors import DldwError
from dldw.population import population_losses
from dldw.registry import METHODS
from dldw.report.charts import charts
from dldw.report.results import read
from dldw.rollout import Sample
from dldw.sources.reinforce import advantages
from dldw.tasks import load_task
from dldw.tasks.control import Control
from dldw.tasks.error_rate import ErrorRate
from dldw.tasks.int8_digits import STEP, Int8Linear
from dldw.tasks.lockstep import Lockstep
from dldw.tasks.task import tuned
from tests.made_up import save

CONTROL = ["cartpole", "acrobot", "pendulum", "mountain-car-continuous"]
SEEDS = [3, 141, 59]


@pytest.fixture(params=CONTROL)
def task(request: pytest.FixtureRequest) -> Control:
    loaded = load_task(request.param)
    assert isinstance(loaded, Control)
    return loaded


def policy(task: Control, seed: int = 0) -> nn.Module:
    """A policy that does something: large weights."""
    model, generator = task.model(0), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 2, generator=generator)
    return model


@torch.no_grad()
def played(task: Control, model: nn.Module, seed: int) -> float:
    """The return of one episode in gymnasium's own single environment, one observation at a time."""
    environment = gymnasium.make(task.environment)
    observation, _ = environment.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        output = model(torch.from_numpy(observation).unsqueeze(0))[0]
        if isinstance(environment.action_space, gymnasium.spaces.Discrete):
            action = int(output.argmax())
        else:
            low, high = environment.action_space.low, environment.action_space.high
            action = np.clip(output.numpy() * (high - low) / 2 + (high + low) / 2, low, high)
        observation, reward, terminated, truncated, _ = environment.step(action)
        total += float(reward)
        ended = terminated or truncated
    return total


def test_the_loss_is_minus_what_gymnasiums_own_environment_pays(task: Control) -> None:
    model = policy(task)
    with torch.no_grad():
        losses = task.loss(model, torch.tensor(SEEDS))
    expected = [-played(task, model, seed) for seed in SEEDS]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


def test_episodes_are_those_of_gymnasium_for_the_same_seeds_and_actions(task: Control) -> None:
    ours, theirs = Lockstep(task, len(SEEDS)), [gymnasium.make(task.environment) for _ in SEEDS]
    ours.action_space.seed(0)
    observations, _ = ours.reset(seed=SEEDS)
    np.testing.assert_array_equal(observations, [e.reset(seed=s)[0] for e, s in zip(theirs, SEEDS, strict=True)])
    running = [True] * len(SEEDS)
    for _ in range(120):
        actions = ours.action_space.sample()
        observations, rewards, terminated, truncated, _ = ours.step(actions)
        for i, environment in enumerate(theirs):
            if running[i]:
                observation, reward, end, cut, _ = environment.step(actions[i])
                np.testing.assert_allclose(observations[i], observation, atol=1e-5)
                assert rewards[i] == pytest.approx(reward, rel=1e-9)
                assert (terminated[i], truncated[i]) == (end, cut)
                running[i] = not (end or cut)
            else:
                assert rewards[i] == 0
                assert not terminated[i]


def test_an_episode_is_cut_at_gymnasiums_limit(task: Control) -> None:
    environments = Lockstep(task, 1)
    environments.reset(seed=0)
    limit = gymnasium.spec(task.environment).max_episode_steps
    assert limit is not None
    environments._age = limit - 1
    _, _, terminated, truncated, _ = environments.step(np.zeros_like(environments.action_space.sample()))
    assert bool(truncated[0])
    assert not terminated[0]


def test_the_target_is_gymnasiums_own_threshold_where_it_has_one(task: Control) -> None:
    threshold = gymnasium.spec(task.environment).reward_threshold
    assert task.target == (-200.0 if threshold is None else threshold)
    assert reached(task, task.target)
    assert not reached(task, task.target - 1)


def test_evaluation_is_the_mean_return_over_a_hundred_unseen_seeds() -> None:
    task = load_task("cartpole")
    assert isinstance(task, Control)
    model = policy(task)
    figures = task.evaluate(model)
    unseen = [played(task, model, seed) for seed in task.splits["test"]]
    assert len(unseen) == 100
    assert figures["return"] == pytest.approx(np.mean(unseen))
    assert figures["loss"] == -figures["return"]
    trained_on = {int(s) for _, batch in zip(range(50), task.batches(0), strict=False) for s in batch}
    assert max(trained_on) < min(task.splits["validation"]) <= max(task.splits["validation"]) < min(task.splits["test"])


def members(task: Control, seeds: list[int]) -> list[torch.Tensor]:
    models = [list(policy(task, seed).parameters()) for seed in seeds]
    return [torch.stack([m[i].detach() for m in models]) for i in range(len(models[0]))]


class At(nn.Module):
    """``model`` at other weights."""

    def __init__(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(self.model, self.weights, (x,))


@pytest.mark.parametrize("how", ["population_losses", "vmap"])
def test_a_population_in_lockstep_plays_what_its_members_play_alone(task: Control, how: str) -> None:
    chosen = [0, 5, 6]  # in every task, one of them earns something else than the next
    seeds, stacked, model = torch.tensor(SEEDS), members(task, chosen), task.model(0)
    names = [name for name, _ in model.named_parameters()]

    def function(weights: list[torch.Tensor]) -> torch.Tensor:
        return task.loss(At(model, dict(zip(names, weights, strict=True))), seeds)

    with torch.no_grad():
        if how == "vmap":
            together = torch.func.vmap(lambda *weights: function(list(weights)))(*stacked)
        else:
            together = population_losses(function, stacked, len(chosen))
        alone = torch.stack([task.loss(policy(task, seed), seeds) for seed in chosen])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=0)
    assert len(alone.unique()) > 1


def test_a_time_step_of_a_population_is_one_forward_and_one_step_of_all_environments() -> None:
    task = load_task("pendulum")
    assert isinstance(task, Control)
    steps: list[int] = []

    class Counted(Lockstep):
        def step(self, actions):
            steps.append(len(actions))
            return super().step(actions)

    rollout = dldw.Rollout(lambda n: Counted(task, n))
    source = dldw.EvolutionStrategy(rollout, sigma=0.1, population=64, evaluate="batched")
    source(task.model(0), torch.arange(8))
    assert steps.count(64 * 8) == 200
    assert {n for n in steps if n != 64 * 8} == {8}


def test_environment_steps_are_counted_while_their_episode_runs() -> None:
    rollout = dldw.Rollout(lambda n: gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync"))
    returns = -rollout(nn.Linear(4, 2), torch.arange(5))
    assert rollout.steps == int(returns.sum())  # one point for each step


def test_a_vector_environment_that_resets_itself_gives_the_same_losses() -> None:
    task = load_task("cartpole")
    assert isinstance(task, Control)
    theirs = dldw.Rollout(lambda n: gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync"))
    model, seeds = policy(task), torch.arange(6)
    assert theirs(model, seeds).tolist() == task.loss(model, seeds).tolist()


def test_outputs_of_another_shape_than_the_action_say_so() -> None:
    task = load_task("cartpole")
    with pytest.raises(DldwError, match=r"one output of shape \[2\] for each of 8 observations, got shape \[8, 3\]"):
        task.loss(nn.Linear(4, 3), next(task.batches(0)))


def test_actions_of_another_kind_say_what_to_do() -> None:
    class Many(Lockstep):
        def __init__(self) -> None:
            task = load_task("cartpole")
            assert isinstance(task, Control)
            super().__init__(task, 1)
            self.single_action_space = gymnasium.spaces.MultiBinary(2)

    with pytest.raises(DldwError, match="Wrap them so that they take one of the two"):
        dldw.Rollout(lambda n: Many())(nn.Linear(4, 2), torch.arange(1))


def test_without_gymnasium_the_task_names_the_extra() -> None:
    code = """
import sys
sys.modules["gymnasium"] = None
from dldw.errors import DldwError
from dldw.tasks import load_task
try:
    load_task("cartpole")
except DldwError as error:
    print(error)
"""
    path = str(Path(dldw.__file__).parents[1])
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cartpole is played in gymnasium, which is not installed" in out.stdout
    assert "pip install 'dldw[rl]'" in out.stdout


# REINFORCE


class Bandit:
    """Episodes of two steps whose rewards are known: action 1 pays its step's price, action 0 nothing."""

    single_action_space = gymnasium.spaces.Discrete(2)
    prices = (1.0, 3.0)

    def __init__(self, n: int) -> None:
        self.n, self.age = n, 0

    def reset(self, *, seed=None):
        self.age = 0
        return np.ones((self.n, 1), dtype=np.float32), {}

    def step(self, actions):
        reward = self.prices[self.age] * np.asarray(actions, dtype=float)
        self.age += 1
        ended = np.full(self.n, self.age == 2)
        return np.ones((self.n, 1), dtype=np.float32), reward, ended, np.zeros(self.n, dtype=bool), {}


def test_reinforce_is_unbiased_for_the_expected_loss_of_the_policy_that_draws() -> None:
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3], [-0.4]]))
    likely = torch.softmax(model.weight.detach().flatten(), 0)
    exact = -4.0 * likely[1] * (torch.tensor([0.0, 1.0]) - likely)  # d/dw of -(1 + 3) p(1)
    source = dldw.Reinforce(dldw.Rollout(Bandit), generator=torch.Generator().manual_seed(0))
    draws = []
    for _ in range(400):
        model.zero_grad()
        source(model, torch.arange(8))
        assert model.weight.grad is not None
        draws.append(model.weight.grad.flatten().clone())
    estimate = torch.stack(draws)
    z = (estimate.mean(0) - exact) / (estimate.std(0) / 400**0.5)
    assert z.abs().max() < 4


def test_the_baseline_of_an_episode_is_the_mean_of_the_others_that_still_run() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 5.0]])
    running = torch.tensor([[True, True, True], [True, False, True]])
    got = advantages(Sample(torch.zeros(2, 3), rewards, running))
    to_come = [[5.0, 2.0, 8.0], [4.0, 0.0, 5.0]]
    first = [5 - (2 + 8) / 2, 2 - (5 + 8) / 2, 8 - (5 + 2) / 2]
    second = [to_come[1][0] - 5.0, 0.0, 5.0 - 4.0]
    assert got.tolist() == [first, second]


def test_reinforce_draws_from_its_generator_alone() -> None:
    task, grads = load_task("cartpole"), []
    for _ in range(2):
        model, state = task.model(0), torch.get_rng_state()
        dldw.Reinforce(task.loss, generator=torch.Generator().manual_seed(5))(model, torch.arange(4))
        assert torch.equal(torch.get_rng_state(), state)
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


def test_reinforce_adds_to_the_gradient_and_leaves_the_weights_alone() -> None:
    task, after = load_task("cartpole"), []
    for start in (0.0, 1.0):
        model = task.model(0)
        before = [p.detach().clone() for p in model.parameters()]
        for p in model.parameters():
            p.grad = torch.full_like(p, start)
        dldw.Reinforce(task.loss, generator=torch.Generator().manual_seed(5))(model, torch.arange(4))
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        after.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(after[1], after[0] + 1)


def test_reinforce_without_a_rollout_says_what_to_use() -> None:
    with pytest.raises(DldwError, match=r"Give it a dldw\.Rollout, or use a method that needs loss values alone"):
        dldw.Reinforce(lambda model, batch: model(batch).sum(1))
    with pytest.raises(DldwError, match="std must be positive, got 0"):
        dldw.Reinforce(dldw.Rollout(Bandit), std=0)


def test_the_card_of_reinforce_says_that_it_needs_episodes() -> None:
    assert dldw.methods()["reinforce"].card.needs == "episodes"


# in the comparison


def test_episodes_are_for_tasks_that_are_played() -> None:
    quick = parse_budget("quick")
    assert "reinforce" not in [spec.label for spec in make_plan("digits", [], budget=quick).specs]
    plan = make_plan("cartpole", [], budget=quick, trials=1)
    labels = [spec.label for spec in plan.specs]
    assert "reinforce" in labels
    assert not {"backprop", "backprop[checkpoint=true]", "forward-gradient"} & set(labels)
    assert len(plan.dropped) == len(METHODS) + 1 - len(labels)


def test_no_control_task_is_part_of_the_default_comparison() -> None:
    plan = make_plan("digits", [], budget=parse_budget("default"))
    tasks = {getattr(item, "task", None) for item in [*plan.studies({}, {}), *plan.metering({})]}
    assert not tasks & {*CONTROL, "error-rate", "int8-digits"}


def test_a_curve_counts_environment_steps_and_ends_when_solved() -> None:
    task = load_task("cartpole")
    curve = train(task, parse("low-rank-evolution"), {"lr": 0.03, "sigma": 0.1, "optimizer": "adam"}, 0,
                  forwards=2_000, stop_at_target=True, per_decade=8)  # fmt: skip
    assert curve.reason == "target"
    steps = [point["interactions"] for point in curve.points]
    assert steps[0] == 0
    assert steps == sorted(set(steps))
    assert curve.to_target is not None
    assert curve.to_target["interactions"] == steps[-1]
    assert curve.points[-1]["return"] >= 475


@pytest.mark.parametrize("name", CONTROL)
def test_shipped_settings_come_with_the_record_of_equal_trials_or_were_chosen_by_hand(name: str) -> None:
    found = tuned(name)
    if not found["trials"]:
        assert found["record"] == []
        return
    for searched, settings in found["settings"].items():
        trials = [r for r in found["record"] if r["method"] == searched]
        assert len(trials) == found["trials"]
        assert [r["settings"] for r in trials if r["chosen"]] == [settings]


# other objectives without a gradient


def test_the_error_rate_is_the_share_of_digits_taken_for_another() -> None:
    task = load_task("error-rate")
    assert isinstance(task, ErrorRate)
    model = task.model(0)
    x, y = next(task.batches(0))
    wrong = [float(int(model(row.unsqueeze(0))[0].argmax()) != int(label)) for row, label in zip(x, y, strict=True)]
    assert task.loss(model, (x, y)).tolist() == wrong
    figures = task.evaluate(model)
    assert figures["loss"] == pytest.approx(1 - figures["accuracy"])


def test_int8_weights_start_on_integers_and_nothing_lies_between_two() -> None:
    model = load_task("int8-digits").model(0)
    for p in model.parameters():
        whole = (p / STEP).detach()
        assert torch.equal(whole, whole.round())
    layer, x = Int8Linear(5, 3), torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    with torch.no_grad():
        layer.weight[0, 0] += 0.4 * STEP
    assert torch.equal(layer(x), before)
    with torch.no_grad():
        layer.weight[0, 0] += 0.6 * STEP
    torch.testing.assert_close(layer(x)[:, 0] - before[:, 0], STEP * x[:, 0])


def test_a_sign_of_one_step_moves_every_int8_weight_by_one_integer() -> None:
    task, seen = load_task("int8-digits"), []
    model = task.model(0)
    start = [(p / STEP).detach().round() for p in model.parameters()]

    def loss(model: nn.Module, batch: object) -> torch.Tensor:
        seen.append([(p / STEP).detach().clone() for p in model.parameters()])
        return task.loss(model, batch)

    dldw.SPSA(loss, sigma=STEP, generator=torch.Generator().manual_seed(0))(model, next(task.batches(0)))
    assert len(seen) == 2
    for probe in seen:
        assert all(
            torch.equal((now - then).abs(), torch.ones_like(then)) for now, then in zip(probe, start, strict=True)
        )


def test_int8_weights_stay_within_eight_bits() -> None:
    layer = Int8Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1e3)
        layer.bias.fill_(-1e3)
    assert float(layer(torch.ones(1, 1)).detach()) == (127 - 128) * STEP


@pytest.mark.parametrize("name", ["error-rate", "int8-digits"])
def test_a_method_of_loss_values_learns_what_has_no_gradient(name: str) -> None:
    task = load_task(name)
    curve = train(task, parse("evolution-strategy"), {"lr": 0.03, "sigma": 0.05, "optimizer": "adam"}, 0,
                  forwards=3_200, per_decade=4)  # fmt: skip
    assert curve.points[-1]["accuracy"] > curve.points[0]["accuracy"] + 0.3


def test_backprop_finds_no_graph_in_the_error_rate_and_stands_still_on_integers() -> None:
    task = load_task("error-rate")
    with pytest.raises(DldwError, match="it carries no graph"):
        dldw.Backprop(task.loss)(task.model(0), next(task.batches(0)))
    task = load_task("int8-digits")
    model = task.model(0)
    dldw.Backprop(task.loss)(model, next(task.batches(0)))
    assert not any(p.grad is None or bool(p.grad.any()) for p in model.parameters())


# the example


def test_the_example_draws_an_episode_without_a_screen(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    out = tmp_path / "cartpole.gif"
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment["PYTHONPATH"] = str(Path(dldw.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, root / "examples" / "cartpole.py", "--generations", "1", "--out", out],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    steps = int(done.stdout.split("an episode of ")[1].split()[0])
    assert "mean return over 100 unseen episodes" in done.stdout
    with Image.open(out) as picture:
        assert getattr(picture, "n_frames", 1) == (steps + 1) // 2
        assert picture.size == (300, 200)


# the report


def test_the_report_shows_return_against_environment_steps_with_reinforce_beside_the_others(tmp_path: Path) -> None:
    plan = make_plan("cartpole", ["reinforce", "random-search"], budget=Budget("tiny", forwards=48, seeds=1))
    records = [run_record(plan), *plan.header({})]
    for item in plan.studies({}, {}):
        records += item.run()
    save(records, tmp_path)
    chart = next(c for c in charts(read(tmp_path)) if c.id == "curves")
    options = dict(chart.choices)
    assert options["show"][0] == "return"
    assert options["against"][0] == "interactions"
    for method in ("reinforce", "random-search"):
        points = [e for e in records if e["kind"] == "evaluation" and e["method"] == method and e["step"]]
        rows = [r for r in chart.rows["rows"] if r["method"] == method and r["step"]]
        assert [r["interactions"] for r in rows] == [e["interactions"] for e in points]
        assert [r["return"] for r in rows] == pytest.approx([e["return"] for e in points], rel=1e-3)
