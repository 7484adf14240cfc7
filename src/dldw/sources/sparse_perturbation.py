"""Perturbing a part of the weights: any source with independent entries, on a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args
from weakref import ref

import torch
from torch import Tensor, nn

from dldw.directional import Directional
from dldw.directions import Dense, Directions, Drawn
from dldw.errors import DldwError
from dldw.noise import Rows, words
from dldw.streamed import StreamedDrawn
from dldw.weights import Weights, masks_of_parameters

Rule = Literal["magnitude", "random"]


class SparsePerturbation(Directional):
    """A directional source that moves, and updates, a part of the weights alone.

        ghat = 1/n · sum_i slope(m ∘ z_i) · m ∘ z_i,      E[ghat] = m ∘ dL/dw

    The variance grows with the number of weights that are moved, k in place of d: (k + 1)/n or (k - 1)/n relative to
    ‖m ∘ g‖². ``magnitude`` moves the smallest weights of each tensor, as in sparse MeZO; ``random`` a part drawn once;
    or a mask of one's own, such as one that pruning before training gives (DeepZero). Rules need no memory: whether a weight
    is moved is seen from the weight, or from its counter.

    Cost: that of the source.

    Source: sparse MeZO, Liu et al. 2024, arXiv 2402.15751; DeepZero, Chen et al. 2024, arXiv 2310.02025.

    Args:
        source: ``SPSA``, ``MeZO``, ``OneSidedBatch`` or another with independent entries; it is not used up.
        select: ``magnitude``, ``random``, or one boolean tensor for each parameter by name; parameters left out stay still.
        fraction: The part of the weights that a rule selects.
        seed: Of the part that ``random`` selects.

    Raises:
        DldwError: The source has no independent entries, or a mask does not fit its parameter.

    Example:
        >>> import torch, dldw
        >>> model = torch.nn.Linear(10, 10, bias=False)
        >>> source = dldw.SparsePerturbation(dldw.SPSA(lambda m, x: m(x).square().sum(1)), fraction=0.2)
        >>> loss = source(model, torch.ones(4, 10))
        >>> int(model.weight.grad.count_nonzero())
        20
    """

    def __init__(
        self,
        source: Directional,
        select: Rule | Mapping[str, Tensor] = "magnitude",
        *,
        fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not isinstance(source, Directional):
            raise DldwError(
                f"SparsePerturbation masks the directions of a source, and {type(source).__name__} has none."
            )
        if isinstance(select, str) and select not in get_args(Rule):
            raise DldwError(f"select must be magnitude, random or a mask for each parameter by name, got {select!r}.")
        if not 0 < fraction <= 1:
            raise DldwError(f"fraction must be above 0 and at most 1, got {fraction}: it is the part that is moved.")
        directions = _Masked(source._directions, None if isinstance(select, Mapping) else select, fraction, seed)
        super().__init__(
            source.loss,
            directions,
            source._slope,
            source._combine,
            evaluate=source._evaluator,
            generator=source.generator,
        )
        self.card = replace(source.card, claim="biased", note=f"Estimates a part of dL/dw. {source.card.note}")
        self.source, self.select, self.fraction, self.seed = source, select, fraction, seed
        self._masked = directions

    def forwards(self, d: int) -> float:
        return self.source.forwards(d)

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator, and which weights count as the smallest."""
        return {**super().state_dict(), "thresholds": dict(self._masked.thresholds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` gave."""
        super().load_state_dict(state)
        self._masked.thresholds, self._masked.seen = dict(state["thresholds"]), None

    def _checked(self, model: nn.Module) -> Weights:
        weights = super()._checked(model)
        if isinstance(self.select, Mapping):
            self._masked.given = masks_of_parameters(model, self.select)
        return weights


class _Masked(Directions):
    def __init__(self, directions: Directions, rule: str | None, fraction: float, seed: int) -> None:
        self.directions, self.rule, self.fraction, self.seed = directions, rule, fraction, seed
        self.given: dict[int, Tensor] = {}
        self.thresholds: dict[int, Tensor] = {}
        """The largest of the small weights of each tensor, as it was when the model was first seen."""
        self.seen: ref[Weights] | None = None
        """The weights that the thresholds belong to; None for those that come next."""

    def count(self, weights: Weights) -> int:
        return self.directions.count(weights)

    def held(self, weights: Weights) -> int:
        return self.directions.held(weights)

    def factor(self, weights: Weights) -> float:
        return self.directions.factor(weights)

    def draw(self, weights: Weights, generator: torch.Generator, start: int, stop: int) -> Drawn:
        if self.seen is not None and self.seen() is not weights:
            self.thresholds.clear()
        self.seen = ref(weights)
        drawn = self.directions.draw(weights, generator, start, stop)
        if isinstance(drawn, StreamedDrawn):
            drawn.mask = self.mask
        elif isinstance(drawn, Dense):
            for i, (p, z) in enumerate(zip(weights.tensors, drawn.z, strict=True)):
                z.mul_(self.mask(p, i, ...).to(z.dtype))
        else:
            raise DldwError(
                f"the directions of {type(self.directions).__name__} cannot be masked, as their entries depend on each "
                "other. Use SPSA, MeZO or OneSidedBatch."
            )
        return drawn

    @torch.no_grad()
    def mask(self, p: Tensor, index: int, rows: Rows, tile: int = 0) -> Tensor:
        """Which of some rows of a weight are moved."""
        if self.rule is None:
            given = self.given.get(id(p))
            return torch.zeros_like(p[rows], dtype=torch.bool) if given is None else given[rows].to(p.device)
        if self.rule == "magnitude":
            if index not in self.thresholds:
                size = max(1, round(self.fraction * p.numel()))
                self.thresholds[index] = p.detach().abs().flatten().kthvalue(size).values
            return p[rows].abs() <= self.thresholds[index]
        part = p[rows]
        drawn = words((part.numel() + 3) // 4, p.device, (self.seed, 0), index, tile).view(torch.int16)[: part.numel()]
        return (drawn.int() + (1 << 15) < self.fraction * (1 << 16)).view(part.shape)
