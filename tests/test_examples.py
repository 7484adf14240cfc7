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
