"""``dldw.minimize`` and the log that ``dldw.replay_search`` reads."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch

import dldw
from tests.contract.variants import SEARCHERS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sphere(x: torch.Tensor) -> torch.Tensor:
    return (x - 1).square().sum(-1)


def test_the_minimum_is_found_within_the_budget_and_its_loss_is_that_of_its_point():
    seen = []

    def function(x):
        seen.append(len(x))
        return sphere(x)

    found = dldw.minimize(function, torch.zeros(3), dldw.ParticleSwarm(particles=16, generator=seeded()), 1000)
    assert found.loss == float(sphere(found.x)) < 1e-3
    assert found.evaluations == sum(seen) == 1 + 62 * 16 <= 1000
    assert (found.generations, found.stop) == (62, "budget")


def test_the_start_point_is_evaluated_and_kept_when_nothing_is_better():
    found = dldw.minimize(sphere, [1.0, 1.0], dldw.RandomSearch(generator=seeded()), 100)
    assert found.loss == 0
    assert torch.equal(found.x, torch.ones(2, dtype=torch.float64))


def test_one_point_at_a_time_gives_the_same_minimum():
    batched, single = (
        dldw.minimize(f, [0.0, 0.0], dldw.DifferentialEvolution(generator=seeded()), 500, batched=b)
        for f, b in ((sphere, True), (lambda x: float(sphere(x)), False))
    )
    assert torch.equal(batched.x, single.x)
    assert batched.loss == single.loss


def test_a_function_may_return_a_list():
    assert dldw.minimize(lambda x: sphere(x).tolist(), [0.0], dldw.ParticleSwarm(generator=seeded()), 500).loss < 0.01


def test_callback_sees_every_generation_and_ends_the_search_with_true():
    seen = []

    def callback(now):
        seen.append(now)
        return now.generations == 4

    found = dldw.minimize(sphere, [0.0, 0.0], dldw.ParticleSwarm(generator=seeded()), 1000, callback=callback)
    assert [now.generations for now in seen] == [1, 2, 3, 4]
    assert [now.evaluations for now in seen] == [33, 65, 97, 129]
    assert all(b.loss <= a.loss for a, b in pairwise(seen))
    assert found.stop == "callback"
    assert found.loss == seen[-1].loss


class Tired(dldw.RandomSearch):
    """Stops after three generations."""

    def stop(self):
        return {"tired": 3, "bored": 1} if self._told >= 3 else {}


def test_the_searchers_own_reasons_end_the_search():
    found = dldw.minimize(sphere, [0.0], Tired(generator=seeded()), 1000)
    assert (found.generations, found.stop) == (3, "tired, bored")


@pytest.mark.parametrize(("name", "settings"), SEARCHERS, ids=str)
def test_a_log_replays_to_the_same_best_without_the_function(name, settings, tmp_path):
    def function(x):
        return torch.where(x[:, 0] > 1.5, torch.nan, sphere(x))

    make = dldw.methods()[name].factory
    generator = seeded(3)
    torch.randn(7, generator=generator)  # a generator that has been used before
    run = make(generator=generator, **settings)
    found = dldw.minimize(function, [0.3, -0.4], run, 700, log=tmp_path / "run.jsonl")
    other = make(**settings)
    again = dldw.replay_search(tmp_path / "run.jsonl", other)
    assert torch.equal(again.x, found.x)
    assert (again.loss, again.evaluations, again.generations) == (found.loss, found.evaluations, found.generations)
    if run.waiting is None:
        run.ask()
    assert torch.equal(other.ask(), run.waiting[:])


def test_a_log_is_json_lines_flushed_with_every_generation(tmp_path):
    log = tmp_path / "run.jsonl"
    lengths = []

    def callback(now):
        lengths.append(len(log.read_text().splitlines()))

    searcher = dldw.RandomSearch(population=5, generator=seeded())
    dldw.minimize(lambda x: x.sum(1).log(), [0.5], searcher, 26, callback=callback, log=log)
    assert lengths == [3, 4, 5, 6, 7]  # the header and the start point come first
    header, start, *generations = [
        json.loads(line, parse_constant=pytest.fail) for line in log.read_text().splitlines()
    ]
    assert header["searcher"] == "RandomSearch"
    assert start == {"losses": [math.log(0.5)]}
    assert [len(g["losses"]) for g in generations] == [5] * 5
    assert any(loss is None for g in generations for loss in g["losses"])


def test_a_log_whose_last_line_is_torn_replays_up_to_there(tmp_path):
    log = tmp_path / "run.jsonl"
    bests = []
    dldw.minimize(
        sphere, [0.0, 0.0], dldw.ParticleSwarm(generator=seeded()), 500, callback=lambda now: bests.append(now), log=log
    )
    log.write_bytes(log.read_bytes()[:-30])
    again = dldw.replay_search(log, dldw.ParticleSwarm())
    assert again.generations == len(bests) - 1
    assert again.loss == bests[-2].loss
    assert torch.equal(again.x, bests[-2].x)


def test_float32_starts_replay_in_float32(tmp_path):
    found = dldw.minimize(
        sphere, torch.full((2,), 0.1), dldw.ParticleSwarm(generator=seeded()), 300, log=tmp_path / "run.jsonl"
    )
    again = dldw.replay_search(tmp_path / "run.jsonl", dldw.ParticleSwarm())
    assert found.x.dtype == again.x.dtype == torch.float32
    assert torch.equal(found.x, again.x)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing\n",
        '{"kind": "other"}\n',
        "[1]\n",
        '{"kind": "minimize", "format": 1}\n',
        '{"kind": "minimize", "format": 99}\n',
    ],
)
def test_a_file_that_is_no_log_is_an_error(tmp_path, text):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(
        dldw.DldwError, match=r"run\.jsonl is no log of dldw\.minimize, or one of another version of it"
    ):
        dldw.replay_search(tmp_path / "run.jsonl", dldw.ParticleSwarm())


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda: dldw.RandomSearch(), "another searcher: searcher there ParticleSwarm, here RandomSearch"),
        (
            lambda: dldw.ParticleSwarm(inertia=0.5),
            "another searcher: settings there .* Build the searcher as it was built",
        ),
    ],
)
def test_replaying_with_another_searcher_is_an_error(tmp_path, other, text):
    dldw.minimize(sphere, [0.0], dldw.ParticleSwarm(generator=seeded()), 100, log=tmp_path / "run.jsonl")
    with pytest.raises(dldw.DldwError, match=text):
        dldw.replay_search(tmp_path / "run.jsonl", other())


def test_a_log_with_a_missing_loss_is_an_error(tmp_path):
    log = tmp_path / "run.jsonl"
    dldw.minimize(sphere, [0.0], dldw.ParticleSwarm(particles=4, generator=seeded()), 20, log=log)
    lines = log.read_text().splitlines()
    lines[3] = '{"losses": [1.0]}'
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(dldw.DldwError, match="is damaged: 1 losses where the searcher asks for 4"):
        dldw.replay_search(log, dldw.ParticleSwarm(particles=4))


def test_a_budget_too_small_for_one_generation_is_an_error():
    with pytest.raises(dldw.DldwError, match=r"a budget of 16 .* the start point and one generation of 16 candidates"):
        dldw.minimize(sphere, [0.0], dldw.ParticleSwarm(particles=16), 16)


@pytest.mark.parametrize("values", [lambda x: x, lambda x: x.sum(), lambda x: x.sum(0)])
def test_a_function_of_a_wrong_shape_is_an_error(values):
    with pytest.raises(dldw.DldwError, match=r"one loss for each of the 1 points \[n\], got shape .* batched=False"):
        dldw.minimize(values, [0.0, 1.0, 2.0], dldw.ParticleSwarm(), 100)


def test_losses_that_are_all_nan_are_an_error_that_says_so():
    with pytest.raises(
        dldw.DldwError, match=r"all 33 losses so far are NaN or infinite, .* lower the searcher's sigma"
    ):
        dldw.minimize(lambda x: x.sum(1) * torch.nan, [0.0], dldw.ParticleSwarm(), 100)


def test_a_start_that_is_no_vector_of_floats_is_an_error():
    with pytest.raises(dldw.DldwError, match=r"floating-point vector \[d\], got torch\.int64"):
        dldw.minimize(sphere, torch.zeros(2, dtype=torch.int64), dldw.ParticleSwarm(), 100)
