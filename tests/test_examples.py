"""The examples run, and what they print and draw is what they say."""

from __future__ import annotations

import re
import struct
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


def test_three_mistakes_in_a_backward_pass_are_found_where_they_are() -> None:
    said = ran("wrong_backward.py")
    column, product, total, none = said.split("--- mistake: ")[1:]
    assert "w: wrong in column [:, 15].\n  It looks zero." in column
    assert re.findall(r"^  (\S+) .* wrong ", product, re.M) == ["v", "embed.weight", "embed.bias"]
    assert "likely cause: all that is used up to embed.bias is wrong, and nothing from w on" in total
    assert none.startswith("none\nright: ")


def test_a_custom_op_without_a_term_of_its_derivative_is_found_and_the_right_one_passes() -> None:
    said = ran("check_custom_op.py", "--python")
    wrong, right = said.split("--- backward pass")[1:]
    assert said.startswith("the operation is a torch.library custom op")
    assert "2 of 3 tensors wrong" in wrong
    assert re.search(r"gain +8 .* right", wrong)
    assert re.search(r"layer\.weight +8x6 .* wrong", wrong)
    assert "right: the gradient agrees" in right


def test_pipelines_of_scikit_learn_learn_the_shifted_digits() -> None:
    said = ran("sklearn_pipeline.py", "--rows", 500, "--components", 80, "--passes", 12, "--forwards", 1500)
    scores = {name.strip(): float(score) for name, score in re.findall(r"^(.*\S) +(\d+\.\d) %$", said, re.MULTILINE)}
    assert len(scores) == 4
    assert scores["pixels, perceptron"] > 75
    assert scores["RBM features, perceptron"] > 65
    assert scores["pixels, network by backprop"] > 85
    assert scores["pixels, network by node perturbation"] > 60


def test_five_rules_train_one_network_and_their_curves_are_drawn(tmp_path: Path) -> None:
    said = ran("five_rules.py", "--forwards", 600, "--out", tmp_path / "curves.png")
    ends = {name: float(score) for name, score in re.findall(r"^(\S+) +(\d+\.\d) % after", said, re.MULTILINE)}
    assert list(ends) == ["backprop", "mono-forward", "feedback-alignment", "node-perturbation", "spsa"]
    assert ends["backprop"] > 80
    assert ends["backprop"] > ends["spsa"]
    assert min(ends["mono-forward"], ends["feedback-alignment"]) > 50
    with Image.open(tmp_path / "curves.png") as picture:
        colours = {colour for count, colour in picture.getcolors(1 << 16) if count > 20}
    assert {(31, 32, 35), (184, 58, 5), (41, 122, 220), (0, 109, 73), (148, 80, 134)} <= colours  # all five curves


def test_five_rules_train_on_images_of_a_directory_too(tmp_path: Path) -> None:
    idx_files(tmp_path)
    said = ran("five_rules.py", "--data", tmp_path, "--forwards", 60, "--out", tmp_path / "curves.png")
    assert said.count("after 60 forward passes") >= 3


def idx_files(directory: Path) -> None:
    """The four files of a set of 28 x 28 images in ten classes: 256 to train, 64 to test."""
    for split, count in (("train", 256), ("t10k", 64)):
        labels = [i % 10 for i in range(count)]
        images = b"".join(bytes([25 * label]) * 784 for label in labels)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (directory / f"{split}-images-idx3-ubyte").write_bytes(header + images)
        (directory / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(labels))
