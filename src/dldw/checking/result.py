"""What a check found, as an object that is true when the gradient is right and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["right", "wrong", "cannot tell"]


@dataclass(frozen=True)
class Part:
    """One tensor of the gradient.

    Attributes:
        name: The name of the parameter or input.
        shape: Its shape.
        norm: The length of its gradient, None where there is none or where it was not made as a whole.
        verdict: On this tensor alone.
        error: The relative error of slopes along directions inside it, where it was examined.
        where: Which rows, columns or entries are wrong.
        causes: What the error looks like.
    """

    name: str
    shape: tuple[int, ...]
    norm: float | None
    verdict: Verdict
    error: float | None = None
    where: str = ""
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What a check found; true when the gradient is right.

    Attributes:
        verdict: ``right``, ``wrong`` or ``cannot tell``.
        reason: One sentence that says why.
        error: The disagreement between gradient and quotients, relative to the slopes (root mean squares).
        resolution: The relative size from which an error of the gradient would have shown.
        parts: Every tensor.
        forwards: Forward passes taken.
        backwards: Backward passes taken.
        causes: Likely causes that concern the gradient as a whole.
        notes: What else there is to know.
    """

    verdict: Verdict
    reason: str
    error: float | None = None
    resolution: float | None = None
    parts: tuple[Part, ...] = ()
    forwards: int = 0
    backwards: int = 0
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.verdict == "right"

    @property
    def wrong(self) -> tuple[Part, ...]:
        """The tensors whose gradient is wrong."""
        return tuple(part for part in self.parts if part.verdict == "wrong")

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.reason}", *_table(self.parts)]
        lines += [f"likely cause: {cause}" for cause in self.causes]
        return "\n".join(lines)

    def explain(self) -> str:
        """The table, and in sentences what was compared, what is wrong and where, and what it cost."""
        lines = [str(self), ""]
        for part in self.wrong:
            lines.append(f"{part.name}: wrong in {part.where or 'a part that could not be narrowed down'}.")
            lines += [f"  It looks {cause}." for cause in part.causes]
            if not part.causes:
                lines.append(
                    "  It looks like none of the known causes: compare its backward with the formula, term by term."
                )
        if self.error is not None and math.isfinite(self.error):
            lines.append(
                f"Gradient and difference quotients are {self.error:.2g} of the slopes apart (root mean square)."
            )
        if self.resolution is not None and 0 < self.resolution < 1:
            lines.append(f"An error of {self.resolution:.1g} of the gradient or more would have shown.")
        lines += [f"Note: {note}" for note in self.notes]
        lines.append(f"It took {self.forwards} forward and {self.backwards} backward passes.")
        return "\n".join(lines)


def _table(parts: tuple[Part, ...]) -> list[str]:
    if not parts:
        return []
    rows = [("tensor", "shape", "|gradient|", "verdict", "error", "where", "it looks")]
    for part in parts:
        rows.append((
            part.name,
            "x".join(map(str, part.shape)) or "scalar",
            "none" if part.norm is None else f"{part.norm:.3g}",
            part.verdict,
            "" if part.error is None else f"{part.error:.2g}",
            part.where,
            "; ".join(part.causes),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
