"""A model as a chain of layers: every call of a trainable Linear or Conv layer as the model runs, in execution order.

The model is not rewritten and need not be a ``Sequential``: a torch function mode meets each call inside the model's own
``forward``, and what a method wants done there – noise on the output, a backward of its own, a cut of the graph – is one
function of the call. A *block* is a layer and what follows up to the next one; where a model is no such chain (skip
connections), it names its blocks in an attribute ``dldw_blocks``: submodules that are called one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dldw.errors import DldwError
from dldw.objective import Objective
from dldw.perturbed import ABOUT
from dldw.weights import Weights


@dataclass(frozen=True)
class Call:
    """One call of a layer, y = W x + b.

    Attributes:
        index: Its number among the calls of a forward pass.
        input: x [B, .., n], or [B, n, *positions] of a convolution.
        weight: W.
        bias: b, if there is one.
        function: ``F.linear`` or a convolution.
        options: Stride, padding, dilation and groups of a convolution.
    """

    index: int
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    function: Callable[..., Tensor]
    options: tuple[Any, ...] = ()

    def output(self) -> Tensor:
        """y."""
        return self.function(self.input, self.weight, self.bias, *self.options)

    @property
    def channels(self) -> int:
        """The dimension of y that counts its channels."""
        return 1 if self.options else -1

    def to_weight(self, error: Tensor, input: Tensor) -> Tensor:
        """dL/dW from dL/dy and x."""
        x, w = input.to(error.dtype), self.weight
        if self.options:
            return self._backward(error, x, w.to(error.dtype), 1).to(w.dtype)
        return (error.reshape(-1, error.shape[-1]).mT @ x.reshape(-1, x.shape[-1])).to(w.dtype)

    def to_bias(self, error: Tensor) -> Tensor:
        """dL/db from dL/dy."""
        over = [i for i in range(error.ndim) if i != self.channels % error.ndim]
        return error.sum(over) if over else error.clone()

    def to_input(self, error: Tensor, input: Tensor, weight: Tensor) -> Tensor:
        """dL/dx from dL/dy, with ``weight`` in the place of W; of ``input`` only the shape is read."""
        w = weight.to(error.dtype)
        back = self._backward(error, input.to(error.dtype), w, 0) if self.options else error @ w
        return back.to(input.dtype)

    def _backward(self, error: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        stride, padding, dilation, groups = self.options
        wanted = [i == which for i in range(3)]
        gradients = torch.ops.aten.convolution_backward(
            error, x, w, None, stride, padding, dilation, False, [0] * len(stride), groups, wanted
        )
        gradient: Tensor = gradients[which]
        return gradient


class Layers(TorchFunctionMode):
    """Inside, ``rule(call)`` gives the output of every call of a layer with a trainable weight or bias.

    Args:
        weights: The trainable weights of the model that runs.
        rule: What a call gives.
    """

    def __init__(self, weights: Weights, rule: Callable[[Call], Tensor]) -> None:
        super().__init__()
        self._places = weights.places
        self._rule, self.calls = rule, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FUNCTIONS:
            return self._layer(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _layer(self, func: Any, input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **named: Any) -> Tensor:
        if id(weight) not in self._places and id(bias) not in self._places:
            out: Tensor = func(input, weight, bias, *rest, **named)
            return out
        if func is F.linear:
            return self._run(Call(0, input, weight, bias, func))
        if input.ndim < weight.ndim:  # a convolution of one example that has no dimension of its own
            return self._layer(func, input.unsqueeze(0), weight, bias, *rest, **named).squeeze(0)
        input, options = _convolution(input, weight, *rest, **named)
        return self._run(Call(0, input, weight, bias, func, options))

    def _run(self, call: Call) -> Tensor:
        index, self.calls = self.calls, self.calls + 1
        return self._rule(replace(call, index=index))


def _convolution(
    input: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Tensor, tuple[Any, ...]]:
    """The input and the options of a convolution with padding in numbers."""
    each = [[v] * (weight.ndim - 2) if isinstance(v, int) else v for v in (stride, padding, dilation)]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(each[2], weight.shape[2:], strict=True)]
        input = F.pad(input, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
    if isinstance(padding, str):
        each[1] = [0] * len(each[0])
    return input, (*map(list, each), groups)


_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}


Back = Callable[[Call, Tensor, Tensor, bool], Tensor | None]
"""``back(call, error, x, wanted)`` gives what the input x gets for an error at the output, where it is wanted."""


def with_backward(call: Call, back: Back) -> Tensor:
    """The output of a call whose input gets what ``back`` says; weight and bias get their gradients as ever."""
    arguments = call.input, call.weight, call.bias, call, back
    out: Tensor = cast(Any, _WithBackward).apply(*arguments)
    return out


class _WithBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call, back: Back) -> Tensor:
        ctx.save_for_backward(x)
        ctx.call, ctx.back = call, back
        return call.output()

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (error,), call = ctx.saved_tensors, errors, ctx.call
        to_x, to_weight, to_bias, *_ = ctx.needs_input_grad
        return (
            ctx.back(call, error, x, to_x),
            call.to_weight(error, x) if to_weight else None,
            call.to_bias(error).to(call.bias.dtype) if to_bias else None,
            None,
            None,
        )


# --- what a model looks like from outside ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What one forward pass shows of a model.

    Attributes:
        nodes: Outputs for each example, positions x channels, of every layer, by the places in ``Weights`` of its trainable
            weight and bias. A layer of which one is used in another way too is not there.
        calls: How many calls of layers one forward pass makes.
        output: Shape of the model's output, the dimension of examples included; None where it is not one tensor.
    """

    nodes: dict[tuple[int, ...], int] = field(default_factory=dict)
    calls: int = 0
    output: torch.Size | None = None

    @staticmethod
    def of(objective: Objective) -> Layout:
        """The layout of the model on batches of this shape; found in one more forward pass when it is first met."""
        known, key = _layouts.setdefault(objective.weights, {}), objective.signature()
        if key not in known:
            found = _looked_at(objective)
            if len(known) > 64:
                known.clear()
            known[key] = found
        return known[key]


