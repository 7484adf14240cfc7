"""Losses of a whole population in one forward pass of the model as it is.

The model runs once, at a level of ``torch.func.vmap`` in which every weight has a leading dimension of members. vmap's own
rules are written for many inputs and shared weights; here it is the weights that are many. What differs is ruled here:
the product of a layer that all members give the same input is taken once for the weights they share and once for each
direction they move along, not for each member; later layers are grouped products that leave the examples in the last
dimension; cross-entropy reads logits where they lie; fused attention, which has no rule, folds members into its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from dldw.gemm import mkl_is_at_home, product
from dldw.moved import DenseMoved, LowRankMoved, Moved, Stacked
from dldw.perturbed import Perturbed, StandIn, packed_attention


def population_losses(
    function: Callable[[list[Tensor]], Tensor],
    stacked: Sequence[Stacked],
    members: int,
    randomness: Literal["same", "different"] = "same",
) -> Tensor:
    """``function`` of the weights of each member, [n] or [n, B].

    Args:
        function: Takes one weight tensor for each of ``stacked`` and returns a loss, a scalar or [B].
        stacked: The weights.
        members: n.
        randomness: Whether random layers draw the ``same`` numbers for all members or ``different`` ones.
    """
    level = functorch._vmap_increment_nesting(members, randomness)
    try:
        with _Rules(level):
            out = function([_weight(weight, level) for weight in stacked])
        losses: Tensor = functorch._remove_batch_dim(out, level, members, 0)
        return losses
    finally:
        functorch._vmap_decrement_nesting()


def _weight(weight: Stacked, level: int) -> Tensor:
    if isinstance(weight, Moved):
        return Member(weight, level)
    batched: Tensor = functorch._add_batch_dim(weight, 0, level)
    return batched


class Member(StandIn):
    """What ``forward`` reads for a weight that moves: it has the shape of one member, and an operation without a rule gets
    the weights of all members stacked.

    Args:
        moved: The weights.
        level: Of vmap.
    """

    moved: Moved
    level: int
    _stacked: Tensor | None

    @staticmethod
    def __new__(cls, moved: Moved, level: int) -> Member:
        weight = moved.weight
        self = torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)
        self.moved, self.level, self._stacked = moved, level, None
        member: Member = self
        return member

    def materialised(self) -> Tensor:
        """The weights of all members, as vmap has them, to any transform of torch.func that runs inside it."""
        if self._stacked is None:
            level = functorch.maybe_current_level()
            if level is None:  # below all transforms
                raise RuntimeError(
                    "weights that move along directions cannot be an argument of a transform of torch.func."
                )
            with ExitStack() as outside:
                for _ in range(level - self.level):
                    outside.enter_context(temporarily_pop_interpreter_stack())
                self._stacked = functorch._add_batch_dim(self.moved.stack(), 0, self.level)
        return self._stacked

    def part(self, start: int, stop: int) -> Member:
        return Member(self.moved.part(start, stop), self.level)

    def transposed(self) -> Member:
        return Member(self.moved.transposed(), self.level)

    def detail(self) -> str:
        return f"members={self.moved.members}"

    def perturbed(self) -> Tensor:
        """Of low rank, what one member has, with the factors of all as vmap has them."""
        if not isinstance(self.moved, LowRankMoved) or functorch.maybe_current_level() != self.level:
            return self
        a, b = (functorch._add_batch_dim(factor, 0, self.level) for factor in self.moved.factors())
        return Perturbed(self.moved.weight, a, b)


def _with_factors(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for one perturbed weight, under vmap."""

    def all_members(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Member, Member.perturbed, (args, kwargs))
        return rule(*args, **kwargs)

    return all_members


Member.rules = {function: _with_factors(rule) for function, rule in Perturbed.rules.items()}


