"""Every registered source, and every variant of it, keeps the contract."""

from __future__ import annotations

import pytest

from tests.contract import checks
from tests.contract.variants import SOURCES


@pytest.mark.parametrize("holds", checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_source(source, holds):
    holds(source)


@pytest.mark.parametrize("source", [s for s in SOURCES if not s.deterministic], ids=str)
def test_random_source_draws_anew_at_every_call(source):
    checks.draws_anew_at_every_call(source)
