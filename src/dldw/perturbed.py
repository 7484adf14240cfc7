"""A parameter that stands for W + s Z and is evaluated inside the operation that uses it.

Z has low rank, so y = x Wᵀ + s (x B) Aᵀ costs two thin products beside the one that the layer makes anyway, and nothing of
the size of W is allocated. The model runs as it is: its own ``forward`` meets the stand-in wherever it reads the parameter.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from operator import methodcaller
from types import FunctionType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dldw import noise
from dldw.gemm import linear, product_beside

_log = logging.getLogger("dldw")


class StandIn(Tensor):
    """What ``forward`` reads in place of a parameter; an operation without a rule gets it materialised.

    A recurrent layer is such an operation: one fused call takes the weights of all its layers and steps through time.
    """

    rules: ClassVar[dict[Any, Callable[..., Any]]] = {}

    @abstractmethod
    def materialised(self) -> Tensor:
        """The values it stands for."""

    @abstractmethod
    def part(self, start: int, stop: int) -> Tensor:
        """Its rows ``start`` to ``stop``."""

    @abstractmethod
    def transposed(self) -> Tensor:
        """The same of the transposed matrix."""

    @abstractmethod
    def detail(self) -> str:
        """What its representation says beside the shape."""

    def _said(self) -> str:
        return f"{type(self).__name__}({list(self.shape)}, {self.detail()})"

    __repr__: Any = _said  # torch's own is declared with a keyword that no signature matches

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        rule = cls.rules.get(func) or _VIEWS.get(func)
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
    def _below_python(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Where code below Python reaches the stand-in, it gets the values."""
        args, kwargs = tree_map_only(StandIn, methodcaller("materialised"), (tuple(args), kwargs or {}))
        return func(*args, **kwargs)

    __torch_dispatch__: Any = _below_python  # torch declares a disabled function here, of other arguments


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
        if self.weight.is_contiguous() and not torch.is_autocast_enabled(self.device.type):
            return torch.addmm(self.weight.view(len(self.a), len(self.b)), self.a, self.b.mT).view(self.weight.shape)
        return self.weight + (self.a @ self.b.mT).view(self.weight.shape)

    def part(self, start: int, stop: int) -> Perturbed:
        return Perturbed(self.weight[start:stop], self.a[start:stop], self.b)

    def transposed(self) -> Perturbed:
        return Perturbed(self.weight.mT, self.b, self.a)

    def detail(self) -> str:
        return f"rank={self.a.shape[-1]}"


def _linear(input: Tensor, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, Perturbed) or weight.weight.ndim != 2 or isinstance(input, Perturbed):
        return NotImplemented
    rows = input.numel() // max(1, input.shape[-1])
    if _cheap(weight.weight, min(SMALL, rows * sum(weight.shape))):
        return F.linear(input, weight.materialised(), _dense(bias))
    return _affine(input, weight.weight.mT, _dense(bias), input @ weight.b, weight.a)


def _cheap(weight: Tensor, numbers: int) -> bool:
    """Whether the sum is made for the moment, as it takes ``numbers`` at most. In 16 bits it would be rounded to W."""
    return (
        weight.numel() <= numbers
        and weight.element_size() > 2
        and not torch.is_autocast_enabled(weight.device.type)
        and torch._C._functorch.maybe_current_level() is None
    )


SMALL = 1 << 16
"""Numbers in a matrix up to which the sum, made once, takes less than two thin products with more rows than it has."""


def _matmul(x: Any, weight: Any) -> Any:
    if isinstance(x, Perturbed) or not isinstance(weight, Perturbed) or weight.weight.ndim != 2:
        return NotImplemented
    return _affine(x, weight.weight, None, x @ weight.a, weight.b)


