"""Pretrained transformers made reversible: fine-tuning with memory that does not grow with depth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dldw.errors import DldwError
from dldw.nn.reversible import Backward, ReversibleBlock, ReversibleSequential

Method = Literal["bdia", "dr2net"]
_GRID = 20
"""What a layer adds is rounded to multiples of 2^-20, in float64: so sums are exact, and so is their inverse."""
_SPARE = 53 - 12 - _GRID
"""Bits left in the mantissa of a float64 beside the grid and 12 bits before the point."""


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` did.

    Attributes:
        path: Where in the model the layers are.
        layers: How many.
        method: As given.
        gamma: As given.
        anchor_every: Pairs of layers between stored activations; None where none are needed.
        moved: How far the outputs on the sample moved, as a share of their size (root mean square).
    """

    path: str
    layers: int
    method: Method
    gamma: float
    anchor_every: int | None
    moved: float

    def __str__(self) -> str:
        stored = "nothing stored between" if self.anchor_every is None else f"one of {2 * self.anchor_every} stored"
        return (
            f"{self.layers} layers at {self.path} are reversible ({self.method}, gamma {self.gamma:g}, {stored}); on the "
            f"sample the outputs moved by {self.moved:.2%}"
        )


def convert(
    model: nn.Module,
    sample: Any = None,
    *,
    method: Method = "bdia",
    gamma: float = 0.25,
    backward: Backward = "reversible",
) -> Conversion:
    """Makes the repeated residual layers of a pretrained model reversible, in place, for fine-tuning.

    Layers are found by structure: a container of modules of one class and shape, called one after the other, each with the
    output of the one before and otherwise equal arguments. They may have any inner form, pre- or post-norm. F_k is the whole
    layer, h_k(x) = F_k(x) − x what it adds:

    bdia:    x_{k+1} = gamma x_{k−1} + (1 − gamma) x_k + (1 + gamma) h_k(x_k);  output x_N − gamma/(1+gamma) (x_N − x_{N−1})
    dr2net:  x_{k+1} = gamma x_{k−1} + F_k(x_k)

    Both give x_{k−1} back from the next two. The first adds every h_k in full: the output is x_0 + Σ h_k, as in the
    pretrained model, with each h_k taken at a point that is off by gamma/(1+gamma) of the last step. The second adds a share
    of the stream itself, and moves the outputs of a trained model many times as far (``benchmarks/convert.py`` measures it).
    As gamma is a power of two and streams are kept on a grid in float64, the inverse is exact to the last bit for about 20
    layers at gamma 1/4; deeper models store the streams that often (``anchor_every``).

    Names of weights stay as they are, so checkpoints fit before and after. In training, a cache of keys and values that was
    made for the pass is left out. Hidden states that hooks collect inside carry no gradient.

    Source: Zhang, Lewis & Kleijn 2024 (BDIA), arXiv 2407.09093, here with a fixed gamma and the correction of the output;
    Zhao et al. 2024 (Dr2Net), arXiv 2401.04105, which starts as MEFT does: Liao, Tan & Monz 2023, arXiv 2306.00477.

    Args:
        model: The model, such as a GPT-2, BERT, ViT or Llama of transformers.
        sample: Inputs to try it on: a mapping of keyword arguments, a tuple of positional ones, or one tensor; by default
            ``model.dummy_inputs``, where the model has them.
        method: ``bdia`` or ``dr2net``.
        gamma: A power of two below 1. The smaller, the nearer the pretrained function and the fewer layers between anchors.
        backward: As in ``ReversibleBlock``.

    Raises:
        DldwError: There are no such layers, with the reason; or there is no sample, or gamma is no power of two below 1.

    Example:
        >>> import torch, dldw.nn
        >>> class Layer(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner = torch.nn.Linear(8, 8)
        ...     def forward(self, x):
        ...         return x + 0.1 * torch.tanh(self.inner(x))
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Sequential(*(Layer() for _ in range(4))))
        >>> dldw.nn.convert(model, torch.randn(2, 3)).moved < 0.01
        True
    """
    if method not in get_args(Method):
        raise DldwError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    bits = -math.log2(gamma) if gamma > 0 else 0.0
    if bits < 1 or bits != int(bits):
        raise DldwError(f"gamma must be 1/2, 1/4, 1/8, ... so that the inverse is exact, got {gamma}.")
    inputs = _inputs(model, sample)
    with _evaluating(model):
        found, before = _find(model, inputs)
        layers = list(found.container.children())
        growth = max(bits / 2, bits - 1) if method == "bdia" else bits / 2  # bits that a layer adds to the streams
        pairs = max(1, int(_SPARE / growth) // 2)
        anchor_every = pairs if len(layers) // 2 > pairs else None
        made = ReversibleLayers(layers, method, gamma, backward, anchor_every)
        _replace(model, found.path, made)
        after = _first_tensor(_call(model, inputs))
    off, size = (after - before).double().norm(), before.double().norm()
    return Conversion(found.path, len(layers), method, gamma, anchor_every, float(off / size.clamp_min(1e-300)))


class ReversibleLayers(nn.ModuleList):
    """The layers of a model, under their own names, run as one reversible chain; iterated over, it gives itself, once.

    Args:
        layers: At least two.
        method, gamma, backward: As in ``convert``.
        anchor_every: Pairs of layers between stored activations.
    """

    def __init__(
        self, layers: list[nn.Module], method: Method, gamma: float, backward: Backward, anchor_every: int | None
    ) -> None:
        super().__init__(layers)
        gain, back = (1 + gamma, 2 * gamma) if method == "bdia" else (1.0, 0.0)
        steps = [_Step(layer, gain, back) for layer in layers]
        blocks = [ReversibleBlock(f, g, keep=(gamma, gamma)) for f, g in zip(steps[0::2], steps[1::2], strict=False)]
        self.correction = gamma / (1 + gamma) if method == "bdia" else 0.0
        self._chains = [
            ReversibleSequential(*blocks, backward=backward, anchor_every=anchor_every)
        ]  # in a list: no child
        self._last = [layers[-1]] if len(layers) % 2 else []
        self.method = method

    @property
    def chain(self) -> ReversibleSequential:
        """The pairs of layers; its ``backward`` can be set, its ``drift_check`` too."""
        return self._chains[0]

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The hidden states after the last layer."""
        if torch.is_grad_enabled():
            args, kwargs = tuple(_without_cache(a) for a in args), {k: _without_cache(a) for k, a in kwargs.items()}
        x = _on_grid(hidden.double())
        given = {"args": args, "kwargs": kwargs}
        before, last = self.chain(
            (x if self.method == "bdia" else torch.zeros_like(x), x), f_kwargs=given, g_kwargs=given
        )
        out: Tensor = (last - self.correction * (last - before)).to(hidden.dtype)
        for layer in self._last:
            out = layer(out, *args, **kwargs)
        return out

    def __iter__(self) -> Iterator[nn.Module]:
        return iter([self])

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def __getitem__(self, at: Any) -> Any:
        return [self] if isinstance(at, slice) else super().__getitem__(at)


class _Step(nn.Module):
    """gain F(x) − back x, on the grid."""

    def __init__(self, layer: nn.Module, gain: float, back: float) -> None:
        super().__init__()
        self.layer, self.gain, self.back = layer, gain, back

    def forward(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        dtype = next((p.dtype for p in self.layer.parameters() if p.is_floating_point()), torch.float32)
        out = self.layer(x.to(dtype), *args, **kwargs)
        return _on_grid(self.gain * out.double()) - self.back * x


def _on_grid(x: Tensor) -> Tensor:
    """``x`` rounded to the grid; its derivative is that of ``x``."""
    rounded: Tensor = x + (torch.round(x.detach() * 2**_GRID) / 2**_GRID - x.detach())
    return rounded


def _without_cache(value: Any) -> Any:
    """None in place of a cache of keys and values, which a layer would extend again whenever it is computed again."""
    if not (callable(getattr(value, "update", None)) and callable(getattr(value, "get_seq_length", None))):
        return value
    if value.get_seq_length():
        raise DldwError(
            "a reversible model was given a cache that holds keys and values already, with gradients on: its layers would "
            "extend it again in the backward pass. Call it under torch.no_grad(), or without the cache (use_cache=False)."
        )
    return None


@dataclass(frozen=True)
class _Found:
    path: str
    container: nn.Module


@dataclass(frozen=True)
class _Seen:
    """A call of a layer."""

    at: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


def _find(model: nn.Module, inputs: Any) -> tuple[_Found, Tensor]:
    """The largest fitting container, and the output of the model on the sample."""
    containers = {
        path: module
        for path, module in model.named_modules()
        if path and isinstance(module, nn.ModuleList | nn.Sequential) and _alike(module)
    }
    if not containers:
        raise DldwError(
            f"{type(model).__name__} has no repeated layers: nowhere do two or more modules of one class and with parameters "
            "of the same shapes lie in one ModuleList or Sequential. Build its blocks with dldw.nn.ReversibleBlock instead."
        )
    calls: dict[str, list[_Seen]] = {path: [] for path in containers}
    hooks = [
        layer.register_forward_hook(
            lambda m, args, kwargs, out, path=path, at=at: calls[path].append(_Seen(at, args, kwargs, out)),
            with_kwargs=True,
        )
        for path, container in containers.items()
        for at, layer in enumerate(container.children())
    ]
    try:
        out = _first_tensor(_call(model, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    reasons = {path: _reason(containers[path], seen) for path, seen in calls.items()}
    fitting = [path for path, reason in reasons.items() if not reason]
    if not fitting:
        told = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        raise DldwError(
            f"no layers of {type(model).__name__} can be made reversible as they are. {told}. A layer must map one tensor to "
            "one of the same shape, and get what the layer before gave."
        )
    path = max(fitting, key=lambda path: sum(p.numel() for p in containers[path].parameters()))
    return _Found(path, containers[path]), out


def _alike(container: nn.Module) -> bool:
    kinds = Counter((type(c), tuple(p.shape for p in c.parameters())) for c in container.children())
    return len(kinds) == 1 and sum(kinds.values()) > 1 and all(shapes for _, shapes in kinds)


def _reason(container: nn.Module, calls: list[_Seen]) -> str:
    """Why a container does not fit, or nothing."""
    count = len(list(container.children()))
    if [call.at for call in calls] != list(range(count)):
        return f"its {count} layers are not called once each, one after the other"
    for call in calls:
        x = call.args[0] if call.args else None
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return f"layer {call.at} does not take its hidden state as its first positional argument"
        if not isinstance(call.out, Tensor):
            return f"layer {call.at} returns {type(call.out).__name__}, not one tensor"
        if call.out.shape != x.shape or call.out.dtype != x.dtype:
            return f"layer {call.at} changes {list(x.shape)} to {list(call.out.shape)}"
        if call.at and x is not calls[call.at - 1].out:
            return f"layer {call.at} does not get the very output of layer {call.at - 1}"
        if not _equal((call.args[1:], call.kwargs), (calls[0].args[1:], calls[0].kwargs)):
            return f"layer {call.at} gets other arguments than layer 0"
    return ""


def _equal(a: Any, b: Any) -> bool:
    mine, others = tree_leaves(a), tree_leaves(b)
    return len(mine) == len(others) and all(
        p is q or (not isinstance(p, Tensor) and not isinstance(q, Tensor) and p == q)
        for p, q in zip(mine, others, strict=True)
    )


def _inputs(model: nn.Module, sample: Any) -> Any:
    if sample is None:
        sample = getattr(model, "dummy_inputs", None)
    if sample is None:
        raise DldwError(
            "convert needs a sample to see how the layers are called and how far the outputs move. Give the inputs of one "
            "small batch: convert(model, {'input_ids': ids}) or convert(model, images)."
        )
    return sample


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _first_tensor(out: Any) -> Tensor:
    values = out.values() if isinstance(out, Mapping) else tree_leaves(out)
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            return value
    raise DldwError(
        f"the model returned {type(out).__name__} without a floating-point tensor, so nothing can be compared."
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode and the random state come back."""
    modes = [(m, m.training) for m in model.modules()]
    state = torch.get_rng_state()
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        torch.set_rng_state(state)


def _replace(model: nn.Module, path: str, made: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, made)
