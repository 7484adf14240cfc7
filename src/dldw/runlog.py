"""The log of a run that forward passes alone have made: the first weights and tens of bytes a step are the trained model."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dldw
from dldw import noise
from dldw.directional import Directional
from dldw.errors import DldwError
from dldw.noise import Key
from dldw.ranks import Ranks
from dldw.weights import Weights

LOG = "forward_only.jsonl"
"""What trainers call it, in the directory of their output."""
FORMAT = 2
"""Of the log and of what its keys stand for: counts up whenever a key would draw other noise."""

_BEGIN = b'{"kind":"forward-only"'
_NO_LOG = "{path} is no log of dldw.ForwardOnly, or one of another version of it. Give another path."


@dataclass(frozen=True)
class Step:
    """What decides one update.

    Attributes:
        number: From 0; with the key of the run, it is the counter of all noise.
        lr: Learning rate.
        slopes: What each direction is multiplied with, n numbers.
        loss: At the weights before the update.
    """

    number: int
    lr: float
    slopes: list[float]
    loss: float

    def record(self) -> dict[str, Any]:
        """For JSON, which holds every float exactly."""
        return {"step": self.number, "lr": self.lr, "slopes": self.slopes, "loss": self.loss}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Step:
        """What ``record`` gave."""
        return cls(record["step"], record["lr"], record["slopes"], record["loss"])


def describe(source: Directional, momentum: Any, weight_decay: float, rounding: str) -> dict[str, Any]:
    """Everything but the noise and the slopes that decides the updates, for the head of a log."""
    recent = None if isinstance(momentum, float | int) else [momentum.momentum, momentum.steps]
    return {
        **_described(source),
        "momentum": momentum if recent is None else recent,
        "weight_decay": weight_decay,
        "rounding": rounding,
    }


def _described(source: Directional) -> dict[str, Any]:
    from dldw.registry import METHODS

    where = f"{type(source).__module__}:{type(source).__name__}"
    names = [name for name in inspect.signature(type(source)).parameters if name not in ("loss", "generator")]
    settings = {name: getattr(source, name) for name in names if hasattr(source, name)}
    return {
        "source": next((name for name, home in METHODS.items() if home == where), where),
        "settings": {name: _plain(value) for name, value in settings.items()},
    }


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: a source by its own settings, tensors by their digest."""
    if isinstance(value, Directional):
        return _described(value)
    return digest(value) if isinstance(value, Mapping) else value


class RunLog:
    """A log on the disk. Opening repairs a torn last line; a new file gets its head.

    Args:
        path: The file.
        described: See ``describe``.
        key: Of a new run.
        model: It holds the weights that the run begins with, or began with.
        ranks: Processes that share the log: rank 0 writes it, and all read it when they begin.
        taken: Steps after which the model comes: its weights are then not those that the run began with.

    Raises:
        DldwError: The file is no such log; it belongs to another run (the text has the difference); it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        described: Mapping[str, Any],
        key: Key,
        model: nn.Module,
        ranks: Ranks | None = None,
        *,
        taken: int = 0,
    ) -> None:
        self.path, self._writes = path, ranks is None or ranks.rank == 0
        if not self._writes and ranks is not None:
            ranks.wait()  # until rank 0 has repaired or begun it
        named = Weights.of(model).named(model)  # in the order that their noise is counted in
        head = {
            "kind": "forward-only",
            "format": FORMAT,
            "dldw": dldw.__version__,
            "tile": noise.TILE,
            "torch": torch.__version__,
            "device": next(iter(named.values())).device.type,
            **json.loads(json.dumps(described)),
            "key": list(key),
            "weights": list(named),
            "digest": digest(named),
        }
        try:
            self._file = open(path, "a+b" if self._writes else "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise DldwError(
                f"the log {path} cannot be written: {error.strerror or error}. Give another path for it."
            ) from error
        self.steps: list[Step] = []
        if lines := _lines(path):
            known, self.steps = _parsed(path, lines)
            different = [
                f"{name} there {known.get(name)!r}, here {value!r}"
                for name, value in head.items()
                if name not in ("key", "torch", *["digest"] * bool(taken)) and known.get(name) != value
            ]
            if different:
                raise DldwError(
                    f"the log {path} belongs to another run: {'; '.join(different)}. Give another path, or the settings "
                    "and the first weights of that run."
                )
            self.key: Key = tuple(known["key"])
            if self._writes:
                self._file.truncate(sum(map(len, lines)))
        else:
            self.key = key
            self._file.truncate(0)
            self._write(head)
        if self._writes and ranks is not None:
            ranks.wait()

    def append(self, step: Step) -> None:
        """Writes a step, in rank 0; when this returns, ``kill -9`` cannot lose it.

        Raises:
            DldwError: It could not be written; the log is as it was.
        """
        if self._writes:
            self._write(step.record())

    def _write(self, record: Mapping[str, Any]) -> None:
        size = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(size)
            raise DldwError(
                f"the log {self.path} cannot be written: {error.strerror or error}; the step was not taken. Make room, and "
                "go on from this log."
            ) from error

    def cut(self, key: Key, steps: int) -> None:
        """Leaves the first ``steps`` steps of the run with this key.

        Raises:
            DldwError: The log is of another run, or shorter.
        """
        lines = _lines(self.path)
        if key != self.key or len(lines) <= steps:
            why = "another key" if key != self.key else f"saved after {steps} steps, where the log has {len(lines) - 1}"
            raise DldwError(
                f"the saved state does not belong to the log {self.path}: {why}. Give the log that was written with it, or "
                "another path."
            )
        if self._writes:
            self._file.truncate(sum(map(len, lines[: steps + 1])))


def _lines(path: Path) -> list[bytes]:
    """All whole lines; a line is torn where the process was killed while it wrote it."""
    found = path.read_bytes()
    if not found.startswith(_BEGIN[: len(found)]):
        raise DldwError(_NO_LOG.format(path=path))
    lines = found.splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _parsed(path: Path, lines: list[bytes]) -> tuple[dict[str, Any], list[Step]]:
    try:
        head, *records = [json.loads(line) for line in lines]
        if head["kind"] != "forward-only" or head["format"] != FORMAT:
            raise ValueError
        steps = [Step.of(record) for record in records]
    except (ValueError, KeyError, TypeError) as error:
        raise DldwError(_NO_LOG.format(path=path)) from error
    if [step.number for step in steps] != list(range(len(steps))):
        raise DldwError(f"{path} is damaged: its steps are not numbered from 0 without a gap.")
    return head, steps


def read(path: str | Path) -> tuple[dict[str, Any], list[Step]]:
    """The head and the steps of a log; a torn last line is left out.

    Raises:
        DldwError: The file cannot be read or is no such log.
    """
    try:
        lines = _lines(Path(path))
    except OSError as error:
        raise DldwError(f"the log {path} cannot be read: {error.strerror or error}.") from error
    return _parsed(Path(path), lines)


def digest(weights: Mapping[str, Tensor]) -> str:
    """A fingerprint of weights by name, bit for bit (BLAKE2b, 128 bits)."""
    found = hashlib.blake2b(digest_size=16)
    for name, p in weights.items():
        found.update(f"{name} {list(p.shape)} {p.dtype}".encode())
        for piece in _pieces(p):
            found.update(piece)
    return found.hexdigest()


def _pieces(p: Tensor) -> Iterator[memoryview]:
    for part in p.detach().reshape(-1).split(1 << 24):
        yield memoryview(part.cpu().contiguous().view(torch.uint8).numpy())
