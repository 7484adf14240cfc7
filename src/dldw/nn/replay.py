"""A call of a module, recorded so that it can be made again in the backward pass, the same to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from dldw.errors import DldwError


class Replay:
    """``module(x, **kwargs)``, run once without a graph and later again with one.

    The second run sees what the first one saw: the random state, autocast, training or evaluation mode, the parameters and
    the buffers that were in place. It leaves no trace: buffers and the random state stay as they are. Draws from the global
    generators are repeated; a generator of a layer's own is not known here.

    Args:
        module: What is called.
        kwargs: Its keyword arguments; tensors may lie anywhere inside.
    """

    def __init__(self, module: nn.Module, kwargs: Mapping[str, Any]) -> None:
        self.module = module
        leaves: list[Any] = []
        self._spec: TreeSpec | None = None
        if kwargs:
            leaves, self._spec = tree_flatten(dict(kwargs))
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._modules = list(module.modules())
        self._recurrent = [m for m in self._modules if isinstance(m, nn.RNNBase)]
        self._slots = [
            (m._parameters, name, p) for m in self._modules for name, p in m._parameters.items() if p is not None
        ]
        distinct = list({id(p): p for _, _, p in self._slots}.values())
        index = {id(p): i for i, p in enumerate(distinct)}
        self._index = [index[id(p)] for _, _, p in self._slots]
        self._kwargs = kwargs
        self._parameters = len(distinct)
        self.tensors: list[Tensor] = [*distinct, *(leaves[i] for i in self._places)]
        """All that the call reads beside ``x``: each parameter once, then the tensors among the arguments."""

    def first(self, x: Tensor) -> Tensor:
        """Makes the call for the first time, without a graph."""
        self._training = [m.training for m in self._modules]
        self._device = x.device
        self._autocast = _autocast(x.device.type)
        buffers = [(m._buffers, name, b) for m in self._modules for name, b in m._buffers.items() if b is not None]
        before = [b.clone() for _, _, b in buffers]
        random = torch.get_rng_state()
        devices = () if x.device.type == "cpu" else get_device_states(x)
        with _in_autocast(self._autocast):
            out: Tensor = self.module(x, **self._kwargs)
        self._kwargs = {}
        drew = not torch.equal(random, torch.get_rng_state())
        self._random = random if drew else None
        self._devices = devices
        self._buffers = [
            (container, name, kept if changed else b, changed)
            for (container, name, b), kept in zip(buffers, before, strict=True)
            for changed in [container.get(name) is not b or not torch.equal(b, kept)]
        ]
        return out

    def again(self, x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Makes the call again.

        Args:
            x: The argument, as the first time.
            tensors: One for each of ``self.tensors``, with the same values.
        """
        kwargs: dict[str, Any] = {}
        if self._spec is not None:
            leaves = list(self._leaves)
            for place, tensor in zip(self._places, tensors[self._parameters :], strict=True):
                leaves[place] = tensor
            kwargs = tree_unflatten(leaves, self._spec)
        with self._as_it_was(tensors), _in_autocast(self._autocast):
            out: Tensor = self.module(x, **kwargs)
        return out

    @contextmanager
    def _as_it_was(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        put: list[tuple[dict[str, Any], str, Any]] = [
            (container, name, tensors[i]) for (container, name, _), i in zip(self._slots, self._index, strict=True)
        ]
        put += [(container, name, b.clone() if changed else b) for container, name, b, changed in self._buffers]
        now = [(container, name, container.get(name)) for container, name, _ in put]
        training = [m.training for m in self._modules]
        random = torch.get_rng_state() if self._random is not None else None
        devices = get_device_states(torch.empty(0, device=self._device)) if self._devices else ()
        try:
            for container, name, tensor in put:
                container[name] = tensor
            _set_training(self._modules, self._training)
            if self._random is not None:
                torch.set_rng_state(self._random)
            if self._devices:
                set_device_states(*self._devices, device_type=self._device.type)
            yield
        finally:
            for container, name, tensor in now:
                container[name] = tensor
            _set_training(self._modules, training)
            for module in self._recurrent:  # forward made a list of what it read, and would hold on to it
                module._update_flat_weights()
            if random is not None:
                torch.set_rng_state(random)
            if devices:
                set_device_states(*devices, device_type=self._device.type)


def require_known(out: Tensor, known: Sequence[Tensor], module: nn.Module) -> None:
    """Raises ``DldwError`` where ``out`` depends on a tensor whose gradient would be lost: one not among ``known``."""
    ids = {id(t) for t in known}
    stack, seen = [out.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [following for following, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in ids:
            raise DldwError(
                f"{type(module).__name__} depends on a tensor of shape {list(leaf.shape)} that requires a gradient and is "
                "neither one of its parameters nor one of its arguments, so a reversible backward pass would lose that "
                "gradient. Register it as an nn.Parameter of the module, or pass it in f_kwargs or g_kwargs."
            )


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for this type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _set_training(modules: Sequence[nn.Module], modes: Sequence[bool]) -> None:
    for module, mode in zip(modules, modes, strict=True):
        if module.training != mode:
            module.training = mode


_Autocast = list[tuple[str, bool, torch.dtype]]


def _autocast(device: str) -> _Autocast:
    """Which devices autocast is on for, and with what dtype."""
    devices = [d for d in dict.fromkeys((device, "cpu")) if torch.amp.is_autocast_available(d)]
    return [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]


@contextmanager
def _in_autocast(recorded: _Autocast) -> Iterator[None]:
    """Autocast as recorded, without its cache: weights that it cast without a graph must not be met by a call with one."""
    now = _autocast(recorded[0][0]) if recorded else []
    caching = torch.is_autocast_cache_enabled()
    if recorded == now and not any(enabled for _, enabled, _ in now):
        yield
        return
    try:
        for device, enabled, dtype in recorded:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(False)
        yield
    finally:
        for device, enabled, dtype in now:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(caching)
