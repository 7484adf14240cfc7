"""Every registered source, and every variant of it, keeps the contract."""

from __future__ import annotations

import pytest

from tests.contract import checks
from tests.contract.variants import LOSS_FREE, SOURCES


@pytest.mark.parametrize("holds", checks.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_source(source, holds):
    holds(source)


@pytest.mark.parametrize("holds", checks.LOSS_FREE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("source", LOSS_FREE, ids=str)
def test_source_that_needs_no_loss(source, holds):
    holds(source)


@pytest.mark.parametrize("source", [s for s in LOSS_FREE if s.deterministic], ids=str)
def test_micro_batches_of_a_source_that_draws_nothing_add_up(source):
    checks.micro_batches_add_up_to_their_union(source)


@pytest.mark.parametrize("source", [s for s in [*SOURCES, *LOSS_FREE] if not s.deterministic], ids=str)
def test_random_source_draws_anew_at_every_call(source):
    checks.draws_anew_at_every_call(source)
