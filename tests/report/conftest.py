"""Results of a made-up world, read back as the report reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dldw.report.results import Results, read
from tests.made_up import World, made_up, save


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Results]:
    """Builds the results of a world; see ``made_up`` for what may be left out of them."""

    def build(w: World | None = None, **options: Any) -> Results:
        save(made_up(w, **options), tmp_path)
        return read(tmp_path)

    return build