_layouts: WeakKeyDictionary[Weights, dict[tuple[Any, ...], Layout]] = WeakKeyDictionary()


class _Looking(Layers):
    """Notes which weights are used in another way than as those of a layer."""

    def __init__(self, weights: Weights, rule: Callable[[Call], Tensor]) -> None:
        super().__init__(weights, rule)
        self.elsewhere: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _FUNCTIONS and func not in ABOUT:
            self.elsewhere |= {self._places[id(t)] for t in tree_leaves((args, kwargs)) if id(t) in self._places}
        return super().__torch_function__(func, types, args, kwargs)


def _looked_at(objective: Objective) -> Layout:
    weights = objective.weights
    place = weights.places
    nodes: dict[tuple[int, ...], int] = {}
    outputs: list[Any] = []

    def seen(call: Call) -> Tensor:
        out = call.output()
        layer = tuple(place[id(t)] for t in (call.weight, call.bias) if id(t) in place)
        nodes[layer] = nodes.get(layer, 0) + out[0].numel()
        return out

    hook = objective.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.no_grad(), _Looking(weights, seen) as looking:
            objective.check(objective.at(weights.tensors))
    finally:
        hook.remove()
    shape = outputs[0].shape if len(outputs) == 1 and isinstance(outputs[0], Tensor) else None
    if not nodes and not looking.elsewhere:
        objective.require_dependence()
    return Layout(
        {layer: n for layer, n in nodes.items() if not looking.elsewhere.intersection(layer)}, looking.calls, shape
    )


def require_layers(calls: int, model: nn.Module) -> None:
    """Raises ``DldwError`` where none was called."""
    if not calls:
        raise DldwError(
            f"this is a rule for Linear and Conv layers, and {type(model).__name__} runs none that has a trainable weight. "
            "Use a method that sees weights alone, such as dldw.Backprop or dldw.SPSA."
        )


