"""Tasks: what each promises, and what is said when a file is missing, torn or raises."""

from __future__ import annotations

import gzip
import inspect
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dldw.card import Choice, Float
from dldw.compare.probe import unable
from dldw.compare.spec import parse
from dldw.errors import DldwError, UnknownNameError
from dldw.registry import METHODS, method
from dldw.tasks import TASKS, load_task
from dldw.tasks.finetune_tiny import FinetuneTiny
from dldw.tasks.landscapes import FUNCTIONS, Landscape
from dldw.tasks.task import Task, tuned


def idx(array: np.ndarray) -> bytes:
    """The IDX format, written from its description: two zero bytes, type 8, dimensions, big-endian sizes, data."""
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


SEQUENCES = ("duplication", "text", "text-transformer")
"""Tasks whose one shipped setting was chosen by hand."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """240 + 60 images whose class is the row that is lit; half of the files are gzipped."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 240), ("t10k", 60)):
        labels = rng.integers(0, 10, count)
        pixels = rng.integers(0, 40, (count, 28, 28))
        pixels[np.arange(count), 2 * labels + 3] = 255
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, images: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(FinetuneTiny, "pretraining", 12)
    return load_task(request.param, images)


def same(a: object, b: object) -> bool:
    left, right = (x if isinstance(x, tuple) else (x,) for x in (a, b))
    return all(torch.equal(p, q) for p, q in zip(left, right, strict=True))


