"""Rules that make ``torch.func.vmap`` over weights as fast as grouped matrix products.

``vmap`` runs any model, but its own rules are written for batched inputs and shared weights. Here the weights are batched:
the first layer, which sees one input, becomes one wide product; later ones a grouped product; cross-entropy is taken without
a table of log-probabilities; fused attention, which has no rule at all, folds the population into its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def population_map(function: Callable[[Any], Tensor], stacked: Any) -> Tensor:
    """``function`` of each member of the stacked tensors [n, ..], results [n, ..]; random numbers are shared."""
    with _PopulationRules():
        out: Tensor = torch.func.vmap(function, randomness="same")(stacked)
    return out


class _PopulationRules(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(func)
        if rule is not None and not torch.is_grad_enabled():
            out = rule(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _is_batched(weight) or weight.ndim != 2:
        return NotImplemented
    return _Linear.apply(input, weight, bias)  # type: ignore[no-untyped-call]


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    plain = weight is None and size_average is None and reduce is None and label_smoothing == 0
    if not plain or reduction == "sum" or input.ndim != 2 or target.ndim != 1 or _is_batched(target):
        return NotImplemented
    if bool((target == ignore_index).any()):
        return NotImplemented
    logits = input - input.amax(-1, keepdim=True)
    losses = logits.exp().sum(-1).log() - logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return losses if reduction == "none" else losses.mean()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p or not any(map(_is_batched, (query, key, value))):
        return NotImplemented
    return _Attention.apply(query, key, value, attn_mask, is_causal, scale, enable_gqa)  # type: ignore[no-untyped-call]


_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.cross_entropy: _cross_entropy,
    F.scaled_dot_product_attention: _attention,
}


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b with a weight for each member; the products leave the examples in the last dimension."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        n = info.batch_size
        weight = _lead(weight, in_dims[1], n)
        column = None if bias is None else _lead(bias, in_dims[2], n).unsqueeze(-1)
        if in_dims[0] is None:
            rows = x.reshape(-1, x.shape[-1])
            out = torch.mm(weight.reshape(-1, weight.shape[-1]), rows.T).view(n, weight.shape[1], -1)
            if column is not None:
                out.add_(column)
            shape = x.shape[:-1]
        else:
            x = x.movedim(in_dims[0], 0)
            shape = x.shape[1:-1]
            columns = x.reshape(n, -1, x.shape[-1]).transpose(1, 2)
            out = torch.bmm(weight, columns) if column is None else torch.baddbmm(column, weight, columns)
        out = out.transpose(1, 2)
        return out if len(shape) == 1 else out.reshape(n, *shape, -1), 0


class _Attention(torch.autograd.Function):
    """Fused attention of a population is fused attention of a larger batch."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, gqa: bool
    ) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any
    ) -> tuple[Tensor, int]:
        q, k, v = (_lead(t, dim, info.batch_size) for t, dim in zip((q, k, v), in_dims, strict=False))
        if mask is not None:
            mask = _lead(mask, in_dims[3], info.batch_size)
            mask = mask.reshape(mask.shape[0], *[1] * (q.ndim - mask.ndim), *mask.shape[1:])
        return _Attention.forward(q, k, v, mask, *rest), 0


def _lead(t: Tensor, dim: int | None, n: int) -> Tensor:
    return t.expand(n, *t.shape) if dim is None else t.movedim(dim, 0)


def _is_batched(t: Any) -> bool:
    return isinstance(t, Tensor) and torch._C._functorch.is_batchedtensor(t)
