"""results.jsonl: appended line by line, never half-written, and picked up where it was left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from dldw.compare.item import Identity, identity
from dldw.compare.records import FORMAT, Record
from dldw.errors import DldwError
from dldw.files import replaced

NAME = "results.jsonl"


class Results:
    """The results of one comparison on disk. Opening repairs a torn last line and refuses what does not belong together.

    Args:
        directory: Where ``results.jsonl`` lies; made if need be.
        run: The ``run`` record of what is asked for now.

    Raises:
        DldwError: The directory cannot be written; another process writes to it; the file holds another configuration (the
            text has the difference), an older format, or lines that are no records.
    """

    def __init__(self, directory: Path, run: Mapping[str, Any]) -> None:
        self.path = directory / NAME
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise DldwError(
                f"results cannot be written to {directory}: {error.strerror or error}. Give another directory with --out."
            ) from error
        try:
            self._lock()
            self.records: list[Record] = self._repaired()
            if self.records:
                check_format(self.records[0], self.path)
                _check_config(self.records[0], run, self.path)
            self._known = {identity(cast(Mapping[str, Any], r)) for r in self.records}
            self.append([cast(Record, run)])
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def has(self, keys: Iterable[Identity]) -> bool:
        """Whether all these records are there."""
        return self._known.issuperset(keys)

    def append(self, records: Iterable[Record]) -> None:
        """Writes the records that are not there yet, and returns when they are on the disk.

        Raises:
            DldwError: They could not be written; the file is as it was.
        """
        new = {identity(cast(Mapping[str, Any], r)): r for r in records}
        new = {key: r for key, r in new.items() if key not in self._known}
        if not new:
            return
        size = self._file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(b"".join(line(r) for r in new.values()))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(size)
            raise DldwError(
                f"results cannot be written to {self.path}: {error.strerror or error}. All that was written before is kept; "
                "make room and give the same command to go on."
            ) from error
        self._known.update(new)
        self.records.extend(new.values())

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DldwError(
                f"another dldw is writing to {self.path}. Wait for it to end, or give another directory with --out."
            ) from error

    def _repaired(self) -> list[Record]:
        self._file.seek(0)
        content = self._file.readall()
        records, good = parse_lines(content, self.path)
        if good < len(content):
            self._file.truncate(good)
            self._file.seek(0, os.SEEK_END)
        return records


def line(record: Record) -> bytes:
    """One record as one line; NaN and infinity are refused, because JSON has neither."""
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def parse_lines(content: bytes, path: Path) -> tuple[list[Record], int]:
    """The records, and the length of the part that holds them: what follows is a torn last line."""
    records: list[Record] = []
    good = 0
    lines = content.splitlines(keepends=True)
    for number, text in enumerate(lines, 1):
        try:
            record = json.loads(text) if text.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict) or "kind" not in record:
            if number == len(lines):
                break
            raise DldwError(
                f"{path}, line {number} is no record of results: {text[:60]!r}. The file was changed by something else; move "
                "it away, or delete that line to have its piece of work done again."
            )
        records.append(cast(Record, record))
        good += len(text)
    return records, good


def read(directory: Path) -> list[Record]:
    """The records of a comparison, without writing anything.

    Raises:
        DldwError: There are none, or they are in an older format.
    """
    path = directory / NAME
    if not path.is_file():
        raise DldwError(
            f"there are no results in {directory}: it has no {NAME}. Make them with: dldw compare --out {directory}"
        )
    records, _ = parse_lines(path.read_bytes(), path)
    if not records:
        raise DldwError(f"{path} holds no results yet. Make them with: dldw compare --out {directory}")
    check_format(records[0], path)
    return records


def check_format(first: Record, path: Path) -> None:
    """Raises ``DldwError`` where the results were written in another format, with what to do."""
    record = cast(Mapping[str, Any], first)
    found = record.get("format") if record["kind"] == "run" else None
    if found != FORMAT:
        raise DldwError(
            f"{path} is of format {found}, written by dldw {record.get('dldw', 'of an unknown version')}; this dldw reads "
            f"format {FORMAT}. Give another directory with --out, or read it with the dldw that wrote it."
        )


def _check_config(first: Record, run: Mapping[str, Any], path: Path) -> None:
    there, now = _flat(cast(Mapping[str, Any], first)["config"]), _flat(json.loads(json.dumps(run["config"])))
    differences = [
        f"{key}: {_short(there.get(key))} there, {_short(now.get(key))} now"
        for key in {**there, **now}
        if there.get(key) != now.get(key)
    ]
    if differences:
        shown = "; ".join(differences[:6]) + (f"; and {len(differences) - 6} more" if len(differences) > 6 else "")
        raise DldwError(
            f"{path} holds the results of another configuration ({shown}). Results of two configurations cannot be mixed: "
            "give another directory with --out, or the options it was started with."
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return out


def _short(value: Any) -> str:
    return "nothing" if value is None else str(value)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is either there in full or as it was before.

    Raises:
        DldwError: It could not be written.
    """

    def write(part: Path) -> None:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    try:
        replaced(path, write)
    except OSError as error:
        raise DldwError(
            f"{path} cannot be written: {error.strerror or error}. Make room or choose another place."
        ) from error
