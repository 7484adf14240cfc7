"""Feed-forward layers and losses in chunks of tokens, so that their widest tensor is never whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dldw.errors import DldwError

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class ChunkedFeedForward(nn.Module):
    """Two linear layers applied to ``tokens`` tokens at a time, each chunk computed again for its backward pass.

        y = W2 · activation(W1 · x + b1) + b2

    Memory: the hidden layer of one chunk, in both passes. Cost: one more forward pass where there is more than one chunk.

    Source: Kitaev, Kaiser & Levskaya 2020, arXiv 2001.04451, section 3.

    Args:
        width: Of the input and the output.
        hidden: Width of the hidden layer.
        tokens: Tokens at a time; None for all.
        activation: ``gelu``, ``relu`` or ``silu``.

    Raises:
        DldwError: ``tokens`` is less than 1 or the activation is unknown.

    Example:
        >>> import torch, dldw.nn
        >>> dldw.nn.ChunkedFeedForward(8, 32, tokens=16)(torch.randn(2, 100, 8)).shape
        torch.Size([2, 100, 8])
    """

    def __init__(self, width: int, hidden: int, *, tokens: int | None = None, activation: str = "gelu") -> None:
        super().__init__()
        if tokens is not None and tokens < 1:
            raise DldwError(f"tokens must be at least 1, got {tokens}; None takes all at once.")
        if activation not in ACTIVATIONS:
            raise DldwError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
        self.tokens = tokens
        self.layers = nn.Sequential(nn.Linear(width, hidden), ACTIVATIONS[activation](), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] to the same shape."""
        if self.tokens is None or x.shape[1] <= self.tokens:
            out: Tensor = self.layers(x)
            return out
        return torch.cat([_again(self.layers, part) for part in x.split(self.tokens, 1)], 1)


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, tokens: int = 1024
) -> Tensor:
    """The cross-entropy of each token, [batch, length], with the logits of ``tokens`` tokens at a time.

    Args:
        hidden: What the logits are a linear function of, [batch, length, width].
        weight: [vocabulary, width].
        targets: [batch, length], integers; -100 counts as a loss of 0.
        bias: [vocabulary], if any.
        tokens: Tokens of each sequence at a time.
    """

    def losses(h: Tensor, y: Tensor) -> Tensor:
        logits = F.linear(h, weight, bias)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)

    if hidden.shape[1] <= tokens:
        return losses(hidden, targets)
    parts = zip(hidden.split(tokens, 1), targets.split(tokens, 1), strict=True)
    return torch.cat([_again(losses, h, y) for h, y in parts], 1)


def _again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, of which nothing is stored but the inputs."""
    out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # it draws nothing
    return out
