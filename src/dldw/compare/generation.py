"""What a searcher's last generation looked like: its losses, and how far apart its candidates are."""

from __future__ import annotations

import math

from dldw.learner import Learner, Search


def generation(learner: Learner) -> dict[str, float | None]:
    """Best and median loss, and diversity, of the candidates last told; nothing where there are not several.

    Diversity is the root mean square distance of a weight from its mean over the population.
    """
    last = learner.searcher.last if isinstance(learner, Search) else None
    if last is None or len(last[1]) < 2:
        return {}
    candidates, losses = last[0][:].double(), last[1]
    spread = float((candidates - candidates.mean(0)).square().mean().sqrt())
    figures = {"generation_best": float(losses.min()), "generation_median": float(losses.median()), "diversity": spread}
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
