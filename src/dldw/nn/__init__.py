"""Modules that bring a way of learning of their own, each imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dldw.nn.belief import DeepBeliefNetwork as DeepBeliefNetwork
    from dldw.nn.belief import stack as stack
    from dldw.nn.rbm import RBM as RBM

_HOMES = {
    "DeepBeliefNetwork": "dldw.nn.belief",
    "stack": "dldw.nn.belief",
    "RBM": "dldw.nn.rbm",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dldw.nn' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
