"""Forty made-up methods, of every kind a card can claim, for a registry far larger than today's."""

from __future__ import annotations

from typing import Any

import dldw
from dldw.card import Claim, Needs
from dldw.searchers.random_search import RandomSearch
from dldw.sources.spsa import SPSA

KINDS: tuple[tuple[Claim, Needs], ...] = (
    ("unbiased", "loss values"),
    ("biased", "loss values"),
    ("search", "loss values"),
    ("exact", "loss values"),
)


def _made(number: int) -> type[Any]:
    claim, needs = KINDS[number % len(KINDS)]
    base: type[Any] = RandomSearch if claim == "search" else SPSA
    card = dldw.Card(summary="Made up.", claim=claim, needs=needs, forwards=base.card.forwards, memory="d", paper="-")
    return type(f"Made{number}", (base,), {"card": card})


for _number in range(40):
    globals()[f"Made{_number}"] = _made(_number)

MANY = {f"made-up-{number}": f"{__name__}:Made{number}" for number in range(40)}
