"""A parameter that stands for W + s Z and is evaluated inside the operation that uses it.

Z has low rank, so y = x Wᵀ + s (x B) Aᵀ costs two thin products beside the one that the layer makes anyway, and nothing of
the size of W is allocated. The model runs as it is: its own ``forward`` meets the stand-in wherever it reads the parameter.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

_log = logging.getLogger("dldw")


class StandIn(Tensor):
    """What ``forward`` reads in place of a parameter; an operation without a rule gets it materialised."""

    rules: ClassVar[dict[Any, Callable[..., Any]]] = {}

    @abstractmethod
    def materialised(self) -> Tensor:
        """The values it stands for."""

    @abstractmethod
    def detail(self) -> str:
        """What its representation says beside the shape."""

    def __repr__(self) -> str:  # type: ignore[override]  # mypy misreads the keyword of torch's own: nothing matches it
        return f"{type(self).__name__}({list(self.shape)}, {self.detail()})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = cls.rules.get(func)
        if rule is not None:
            out = rule(*args, **kwargs)
            if out is not NotImplemented:
                return out
        name = getattr(func, "__name__", str(func))
        if name not in _materialised_for:
            _materialised_for.add(name)
            _log.debug("%s has no rule for a perturbed weight, so the weight is materialised for it", name)
        args, kwargs = tree_map_only(StandIn, methodcaller("materialised"), (tuple(args), kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a disabled function here, of other arguments
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Where code below Python reaches the stand-in, it gets the values."""
        args, kwargs = tree_map_only(StandIn, methodcaller("materialised"), (tuple(args), kwargs or {}))
        return func(*args, **kwargs)


class Perturbed(StandIn):
    """W + A Bᵀ with W of shape [m, *rest] and n = prod(rest).

    Args:
        weight: W.
        a: A, the scale included, [m, r].
        b: B, [n, r].
    """

    weight: Tensor
    a: Tensor
    b: Tensor

    @staticmethod
    def __new__(cls, weight: Tensor, a: Tensor, b: Tensor) -> Perturbed:
        self = torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)
        self.weight, self.a, self.b = weight.detach(), a, b
        stand_in: Perturbed = self
        return stand_in

    def materialised(self) -> Tensor:
        """The sum, a new tensor of the shape of W."""
        return self.weight + (self.a @ self.b.mT).view(self.weight.shape)

    def detail(self) -> str:
        return f"rank={self.a.shape[-1]}"


def _linear(x: Tensor, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, Perturbed) or weight.weight.ndim != 2 or isinstance(x, Perturbed):
        return NotImplemented
    return _plus(F.linear(x, weight.weight, _dense(bias)), x @ weight.b, weight.a)


def _matmul(x: Any, weight: Any) -> Any:
    if isinstance(x, Perturbed) or not isinstance(weight, Perturbed) or weight.weight.ndim != 2:
        return NotImplemented
    return _plus(torch.matmul(x, weight.weight), x @ weight.a, weight.b)


def _addmm(bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if isinstance(x, Perturbed) or not isinstance(weight, Perturbed):
        return NotImplemented
    return _plus(torch.addmm(_dense(bias), x, weight.weight, beta=beta, alpha=alpha), alpha * (x @ weight.a), weight.b)


def _embedding(
    input: Tensor,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *rest: Any,
    **named: Any,
) -> Any:
    if max_norm is not None or not isinstance(weight, Perturbed):
        return NotImplemented
    return _plus(F.embedding(input, weight.weight, padding_idx), F.embedding(input, weight.a), weight.b)


def _convolution(convolve: Callable[..., Tensor]) -> Callable[..., Any]:
    def rule(
        input: Tensor,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        if not isinstance(weight, Perturbed):
            return NotImplemented
        w, a, b, rank = weight.weight, weight.a, weight.b, weight.a.shape[-1]
        y = convolve(input, w, _dense(bias), stride, padding, dilation, groups)
        thin = b.mT.reshape(rank, *w.shape[1:]).repeat(groups, *[1] * (w.ndim - 1))
        t = convolve(input, thin, None, stride, padding, dilation, groups)  # [.., groups * r, *positions]
        where = t.shape[t.ndim - w.ndim + 2 :]
        lead = t.shape[: t.ndim - w.ndim + 1]
        t = t.reshape(*lead, groups, rank, -1)
        moved = a.reshape(groups, -1, rank) @ t  # [.., groups, m / groups, positions]
        return y + moved.reshape(*lead, w.shape[0], *where)

    return rule


def _plus(y: Tensor, thin: Tensor, factor: Tensor) -> Tensor:
    """y + thin factorᵀ in the dtype of y, with [.., k] + [.., r] [k, r]; in place where y is a plain tensor of ours."""
    thin, rows = thin.to(y.dtype), factor.mT.to(y.dtype)  # autocast makes products of the lower precision
    if torch._C._functorch.maybe_current_level() is None and not torch.is_grad_enabled():
        y.view(-1, y.shape[-1]).addmm_(thin.reshape(-1, thin.shape[-1]), rows)
        return y
    return torch.addcmul(y, thin, rows.squeeze(0)) if thin.shape[-1] == 1 else y + thin @ rows


def _dense(bias: Any) -> Any:
    return bias.materialised() if isinstance(bias, Perturbed) else bias


Rule = Callable[..., Any]


def product_rules(linear: Rule, matmul: Rule, addmm: Rule, embedding: Rule) -> dict[Any, Rule]:
    """Rules for every name under which models call these operations."""
    return {
        F.linear: linear,
        torch.matmul: matmul,
        torch.mm: matmul,
        Tensor.matmul: matmul,
        Tensor.__matmul__: matmul,
        Tensor.mm: matmul,
        torch.addmm: addmm,
        Tensor.addmm: addmm,
        F.embedding: embedding,
        torch.embedding: lambda weight, indices, *rest, **named: embedding(indices, weight),
    }


Perturbed.rules = {
    **product_rules(_linear, _matmul, _addmm, _embedding),
    F.conv1d: _convolution(F.conv1d),
    F.conv2d: _convolution(F.conv2d),
    F.conv3d: _convolution(F.conv3d),
}
_PROPERTIES = ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout")
ABOUT = {
    *(getattr(Tensor, name).__get__ for name in _PROPERTIES),
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.__len__,
    Tensor.is_floating_point,
    Tensor.element_size,
}
"""Questions about a weight that do not read it."""

_materialised_for: set[str] = set()
