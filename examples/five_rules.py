"""The same convolutional network trained by five rules, and their curves as a picture.

    pip install 'dldw[compare,rl]'
    python examples/five_rules.py [--data DIR] [--forwards 6000] [--out five_rules.png]

Digits of 8 x 8 by default; with --data, the four IDX files of Fashion-MNIST or MNIST (Debian: dataset-fashion-mnist). Every
rule begins at the same weights, sees the same batches and may spend the same number of forward passes, a backward pass
counting as two.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

import dldw
from dldw.tasks import load_task
from dldw.tasks.classification import Classification

RULES = {
    "backprop": {"lr": 3e-3, "optimizer": "adam"},
    "mono-forward": {"lr": 3e-3},
    "feedback-alignment": {"mode": "direct", "lr": 3e-3, "optimizer": "adam"},
    "node-perturbation": {"lr": 3e-3, "optimizer": "adam"},
    "spsa": {"directions": 8, "lr": 3e-3, "optimizer": "adam"},
}
COLOURS = ("#1f2023", "#b83a05", "#297adc", "#006d49", "#945086")
WIDTH, HEIGHT, LEFT, TOP = 640, 400, 52, 16


def network(pixels: int, channels: int = 8) -> nn.Sequential:
    """Two convolutions with a stride of 2, and a linear layer to ten classes; takes images [B, pixels²] or [B, 1, .., ..]."""
    side = math.ceil(math.ceil(pixels / 2) / 2)
    return nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (1, pixels, pixels)),
        nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * channels * side * side, 10),
    )  # fmt: skip


def curve(task: Classification, rule: str, forwards: float, seed: int) -> list[tuple[float, float]]:
    """Test accuracy against forward passes spent."""
    torch.manual_seed(seed)
    model = network(math.isqrt(task.train[0][0].numel()))
    method = dldw.methods()[rule]
    learner = method.build(model, task.loss, torch.Generator().manual_seed(seed), **RULES[rule])
    weights = sum(p.numel() for p in model.parameters())
    unit = method.card.count_forwards({**method.settings, **RULES[rule]}, weights)
    batches, points, step = task.batches(seed), [(0.0, task.evaluate(model)["accuracy"])], 0
    while (step + 1) * unit <= forwards:
        learner.step(next(batches))
        step += 1
        if step * unit >= 1.15 * points[-1][0] or (step + 1) * unit > forwards:
            points.append((step * unit, task.evaluate(model)["accuracy"]))
    return points


def picture(curves: dict[str, list[tuple[float, float]]]) -> Image.Image:
    """The curves on one pair of axes: accuracy from 0 to 100 %, forward passes on a logarithmic scale."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    first = min(points[1][0] for points in curves.values())
    last = max(points[-1][0] for points in curves.values())
    right, bottom = WIDTH - 190, HEIGHT - 36

    def at(forwards: float, accuracy: float) -> tuple[float, float]:
        along = math.log(max(forwards, first) / first) / math.log(last / first)
        return LEFT + along * (right - LEFT), bottom - accuracy * (bottom - TOP)

    for share in (0, 0.25, 0.5, 0.75, 1):
        draw.line([at(first, share), at(last, share)], fill="#dddddd")
        draw.text((8, at(first, share)[1] - 6), f"{100 * share:.0f} %", fill="black")
    for power in range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1):
        draw.text((at(10.0**power, 0)[0] - 10, bottom + 4), f"{10**power:,}", fill="black")
    draw.text((LEFT, HEIGHT - 16), "forward passes spent; up: test accuracy", fill="black")
    for number, ((rule, points), colour) in enumerate(zip(curves.items(), COLOURS, strict=True)):
        draw.line([at(*p) for p in points[1:]], fill=colour, width=2)
        draw.text((right + 12, TOP + 18 * number), f"{100 * points[-1][1]:5.1f} %  {rule}", fill=colour)
    return image


def main(arguments: list[str] | None = None) -> dict[str, list[tuple[float, float]]]:
    """Trains by every rule, prints where it ends, draws the curves and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of the four IDX files; digits where there is none")
    parser.add_argument("--forwards", type=float, default=6000, help="what each rule may spend, in forward passes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("five_rules.png"))
    a = parser.parse_args(arguments)
    task = load_task("fashion-mnist" if a.data else "digits", a.data)
    curves = {}
    for rule in RULES:
        curves[rule] = curve(task, rule, a.forwards, a.seed)
        forwards, accuracy = curves[rule][-1]
        print(f"{rule:20s} {100 * accuracy:5.1f} % after {forwards:,.0f} forward passes")
    picture(curves).save(a.out)
    print(f"{a.out}: test accuracy against forward passes")
    return curves


if __name__ == "__main__":
    main()