def _addmm(bias: Any, x: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if isinstance(x, Perturbed) or not isinstance(weight, Perturbed):
        return NotImplemented
    bias = _dense(bias)
    if bias.ndim == 1 and beta == alpha == 1:
        return _affine(x, weight.weight, bias, x @ weight.a, weight.b)
    return _plus(torch.addmm(bias, x, weight.weight, beta=beta, alpha=alpha), alpha * (x @ weight.a), weight.b)


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
    """With kernels of a tile at most, the sum is made for the moment: one thin kernel takes as long as sixteen."""

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
        if _cheap(w, noise.TILE):
            return convolve(input, weight.materialised(), _dense(bias), stride, padding, dilation, groups)
        y = convolve(input, w, _dense(bias), stride, padding, dilation, groups)
        thin = b.mT.reshape(rank, *w.shape[1:]).repeat(groups, *[1] * (w.ndim - 1))
        t = convolve(input, thin, None, stride, padding, dilation, groups)  # [.., groups * r, *positions]
        where = t.shape[t.ndim - w.ndim + 2 :]
        lead = t.shape[: t.ndim - w.ndim + 1]
        t = t.reshape(*lead, groups, rank, -1)
        moved = a.reshape(groups, -1, rank) @ t  # [.., groups, m / groups, positions]
        return y + moved.reshape(*lead, w.shape[0], *where)

    return rule


def _add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """x + W + A Bᵀ, as where positions are added to embeddings: a pass over the sum for each rank."""
    x, weight = (other, input) if isinstance(input, Perturbed) else (input, other)
    if isinstance(x, StandIn) or not isinstance(x, Tensor) or not isinstance(weight, Perturbed) or alpha != 1:
        return NotImplemented
    y, rest = x + weight.weight, weight.shape[1:]
    for a, b in zip(weight.a.to(y.dtype).unbind(-1), weight.b.to(y.dtype).unbind(-1), strict=True):
        y = torch.addcmul(y, a.view(-1, *[1] * len(rest)), b.view(rest))
    return y


def _expand(weight: Any, *sizes: Any) -> Any:
    """Of a weight of one row, as a class token is, the sum takes no more than B."""
    one = isinstance(weight, Perturbed) and len(weight.a) == 1
    return weight.materialised().expand(*sizes) if one else NotImplemented


def _einsum(equation: Any, *operands: Any) -> Any:
    """One product with W and one with A and B, the one first that sums over more of the input."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    at = [i for i, operand in enumerate(operands) if isinstance(operand, Perturbed)]
    if not isinstance(equation, str) or len(at) != 1 or sum(isinstance(t, StandIn) for t in operands) != 1:
        return NotImplemented
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms, weight = left.split(","), operands[at[0]]
    own = terms.pop(at[0])
    rank = next(letter for letter in _LETTERS if letter not in equation)
    if not arrow or "." in own or len(set(own)) < len(own):
        return NotImplemented
    others = [operand for i, operand in enumerate(operands) if i != at[0]]
    factors = [(own[0] + rank, weight.a), (own[1:] + rank, weight.b.view(*weight.shape[1:], -1))]
    if own[0] in out:
        factors.reverse()
    equation = ",".join([*terms, *(term for term, _ in factors)]) + "->" + out
    y = torch.einsum(",".join([*terms, own]) + "->" + out, *others, weight.weight)
    return y + torch.einsum(equation, *others, *(factor for _, factor in factors))


_LETTERS = "zyxwvutsrqponmlkjihgfedcba"


def _affine(x: Tensor, matrix: Tensor, bias: Tensor | None, thin: Tensor, factor: Tensor) -> Tensor:
    """x matrix + bias + thin factorᵀ, with [.., k] [k, n] + [n] + [.., r] [r, n]."""
    if x.dtype == matrix.dtype and unwatched(x.device.type):
        return product_beside(x, matrix, bias, thin, factor.mT)
    return _plus(linear(x, matrix.mT, bias), thin, factor)


def unwatched(device: str) -> bool:
    """Whether results may be written in place there: neither autograd nor vmap nor autocast follows what is computed."""
    return _unfollowed() and not torch.is_autocast_enabled(device)


def _unfollowed() -> bool:
    return torch._C._functorch.maybe_current_level() is None and not torch.is_grad_enabled()


def _plus(y: Tensor, thin: Tensor, factor: Tensor) -> Tensor:
    """y + thin factorᵀ in the dtype of y, with [.., k] + [.., r] [k, r]; in place where y is a plain tensor of ours."""
    thin, rows = thin.to(y.dtype), factor.mT.to(y.dtype)  # autocast makes products of the lower precision
    if _unfollowed():
        thin = thin.reshape(-1, thin.shape[-1])
        matrix = y.view(len(thin), y.shape[-1])
        if thin.shape[-1] == 1 and y.element_size() > 2:  # in 16 bits a pass converts, and the product does not
            matrix.addcmul_(thin, rows)
        else:
            matrix.addmm_(thin, rows)
        return y
    return torch.addcmul(y, thin, rows.squeeze(0)) if thin.shape[-1] == 1 else y + thin @ rows


def _dense(bias: Any) -> Any:
    return bias.materialised() if isinstance(bias, StandIn) else bias


def _chunk(weight: StandIn, chunks: int, dim: int = 0) -> Any:
    return _split(weight, -(-len(weight) // chunks), dim)


def _split(weight: StandIn, split_size: int | Sequence[int], dim: int = 0) -> Any:
    if dim % weight.ndim:
        return NotImplemented
    if isinstance(split_size, int):
        ends: Iterable[int] = (*range(0, len(weight), split_size), len(weight))
    else:
        ends = accumulate(split_size, initial=0)
    return tuple(weight.part(start, stop) for start, stop in pairwise(ends))


def _rows(weight: StandIn, index: Any) -> Any:
    if not isinstance(index, slice) or index.step not in (None, 1):
        return NotImplemented
    start, stop, _ = index.indices(len(weight))
    return weight.part(start, max(start, stop))


def _transposed(weight: StandIn, dim0: int = 0, dim1: int = 1) -> Any:
    return weight.transposed() if weight.ndim == 2 and dim0 % 2 != dim1 % 2 else NotImplemented


def opened(function: Any) -> Callable[..., Any]:
    """A function of torch without its own look at what it is given, so that the operations in it meet the stand-ins."""
    seeing = {**function.__globals__, "has_torch_function": lambda tensors: False}
    return FunctionType(function.__code__, seeing, function.__name__, function.__defaults__, function.__closure__)


packed_attention = opened(F.multi_head_attention_forward)
"""Attention whose three projections are one weight: a product, and a rule for its rows, is all that it asks of it."""

_VIEWS: dict[Any, Callable[..., Any]] = {
    torch.chunk: _chunk,
    Tensor.chunk: _chunk,
    torch.split: _split,
    Tensor.split: _split,
    Tensor.__getitem__: _rows,
    torch.t: _transposed,
    Tensor.t: _transposed,
    torch.transpose: _transposed,
    Tensor.transpose: _transposed,
    getattr(Tensor, "T").__get__: _transposed,  # noqa: B009  # the type checker takes it for a tensor
    getattr(Tensor, "mT").__get__: _transposed,  # noqa: B009
    F.multi_head_attention_forward: packed_attention,
    Tensor.data_ptr: lambda weight: -id(weight),  # a place of its own, which no tensor can have
}


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
    torch.add: _add,
    Tensor.add: _add,
    Tensor.__add__: _add,
    Tensor.__radd__: _add,
    Tensor.expand: _expand,
    torch.einsum: _einsum,
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
