"""Images of what a model has learnt: recorded by the comparison, drawn by the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dldw.nn.rbm import RBM

STEPS = (0, 1, 2, 5, 10, 50, 200, 1000)
"""Steps of Gibbs sampling after which chains are looked at."""
CHAINS = 100
"""Chains that figures are taken over; some of them are shown."""


@dataclass(frozen=True)
class Picture:
    """Images of one size, in rows and columns.

    Attributes:
        name: What they are: ``filters``, ``samples``, ``chains`` or ``occluded``.
        pixels: Whole numbers from 0 to 255, [rows, columns, height, width].
        rows: A caption for each row; empty for none.
        columns: A caption for each column; empty for none.
        signed: Whether 128 stands for zero.
        figures: What was measured of them, by name.
    """

    name: str
    pixels: Tensor
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    signed: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def pictures_of(rbm: RBM, images: Tensor, generator: torch.Generator, side: int = 8) -> list[Picture]:
    """Filters, samples, chains over time and occluded images filled in, of a machine of ``side`` x ``side`` units.

    Args:
        rbm: The machine.
        images: Unseen ones in 0..1, [n, side²], 100 at least; the first ten are shown.
        generator: What the chains draw from.
        side: Height and width of an image.
    """
    return [
        _filters(rbm, side),
        _samples(rbm, images, generator, side),
        _chains(rbm, images[:CHAINS], generator, side),
        _occluded(rbm, images, generator, side),
    ]


def _filters(rbm: RBM, side: int, across: int = 4) -> Picture:
    """The weights of the hidden units, each unit's as an image."""
    largest = float(rbm.weight.abs().max())
    shown = rbm.weight[: len(rbm.weight) // across * across] / (largest or 1.0)
    pixels = (128 + 127 * shown).view(-1, across, side, side)
    return Picture("filters", _whole(pixels), signed=True, figures={"largest weight": largest})


def _samples(rbm: RBM, images: Tensor, generator: torch.Generator, side: int) -> Picture:
    """What chains that began anywhere have come to, below images that are real."""
    start = torch.rand(30, rbm.visible, generator=generator).round_()
    drawn = next(islice(rbm.gibbs(start, generator=generator), STEPS[-1] - 1, None))[0]
    rows = torch.cat([images[:10], drawn]).view(4, 10, side, side)
    return Picture("samples", _whole(255 * rows), ("digits", f"samples, after {STEPS[-1]:,} steps", "", ""))


def _chains(rbm: RBM, images: Tensor, generator: torch.Generator, side: int, shown: int = 5) -> Picture:
    """Chains that begin at real images, and how much of them is left as time goes on."""
    means = [images, *(mean for mean, _ in islice(rbm.gibbs(images, generator=generator), STEPS[-1]))]
    usual = images.mean(0)
    first = images - usual
    figures = {
        f"left after {step}": float((first * (means[step] - usual)).sum() / first.square().sum()) for step in STEPS[1:]
    }
    seen = torch.stack([means[step][:shown] for step in STEPS], 1).view(shown, len(STEPS), side, side)
    return Picture("chains", _whole(255 * seen), columns=tuple(f"{step:,}" for step in STEPS), figures=figures)


def _occluded(rbm: RBM, images: Tensor, generator: torch.Generator, side: int) -> Picture:
    """Images without their lower half, and what the machine fills in given the upper one."""
    holes = images.clone()
    hidden = slice(side * (side // 2), None)
    holes[:, hidden] = torch.nan
    drawn = rbm.sample(len(holes), steps=100, clamp=holes, generator=generator)
    filled = rbm.fill(holes, generator=generator)
    truth = images[:, hidden]
    error, usual = (float((x - truth).square().mean().sqrt()) for x in (filled[:, hidden], truth.mean(0)))
    rows = torch.stack([x[:10] for x in (images, holes.nan_to_num(0.5), drawn, filled)]).view(4, 10, side, side)
    captions = ("digits", "what is left of them", "filled in: a sample", "filled in: the mean of many")
    figures = {"error": error, "error of the mean image": usual}
    return Picture("occluded", _whole(255 * rows), captions, figures=figures)


def _whole(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
