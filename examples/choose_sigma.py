"""Choosing sigma for a model: the valley between rounding and truncation, in two dtypes, and what the choice buys.

    python examples/choose_sigma.py [--steps 100]

The valley is wide, as the noise of a random direction hides small errors of the slope. In float32 a sigma of 1e-4 trains as
well as the one that is recommended; in bfloat16 it drowns in rounding, and training goes astray.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dldw


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One value per example."""
    x, labels = batch
    return cross_entropy(model(x), labels, reduction="none")


def start(dtype: torch.dtype) -> nn.Module:
    """The same network for every sigma."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).to(dtype)


def trained(sigma: float, batch: tuple[Tensor, Tensor], dtype: torch.dtype, steps: int) -> float:
    """The loss after some steps of SPSA with this sigma."""
    model = start(dtype)
    spsa = dldw.SPSA(loss, sigma=sigma, directions=8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        spsa(model, batch)
        optimizer.step()
    with torch.no_grad():
        return float(loss(model, batch).double().mean())


def main() -> None:
    """Prints the valley, the recommendation, and the loss that it and two usual values end with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    pixels, digits = load_digits(return_X_y=True)
    x, labels = torch.tensor(pixels[:256] / 16), torch.tensor(digits[:256])
    for dtype in (torch.float32, torch.bfloat16):
        batch = x.to(dtype), labels
        spsa = dldw.SPSA(loss, generator=torch.Generator().manual_seed(0))
        valley = dldw.quality(spsa, model=start(dtype), batch=batch, draws=2).sweep()
        print(f"--- {dtype}", valley, sep="\n")
        for sigma in (1e-4, 1e-3, valley.recommended):
            print(f"sigma {sigma:.2e}: loss {trained(sigma, batch, dtype, steps):.4f} after {steps} steps")


if __name__ == "__main__":
    main()
