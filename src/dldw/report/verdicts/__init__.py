"""The claims of the discussion that started this project, one file each, judged by a rule on the figures of one run."""

from __future__ import annotations

from collections.abc import Callable

from dldw.report.results import Results
from dldw.report.verdicts.disadvantage import disadvantage
from dldw.report.verdicts.headline import headline
from dldw.report.verdicts.noise import noise
from dldw.report.verdicts.only_without_gradient import only_without_gradient
from dldw.report.verdicts.passes import passes
from dldw.report.verdicts.price import price
from dldw.report.verdicts.relieved import relieved
from dldw.report.verdicts.same_logic import same_logic
from dldw.report.verdicts.scaling import scaling
from dldw.report.verdicts.verdict import Ruling, Verdict

__all__ = ["CLAIMS", "Ruling", "Verdict", "headline", "verdicts"]

CLAIMS: tuple[Callable[[Results], Verdict], ...] = (
    disadvantage,
    scaling,
    passes,
    noise,
    price,
    only_without_gradient,
    same_logic,
    relieved,
)


def verdicts(results: Results) -> list[Verdict]:
    """All eight, in the order of the discussion."""
    return [claim(results) for claim in CLAIMS]