class _Rules(TorchFunctionMode):
    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        rule = _RULES.get(func)
        if rule is not None and not torch.is_grad_enabled() and functorch.maybe_current_level() == self.level:
            out = rule(self, *args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return func(*args, **(kwargs or {}))

    def split(self, t: Any) -> tuple[Any, bool]:
        """A tensor without its wrapper and whether it has members, which are its leading dimension then."""
        if isinstance(t, Member):
            return t.moved.stack(), True
        if not _batched(t) or functorch.maybe_get_level(t) != self.level:
            return t, False
        at = functorch.maybe_get_bdim(t)
        raw = functorch.get_unwrapped(t)
        return (raw.movedim(at, 0) if at else raw), True

    def joined(self, raw: Tensor) -> Tensor:
        """Members in the leading dimension [n, ..] as vmap has them."""
        batched: Tensor = functorch._add_batch_dim(raw, 0, self.level)
        return batched


def _batched(t: Any) -> bool:
    return isinstance(t, Tensor) and functorch.is_batchedtensor(t)


def _linear(rules: _Rules, input: Any, weight: Any, bias: Any = None) -> Any:
    return _product(rules, input, weight, bias, transposed=False)


def _addmm(rules: _Rules, bias: Any, input: Any, weight: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    if beta != 1 or alpha != 1 or bias.ndim != 1:
        return NotImplemented
    return _product(rules, input, weight, bias, transposed=True)


def _matmul(rules: _Rules, input: Any, weight: Any) -> Any:
    return _product(rules, input, weight, None, transposed=True) if input.ndim > 1 else NotImplemented


def _product(rules: _Rules, input: Any, weight: Any, bias: Any, transposed: bool) -> Any:
    """y = x Wᵀ + b with W [m, k] (or x W + b with W [k, m] where ``transposed``) of each member."""
    if isinstance(input, Member) or weight.ndim != 2 or input.ndim < 1:
        return NotImplemented
    moved = weight.moved if isinstance(weight, Member) else None
    w, own_weight = (moved.weight, True) if moved is not None else rules.split(weight)
    x, own_input = rules.split(input)
    if not own_weight and not (own_input and input.ndim == 2):
        return NotImplemented
    if transposed:
        w, moved = w.mT, moved and moved.transposed()
    examples = x.shape[own_input:-1]
    if not own_input:
        columns = x.reshape(-1, x.shape[-1]).mT
        out = _shared(rules, columns, w, moved, bias)
    elif isinstance(moved, LowRankMoved) and not (len(examples) == 1 and examples[0] > 1 and w.numel() <= _LARGE):
        shift, own_bias = rules.split(bias)
        rows = x.reshape(len(x), -1, x.shape[-1])
        out = moved.of_rows(rows, shift.unsqueeze(-2) if own_bias else shift).view(*x.shape[:-1], -1)
        return rules.joined(out)
    elif len(examples) == 1:
        out = _grouped(rules, x.reshape(len(x), -1, x.shape[-1]).mT, w, moved, bias)
    else:
        rows = x.reshape(len(x), -1, x.shape[-1])
        w = w if moved is None else moved.stack()
        row, _ = rules.split(bias)
        out = torch.bmm(rows, w.mT) if row is None else torch.baddbmm(row.unsqueeze(-2), rows, w.mT)
        return rules.joined(out.view(len(out), *examples, -1))
    out = out.mT
    if len(examples) != 1:  # sequences and images, of which models take views
        out = out.contiguous().view(len(out), *examples, -1)
    return rules.joined(out)


_LARGE = 1 << 16
"""Numbers in a weight from which one product over the examples of all members beats one for each member."""


def _shared(rules: _Rules, columns: Tensor, w: Tensor, moved: Moved | None, bias: Any) -> Tensor:
    """Every member's product with the same columns [k, B]: [n, m, B]."""
    if moved is None:
        out = product(w.reshape(-1, w.shape[-1]), columns).view(len(w), w.shape[1], -1)
    else:
        base, shift = w @ columns, None
        if bias is not None and isinstance(bias, Member) and isinstance(bias.moved, DenseMoved):
            base.add_(bias.moved.weight.unsqueeze(-1))
            bias, shift = None, bias.moved.z.unsqueeze(-1)
        out = moved.of_columns(base, columns, shift)
    column, _ = rules.split(bias)
    return out if column is None else out.add_(column.unsqueeze(-1))


def _grouped(rules: _Rules, columns: Tensor, w: Tensor, moved: Moved | None, bias: Any) -> Tensor:
    """Every member's product with columns of its own [n, k, B]: [n, m, B]."""
    column, _ = rules.split(bias)
    column = None if column is None else column.unsqueeze(-1)
    factors = moved if isinstance(moved, LowRankMoved) and w.shape[1] > columns.shape[2] else None
    if moved is not None and factors is None:  # of low rank, too, where it is smaller than what it makes
        w = moved.stack()
    w = w.expand(len(columns), *w.shape[-2:])
    out = torch.bmm(w, columns) if column is None else torch.baddbmm(column, w, columns)
    return out if factors is None else factors.added(out, columns)


def _embedding(
    rules: _Rules,
    input: Any,
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    *rest: Any,
    **named: Any,
) -> Any:
    if max_norm is not None or not isinstance(weight, Member):
        return NotImplemented
    moved = weight.moved
    index, own = rules.split(input)
    if own:
        if not isinstance(moved, LowRankMoved):
            return NotImplemented
        return rules.joined(moved.picked_each(index).add_(F.embedding(index, moved.weight)))
    return rules.joined(moved.moved(F.embedding(input, moved.weight), moved.picked(input)))


def _cross_entropy(
    rules: _Rules,
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    logits, own = rules.split(input)
    targets, each = rules.split(target)
    if not own or not target.ndim or input.ndim != target.ndim + 1 or size_average is not None or reduce is not None:
        return NotImplemented
    if (_batched(target) and not each) or _batched(weight) or isinstance(weight, Member):
        return NotImplemented
    if reduction != "none" and (weight is not None or bool((targets == ignore_index).any())):
        return NotImplemented
    shape = (len(logits), *target.shape)
    logits = logits.movedim(2, -1).flatten(1, -2)  # examples and positions alike are rows of classes
    targets = targets.expand(shape).flatten(1)
    of = partial(
        F.cross_entropy, weight=weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    if logits.stride(2) > 1:  # the examples are the last dimension
        losses = of(logits.mT, targets)
    elif logits.is_contiguous() or logits[0].numel() < _OWN_CALL:  # as later layers of large models leave them
        losses = of(logits.flatten(0, 1), targets.flatten()).view(targets.shape)
    else:  # without the last position of each: to join them would copy them
        losses = torch.stack([of(*member) for member in zip(logits, targets, strict=True)])
    return rules.joined(losses.view(shape) if reduction == "none" else getattr(losses, reduction)(1))


_OWN_CALL = 1 << 16
"""Numbers of a member from which it is worth a call of its own."""


def _tanh(rules: _Rules, input: Any) -> Any:
    """NumPy's, right to a bit, where few threads have much to do: torch's own, right to half a bit, takes 13 times as long on
    one thread of processors that MKL is not written for."""
    x, own = rules.split(input)
    rows = x.mT if own and not x.is_contiguous() else x
    many = own and x.is_cpu and x.dtype == torch.float32 and x.numel() >= _MANY and rows.is_contiguous()
    if not many or torch.get_num_threads() > _FEW_THREADS or mkl_is_at_home():
        return NotImplemented
    out = torch.empty_like(rows)
    np.tanh(rows.numpy(), out=out.numpy())
    return rules.joined(out if rows is x else out.mT)


_MANY = 1 << 14
"""Numbers from which it is worth a call of another library."""

_FEW_THREADS = 4
"""Threads of torch that are no faster together than one of NumPy."""


def _attention(
    rules: _Rules,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p:
        return NotImplemented
    parts = [rules.split(t) for t in (query, key, value)]
    n = max((len(t) for t, own in parts if own), default=0)
    if not n:
        return NotImplemented
    q, k, v = (t if own else t.expand(n, *t.shape) for t, own in parts)
    if q.ndim < 4 or not q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        return NotImplemented
    mask, own = rules.split(attn_mask)
    if mask is not None:
        mask = mask if own else mask.unsqueeze(0)
        mask = mask.reshape(len(mask), *[1] * (q.ndim - mask.ndim), *mask.shape[1:])
        if any(size > 1 for size in mask.shape[:-3]):
            mask = mask.expand(*q.shape[:-3], *mask.shape[-3:])
        mask = mask.flatten(0, -4)
    lead = q.shape[:-3]
    q, k, v = (t.flatten(0, -4) for t in (q, k, v))  # the fast kernels take [B, heads, L, d]
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
    return rules.joined(out.view(*lead, *out.shape[1:]))


def _packed_attention(rules: _Rules, *args: Any, **kwargs: Any) -> Any:
    with rules:
        return packed_attention(*args, **kwargs)


def _convolution(convolve: Callable[..., Tensor]) -> Callable[..., Any]:
    """On the CPU one member after the other, each with kernels made for the moment: they are small beside what they make, and
    a convolution in groups takes twice the time. Where all members have the same input, what they share is taken once."""

    def rule(
        rules: _Rules,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        x, own = rules.split(input)
        options = stride, padding, dilation, groups
        if not isinstance(weight, Member) or isinstance(input, Member) or not x.is_cpu or input.ndim != weight.ndim:
            return NotImplemented
        moved, (shift, own_shift) = weight.moved, rules.split(bias)
        if not own and groups == 1:
            base = convolve(x, moved.weight, None if own_shift else shift, *options)
            out = moved.moved(base, moved.convolved(lambda kernels: convolve(x, kernels, None, *options)))
            if own_shift:
                out.add_(shift.view(len(shift), 1, -1, *[1] * (out.ndim - 3)))
            return rules.joined(out)
        each = (
            convolve(x[i] if own else x, moved.member(i), shift[i] if own_shift else shift, *options)
            for i in range(moved.members)
        )
        return rules.joined(torch.stack(list(each)))

    return rule


_RULES: dict[Any, Callable[..., Any]] = {
    **{convolve: _convolution(convolve) for convolve in (F.conv1d, F.conv2d, F.conv3d)},
    F.multi_head_attention_forward: _packed_attention,
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    F.embedding: _embedding,
    F.cross_entropy: _cross_entropy,
    torch.tanh: _tanh,
    Tensor.tanh: _tanh,
    F.scaled_dot_product_attention: _attention,
}
