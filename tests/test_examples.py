"""The examples run, and what they print and draw is what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

import dldw
from tests.harness import environment

EXAMPLES = Path(__file__).parents[1] / "examples"


def ran(name: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout


def test_a_swarm_is_drawn_with_one_picture_for_each_generation(tmp_path: Path) -> None:
    said = ran("swarm_landscape.py", "--generations", 40, "--out", tmp_path / "swarm.gif")
    with Image.open(tmp_path / "swarm.gif") as picture:
        assert picture.n_frames == 40
        assert picture.size == (400, 400)
    found = sorted(float(w) for w in re.findall(r"-?\d+\.\d+", said.rpartition("weights")[2]))
    assert [round(w) for w in found] == [-1, 3]


def test_ten_hyperparameters_are_found_by_cma_es_with_a_log_that_replays(tmp_path: Path) -> None:
    said = ran("sklearn_hyperparameters.py", "--budget", 11, "--log", tmp_path / "run.jsonl")
    middle, after = (float(e) for e in re.findall(r"error (\d\.\d+)", said))
    assert after <= middle
    assert "after 11 evaluations" in said
    again = dldw.replay_search(tmp_path / "run.jsonl", dldw.CMAES(sigma=0.5))
    assert again.evaluations == 11
    assert round(again.loss, 4) == after


def test_a_sigma_that_drowns_in_bfloat16_is_told_from_the_one_that_is_recommended() -> None:
    said = ran("choose_sigma.py", "--steps", 60)
    single, brain = said.split("--- torch.bfloat16")
    chosen = [float(re.findall(r"(\S+) +\S+  recommended", part)[0]) for part in (single, brain)]
    assert 1e-4 < chosen[0] < 1e-2 < chosen[1] < 0.2
    losses = [[float(value) for value in re.findall(r"loss (\d+\.\d+)", part)] for part in (single, brain)]
    assert max(losses[0]) < 1.1 * min(losses[0])
    assert losses[1][0] > 2 * losses[1][2]


def test_a_custom_op_without_a_term_of_its_derivative_is_found_and_the_right_one_passes() -> None:
    said = ran("check_custom_op.py", "--python")
    wrong, right = said.split("--- backward pass")[1:]
    assert said.startswith("the operation is a torch.library custom op")
    assert "2 of 3 tensors wrong" in wrong
    assert re.search(r"gain +8 .* right", wrong)
    assert re.search(r"layer\.weight +8x6 .* wrong", wrong)
    assert "right: the gradient agrees" in right
