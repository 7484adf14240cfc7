"""A Boltzmann machine fills in the missing half of digits that it has not seen.

    pip install 'dldw[compare,rl]'
    python examples/fill_in_digits.py [--epochs 60] [--hidden 128] [--seed 0] [--out digits.png]

It learns the density of 8 x 8 digits without labels. Then the lower half of test digits is taken away (NaN), and Gibbs
sampling with the upper half held fixed gives what belongs there: a sample, and the mean of many. The picture has four rows:
digits, what is left of them, one sample, the mean. The error is compared with that of the mean training digit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

import dldw
from dldw.tasks.digits import Digits


def train(images: Tensor, hidden: int, epochs: int, seed: int) -> dldw.nn.RBM:
    """A machine that has learnt from the images."""
    torch.manual_seed(seed)
    rbm = dldw.nn.RBM(images.shape[1], hidden)
    dldw.nn.stack([rbm]).pretrain(
        images,
        epochs=epochs,
        batch_size=50,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        progress=track,
        generator=torch.Generator().manual_seed(seed),
    )
    return rbm


def picture(rows: list[Tensor], size: int = 8, scale: int = 6) -> Image.Image:
    """Rows of images [n, 64], one below the other; a missing pixel is grey."""
    lines = [
        torch.cat([torch.nn.functional.pad(i.view(size, size), (1, 1, 1, 1), value=1.0) for i in row], 1)
        for row in rows
    ]
    pixels = (255 * torch.cat(lines).nan_to_num(0.5)).round().byte()
    return Image.fromarray(pixels.numpy()).resize(
        (scale * pixels.shape[1], scale * pixels.shape[0]), Image.Resampling.NEAREST
    )


def main(arguments: list[str] | None = None) -> float:
    """Trains, fills in, draws; returns the error over that of the mean digit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    a = parser.parse_args(arguments)
    digits = Digits()
    images, unseen = digits.train[0], digits.splits["test"][0]
    rbm = train(images, a.hidden, a.epochs, a.seed)
    holes = unseen.clone()
    holes[:, 32:] = torch.nan
    generator = torch.Generator().manual_seed(a.seed)
    drawn = rbm.sample(len(holes), steps=100, clamp=holes, generator=generator)
    filled = rbm.fill(holes, generator=generator)
    error = (filled - unseen)[:, 32:].square().mean().sqrt()
    plain = (images.mean(0) - unseen)[:, 32:].square().mean().sqrt()
    picture([x[:16] for x in (unseen, holes, drawn, filled)]).save(a.out)
    print(f"error of a filled-in pixel {error:.3f}, of the mean digit {plain:.3f} (0 is black, 1 white)")
    print(f"{a.out}: digits, what is left of them, one sample, the mean of many")
    return float(error / plain)


if __name__ == "__main__":
    main()
