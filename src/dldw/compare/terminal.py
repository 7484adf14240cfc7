"""What a person sees: progress with time left, and the table. Plain lines where no terminal is."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from dldw.compare.summary import Row, Summary

_NARROW = (19, 8, 14, 8, 8, 9, 8)
"""Widths of the columns on a terminal of 80: every registered name fits, and what does not is folded."""


class TerminalProgress:
    """A bar with the time left on a terminal; elsewhere a plain line for every tenth of a phase.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._plain = not console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=console,
            disable=self._plain,
            speed_estimate_period=600,
        )
        self._phase: TaskID | None = None
        self._name, self._total, self._spent, self._said = "", 0.0, 0.0, 0

    def __enter__(self) -> TerminalProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, name: str, total: float) -> None:
        """A phase begins."""
        self._name, self._total, self._spent, self._said = name, total, 0.0, 0
        self._phase = self._bar.add_task(name, total=total, what="")
        if self._plain:
            plain(self.console, f"{name}: begins")

    def advance(self, seconds: float, what: str) -> None:
        """A piece is done."""
        self._spent += seconds
        if self._phase is not None:
            self._bar.update(self._phase, advance=seconds, what=what)
        tenth = int(10 * self._spent / self._total + 1e-9) if self._total else 10
        if self._plain and tenth > self._said:
            self._said = tenth
            plain(self.console, f"{self._name}: {10 * tenth} %")


def plain(console: Console, text: str) -> None:
    """One line, as it is: no markup, no colour, no wrapping."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(summary: Summary, console: Console) -> None:
    """Prints the table of a run and its notes."""
    accuracy = summary.metric == "accuracy"
    header = [
        "method",
        "claim",
        f"{summary.metric}, 95 % interval",
        "forwards to target",
        "x two forwards",
        "memory",
        "failures",
    ]
    if console.is_terminal:
        table = Table(
            title=_title(summary), title_justify="left", title_style="", box=None, pad_edge=False, padding=(0, 1, 0, 0)
        )
        widths = (None,) * 7 if console.width >= 110 else _NARROW
        for i, (name, width) in enumerate(zip(header, widths, strict=True)):
            table.add_column(name, justify="left" if i < 2 else "right", overflow="fold", width=width)
        for row in summary.rows:
            table.add_row(*map(Text, cells(row, accuracy)))  # as text: a label with [settings] is no markup
        console.print(table)
    else:
        lines = [header, *(cells(row, accuracy) for row in summary.rows)]
        longest = [max(len(line[i]) for line in lines) for i in range(len(header))]
        plain(console, _title(summary))
        for line in lines:
            padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, longest, strict=True))]
            plain(console, "  ".join(padded).rstrip())
    plain(
        console,
        "Forwards to target: median over the seeds in forward-pass equivalents; ∞ where the target was missed. "
        "x two forwards: time of a step over two bare forward passes. Memory: peak of a step above the loaded model. "
        "Failures: runs that missed the target or broke down.",
    )
    for text in summary.notes:
        plain(console, f"Note: {text}")


def cells(row: Row, accuracy: bool) -> list[str]:
    """The row as text."""
    return [
        row.method,
        row.claim,
        _metric(row, accuracy),
        _forwards(row),
        "-" if row.time_ratio is None else f"{row.time_ratio:.2f}",
        "-" if row.peak_bytes is None else size(row.peak_bytes),
        f"{row.failures} of {row.seeds}",
    ]


def size(count: float) -> str:
    """Bytes in a unit a person reads.

    Example:
        >>> size(2048)
        '2.0 KiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _title(summary: Summary) -> str:
    accuracy = summary.metric == "accuracy"
    target = f"{summary.target:.0%}" if accuracy else f"{summary.target:g}"
    start = "" if summary.untrained is None else f", untrained {_number(summary.untrained, accuracy)}"
    took = "" if summary.seconds is None else f", {summary.seconds:.0f} s"
    return f"{summary.task}: target {summary.metric} {target}{start}{took}"


def _metric(row: Row, accuracy: bool) -> str:
    if row.metric is None:
        return "-"
    middle, low, high = (
        None if v is None else _number(v, accuracy) for v in (row.metric, row.metric_low, row.metric_high)
    )
    return (
        f"{middle}" if low is None or high is None else f"{middle} ({low.removesuffix(' %')}–{high.removesuffix(' %')})"
    )


def _number(value: float, accuracy: bool) -> str:
    return f"{100 * value:.1f} %" if accuracy else f"{value:.3g}"


def _forwards(row: Row) -> str:
    if math.isnan(row.forwards_to_target):
        return "-"
    return "∞" if math.isinf(row.forwards_to_target) else f"{row.forwards_to_target:,.0f}"
