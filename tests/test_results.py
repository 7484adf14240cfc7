"""results.jsonl: nothing is lost, nothing is half-written, nothing is mixed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dldw.compare.plan import make_plan
from dldw.compare.records import FORMAT
from dldw.compare.results import Results, line, read, write_whole
from dldw.compare.run import run
from dldw.errors import DldwError
from tests.harness import METHODS, RUN_TINY, TINY, Silent, curves, environment, lines


def header(**config: Any) -> dict[str, Any]:
    return {
        "kind": "run",
        "format": FORMAT,
        "dldw": "0",
        "config": {"task": "digits", "budget": {"forwards": 3}} | config,
    }


def note(text: str) -> Any:
    return {"kind": "note", "text": text}


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    with Results(tmp_path, header()) as results:
        results.append([note("a"), note("b")])
    assert read(tmp_path) == [header(), note("a"), note("b")]


def test_what_is_there_is_not_written_twice(tmp_path: Path) -> None:
    for _ in range(2):
        with Results(tmp_path, header()) as results:
            results.append([note("a")])
    assert lines(tmp_path) == [header(), note("a")]


@pytest.mark.parametrize("cut", [1, 5, 14])
def test_a_torn_last_line_is_repaired(tmp_path: Path, cut: int) -> None:
    with Results(tmp_path, header()) as results:
        results.append([note("a"), note("b")])
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    with Results(tmp_path, header()) as results:
        assert results.records == [header(), note("a")]
        results.append([note("c")])
    assert lines(tmp_path) == [header(), note("a"), note("c")]


def test_a_torn_first_line_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(line(header())[:20])
    with Results(tmp_path, header()) as results:
        assert results.records == [header()]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    with Results(tmp_path, header()) as results:
        results.append([note("a")])
    file = tmp_path / "results.jsonl"
    file.write_text(file.read_text().replace('{"kind":"note"', "what?") + "\n" + json.dumps(note("b")) + "\n")
    with pytest.raises(DldwError, match=r"line 2 is no record of results: .*changed by something else; move it away"):
        Results(tmp_path, header())


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    Results(tmp_path, header()).__exit__(None, None, None)
    before = (tmp_path / "results.jsonl").read_bytes()
    text = r"another configuration \(seeds: nothing there, 7 now; budget.forwards: 3 there, 9 now\).*--out"
    with pytest.raises(DldwError, match=text.replace("seeds: nothing there, 7 now; ", "")):
        Results(tmp_path, header(budget={"forwards": 9}))
    with pytest.raises(DldwError, match=r"seeds: nothing there, 7 now"):
        Results(tmp_path, header(seeds=7))
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_an_older_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = {**header(), "format": 0, "dldw": "0.0.1"}
    (tmp_path / "results.jsonl").write_text(json.dumps(old) + "\n")
    text = rf"is of format 0, written by dldw 0.0.1; this dldw reads format {FORMAT}. Give another directory with --out"
    with pytest.raises(DldwError, match=text):
        Results(tmp_path, header())
    with pytest.raises(DldwError, match=text):
        read(tmp_path)


def test_a_directory_that_cannot_be_made_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DldwError, match=r"cannot be written to .*file/out: Not a directory. Give another .* --out"):
        Results(tmp_path / "file" / "out", header())


def test_a_write_that_ends_halfway_is_taken_back(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with Results(tmp_path, header()) as results:
        results.append([note("a")])
        before = (tmp_path / "results.jsonl").read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))  # ten bytes of room: a real, partial write
        try:
            with pytest.raises(DldwError, match=r"File too large. All that was written before is kept"):
                results.append([note("b")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "results.jsonl").read_bytes() == before
        results.append([note("b")])
    assert lines(tmp_path) == [header(), note("a"), note("b")]


def test_what_could_not_be_written_in_full_is_not_there_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Results(tmp_path, header()) as results:
        results.append([note("a")])
        before = (tmp_path / "results.jsonl").read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(
                DldwError, match=r"No space left on device. All that was written before is kept; make room"
            ):
                results.append([note("b"), note("c")])
        assert (tmp_path / "results.jsonl").read_bytes() == before
        results.append([note("b")])
    assert lines(tmp_path) == [header(), note("a"), note("b")]


def test_two_processes_do_not_write_to_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with (
        Results(tmp_path, header()),
        pytest.raises(DldwError, match=r"another dldw is writing to .* Wait for it to end"),
    ):
        Results(tmp_path, header())


def test_nothing_to_read_is_an_error_that_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(
        DldwError, match=r"there are no results in .*: it has no results.jsonl. Make them with: dldw compare"
    ):
        read(tmp_path)


def test_infinity_is_never_written(tmp_path: Path) -> None:
    with Results(tmp_path, header()) as results, pytest.raises(ValueError, match="JSON compliant"):
        results.append([{"kind": "done", "seconds": float("inf"), "peak_bytes": 0}])
    assert lines(tmp_path) == [header()]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.json"
    write_whole(file, "first")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DldwError, match=r"settings.json cannot be written: No space left on device"):
        write_whole(file, "second")
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]
    assert file.read_text() == "first"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(make_plan("quadratic", METHODS, budget=TINY), out, jobs=2, progress=Silent())
    return out


def test_the_number_of_processes_changes_no_result(uninterrupted: Path, tmp_path: Path) -> None:
    run(make_plan("quadratic", METHODS, budget=TINY), tmp_path, jobs=1, progress=Silent())
    assert curves(lines(tmp_path)) == curves(lines(uninterrupted))


def test_a_finished_run_is_not_touched_again(uninterrupted: Path) -> None:
    before = (uninterrupted / "results.jsonl").read_bytes()
    run(make_plan("quadratic", METHODS, budget=TINY), uninterrupted, jobs=1, progress=Silent())
    assert (uninterrupted / "results.jsonl").read_bytes() == before


def test_a_run_killed_twice_goes_on_and_ends_with_the_same_curves(uninterrupted: Path, tmp_path: Path) -> None:
    script = tmp_path / "tiny.py"
    script.write_text(RUN_TINY)
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(out), "2"]
    file = out / "results.jsonl"
    done = []
    for enough in (30, 80):
        process = subprocess.Popen(command, env=environment(), start_new_session=True)
        deadline = time.monotonic() + 90
        while not (file.exists() and file.read_bytes().count(b"\n") >= enough):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        done.append(file.read_bytes())
        _wait_until_unlocked(out)
    assert not any(r["kind"] == "done" for r in lines_so_far(done[-1]))
    subprocess.run(command, env=environment(), check=True)
    assert file.read_bytes().startswith(done[0][: done[0].rindex(b"\n") + 1]), "what was done was kept, not done again"
    assert curves(lines(out)) == curves(lines(uninterrupted))
    kinds = [[r["kind"] for r in lines(d) if r["kind"] != "note"] for d in (out, uninterrupted)]
    assert sorted(kinds[0]) == sorted(kinds[1])
    assert any("stopped and taken up again" in r.get("text", "") for r in lines(out))


def lines_so_far(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(text) for text in content.splitlines() if text.endswith(b"}")]


def _wait_until_unlocked(out: Path) -> None:
    """The killed run's workers notice that it is gone and end; nobody is left behind to hold the file."""
    import fcntl

    deadline = time.monotonic() + 20
    with open(out / "results.jsonl", "rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                assert time.monotonic() < deadline, "somebody still holds the results"
                time.sleep(0.05)
