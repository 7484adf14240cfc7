"""Models that ``torch.compile`` made, and checkpoints: what is switched off in them while they are probed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from dldw.perturbed import StandIn


def met_one_by_one(tensors: Sequence[Tensor]) -> bool:
    """Whether something meets the operations of a model one by one: a stand-in for a weight among ``tensors``, or a torch
    function mode. Compiled code would meet these while it is traced and never again."""
    for t in tensors:  # in the path of every loss, so not any(...), which makes a generator
        if isinstance(t, StandIn):
            return True
    if not torch._C._len_torch_function_stack():
        return False
    return any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def as_written(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, compiled code runs as it was written. A warning says so once for each compiled model.

    It is what ``met_one_by_one`` asks for, and forward mode, which has no rules for the kernels that compilers make.
    """
    if "torch._dynamo" not in sys.modules:
        return _AS_IT_IS
    if model not in _warned and any(map(_is_compiled, model.modules())):
        _warned.add(model)
        warnings.warn(
            f"{type(model).__name__} was compiled, and runs uncompiled while its weights are perturbed where they are used, "
            "many at once, or by forward mode: the losses are the same, the time is that of the model as it was written. "
            "One direction at a time in full (dldw.SPSA, evaluate='sequential') runs compiled.",
            stacklevel=2,
        )
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or isinstance(module, torch._dynamo.OptimizedModule)


_warned: WeakSet[nn.Module] = WeakSet()
_AS_IT_IS = nullcontext()


def forwards_alone(model: nn.Module, checkpointed: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Inside, modules that would run again in their backward pass run once, as no backward pass comes: a warning says so once
    for each model. What is made inside ``torch.inference_mode`` is made as outside it, so that ``.grad`` can be added to.

    ``torch.utils.checkpoint`` itself runs its function as it is where autograd does not watch.

    Args:
        model: What runs.
        checkpointed: Its modules with an attribute ``gradient_checkpointing``, as those of Hugging Face have it.
    """
    modules = [module for module in checkpointed if module.gradient_checkpointing] if checkpointed else []
    if not modules and not torch.is_inference_mode_enabled():
        return _AS_IT_IS
    if modules and model not in _unchecked:
        _unchecked.add(model)
        warnings.warn(
            f"{type(model).__name__} has gradient checkpointing enabled, and it is off while forward passes alone are taken: "
            "there is no backward pass that it could spare memory in. Disable it in the model, if no other step needs it.",
            stacklevel=2,
        )
    return _forwards_alone(modules)


@contextmanager
def _forwards_alone(modules: Sequence[nn.Module]) -> Iterator[None]:
    for module in modules:
        vars(module)["gradient_checkpointing"] = False
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in modules:
            vars(module)["gradient_checkpointing"] = True


_unchecked: WeakSet[nn.Module] = WeakSet()
