"""Adapters of low rank: a frozen weight that stands for W + A Bᵀ, with A and B to be trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dldw.errors import DldwError
from dldw.perturbed import Perturbed

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
"""Layers whose matrices get an adapter."""


class Adapter(nn.Module):
    """W + A Bᵀ for a frozen W of shape [m, *rest], n = prod(rest); it is evaluated inside the layer that uses it.

    Args:
        weight: W.
        rank: Columns of A and B.
        generator: Where B is drawn from; A begins at zero, so that the model begins as it was.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        m, n = weight.shape[0], weight.numel() // weight.shape[0]
        self.a = nn.Parameter(weight.new_zeros(m, rank))
        drawn = torch.randn(n, rank, generator=generator, dtype=torch.float32, device=weight.device)
        self.b = nn.Parameter(drawn.div_(math.sqrt(n)).to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """What the layer reads in place of W."""
        return Perturbed(weight, self.a, self.b)


def adapt(model: nn.Module, rank: int, generator: torch.Generator | None = None) -> list[nn.Parameter]:
    """Freezes a model and gives the matrices of its linear, convolution and attention layers adapters of low rank.

    Args:
        model: It is changed, and its outputs are not. Frozen weights stay as they are.
        rank: Of the adapters.
        generator: Where they are drawn from.

    Returns:
        The factors of all adapters.

    Raises:
        DldwError: The rank is not positive, or no such layer has a weight to train.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        >>> [tuple(p.shape) for p in adapt(model, rank=1)]
        [(6, 1), (8, 1), (2, 1), (6, 1)]
    """
    if rank < 1:
        raise DldwError(f"the rank of an adapter must be at least 1, got {rank}. The usual choice is 4 to 16.")
    found = [
        (module, name)
        for module in model.modules()
        if isinstance(module, ADAPTED)
        for name, p in module.named_parameters(recurse=False)
        if p.requires_grad and p.ndim > 1
    ]
    if not found:
        raise DldwError(
            f"{type(model).__name__} has no linear, convolution or attention layer with a weight to train, so there is "
            "nothing to adapt. Train its weights themselves, e.g. with backprop."
        )
    model.requires_grad_(False)
    factors: list[nn.Parameter] = []
    for module, name in found:
        adapter = Adapter(getattr(module, name), rank, generator)
        parametrize.register_parametrization(module, name, adapter)
        factors += adapter.parameters()
    return factors
