"""The minimum of a plain function by any searcher: no network needed."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from dldw.errors import DldwError
from dldw.searcher import Searcher

_FORMAT = 2
"""Of the log and of what its seed stands for: counts up whenever a searcher would draw other candidates."""


@dataclass(frozen=True)
class Minimum:
    """Where a search has got to.

    Attributes:
        x: The best point evaluated so far [d].
        loss: The function there.
        evaluations: How often the function was evaluated.
        generations: How often the searcher was told.
        stop: Why the search ended: ``budget``, ``callback``, or the searcher's own criteria by name; empty while it goes on.
    """

    x: Tensor
    loss: float
    evaluations: int
    generations: int
    stop: str = ""


def minimize(
    function: Callable[[Tensor], Any],
    x0: Tensor | Sequence[float],
    searcher: Searcher,
    budget: int,
    *,
    batched: bool = True,
    callback: Callable[[Minimum], Any] | None = None,
    log: str | Path | None = None,
) -> Minimum:
    """Minimises ``function`` from ``x0`` with ``searcher``, within ``budget`` evaluations.

    The start point is evaluated first, so that the result is never worse than it.

    Args:
        function: ``function(x [n, d]) -> losses [n]``; or, where not ``batched``, ``function(x [d]) -> loss``. NaN and
            infinity count as the worst loss.
        x0: The start point [d], a floating-point tensor or numbers, which become float64.
        searcher: Any searcher; it is reset.
        budget: Evaluations at most; a generation that would exceed it is not begun.
        batched: Whether ``function`` takes all candidates of a generation at once.
        callback: Called after each generation; the search ends when it returns True.
        log: A file to write the run to as JSON lines, one for each generation, flushed. ``replay_search`` reads it.

    Raises:
        DldwError: The budget is not enough for one generation, the function does not return one loss for each point, or
            every loss so far is NaN or infinite.

    Example:
        >>> import torch, dldw
        >>> swarm = dldw.ParticleSwarm(generator=torch.Generator().manual_seed(0))
        >>> found = dldw.minimize(lambda x: (x - 3).square().sum(1), [0.0, 0.0], swarm, budget=2000)
        >>> found.loss < 1e-6, found.stop
        (True, 'budget')
    """
    start = x0 if isinstance(x0, Tensor) else torch.as_tensor(x0, dtype=torch.float64)
    searcher.reset(start)

    def evaluate(points: Tensor) -> Tensor:
        values = function(points) if batched else [float(function(point)) for point in points]
        losses = values.detach() if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)
        if losses.shape != points.shape[:1]:
            raise DldwError(
                f"the function must return one loss for each of the {len(points)} points [n], got shape "
                f"{list(losses.shape)} for points of shape {list(points.shape)}. Reduce over the last dimension only, or "
                "pass batched=False if it takes one point at a time."
            )
        return losses.to(torch.float64)

    with open(log, "w", encoding="utf-8") if log is not None else nullcontext() as file:
        _write(file, _header(searcher, start))
        return _search(searcher, evaluate, lambda losses: _write(file, {"losses": _plain(losses)}), budget, callback)


def replay_search(log: str | Path, searcher: Searcher) -> Minimum:
    """Repeats the run that ``minimize`` wrote to ``log``, without evaluating the function, to the same best.

    A last line that is torn, because the run was killed, is left out. The searcher then stands where the run stood.

    Args:
        log: The file.
        searcher: One of the same class and settings; its generator is set to the state that the run began with.

    Raises:
        DldwError: The file is no such log, or was written with another searcher.
    """
    lines = Path(log).read_text(encoding="utf-8").split("\n")[:-1]
    try:
        header, *generations = [json.loads(line) for line in lines]
        known = header["kind"] == "minimize" and header["format"] == _FORMAT
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise DldwError(f"{log} is no log of dldw.minimize, or one of another version of it.")
    mine = _header(searcher, torch.empty(0))
    for what in ("searcher", "settings"):
        if header[what] != mine[what]:
            raise DldwError(
                f"{log} was written with another searcher: {what} there {header[what]}, here {mine[what]}. "
                "Build the searcher as it was built for the run."
            )
    start = torch.tensor(header["x0"], dtype=getattr(torch, header["dtype"]))
    searcher.generator = torch.Generator(start.device)
    searcher.generator.set_state(torch.frombuffer(bytearray.fromhex(header["generator"]), dtype=torch.uint8))
    searcher.reset(start)
    told = iter(generations)

    def recorded(points: Tensor) -> Tensor:
        losses = next(told)["losses"]
        if len(losses) != len(points):
            raise DldwError(f"{log} is damaged: {len(losses)} losses where the searcher asks for {len(points)}.")
        return torch.tensor([math.inf if loss is None else loss for loss in losses], dtype=torch.float64)

    return _search(searcher, recorded, lambda losses: None, math.inf, None, generations=len(generations) - 1)


def _search(
    searcher: Searcher,
    evaluate: Callable[[Tensor], Tensor],
    record: Callable[[Tensor], None],
    budget: float,
    callback: Callable[[Minimum], Any] | None,
    generations: float = math.inf,
) -> Minimum:
    losses = evaluate(searcher.remembered())
    searcher.retell(losses)
    record(losses)
    evaluations, generation, stop = len(losses), 0, ""
    while generation < generations:
        candidates = searcher.ask()
        if evaluations + len(candidates) > budget:
            if not generation:
                raise DldwError(
                    f"a budget of {budget} evaluations is not enough for the start point and one generation of "
                    f"{len(candidates)} candidates. Raise it, or make the population smaller."
                )
            stop = "budget"
            break
        losses = evaluate(candidates)
        searcher.tell(losses)
        record(losses)
        evaluations, generation = evaluations + len(losses), generation + 1
        best = _best(searcher, evaluations)
        now = Minimum(*best, evaluations, generation, ", ".join(searcher.stop()))
        if callback is not None and callback(now):
            stop = "callback"
            break
        if now.stop:
            stop = now.stop
            break
    return Minimum(*_best(searcher, evaluations), evaluations, generation, stop)


def _best(searcher: Searcher, evaluations: int) -> tuple[Tensor, float]:
    try:
        return searcher.best
    except DldwError as error:
        raise DldwError(
            f"all {evaluations} losses so far are NaN or infinite, so none can be preferred. Start where the function is "
            "finite, or lower the searcher's sigma."
        ) from error


def _header(searcher: Searcher, x0: Tensor) -> dict[str, Any]:
    names = [name for name in inspect.signature(type(searcher)).parameters if name != "generator"]
    return {
        "kind": "minimize",
        "format": _FORMAT,
        "searcher": type(searcher).__name__,
        "settings": {name: str(getattr(searcher, name, None)) for name in names},
        "x0": x0.tolist(),
        "dtype": str(x0.dtype).removeprefix("torch."),
        "generator": bytes(searcher.generator.get_state().tolist()).hex() if searcher.generator is not None else "",
    }


def _plain(losses: Tensor) -> list[float | None]:
    """Numbers that JSON can hold: null for what is not finite."""
    return [loss if math.isfinite(loss) else None for loss in losses.tolist()]


def _write(file: IO[str] | None, record: dict[str, Any]) -> None:
    if file is not None:
        file.write(json.dumps(record) + "\n")
        file.flush()
