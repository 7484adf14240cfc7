"""Modules to build networks from: layers whose backward pass needs no stored activations, and what is made of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dldw.nn.conversion import Conversion as Conversion
    from dldw.nn.conversion import convert as convert
    from dldw.nn.reversible import ReversibleBlock as ReversibleBlock
    from dldw.nn.reversible import ReversibleSequential as ReversibleSequential
    from dldw.nn.revnets import RevNet as RevNet
    from dldw.nn.revnets import revnet as revnet

_HOMES = {
    "Conversion": "dldw.nn.conversion",
    "convert": "dldw.nn.conversion",
    "ReversibleBlock": "dldw.nn.reversible",
    "ReversibleSequential": "dldw.nn.reversible",
    "RevNet": "dldw.nn.revnets",
    "revnet": "dldw.nn.revnets",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Imports a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dldw.nn' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