def require_independent_examples(model: nn.Module, method: str, remedy: str) -> None:
    """Raises ``DldwError`` where a batch norm in training mode makes the loss of one example depend on the others."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise DldwError(
                f"{method} reads the loss of each example along noise of its own, but {name or 'the model'} is a "
                f"{type(module).__name__} in training mode, through which every example's loss depends on all the others. "
                f"Call eval() on it, or use a norm within examples (nn.GroupNorm, nn.LayerNorm){remedy}."
            )


# --- blocks -----------------------------------------------------------------------------------------------------------


@contextmanager
def cut_between_blocks(
    model: nn.Module,
    weights: Weights,
    cut: Callable[[int, Tensor], Tensor],
    rule: Callable[[Call], Tensor] = Call.output,
) -> Iterator[Callable[[Tensor], None]]:
    """Inside, the model is cut wherever a block ends; gives a function that looks at what comes out in the end.

    What it and ``cut`` are given must not lead back beyond a block, or autograd would follow; that is looked at when a model
    is first met.

    Args:
        model: The model that runs.
        weights: Its trainable weights.
        cut: Takes the number of a block, 0 at first, and its output, and gives the next block's input; not called for the
            last block, whose output is the model's.
        rule: What the call of a layer gives.

    Raises:
        DldwError: ``dldw_blocks`` names no submodule, there is no layer, or something bypasses a block.
    """
    blocks, number = _named_blocks(model), 0
    named = tuple(getattr(model, "dldw_blocks", ()))
    known: set[Any] | None = None if _chains.get(weights) == named else set()

    def look(h: Tensor) -> None:
        if not blocks:
            require_layers(running.calls, model)
        if known is not None:
            _require_no_bypass(h, known, number, model)

    def ended(h: Tensor) -> Tensor:
        nonlocal number
        look(h)
        number += 1
        return cut(number - 1, h)

    def layer(call: Call) -> Tensor:
        starts = not blocks and call.index > 0
        return rule(replace(call, input=ended(call.input)) if starts else call)

    with ExitStack() as stack:
        for block in blocks[1:]:
            hook = block.register_forward_pre_hook(lambda _, inputs: (ended(inputs[0]), *inputs[1:]))
            stack.callback(hook.remove)
        running = stack.enter_context(Layers(weights, layer))
        yield look
    if known:
        _chains[weights] = named


_chains: WeakKeyDictionary[Weights, tuple[str, ...]] = WeakKeyDictionary()
"""Models in which nothing was found to bypass a block, with the blocks they named."""


def _named_blocks(model: nn.Module) -> list[nn.Module]:
    names = getattr(model, "dldw_blocks", ())
    modules = dict(model.named_modules()) if names else {}
    for name in names:
        if name not in modules:
            raise DldwError(
                f"dldw_blocks of {type(model).__name__} names the submodule {name!r}, which it does not have. It has: "
                f"{', '.join(n for n in modules if n)}."
            )
    return [modules[name] for name in names]


def _require_no_bypass(h: Tensor, known: set[Any], number: int, model: nn.Module) -> None:
    """Raises ``DldwError`` where the graph of a block's output goes back beyond the block; ``known`` takes its nodes in."""
    mine, stack = set(), [h.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in mine or hasattr(node, "variable"):
            continue
        if node in known:
            raise DldwError(
                f"layers are to be trained one by one, but in {type(model).__name__} something bypasses the layer that ends "
                f"block {number} of its chain (a skip connection, or one input for several layers). Name the submodules "
                "that are called one after the other in an attribute of the model, as model.dldw_blocks = ['stem', "
                "'block1', 'head']."
            )
        mine.add(node)
        stack += [following for following, _ in node.next_functions]
    known |= mine


@contextmanager
def forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """Inside, calling ``module`` calls ``forward``."""
    had = module.__dict__.get("forward")
    try:
        module.__dict__["forward"] = forward
        yield
    finally:
        if had is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = had
