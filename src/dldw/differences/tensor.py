"""A tensor with its changes, and what an operation makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch.utils._pytree import tree_leaves, tree_map_only

from dldw.differences.changes import Change, Column, Entry, Unit


class NoDifference(RuntimeError):
    """The change cannot be followed; the losses have to be evaluated in another way."""


class Inexact(NoDifference):
    """An operation has no rule."""


class Run:
    """One pass with n members.

    Args:
        members: n.
        exact: Whether an operation without a rule makes it useless (``Inexact``).
    """

    def __init__(self, members: int, *, exact: bool) -> None:
        self.members, self.exact = members, exact
        self.refused: NoDifference | None = None
        """Why the pass is of no use. It goes on all the same, so that the user's loss function sees no error of ours."""
        self.valued: set[str] = set()
        """Operations without a rule, which were evaluated at both values."""
        self.held = self.most = self.largest = 0
        """Bytes that changes take now, took at most at a time, and that the largest of them took."""
        self.groups = 0
        """Of how many rows, or groups of rows, it is followed whether they go their own ways; 0 for none."""
        self.input: Tensor | None = None
        """What the layer was given whose units change, [rows, width], or the indices [rows] that an embedding looked up."""
        self.width = 0
        """Weights of a unit."""
        self.reach: Tensor | None = None
        """How far a step of length 1 on one weight can move a unit, in every row of the input."""
        self.picked: list[Tensor] = []
        """The indices with which entries of a weight were looked up."""
        self.used_whole = False
        """Whether a weight with a changed entry was used in another way than looked up."""
        self._keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()

    def refuse(self, reason: NoDifference) -> None:
        """Says that what the pass gives is of no use; the first reason stands."""
        self.refused = self.refused or reason

    @contextmanager
    def over_members(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Inside, what the function that it gives is handed [n, ..] is n members of one operation (``vmap``)."""
        with torch._C._ForceDispatchKeyGuard(*self._keys):  # within an operation, torch has vmap switched off
            level = functorch._vmap_increment_nesting(self.members, "error")
            try:
                yield lambda t: functorch._add_batch_dim(t, 0, level)
            finally:
                functorch._vmap_decrement_nesting()

    def mapped(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """``function`` of every member; what of the arguments is ``Each`` differs between them."""
        with self.over_members() as member:
            args, kwargs = tree_map_only(Each, lambda each: member(each.values), (args, kwargs))
            out = function(*args, **kwargs)
            level: Any = functorch.maybe_current_level()
            return tree_map_only(Tensor, lambda t: functorch._remove_batch_dim(t, level, self.members, 0), out)


class Each:
    """A tensor for each member, [n, ..]."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class _Share:
    """What a change takes for as long as it is held."""

    def __init__(self, run: Run, change: Change) -> None:
        values = change.values if isinstance(change, Column) else change
        self.run = run
        self.bytes = values.numel() * values.element_size() if isinstance(values, Tensor) else 0
        run.held += self.bytes
        run.most, run.largest = max(run.most, run.held), max(run.largest, self.bytes)

    def __del__(self) -> None:
        self.run.held -= self.bytes


class Difference(Tensor):
    """What a model computes with while changes are followed: the value at its own weights, and the changes.

    Attributes:
        base: The value.
        change: How it changes for each member.
        run: The pass it belongs to.
        apart: Whether, seen as [groups, ..], each group depends on the same group alone of what changed first.
        each: Of a scalar that is a sum over groups: the change of every group's part [n, groups].
        parts_apart: Whether every part along the first dimension is apart in this sense, as q, k and v in one tensor are.
        viewed: Whether another tensor shares its memory.
        share: Of the memory that changes take.
    """

    base: Tensor
    change: Change
    run: Run
    apart: bool
    each: Tensor | None
    parts_apart: bool
    viewed: bool
    share: _Share

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls, base: Tensor, change: Change, run: Run, *, apart: bool = False, each: Tensor | None = None
    ) -> Difference:
        made = torch.Tensor._make_wrapper_subclass(
            cls, base.shape, strides=base.stride(), dtype=base.dtype, device=base.device
        )
        made.base, made.change, made.run = base, change, run
        made.apart, made.each, made.parts_apart, made.viewed = apart and run.groups > 0, each, False, False
        made.share = _Share(run, change)
        difference: Difference = made
        return difference

    def _said(self) -> str:
        return f"Difference({list(self.shape)}, members={self.run.members})"

    __repr__: Any = _said  # torch's own is declared with a keyword that no signature matches

    @property
    def dense(self) -> Tensor:
        """The change of every member [n, *shape]."""
        if isinstance(self.change, Unit):
            self.run.refuse(NoDifference("a layer whose units change is used in another way than as a layer"))
            return self.base.new_zeros(()).expand(self.run.members, *self.shape)
        if isinstance(self.change, Entry):
            self.run.used_whole = True
        return self.change if isinstance(self.change, Tensor) else self.change.dense(self.shape)

    @property
    def of_groups(self) -> int | None:
        """How many leading dimensions count groups; None where they are not apart, or no dimensions of their own."""
        size = 1
        for dims, length in enumerate(self.shape, 1):
            size *= length
            if self.apart and size % self.run.groups == 0:
                return dims
        return None

    def lies_behind(self, *dims: int) -> bool:
        """Whether groups are apart and these dimensions count within a group, so that one may mix what lies along them."""
        first = self.of_groups
        return first is not None and all(d % self.ndim >= first for d in dims)

    @property
    def by_group(self) -> Tensor:
        """The change summed over every group, [n, groups]."""
        return self.dense.reshape(self.run.members, self.run.groups, -1).sum(2)

    @property
    def moved(self) -> Tensor:
        """The value of every member [n, *shape]."""
        return self.base + self.dense

    @classmethod
    def _below_python(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Difference)]
        if func._schema.is_mutable:
            return _in_place(func, args, kwargs)
        rule = RULES.get(packet)
        out = NotImplemented if rule is None else rule(given[0].run, func, *args, **kwargs)
        if out is NotImplemented:
            out = _at_both_values(given[0].run, func, args, kwargs)
        if func.is_view:
            for t in (*given, *tree_leaves(out)):
                if isinstance(t, Difference):
                    t.viewed = True
        return out

    __torch_dispatch__: Any = _below_python  # torch declares a disabled function here, of other arguments


Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}
"""``rule(run, func, *args, **kwargs)`` by operation; what it returns takes the place of what ``func`` returns."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Makes a function the rule of these operations, where this version of torch has them."""

    def register(function: Rule) -> Rule:
        for name in names:
            if hasattr(torch.ops.aten, name):
                RULES[getattr(torch.ops.aten, name)] = function
        return function

    return register


