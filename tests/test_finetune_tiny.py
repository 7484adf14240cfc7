"""Fine-tuning within one bound of memory: the task, the batch that fits, LoRA, and the learners of inference memory."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dldw
from dldw.compare.bounded import Bounding, largest, step_bytes
from dldw.compare.budget import BUDGETS, Budget
from dldw.compare.plan import make_plan
from dldw.compare.results import Results
from dldw.compare.run import run_record
from dldw.compare.spec import parse
from dldw.compare.train import train
from dldw.errors import DldwError
from dldw.nn.adapter import adapt
from dldw.registry import method
from dldw.report.results import read
from dldw.tasks.finetune_tiny import FinetuneTiny, programs
from dldw.tasks.pretrained import NAME, pretrained


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FinetuneTiny, "pretraining", 12)


@pytest.fixture
def task() -> FinetuneTiny:
    return FinetuneTiny()


def settings(spec: Any, **more: Any) -> dict[str, Any]:
    return {**({"lr": 1e-3} if "lr" in spec.method.settings else {}), **dict(spec.given), **more}


# ---- the task


def test_the_three_splits_are_parts_of_each_module_and_tuning_sees_neither_test_nor_validation(
    task: FinetuneTiny,
) -> None:
    texts = [bytes(text.tolist()) for text in programs()]
    assert [
        name in text for name, text in zip((b"SequenceMatcher", b"heappush", b"OptionParser"), texts, strict=True)
    ] == [True] * 3
    assert bytes(task.splits["test"].tolist()) == b"".join(text[-(len(text) // 10) :] for text in texts)
    held = len(task.splits["validation"])
    assert torch.equal(task.train[-held:], task.splits["validation"])
    assert len(task.train) + len(task.splits["test"]) == sum(map(len, texts))
    fitted = bytes(task.train[:-held].tolist())
    assert all(bytes(window.tolist()) in fitted for window in next(task.batches(0, tuning=True)))


def test_every_seed_begins_with_the_weights_that_were_kept(task: FinetuneTiny, tmp_path: Path) -> None:
    first, kept = task.model(0), FinetuneTiny(tmp_path / "results").model(1)
    assert (tmp_path / "results" / NAME).is_file()
    for p, q in zip(first.parameters(), kept.parameters(), strict=True):
        assert torch.equal(p, q)
        assert p is not q
    untrained = task.network(64)
    assert task.evaluate(first)["loss"] < task.evaluate(untrained)["loss"] - 0.5


def test_kept_weights_are_read_unless_they_are_of_another_recipe_or_torn(tmp_path: Path) -> None:
    def made(value: float) -> Any:
        return lambda: {"w": torch.full((2,), value)}

    path = tmp_path / NAME
    assert pretrained("a test, one", made(1.0), tmp_path)["w"][0] == 1
    assert pretrained("a test, two", made(2.0), tmp_path)["w"][0] == 2  # and it takes the place of the first
    path.write_bytes(path.read_bytes()[:-3])
    assert pretrained("a test, three", made(3.0), tmp_path)["w"][0] == 3
    from dldw.tasks import pretrained as module

    module._made.clear()
    module._kept.clear()
    assert pretrained("a test, three", made(math.nan), tmp_path)["w"][0] == 3


def test_weights_that_cannot_be_kept_say_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DldwError, match=r"pretrained weights cannot be kept as .*Give another directory with --out"):
        pretrained("a test, nowhere", lambda: {"w": torch.zeros(1)}, tmp_path / "file" / "below")


def test_a_task_resized_has_other_batches_and_counts_them_by_their_size(task: FinetuneTiny) -> None:
    small = task.resized(2)
    assert task.resized(None) is task
    assert (len(next(small.batches(0))), small.passes, task.batch_size, task.passes) == (2, 0.25, 8, 1.0)
    spec = parse("backprop[lr=0.1]")
    curve = train(small, spec, dict(spec.given), 0, forwards=3.0, per_decade=1)
    assert (curve.points[-1]["step"], curve.points[-1]["forwards"]) == (4, 3.0)  # a step is 3 forwards of a quarter


# ---- the largest batch


@pytest.mark.parametrize(
    ("bound", "rows"), [(99, 0), (130, 1), (159, 1), (160, 2), (400, 10), (1000, 30), (10**9, 1024)]
)
def test_the_largest_batch_is_that_of_a_search_of_all(bound: int, rows: int) -> None:
    asked: list[int] = []

    def peak(n: int) -> int:
        asked.append(n)
        return 100 + 30 * n

    assert largest(peak, bound) == (rows, peak(max(rows, 1)))
    assert len(asked) <= 22


@pytest.mark.parametrize(
    "label", ["backprop[optimizer=sgd]", "low-rank-evolution[optimizer=forward-only,population=4]"]
)
def test_one_row_more_than_the_largest_batch_breaks_the_bound(task: FinetuneTiny, label: str) -> None:
    spec = parse(label)
    rows, peak = largest(lambda n: step_bytes(task, spec, settings(spec), n), 1 << 20)
    again = [step_bytes(task, spec, settings(spec), n) for n in (rows, rows + 1)]
    assert again[0] == peak <= 1 << 20 < again[1]


def test_a_step_is_measured_with_gradients_moments_and_adapters(task: FinetuneTiny) -> None:
    def bytes_of(label: str) -> int:
        spec = parse(label)
        return step_bytes(task, spec, settings(spec), 1)

    size = 4 * sum(p.numel() for p in task.model(0).parameters())
    adam, sgd = bytes_of("backprop[optimizer=adam]"), bytes_of("backprop[optimizer=sgd]")
    assert sgd > size  # the gradient
    assert adam - sgd > 1.5 * size  # two moments, less what both hold for a moment
    assert bytes_of("lora[rank=2,optimizer=sgd]") < bytes_of("lora[rank=32,optimizer=adam]")
    lean = bytes_of("low-rank-evolution[optimizer=forward-only,population=2]")
    assert lean < size < bytes_of("low-rank-evolution[optimizer=sgd,population=2]")


def test_a_method_that_fits_is_trained_on_that_batch_and_one_that_does_not_says_what_a_row_takes() -> None:
    def records(label: str, bound: int) -> list[Any]:
        spec = parse(label)
        item = Bounding(
            "finetune-tiny", None, spec, tuple(settings(spec).items()), bound=bound, seeds=2, forwards=4.0, per_decade=2
        )
        found = item.run()
        assert set(item.keys) == {("fit", r["task"], r["method"]) for r in found if r["kind"] == "fit"}
        return found

    *curves, fit = records("lora", 2 << 20)
    ends = [r for r in curves if r["kind"] == "end"]
    assert fit["rows"] >= 1
    assert fit["peak_bytes"] <= fit["bound"] == 2 << 20
    assert [(e["study"], e["seed"]) for e in ends] == [("memory", 0), ("memory", 1)]
    last = [r for r in curves if r["kind"] == "evaluation"][-1]
    assert last["examples"] == fit["rows"] * last["step"]
    assert last["forwards"] == 3 * last["step"] * fit["rows"] / 8 <= 4
    (none,) = records("backprop[optimizer=adam]", 2 << 20)
    assert (none["rows"], none["rate_factor"]) == (0, 1.0)
    assert none["peak_bytes"] > 2 << 20


# ---- the plan


def test_the_task_asks_for_the_study_and_no_other_task_does(tmp_path: Path) -> None:
    plan = make_plan("finetune-tiny", [], budget=BUDGETS["default"], data=tmp_path)
    bounded = [item for item in plan.studies({}, {}) if isinstance(item, Bounding)]
    assert {item.label for item in bounded} == {spec.label for spec in plan.specs} >= set(FinetuneTiny.methods)
    assert {item.bound for item in bounded} == {FinetuneTiny.memory_bound}
    assert {item.forwards for item in bounded} == {plan.budget.forwards}
    everything = sum(item.weight for item in plan.studies({}, {})) + 2 * sum(i.weight for i in plan.metering({}))
    assert everything / 2 < 360
    other = make_plan("digits", ["spsa"], budget=BUDGETS["default"])
    assert other.shares["memory"] == []
    assert not [item for item in other.studies({}, {}) if isinstance(item, Bounding)]


def test_a_heavier_task_gets_fewer_forwards_and_one_as_heavy_as_the_digits_the_same() -> None:
    default, full = BUDGETS["default"], BUDGETS["full"]
    assert default.lightened(1.0) is default
    assert full.lightened(100).forwards == full.forwards / 100
    assert default.lightened(100).forwards == default.forwards  # its total cuts them
    assert (default.lightened(100).tune_forwards, default.lightened(100).draws) == (200, 2)


def test_a_batch_of_its_own_is_tuned_trained_with_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    from dldw.compare.tune import Tuning

    spec = parse("head-only[optimizer=sgd]")
    trials: list[Any] = Tuning("finetune-tiny", None, spec, spec.given, 3, 4.0).run()
    assert {t["settings"]["rows"] for t in trials} <= set(FinetuneTiny.rows)
    assert all(t["forwards"] <= 4 for t in trials)
    found = {spec.label: {"lr": 0.1, "rows": 4}}
    assert spec.rows(found) == 4
    assert spec.settings(found) == {"lr": 0.1, "optimizer": "sgd"}
    assert parse("spsa").rows(found) is None


# ---- a run, as its report tells it


def test_the_tables_of_a_run_hold_the_loss_of_the_models_that_it_trained(task: FinetuneTiny, tmp_path: Path) -> None:
    pytest.importorskip("altair", reason="the report's extra is not installed")
    from dldw.report.charts import charts
    from dldw.report.page import render
    from dldw.report.tables import tables

    budget = Budget("tiny", forwards=8.0, seeds=2, per_decade=3, cost_seconds=0.01)
    names = [
        "backprop[optimizer=adam,lr=0.003]",
        "lora[lr=0.01]",
        "low-rank-evolution[optimizer=forward-only,population=2,lr=0.001]",
    ]
    plan = make_plan("finetune-tiny", names, budget=budget)
    plan = replace(plan, specs=tuple(spec for spec in plan.specs if spec.label in names))
    found = task.settings
    records = [run_record(plan), *plan.header(found)]
    records += [record for item in [*plan.studies(found, {}), *plan.metering(found)] for record in item.run()]
    for record in records:
        if record["kind"] == "evaluation":
            record["seconds"] = record["forwards"]  # no clock decides a test: the same time is the same work
    with Results(tmp_path, run_record(plan)) as kept:
        kept.append(records)
    results = read(tmp_path)
    memory, time = (dict(table.rows) for table in tables(results))
    assert memory[names[0]][2] == "does not fit"
    fits = {f["method"]: f for f in results.fits}
    each = dict(zip(names, (3.0, 3.0, 2.0), strict=True))  # forwards: there and back, there and back, and two
    work = {label: each[label] * fits[label]["rows"] / 8 for label in names[1:]}  # of a step, in passes of 8 rows
    least = min(int(8 / step) * step for step in work.values())
    for label in names[1:]:
        spec, fit = parse(label), fits[label]
        steps = int(float(memory[label][3]))
        assert memory[label][0] == str(fit["rows"])
        assert 0.4 * least <= steps * work[label] <= least  # evaluations are that far apart
        settings = spec.settings(found) | {"lr": spec.settings(found)["lr"] * fit["rate_factor"]}
        losses = []
        for seed in (0, 1):
            model, batches = task.model(seed), task.resized(fit["rows"]).batches(seed)
            learner = spec.method.build(model, task.loss, torch.Generator().manual_seed(10_000 + seed), **settings)
            for batch in islice(batches, steps):
                learner.step(batch)
            losses.append(task.evaluate(model)["loss"])
        assert memory[label][2] == f"{sum(losses) / 2:.3f}"
    assert set(time) == set(names)
    drawn = {chart.id: chart for chart in charts(results)}["budgets"]
    assert {row["method"] for row in drawn.rows["rows"] if row["budget"] == "the same memory"} == set(names[1:])
    assert "does not fit" in render(results)


# ---- LoRA, and forward-only as an optimizer


def problem() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double(), torch.randn(4, 5, dtype=torch.float64)


def square(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().sum(1)


def test_an_adapted_model_begins_as_it_was_and_its_gradients_are_those_of_the_sum() -> None:
    model, x = problem()
    plain = [p.detach().clone() for p in model.parameters()]
    before = model(x)
    factors = adapt(model, rank=2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), before)
    with torch.no_grad():
        for f in factors:
            f.add_(0.1)
    square(model, x).mean().backward()
    free = [f.detach().clone().requires_grad_() for f in factors]
    w, v = plain[0] + free[0] @ free[1].T, plain[2] + free[2] @ free[3].T
    (torch.tanh(x @ w.T + plain[1]) @ v.T + plain[3]).square().sum(1).mean().backward()
    for f, g in zip(factors, free, strict=True):
        assert torch.allclose(f.grad, g.grad, atol=1e-12)
    assert all(p.grad is None for p in model.parameters() if p.numel() not in {f.numel() for f in factors})


def test_lora_trains_its_adapters_and_leaves_the_weights_alone() -> None:
    model, x = problem()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = dldw.LoRA(model, loss=square, rank=2, lr=0.05)
    losses = [float(learner.step(x)) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    left = {k.replace("parametrizations.", "").removesuffix(".original"): p for k, p in model.named_parameters()}
    assert all(torch.equal(left[name], p) for name, p in weights.items())


@pytest.mark.parametrize(
    ("model", "rank", "text"),
    [
        (nn.LayerNorm(3), 2, "LayerNorm has no linear, convolution or attention layer with a weight to train"),
        (nn.Linear(3, 3).requires_grad_(False), 2, "nothing to adapt"),
        (nn.Linear(3, 3), 0, "rank of an adapter must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_adapted_says_so(model: nn.Module, rank: int, text: str) -> None:
    with pytest.raises(DldwError, match=text):
        adapt(model, rank)


def test_forward_only_as_the_optimizer_is_the_learner_of_that_name(task: FinetuneTiny) -> None:
    batches = list(islice(task.batches(0), 3))

    def ended(learner: Any) -> torch.Tensor:
        for batch in batches:
            learner.step(batch)
        return torch.cat([p.detach().flatten() for p in learner.model.parameters()])

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    built = method("mezo").build(task.model(0), task.loss, generator(), lr=1e-3, optimizer="forward-only", momentum=0.5)
    by_hand = dldw.ForwardOnly(task.model(0), dldw.MeZO(task.loss, generator=generator()), 1e-3, momentum=0.5)
    assert isinstance(built, dldw.ForwardOnly)
    assert torch.equal(ended(built), ended(by_hand))
    with pytest.raises(DldwError, match="ForwardOnly needs a source that estimates along directions"):
        method("backprop").build(task.model(0), task.loss, optimizer="forward-only")


def test_sparse_mezo_is_mezo_behind_the_mask_of_the_smallest_weights() -> None:
    model, x = problem()
    dldw.SparseMeZO(square, fraction=0.2, generator=torch.Generator().manual_seed(0))(model, x)
    for p in model.parameters():
        moved = p.grad != 0
        assert int(moved.sum()) == max(1, round(0.2 * p.numel()))
        assert p[moved].abs().max() <= p[~moved].abs().min()
