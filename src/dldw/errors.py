"""Errors whose text says what is wrong, why, and what to do."""

from __future__ import annotations


class DldwError(ValueError):
    """The base of every error that dldw raises for a user's mistake."""


class NonFiniteLossError(DldwError):
    """The loss was NaN or infinite; nothing was written to ``.grad``."""


class AccumulationError(DldwError):
    """Gradients were accumulated with a method whose estimates do not add up."""


class UnknownNameError(DldwError):
    """A method, task or setting that does not exist was asked for."""