def base(tree: Any) -> Any:
    """The value in place of each tensor with changes."""
    return tree_map_only(Difference, lambda t: t.base, tree)


def _in_place(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation in place is the one that is not, and a tensor that holds another value from then on."""
    name, changed = func._schema.name.removeprefix("aten::"), args[0] if args else None
    functional = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if not name.endswith("_") or functional is None or not isinstance(changed, Difference) or changed.viewed:
        raise NoDifference(f"{name} writes into a tensor that something else may read")
    out = getattr(functional, func._overloadname)(*args, **kwargs)
    changed.base, changed.change, changed.apart, changed.each, changed.share = (
        out.base,
        out.change,
        out.apart,
        out.each,
        out.share,
    )
    return changed


def _at_both_values(run: Run, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What has no rule: evaluated at the values of all members, less what it gives at the model's own weights."""
    name = func._schema.name.removeprefix("aten::")
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise NoDifference(f"{name} draws random numbers that depend on the weights")
    here = func(*base(args), **base(kwargs))
    there = run.mapped(func, *tree_map_only(Difference, lambda t: Each(t.moved), (args, kwargs)))

    def difference(value: Any, values: Any) -> Any:
        if not isinstance(value, Tensor):
            raise NoDifference(f"{name} takes a number out of a tensor, on which what runs next may depend")
        if not value.is_floating_point():
            if not bool((values == value).all()):
                raise NoDifference(f"{name} decides differently at changed weights")
            return value
        if run.exact:
            run.refuse(Inexact(name))
        run.valued.add(name)
        return Difference(value, values - value, run)

    if isinstance(here, Tensor):
        return difference(here, there)
    if not isinstance(here, tuple | list):
        raise NoDifference(f"{name} takes a number out of a tensor, on which what runs next may depend")
    return type(here)(map(difference, here, there))