def test_a_seed_gives_the_same_model_and_leaves_the_global_random_state(task: Task) -> None:
    before = torch.get_rng_state()
    first, again, other = (task.model(seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert all(torch.equal(first[k], other[k]) for k in first) == isinstance(task, FinetuneTiny)  # which is pretrained


def test_a_seed_gives_the_same_batches(task: Task) -> None:
    count = 2 * task.train_examples // task.batch_size + 1
    first, again, other = (list(islice(task.batches(seed), min(count, 30))) for seed in (5, 5, 6))
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    if task.train_examples > 1:  # a function without data has one example, and it says nothing
        assert not all(same(a, b) for a, b in zip(first, other, strict=True))


def test_the_loss_is_one_value_for_each_example(task: Task) -> None:
    assert task.loss(task.model(0), next(task.batches(0))).shape == (task.batch_size,)


def test_evaluation_gives_the_metric_and_keeps_the_mode(task: Task) -> None:
    model = task.model(0).train()
    for split in ("test", "validation"):
        assert {"loss", task.metric} <= task.evaluate(model, split).keys()
    assert model.training


def test_wider_models_have_more_weights_where_the_task_has_a_width(task: Task) -> None:
    own = task.width or 20
    sizes = [sum(p.numel() for p in task.model(0, width).parameters()) for width in (4, own, 600)]
    assert (sizes[0] < sizes[1] < sizes[2]) == (task.width is not None) == (len(set(sizes)) > 1)


def test_a_task_file_has_at_most_80_lines(task: Task) -> None:
    assert len(Path(inspect.getfile(type(task))).read_text().splitlines()) <= 80


def test_shipped_settings_exist_for_every_method_and_lie_in_its_space(task: Task) -> None:
    shipped = tuned(task.name)
    searched = {r["method"] for r in shipped["record"]}
    for name in METHODS:
        if name not in task.settings and name not in searched:
            continue  # dear or unable here, or newer than the search
        assert not unable(task, parse(name))
        if name not in task.settings:  # no trial got anywhere within its budget, and the record says so
            assert [r["score"] for r in shipped["record"] if r["method"] == name] == [None] * shipped["trials"] != []
            continue
        space = method(name).card.space
        for setting, value in task.settings[name].items():
            if setting == "rows":
                assert value in task.rows
                continue
            assert setting in method(name).settings
            if isinstance(space.get(setting), Float):
                assert space[setting].low <= value <= space[setting].high, (name, setting)
            elif isinstance(space.get(setting), Choice):
                assert value in space[setting].options


def test_shipped_settings_are_those_of_the_best_trial(task: Task) -> None:
    for name in {r["method"] for r in tuned(task.name)["record"]}:
        trials = [r for r in tuned(task.name)["record"] if r["method"] == name]
        assert len(trials) == tuned(task.name)["trials"]
        best = max((r for r in trials if r["score"] is not None), key=lambda r: r["score"], default=None)
        if best is None:
            continue
        assert [r for r in trials if r["chosen"]] == [best]
        assert best["settings"] == task.settings[name]


def test_digits_are_split_as_documented() -> None:
    digits = load_task("digits")
    assert (digits.train_examples, digits.test_examples) == (1437, 360)
    assert sum(p.numel() for p in digits.model(0).parameters()) == 64 * 32 + 32 + 32 * 10 + 10
    x, y = digits.train
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    for labels in (y, digits.splits["test"][1], digits.splits["validation"][1]):
        shares = torch.bincount(labels) / len(labels)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_tuning_never_sees_the_validation_split() -> None:
    digits = load_task("digits")
    held = {tuple(row) for row in digits.splits["validation"][0].tolist()}
    seen = {tuple(row) for x, _ in islice(digits.batches(0, tuning=True), 60) for row in x.tolist()}
    normally = {tuple(row) for x, _ in islice(digits.batches(0), 60) for row in x.tolist()}
    assert not held & seen
    assert len(held & normally) > 200


def test_an_epoch_shows_no_example_twice() -> None:
    digits = load_task("digits")
    rows = [tuple(row) for x, _ in islice(digits.batches(0), 1437 // 128) for row in x.tolist()]
    assert len(set(rows)) == len(rows) == 1437 // 128 * 128


def test_hidden_weights_of_step_digits_get_a_gradient_of_exactly_zero() -> None:
    task = load_task("step-digits")
    model = task.model(0)
    task.loss(model, next(task.batches(0))).mean().backward()
    hidden, last = model[0], model[2]
    assert hidden.weight.grad.count_nonzero() == hidden.bias.grad.count_nonzero() == 0
    assert last.weight.grad.count_nonzero() > 0


def test_the_quadratic_is_what_its_closed_form_says() -> None:
    task = load_task("quadratic")
    model, x = task.model(0).double(), next(task.batches(0)).double()
    task.curvature = lambda d: torch.logspace(-1, 0, d, dtype=torch.float64)
    w = model.w
    task.loss(model, x).mean().backward()
    a = 10 ** torch.linspace(-1, 0, 32, dtype=torch.float64)
    assert torch.allclose(w.grad, a * (w - x[:, :32].mean(0)), atol=1e-12)
    with torch.no_grad():
        w.fill_(1.0)
        assert task.evaluate(model) == {"loss": 0.0}
        w.fill_(3.0)
        assert task.evaluate(model)["loss"] == pytest.approx(2 * float(a.sum()))


def test_images_are_read_from_idx_files_plain_or_gzipped(images: Path) -> None:
    task = load_task("fashion-mnist", images)
    assert (task.train_examples, task.test_examples) == (240, 60)
    x, y = next(task.batches(0))
    assert x.shape == (128, 1, 28, 28)
    assert x.max() == 1.0
    assert torch.equal(x[torch.arange(128), 0, 2 * y + 3, 0], torch.ones(128))


def test_the_directory_of_the_images_may_come_from_the_environment(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLDW_DATA", str(images))
    assert load_task("fashion-mnist").train_examples == 240


def test_backprop_learns_the_images(images: Path) -> None:
    from dldw.compare.spec import parse
    from dldw.compare.train import train

    curve = train(load_task("fashion-mnist", images), parse("backprop"), {"lr": 0.3}, 0, forwards=240)
    assert curve.points[-1]["accuracy"] > 0.9


def test_without_a_directory_it_says_where_to_get_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DLDW_DATA", raising=False)
    with pytest.raises(DldwError, match=r"told of no directory.*github.com/zalandoresearch.*--data or DLDW_DATA"):
        load_task("fashion-mnist")


@pytest.mark.parametrize(
    ("name", "spoil", "text"),
    [
        ("t10k-labels-idx1-ubyte", None, r"has no file t10k-labels-idx1-ubyte or .*--data"),
        (
            "t10k-labels-idx1-ubyte",
            lambda b: b[:-5],
            r"is torn: its header promises 60 = 60 bytes of data, and 55 follow",
        ),
        ("t10k-labels-idx1-ubyte", lambda b: b"<html>", r"is no IDX file.*3c 68 74 6d, not 00 00 08 01.*Fetch"),
        ("t10k-labels-idx1-ubyte", lambda b: b"", r"is no IDX file.*starts with nothing"),
        (
            "train-images-idx3-ubyte.gz",
            lambda b: b[: len(b) // 2],
            r"cannot be unpacked.*cut off. Fetch the file again",
        ),
        ("train-labels-idx1-ubyte", lambda b: idx(np.arange(7)), r"240 images of 28 x 28 and .* 7 labels.*Fetch both"),
    ],
)
def test_bad_image_files_are_named_with_what_is_wrong(images: Path, name: str, spoil: object, text: str) -> None:
    file = images / name
    content = file.read_bytes()
    file.unlink()
    if callable(spoil):
        file.write_bytes(spoil(content))
    with pytest.raises(DldwError, match=text):
        load_task("fashion-mnist", images)


USER_TASK = """
import torch
from torch import nn
from dldw.tasks.task import Task, seeded

class Mine(Task):
    name, summary, metric, target = "mine", "A line through points.", "loss", 0.01
    batch_size, train_examples, test_examples = 8, 8, 8
    def model(self, seed, width=None):
        return seeded(seed, lambda: nn.Linear(1, 1))
    def loss(self, model, batch):
        return (model(batch) - 3 * batch).square().squeeze(1)
    def batches(self, seed, tuning=False):
        while True:
            yield torch.linspace(-1, 1, 8).unsqueeze(1)
    def evaluate(self, model, split="test"):
        with torch.no_grad():
            return {"loss": float(self.loss(model, next(self.batches(0))).mean())}

class Bare(Mine):
    name = property()
    def __init__(self):
        values = [1, 2]
        self.target = values[2]
"""


def test_a_task_of_the_users_own_is_loaded_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_TASK)
    task = load_task(f"{tmp_path / 'mine.py'}:Mine")
    assert task.evaluate(task.model(0))["loss"] > 0
    assert task.settings == {}


def test_a_name_that_is_not_in_the_file_gets_its_list_and_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_TASK)
    with pytest.raises(UnknownNameError, match=r"no task 'Mime'.*Did you mean 'Mine'\? Known: Mine, Bare"):
        load_task(f"{tmp_path / 'mine.py'}:Mime")


def test_a_constructor_that_raises_is_named_with_file_line_and_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USER_TASK)
    line = USER_TASK.splitlines().index("        self.target = values[2]") + 1
    with pytest.raises(DldwError, match=rf"{file}, line {line}, raised IndexError: list index out of range"):
        load_task(f"{file}:Bare")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\ny = 1 / 0\n", r"line 2, raised ZeroDivisionError: division by zero"),
        ("def f(:\n", r"line 1 raised SyntaxError"),
    ],
)
def test_a_file_that_raises_is_named_with_line_and_error(tmp_path: Path, text: str, found: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(DldwError, match=rf"{file}:Mine cannot be loaded: {file}, {found}"):
        load_task(f"{file}:Mine")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DldwError, match=r"there is no file .*/nothing.py. Give it as path/to/file.py:Name"):
        load_task(f"{tmp_path}/nothing.py:Mine")


def test_a_class_that_is_no_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("class Other: ...\n")
    with pytest.raises(DldwError, match=r"is no task: Other does not derive from dldw.tasks.task.Task"):
        load_task(f"{tmp_path / 'other.py'}:Other")


def test_a_task_that_says_too_little_of_itself_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "terse.py").write_text(
        USER_TASK.replace(', summary, metric, target = "mine", "A line through points.", "loss", 0.01', ' = "mine"')
    )
    with pytest.raises(DldwError, match=r"lacks summary, target: set it on the class"):
        load_task(f"{tmp_path / 'terse.py'}:Mine")


