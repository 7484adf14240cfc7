"""The trainable weights of a model, and how other values stand in for them while a loss is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dldw.errors import DldwError

Slot = tuple[Any, Any]
"""A container and the key under which it holds a tensor that ``forward`` reads."""


class Weights:
    """The distinct trainable parameters of a model, each with every place where ``forward`` finds it.

    A tied parameter is one tensor with several slots; a frozen one is left out. Other tensors are put into the slots with
    ``put``; the parameters themselves are never written. Where accelerate offloads a weight, it is what the hook of its
    module loads it from for every ``forward`` that counts: that is the tensor, and its place there the slot.

    Use ``Weights.of``, which walks a model once and again only after its structure has changed.

    Args:
        model: Any module.
    """

    _known: ClassVar[WeakKeyDictionary[nn.Module, Weights]] = WeakKeyDictionary()

    @classmethod
    def of(cls, model: nn.Module) -> Weights:
        """The weights of ``model`` as it is now."""
        known = cls._known.get(model)
        if known is None or not known._current():
            known = cls._known[model] = cls(model)
        return known

    def __init__(self, model: nn.Module) -> None:
        self.kind = type(model).__name__
        self.tensors: list[nn.Parameter] = []
        self.slots: list[list[Slot]] = []
        self.buffers: list[Slot] = []
        self.offloaded: dict[int, str] = {}
        """Names of those that their modules hold only while they run, by ``id``."""
        self._frozen: list[nn.Parameter] = []
        self._put: list[int] = []
        self._members: list[tuple[dict[str, Any], str, Any]] = []
        self._recurrent: list[nn.RNNBase] = []
        self.checkpointed: list[nn.Module] = []
        """Modules that can be told to run again in their backward pass."""
        index: dict[Any, int] = {}
        stack, seen = [model], {id(model)}
        dicts: list[dict[str, Any]] = []
        while stack:
            module = stack.pop()
            for child in reversed(module._modules.values()):
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    stack.append(child)
            self._collect(module, index)
            dicts += [module._modules, module._parameters, module._buffers]
        self._members += [
            (d, key, value)
            for d in dicts[::3] + dicts[1::3]
            for key, value in d.items()
            if value is None
            or isinstance(value, nn.Module)
            or not value.is_meta  # which hooks put anew for each forward
        ]
        self.buffers = [(d, key) for d in dicts[2::3] for key, value in d.items() if value is not None]
        self._dicts, self._lengths = dicts, [len(d) for d in dicts]
        self.size = sum(p.numel() for p in self.tensors)
        """d, the number of trainable weights."""
        self.bytes = sum(p.numel() * p.element_size() for p in self.tensors)
        self.places = {id(p): i for i, p in enumerate(self.tensors)}
        """Where each of ``tensors`` is, by its ``id``."""
        self._sizes = [p.numel() for p in self.tensors]
        self._typed = [(p, p.dtype) for p in self.tensors]
        dtypes = {dtype for _, dtype in self._typed}
        self.dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.float32
        """The widest dtype among them."""
        self._mixed = len(dtypes) > 1
        self._require_real()

    def _current(self) -> bool:
        if list(map(len, self._dicts)) != self._lengths:
            return False
        for container, key, value in self._members:
            if container.get(key) is not value:
                return False
        for p, dtype in self._typed:
            if not p.requires_grad or p.dtype is not dtype:
                return False
        return not any(p.requires_grad for p in self._frozen)

    def _collect(self, module: nn.Module, index: dict[Any, int]) -> None:
        hook = module.__dict__.get("_hf_hook")
        if hook is not None:
            self._members.append((module.__dict__, "_hf_hook", hook))
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if not parameter.requires_grad:
                if not parameter.is_meta:
                    self._frozen.append(parameter)
                continue
            key: Any = id(parameter)
            slot: Slot = (module._parameters, name)
            if parameter.is_meta and hook is not None:
                slot = self._offloaded(hook, name)
                parameter = slot[0][slot[1]]
                key = parameter.data_ptr(), parameter.shape
            at = index.setdefault(key, len(self.tensors))
            if at == len(self.tensors):
                self.tensors.append(parameter if isinstance(parameter, nn.Parameter) else nn.Parameter(parameter))
                self.slots.append([])
            if slot[0] is not module._parameters:
                slot[0][slot[1]] = self.tensors[at]
                self.offloaded.setdefault(id(self.tensors[at]), slot[1])
                self._members.append((*slot, self.tensors[at]))
            self.slots[at].append(slot)
        if hasattr(module, "gradient_checkpointing"):
            self.checkpointed.append(module)
        if isinstance(module, nn.RNNBase):
            self._recurrent.append(module)

    def _offloaded(self, hook: Any, name: str) -> Slot:
        """Where the hook of a module has a weight that is not on any device."""
        hooks = getattr(hook, "hooks", (hook,))
        store: Any = next((h.weights_map for h in hooks if getattr(h, "offload", False)), None)
        while hasattr(store, "prefix"):
            store, name = store.dataset, store.prefix + name
        store = getattr(store, "state_dict", store)
        if not isinstance(store, dict) or name not in store:
            raise DldwError(
                f"the trainable weight {name} of {self.kind} is on the meta device, and not in memory anywhere: it has no "
                "values, or they are on a disk that is only read from. Keep what is trained in memory "
                "(accelerate.cpu_offload, or a device_map without 'disk' for it), or freeze it and train an adapter."
            )
        return store, name

    def named(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The tensors by their names in ``model``."""
        names = {**{id(p): name for name, p in model.named_parameters()}, **self.offloaded}
        return {names[id(p)]: p for p in self.tensors}

    def require_resident(self, method: str) -> None:
        """Raises ``DldwError`` where an optimizer would not find the weights."""
        if self.offloaded:
            raise DldwError(
                f"{method} fills .grad, and {self.kind} has {len(self.offloaded)} trainable weights that accelerate "
                "offloads: what an optimizer holds in their place has no values. Train with dldw.ForwardOnly, which updates "
                "them where they are kept, or keep what is trained on the device and freeze the rest."
            )

    @property
    def device(self) -> torch.device:
        """Where the first trainable weight is."""
        return self.tensors[0].device

    def require_trainable(self) -> None:
        """Raises ``DldwError`` where nothing can be trained, with the reason."""
        if not self.tensors:
            integers = [p for p in self._frozen if not p.is_floating_point()]
            why = "it has no parameters at all"
            if integers:
                why = f"its weights are of type {integers[0].dtype}, and integers have no derivative"
            elif self._frozen:
                why = f"all its {len(self._frozen)} parameters have requires_grad=False"
            remedy = (
                "Train it with a search method, or make the weights floating point."
                if integers
                else ("Call requires_grad_() on the parameters to train, or pass the module that holds them.")
            )
            raise DldwError(f"{self.kind} has no trainable parameter: {why}. {remedy}")

    def _require_real(self) -> None:
        for p in self.tensors:
            if p.is_complex():
                raise DldwError(
                    f"a trainable parameter of {self.kind} is complex ({p.dtype}); directions are real. "
                    "Hold its real and imaginary parts as two real parameters (torch.view_as_real)."
                )

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Makes ``forward`` read ``tensors``, one for each of ``self.tensors``; ``restore`` belongs in a ``finally``."""
        for i, tensor in enumerate(tensors):
            if tensor is not self.tensors[i]:
                self._put.append(i)
                for container, key in self.slots[i]:
                    container[key] = tensor

    def restore(self) -> None:
        """Makes ``forward`` read the model's own weights again."""
        for i in self._put:
            for container, key in self.slots[i]:
                container[key] = self.tensors[i]
        self._put.clear()
        for module in self._recurrent:  # forward made a list of what it read, and would hold on to it
            module._update_flat_weights()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, ``.grad`` starts empty; what gathers there is added to what it held, or dropped after an exception."""
        held = [p.grad for p in self.tensors]
        for p in self.tensors:
            p.grad = None
        try:
            yield
        except BaseException:
            for p, h in zip(self.tensors, held, strict=True):
                p.grad = h
            raise
        for p, h in zip(self.tensors, held, strict=True):
            if h is not None:
                p.grad = h if p.grad is None else h.add_(p.grad)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Cuts ``flat`` [..., d] into one tensor [..., *shape] for each weight, in the weight's dtype."""
        lead, parts = flat.shape[:-1], flat.split_with_sizes(self._sizes, dim=-1)
        shaped = [part.view((*lead, *p.shape)) for part, p in zip(parts, self.tensors, strict=True)]
        if flat.dtype != self.dtype or self._mixed:
            return [t.to(p.dtype) for t, p in zip(shaped, self.tensors, strict=True)]
        return shaped

    def blocks(self, flat: Tensor, count: int) -> list[Tensor]:
        """Cuts ``flat`` [count * d] into one contiguous tensor [count, *shape] for each weight."""
        parts = flat.split_with_sizes([count * size for size in self._sizes])
        return [part.view((count, *p.shape)) for part, p in zip(parts, self.tensors, strict=True)]

    def flat(self) -> Tensor:
        """A copy of all weights as one vector [d], in the widest dtype among them."""
        return torch.cat([p.detach().reshape(-1).to(self.dtype) for p in self.tensors])


def masks_of_parameters(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Masks by the ``id`` of the parameter that each is for.

    Raises:
        DldwError: One fits no parameter.
    """
    known = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, Tensor] = {}
    for name, mask in masks.items():
        if name not in known or mask.shape != known[name].shape:
            fault = f"has the shape {list(mask.shape)}" if name in known else "is for no parameter of the model"
            raise DldwError(f"the mask {name!r} {fault}. Give one boolean tensor for each parameter to be moved.")
        found[id(known[name])] = mask
    return found


def add_to_grad(p: Tensor, estimate: Tensor) -> None:
    """Adds ``estimate``, which is kept, to ``.grad``."""
    if p.grad is None:
        p.grad = estimate.to(p.dtype)
    else:
        p.grad.add_(estimate)
