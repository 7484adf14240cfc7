"""A swarm on the loss of a network of two weights, drawn as an animation.

    pip install dldw pillow
    python examples/swarm_landscape.py [--searcher particle-swarm] [--out swarm.gif]

The network is y = tanh(a x) + tanh(b x), and what it has to learn is made with a = 3, b = -1: swapping the two weights
changes nothing, so the landscape has two minima. Every dot is a candidate, the ring is the best so far.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import dldw

LOW, HIGH, SIZE = -5.0, 5.0, 400
INPUTS = torch.linspace(-2, 2, 64)


def loss(weights: torch.Tensor) -> torch.Tensor:
    """The mean squared error of networks with weights [n, 2]: [n]."""
    outputs = torch.tanh(INPUTS * weights[:, :1]) + torch.tanh(INPUTS * weights[:, 1:])
    return (outputs - torch.tanh(3 * INPUTS) - torch.tanh(-INPUTS)).square().mean(1)


def landscape() -> Image.Image:
    """The loss as shades of blue, in steps that read as contour lines."""
    axis = torch.linspace(LOW, HIGH, SIZE)
    grid = torch.cartesian_prod(axis, axis)
    height = loss(grid).reshape(SIZE, SIZE).T.flip(0).sqrt().numpy()
    shade = np.floor(12 * height / height.max()) / 12
    dark, light = np.array([20, 40, 90]), np.array([225, 238, 248])
    return Image.fromarray((dark + shade[..., None] * (light - dark)).astype(np.uint8))


def frame(background: Image.Image, candidates: torch.Tensor, best: torch.Tensor) -> Image.Image:
    """One picture of the candidates [n, 2] on the landscape."""
    picture = background.copy()
    draw = ImageDraw.Draw(picture)
    for at, radius, colour in [*((c, 3, "orange") for c in candidates), (best, 7, None)]:
        x, y = ((at - LOW) / (HIGH - LOW) * SIZE).tolist()
        box = (x - radius, SIZE - y - radius, x + radius, SIZE - y + radius)
        draw.ellipse(box, fill=colour, outline="white" if colour is None else "black", width=2 if colour is None else 1)
    return picture


def main() -> None:
    """Searches, and writes the animation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searcher", default="particle-swarm", help="see dldw methods")
    parser.add_argument("--generations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("swarm.gif"))
    arguments = parser.parse_args()
    searcher = dldw.methods()[arguments.searcher].factory(generator=torch.Generator().manual_seed(arguments.seed))
    background, frames = landscape(), []
    searcher.reset(torch.tensor([-3.5, -3.5]))
    for generation in range(arguments.generations):
        candidates = searcher.ask()
        searcher.tell(loss(candidates))
        frames.append(frame(background, candidates, searcher.best[0]))
        if generation % 10 == 9:
            print(f"generation {generation + 1:3d}  loss {searcher.best[1]:.2e}")
    frames[0].save(arguments.out, save_all=True, append_images=frames[1:], duration=120, loop=0)
    print(f"{arguments.out}: weights {[round(w, 3) for w in searcher.best[0].tolist()]}")


if __name__ == "__main__":
    main()