def test_an_unknown_task_gets_the_list_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no task 'digit'. Did you mean 'digits'\? Known: digits, digits-wide"):
        load_task("digit")


# --- functions -------------------------------------------------------------------------------------------------------


def by_hand(name: str, z: np.ndarray) -> float:
    """The textbook's formula for one point, in plain Python; Rosenbrock's minimum is moved from 1 to 0."""
    if name == "sphere":
        return sum(c**2 for c in z)
    if name == "ellipsoid":
        return sum(10 ** (6 * j / (len(z) - 1)) * c**2 for j, c in enumerate(z))
    if name == "rosenbrock":
        z = [c + 1 for c in z]
        return sum(100 * (b - a**2) ** 2 + (1 - a) ** 2 for a, b in pairwise(z))
    return 10 * len(z) + sum(c**2 - 10 * np.cos(2 * np.pi * c) for c in z)


@pytest.mark.parametrize("d", [2, 10, 1000])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_the_textbooks_rotated_and_shifted(name: str, d: int) -> None:
    function = Landscape(name, d, seed=4)
    points = torch.randn(3, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = function.rotation.numpy()
    assert np.allclose(rotation @ rotation.T, np.eye(d), atol=1e-12)
    wanted = [by_hand(name, (x - function.optimum.numpy()) @ rotation) for x in points.numpy()]
    assert np.allclose(function(points).numpy(), wanted, rtol=1e-10)
    assert float(function(function.optimum)) == pytest.approx(0, abs=1e-12)
    assert function.optimum.abs().max() > 0.5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_task_of_a_function_has_the_function_as_its_loss_and_backprop_descends_it(name: str) -> None:
    task = load_task(name)
    model = task.model(1)
    start = task.evaluate(model)["loss"]
    assert float(task.loss(model, next(task.batches(0))).detach().mean()) == pytest.approx(start, rel=1e-12)
    w = next(model.parameters())
    assert w.shape == (10,)
    assert start == pytest.approx(float(Landscape(name, 10)(w.detach())), rel=1e-12)
    learner = method("backprop").build(model, task.loss, lr=1e-7)
    learner.step(next(task.batches(0)))
    assert task.evaluate(model)["loss"] < start


def test_a_swarm_solves_the_sphere_task_to_its_target() -> None:
    task = load_task("sphere")
    model = task.model(0)
    learner = method("particle-swarm").build(model, task.loss, torch.Generator().manual_seed(0))
    for _ in range(400):
        learner.step(next(task.batches(0)))
    assert task.evaluate(model)["loss"] < task.target


def test_the_pseudo_likelihood_of_digits_is_that_of_each_pixel_given_all_others() -> None:
    task = load_task("rbm-digits")
    rbm, v = task.model(0).double(), next(task.batches(0))[:3].double()
    with torch.no_grad():
        for p in rbm.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel()))
        wanted = torch.zeros(3, dtype=torch.float64)
        for i in range(64):
            other = v.clone()
            other[:, i] = 1 - other[:, i]
            here, there = torch.exp(-rbm.free_energy(v)), torch.exp(-rbm.free_energy(other))
            wanted -= torch.log(here / (here + there))
        assert torch.allclose(task.loss(rbm, v), wanted)


