"""The tables of the documentation are those of the benchmarks' results, and a benchmark that writes one runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import tables

ROOT = Path(__file__).parents[1]
RESULTS = json.loads((ROOT / "benchmarks/results/gradient_check.json").read_text(encoding="utf-8"))


def test_the_table_of_tools_is_that_of_the_results():
    page = (ROOT / "docs/gradient-check.md").read_text(encoding="utf-8")
    assert tables.placed(page, "corpus", tables.corpus(RESULTS["corpus"])) == page


def test_a_run_with_seconds_gives_the_table_a_column_of_them(tmp_path):
    timed = {tool: {**row, "seconds": 12.34} for tool, row in RESULTS["corpus"].items()}
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- corpus -->\nold\n<!-- end of corpus -->\nafter\n", encoding="utf-8")
    tables.put(page, "corpus", tables.corpus(timed))
    lines = page.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    assert lines[2].endswith("| false alarms | seconds |")
    assert lines[4] == "| **`dldw.check`** | **94 of 94** | **94** | **0 of 82** | **12.3** |"
    assert lines[7] == "| `scipy.optimize.check_grad` | 94 of 94 | – | 39 of 82 | 12.3 |"


def test_a_page_without_the_place_for_a_table_is_refused(tmp_path):
    with pytest.raises(
        SystemExit, match=r"the page has no <!-- corpus --> \.\.\. <!-- end of corpus -->: put both where"
    ):
        tables.placed("nothing", "corpus", [])


def test_the_sigma_table_has_a_row_of_a_model_with_what_either_sigma_took_off_the_loss():
    pytest.importorskip("sklearn")
    from benchmarks import sigma_table

    with torch.random.fork_rng(devices=[]):
        row = sigma_table.row("MLP 64-32-10", torch.float32, steps=6, seeds=1)
    assert (row["weights"], row["dtype"], row["forwards"]) == (2410, "float32", 24)
    assert 1e-4 < row["recommended"] < 1e-2
    assert row["error"] <= row["error_at_usual"] * 2 < 0.01
    assert row["usual"]["decrease"] == pytest.approx(row["chosen"]["decrease"], rel=0.05)  # both in the valley
    lines = tables.sigma([row], {"torch": "2.0"})
    assert "and 24 forwards" in lines[0]
    assert lines[-1].startswith(f"| MLP 64-32-10 | float32 | 2,410 | {row['recommended']:.1e} |")


def test_all_five_models_of_the_sigma_table_have_a_loss_in_all_three_dtypes():
    pytest.importorskip("sklearn")
    from benchmarks import sigma_table

    assert len(sigma_table.MODELS) == 5
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name in sigma_table.MODELS:
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                value = sigma_table.loss(sigma_table.made(name, dtype), next(sigma_table.batches(0, dtype)))
                assert value.dtype == dtype
                assert 1.5 < float(value.double().mean()) < 4
