"""A plugin for pytest: the fixture ``assert_gradient``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dldw.checking import CheckResult


@pytest.fixture
def assert_gradient() -> Callable[..., CheckResult]:
    """Fails with what is wrong about a gradient, and where: ``assert_gradient(model, loss, batch)``; see ``dldw.testing``."""
    from dldw.testing import assert_gradient

    return assert_gradient