def test_digits_of_a_machine_are_judged_by_its_likelihood_and_features() -> None:
    task = load_task("rbm-digits")
    rbm = task.model(0)
    assert set(task.images.unique().tolist()) == {0.0, 1.0}
    figures = task.evaluate(rbm)
    assert figures["log-likelihood"] == pytest.approx(rbm.log_likelihood(task.splits["test"][0]).mean)
    assert figures["log-likelihood"] == pytest.approx(-64 * np.log(2), rel=0.01)
    learner = method("contrastive-divergence").build(
        rbm, task.loss, torch.Generator().manual_seed(0), **task.settings["contrastive-divergence"]
    )
    for batch in islice(task.batches(0), 1000):
        learner.step(batch)
    better = task.evaluate(rbm)
    assert better["log-likelihood"] > task.target
    assert better["accuracy"] > 0.7
    assert better["reconstruction"] < figures["reconstruction"] / 2


def test_two_bars_are_fourteen_images_and_no_density_gives_them_more_than_their_share() -> None:
    task = load_task("two-bars")
    assert len(task.images) == 14
    grid = task.images.view(14, 3, 3)
    rows, columns = (grid == grid[:, :, :1]).flatten(1).all(1), (grid == grid[:, :1]).flatten(1).all(1)
    assert (rows | columns).all()
    assert task.lowest == pytest.approx(np.log(14))
    rbm = task.model(0)
    assert task.evaluate(rbm)["loss"] == pytest.approx(9 * np.log(2), rel=0.01)
    assert task.loss(rbm, task.images).mean().item() == pytest.approx(-rbm.log_likelihood(task.images).mean, rel=1e-5)
