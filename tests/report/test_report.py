"""The report is a pure function of results.jsonl, whole or torn, and says what it was not given."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html import unescape
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dldw.errors import DldwError
from dldw.report.results import Results, ends_of, read
from dldw.report.words import number, percent, size
from tests.made_up import BACKPROP, CHECKPOINT, NUDGE, World, made_up, save

pytest.importorskip("altair", reason="the report's extra is not installed")

from dldw.report import write
from dldw.report.charts import CHARTS, Chart, charts, looks
from dldw.report.estimates import HEAD, lines
from dldw.report.page import SECTIONS, render
from dldw.report.tables import _points, tables


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    save(made_up(), directory)
    return write(directory)


# --- reading ---


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    path = save(made_up(), tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    found = read(tmp_path)
    assert found.torn
    assert found.done is None
    page = write(tmp_path).read_text(encoding="utf-8")
    assert "cut off, as a stopped run leaves it" in page
    assert "was not finished when this page was made" in page


@pytest.mark.parametrize("keep", [1, 2, 3, 12, 40, 400])
def test_a_run_stopped_anywhere_gives_a_page(tmp_path: Path, keep: int) -> None:
    save(made_up()[:keep], tmp_path)
    page = write(tmp_path).read_text(encoding="utf-8")
    assert "The question, answered" in page
    assert "No training run has ended yet." in page or keep == 400


def test_a_line_damaged_in_the_middle_is_refused_with_its_number(tmp_path: Path) -> None:
    path = save(made_up(), tmp_path)
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[4] = lines[4][:-9]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DldwError, match=r"line 5 of .* is damaged .* not the last, .* Restore the file"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (2, "has format 2, and this version of dldw reads format 1.*Update dldw"),
        (0, "Use the dldw 0.1.0 that wrote it"),
        (None, "has format None"),
    ],
)
def test_another_format_is_refused_with_the_reason(tmp_path: Path, found: Any, text: str) -> None:
    records = made_up()
    records[0]["format"] = found
    save(records, tmp_path)
    with pytest.raises(DldwError, match=text):
        write(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["", "\n", '{"kind": "note", "text": "no run"}\n', '{"kind": "ru'])
def test_results_without_a_run_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DldwError, match=r"does not begin with the record of a run.*dldw compare"):
        read(tmp_path)


def test_a_directory_without_results_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DldwError, match=r"cannot read .*results\.jsonl: No such file.*run 'dldw compare --out"):
        write(tmp_path)


def test_what_a_resumed_run_recorded_twice_counts_once(results: Any, tmp_path: Path) -> None:
    once = results()
    records = made_up()
    save(records[:-1] + records[5:], tmp_path)
    twice = read(tmp_path)
    assert (len(twice.ends), len(twice.evaluations), len(twice.costs)) == (
        len(once.ends),
        len(once.evaluations),
        len(once.costs),
    )


def test_kinds_of_record_from_later_versions_are_passed_over(results: Any, tmp_path: Path) -> None:
    save([*made_up(), {"kind": "aura", "colour": "green"}], tmp_path)
    assert read(tmp_path).done is not None


# --- writing ---


def test_the_same_results_give_the_same_page(whole: Path) -> None:
    first = whole.read_bytes()
    assert write(whole.parent).read_bytes() == first


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(made_up(), tmp_path)
    (tmp_path / "report.html").write_text("old", encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(
        DldwError, match=r"cannot write .*report\.html: No space left on device\. The results are untouched"
    ):
        write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "results.jsonl"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"


def test_the_page_is_small_and_whole(whole: Path) -> None:
    text = whole.read_text(encoding="utf-8")
    assert whole.stat().st_size < 3_000_000
    assert text.rstrip().endswith("</html>")
    assert text.count("vegaEmbed=") <= 1
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?!data:)", markup) == []
    assert "default-src 'none'" in text


def test_no_two_parts_of_the_page_share_a_name(whole: Path) -> None:
    markup = re.sub(r"<(script|style).*?</\1>", "", whole.read_text(encoding="utf-8"), flags=re.S)
    names = re.findall(r'\bid="([^"]+)"', markup)
    assert len(names) == len(set(names))


def test_torch_is_not_imported(whole: Path) -> None:
    code = (
        f"import sys, pathlib, dldw.report as r; r.write(pathlib.Path({str(whole.parent)!r})); sys.exit('torch' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_from_the_user_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    text = json.dumps(made_up()).replace("random-search", evil.replace('"', '\\"'))
    save(json.loads(text), tmp_path)
    page = write(tmp_path).read_text(encoding="utf-8")
    assert evil not in page
    assert "&lt;/script&gt;" in page


# --- what it says ---


def test_the_page_opens_with_the_question_and_its_source(whole: Path) -> None:
    text = unescape(whole.read_text(encoding="utf-8"))
    assert (
        text.index("AI Stack Exchange, 2020")
        < text.index("<h1>The question, answered</h1>")
        < text.index('id="claim-1"')
    )
    assert len(re.findall(r'<article class="claim"', text)) == 8
    for said in (
        "Not in this run: no method of these families",
        "Not in this run: no reversible layer",
        "dldw 0.1.0, torch 2.9.0",
        "a made-up processor",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cost", "The cost of a step was not measured."),
        ("displacement", "No step was held against the exact downhill direction."),
        ("estimate", "No estimate was held against the exact gradient."),
        ("bias", "The difference quotient was not held against"),
        ("landscape", "The landscape of two weights was not recorded."),
        ("tuning", "No settings were tuned in this run"),
        ("end", "No training run has ended yet."),
    ],
)
def test_what_is_missing_is_said(results: Any, kind: str, said: str) -> None:
    found = results(without=[kind])
    assert any(said in gap for gap in found.missing())
    assert said in unescape(render(found))


def test_every_kind_of_record_has_its_chart(results: Any) -> None:
    twice = World(extra={"spsa[directions=8]": ("spsa", "unbiased", "loss values", "16", 16.0, {"directions": 8})})
    twice.work["spsa[directions=8]"] = 7e4
    drawn = {chart.id for chart in charts(results(twice))}
    assert drawn == {
        "curves",
        "target",
        "variants",
        "crossed",
        "generations",
        "diversity",
        "budgets",
        "cost",
        "memory",
        "depth",
        "cosine",
        "quotient",
        "sigma",
        "sampling",
        "alignment",
        "layerwise",
        "filters",
        "samples",
        "chains",
        "occluded",
        "growth",
        "failures",
        "landscape",
        "tuning",
    }
    assert len(CHARTS) == len(drawn)
    assert [c for _, _, ids in SECTIONS for c in ids] == [chart.id for chart in charts(results(twice))]
    for kind, gone in (
        ("cost", {"cost", "memory"}),
        ("depth", {"depth"}),
        ("fit", {"budgets"}),
        ("estimate", {"cosine"}),
        ("bias", {"quotient"}),
        ("sigma", {"sigma"}),
        ("inside", {"alignment", "layerwise", "filters", "samples", "chains", "occluded"}),
        ("sampling", {"sampling"}),
        ("crossed", {"crossed"}),
        ("landscape", {"landscape"}),
        ("tuning", {"tuning"}),
    ):
        assert {chart.id for chart in charts(results(twice, without=[kind]))} == drawn - gone
    assert {chart.id for chart in charts(results())} == drawn - {"variants"}


def test_the_table_of_estimates_has_the_figures_of_the_records_the_best_buy_first(results: Any) -> None:
    found = results(World(cosine={NUDGE: 0.02, "spsa": 0.1}, cosine_power=0.0, seeds=1))
    rows = dict(lines(found))
    assert list(rows) == ["spsa", NUDGE]
    assert dict(zip(HEAD, rows["spsa"], strict=True)) == {
        "Cosine": "0.1 (0.094 to 0.11)",
        "Relative error": "10",
        "Bias": "0.05 (0.02 to 0.09)",
        "Variance, closed form": "2,410",
        "Variance, measured": "99 (79 to 120)",
        "Loss per forward": "0.005 (0.0025 to 0.0075)",
    }
    page = unescape(render(found))
    section = page[page.index('<section id="estimate">') : page.index('<section id="size-and-settings">')]
    assert "How good is each estimate at 2,410 weights" in section
    assert "spsa gives the most: 0.005" in section
    assert all(text in section for cells in rows.values() for text in cells)
    assert 'id="estimates"' not in render(results(without=["estimate"]))


def test_the_closed_form_is_drawn_through_the_points_of_each_method_that_has_one(results: Any) -> None:
    chart = next(chart for chart in charts(results()) if chart.id == "cosine")
    assert list(chart.specs) == ["variance", "cosine"]
    for row in chart.rows["rows"]:
        known = {"evolution-strategy": None, "forward-gradient": row["weights"] + 1}
        closed = known.get(row["method"], row["weights"] - 1)
        assert row.get("variance closed") == closed
        if closed:
            assert row["cosine closed"] == pytest.approx((1 + closed) ** -0.5, rel=1e-4)
        assert row["variance low"] < row["variance"] < row["variance high"]
    assert "Left out: networks above 38,400 weights; dldw compare --budget full goes to 10 million." in chart.note


def test_sizes_far_from_the_own_one_are_said_to_rest_on_fewer_estimates(tmp_path: Path) -> None:
    records = made_up()
    records[0]["config"]["budget"] = {"name": "full", "sizes": [100, 10**7]}
    far = {"kind": "estimate", "task": "digits", "method": "spsa", "seed": 0, "width": 133333, "weights": 9_999_985}
    far |= {"draws": 10, "cosine": 3e-4, "cosine_low": 1e-4, "cosine_high": 5e-4, "relative_bias": None}
    save([*records[:-1], far | {"relative_variance": 1e7, "theory_variance": 9_999_984.0}, records[-1]], tmp_path)
    chart = next(chart for chart in charts(read(tmp_path)) if chart.id == "cosine")
    assert "at the first weights and with fewer estimates: 10 at 10\u00a0million weights" in chart.note
    assert chart.note.endswith("Left out: networks above 10\u00a0million weights.")


def test_the_valley_of_sigma_is_drawn_for_every_size_with_what_is_recommended(results: Any) -> None:
    chart = next(chart for chart in charts(results()) if chart.id == "sigma")
    best = {r["weights"]: r["sigma"] for r in chart.rows["rows"] if r["at"] == "recommended"}
    assert best == pytest.approx({610: 4.0**-3, 2410: 4.0**-4, 9610: 4.0**-4, 38410: 4.0**-4}, rel=1e-4)
    assert "least around sigma = 0.016 at 610 weights and around 0.0039 at 38,400" in chart.sentence
    assert f"At the usual 0.001 it is at most {number(100 * (2.0**-20 + 1e-7 * 2**10))}\u00a0%" in chart.sentence


def populations(w: World | None = None) -> World:
    made = w or World()
    made.extra = {"swarm": ("particle-swarm", "search", "loss values", "16", 16.0, {})}
    made.work["swarm"], made.diverse["swarm"] = 4e4, 0.2
    return made


def test_the_populations_of_every_searcher_are_drawn_as_they_were_recorded(results: Any) -> None:
    found = results(populations())
    by_id = {chart.id: chart for chart in charts(found)}
    for name, fields in (
        ("generations", {"best": "generation_best", "median": "generation_median"}),
        ("diversity", {"diversity": "diversity"}),
    ):
        rows = by_id[name].rows["rows"]
        assert {r["method"] for r in rows} == {"random-search", "swarm"}
        assert min(r["generation"] for r in rows) == 1
        for row in rows:
            own = [
                e
                for e in found.evaluations
                if (e["study"], e["method"], e["task"], e["step"])
                == ("curves", row["method"], row["task"], row["generation"])
            ]
            assert row["seeds"] == len(own) == 5
            for shown, recorded in fields.items():
                assert row[shown] == pytest.approx(np.median([e[recorded] for e in own]), rel=1e-4)
        ends = [r for r in rows if r.get("last")]
        assert {r["generation"] for r in ends} == {max(r["generation"] for r in rows if r["method"] == m) for m in
                                                   ("random-search", "swarm")}  # fmt: skip
    said = by_id["generations"].sentence
    assert "deviates most with random-search, by 0.003" in by_id["diversity"].sentence
    assert re.search(r"random-search has .* closest to the best: 2.5 and 0.92; swarm .*: 2.1 and 0.14", said)


def test_without_a_population_there_is_no_chart_of_one(results: Any) -> None:
    alone = results(World(diverse={}))
    assert not {"generations", "diversity"} & {chart.id for chart in charts(alone)}


def test_an_axis_of_losses_is_logarithmic_where_they_fall_by_powers_of_ten(tmp_path: Path) -> None:
    def scales(records: list[Any]) -> set[str]:
        save(records, tmp_path)
        curves = next(chart for chart in charts(read(tmp_path)) if chart.id == "curves")
        encodings = [layer["encoding"] for layer in curves.specs["digits/loss/forwards"]["layer"]]
        return {e["y"]["scale"].get("type", "linear") for e in encodings if "scale" in e.get("y", {})}

    records = made_up()
    assert scales(records) == {"linear"}
    for record in records:
        if record["kind"] == "evaluation" and record["step"]:
            record["loss"] = max(0.0, record["loss"] * 10.0 ** (-record["step"] / 1e5))
    assert scales(records) == {"log"}


def test_success_is_shown_against_environment_steps_where_there_are_some(tmp_path: Path) -> None:
    records = made_up()
    for record in records:
        if record["kind"] == "evaluation":
            record["interactions"] = 10 * record["examples"]
        if record["kind"] == "end":
            reached = record["forwards_to_target"]
            record["interactions_to_target"] = None if reached is None else round(7 * reached)
    save(records, tmp_path)
    chart = next(chart for chart in charts(read(tmp_path)) if chart.id == "target")
    assert chart.choices == [("against", ["interactions", "forwards", "seconds"])]
    shown = {axis: [r["x"] for r in chart.rows["rows"] if r["axis"] == axis and r["method"] == NUDGE] for axis in
             ("interactions", "forwards")}  # fmt: skip
    assert shown["interactions"][1:-1] == pytest.approx([7 * x for x in shown["forwards"][1:-1]], rel=1e-4)


def test_success_is_shown_no_further_than_runs_went(tmp_path: Path) -> None:
    records = made_up()
    ends = [r for r in records if r["kind"] == "end" and r["study"] == "curves"]
    for end in ends:  # late, as where a budget is just enough
        end["forwards_to_target"] = 0.9 * max(e["forwards"] for e in ends)
    save(records, tmp_path)
    chart = next(chart for chart in charts(read(tmp_path)) if chart.id == "target")
    shown = [r["x"] for r in chart.rows["rows"] if r["axis"] == "forwards"]
    assert max(shown) == pytest.approx(max(e["forwards"] for e in ends), rel=1e-4)


def test_sentences_come_from_the_figures(results: Any) -> None:
    def said(w: World) -> dict[str, str]:
        return {chart.id: chart.sentence for chart in charts(results(w))}

    first = said(World())
    second = said(
        World(
            work={m: 3 * v for m, v in World().work.items()},
            ratio={m: 2 * v for m, v in World().ratio.items()},
            quotient=0.2,
        )
    )
    for name in ("curves", "target", "cost", "quotient"):
        assert re.search(r"\d", first[name])
        assert first[name] != second[name]


def test_specifications_are_valid_vega_lite(results: Any) -> None:
    import altair as alt

    for chart in charts(results()):
        for spec in chart.specs.values():
            alt.Chart.from_dict(json.loads(json.dumps(spec)), validate=True)


def test_every_row_survives_json_and_every_chart_has_rows(results: Any) -> None:
    for chart in charts(results(World(work={**World().work, NUDGE: math.inf}))):
        json.dumps(chart.rows, allow_nan=False)
        assert chart.rows["rows"]


def test_choices_lead_to_specifications(results: Any) -> None:
    def keys(chart: Chart) -> set[str]:
        found = [""]
        for i, (_, options) in enumerate(chart.choices):
            found = [f"{k}/{o}" if i else o for k in found for o in options]
        return set(found)

    for chart in charts(results()):
        assert keys(chart) == set(chart.specs)


def test_a_run_with_one_method_and_one_seed_gives_a_page(results: Any) -> None:
    found = results(World(seeds=1))
    keep = BACKPROP
    alone = Results(
        run=found.run,
        methods=[m for m in found.methods if m["method"] == keep],
        tasks=found.tasks[:1],
        evaluations=[e for e in found.evaluations if e["method"] == keep],
        ends=[e for e in found.ends if e["method"] == keep],
    )
    assert "The question, answered" in render(alone)


def test_diverged_runs_leave_no_hole(tmp_path: Path) -> None:
    records = made_up()
    for record in records:
        if record["kind"] == "evaluation" and record["method"] == "spsa" and record["seed"] < 3:
            record["loss"] = None
    save(records, tmp_path)
    assert write(tmp_path).exists()


def test_a_task_measured_by_its_loss_gives_a_page(tmp_path: Path) -> None:
    records = made_up()
    for record in records:
        if record["kind"] == "task":
            record |= {"metric": "loss", "maximise": False, "target": 0.4}
        if record["kind"] == "evaluation":
            record["accuracy"] = None
        if record["kind"] == "end" and record["metric"] is not None:
            record["metric"] = 1 - record["metric"]
    save(records, tmp_path)
    assert "a loss of 0.4" in write(tmp_path).read_text(encoding="utf-8")


# --- how it looks ---


def test_methods_keep_their_look(results: Any) -> None:
    styles = {look.method: look for look in looks(results())}
    assert styles[BACKPROP].colour == 0
    assert styles[NUDGE].colour == 1
    assert len({(look.colour, look.shape, look.dash) for look in styles.values()}) == len(styles)
    many = World(extra={f"other-{i}": ("other", "search", "loss values", "1", 1.0, {}) for i in range(40)})
    every = looks(results(many))
    assert len({(look.colour, look.shape, look.dash) for look in every}) == len(every) == 48


SIMULATED = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


def palette(theme: str) -> tuple[list[str], str]:
    css = (files("dldw.report") / "page.css").read_text(encoding="utf-8")
    block = (
        re.search(r':root\[data-theme="dark"\] \{(.*?)\n\}', css, re.S)
        if theme == "dark"
        else re.search(r":root \{(.*?)\n\}", css, re.S)
    )
    assert block is not None
    values = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[1]))
    return [values[f"m{i}"] for i in range(9)], values["card"]


def linear(colour: str) -> Any:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: Any) -> Any:
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = matrix @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eye", SIMULATED)
def test_methods_can_be_told_apart_by_every_eye(theme: str, eye: str) -> None:
    colours, card = palette(theme)
    seen = [lab(SIMULATED[eye] @ linear(c)) for c in colours]
    close = {(i, j): np.linalg.norm(seen[i] - seen[j]) for i, j in combinations(range(9), 2)}
    assert min(close.values()) > 15, min(close, key=lambda pair: close[pair])
    for colour in colours:
        light, dark = sorted(
            (float(np.array([0.2126, 0.7152, 0.0722]) @ linear(c)) + 0.05 for c in (colour, card)), reverse=True
        )
        assert light / dark > 2.5, colour


def test_figures_read_as_a_person_writes_them() -> None:
    assert [number(v) for v in (0, 0.0123, 9.87, 74.2, 12345, 3.2e6, math.inf, -0.5)] == [
        "0",
        "0.012",
        "9.9",
        "74.2",
        "12,300",
        "3.2\u00a0million",
        "∞",
        "−0.5",
    ]
    assert (percent(0.931, 1), size(61 * 1024), size(3 * 2**20)) == ("93.1\u00a0%", "61\u00a0KiB", "3\u00a0MiB")


def test_the_two_tables_hold_what_was_recorded_and_say_how_it_was_made_equal(results: Any) -> None:
    found = results()
    memory, time = [table for table in tables(found) if table.section == "equal"]
    rows = dict(memory.rows)
    assert list(rows) == [CHECKPOINT, "spsa", BACKPROP]  # the best first, what does not fit last
    assert rows[BACKPROP] == ["none", "176\u00a0KiB with one row", "does not fit", "–"]
    ends = {(e["method"], e["seed"]): e for e in found.evaluations if e["study"] == "memory"}  # the last of each run
    quickest = min(
        np.median([e["seconds"] for (m, _), e in ends.items() if m == method]) for method in (CHECKPOINT, "spsa")
    )
    for method in (CHECKPOINT, "spsa"):
        within = [
            [e for e in found.evaluations if (e["study"], e["method"], e["seed"]) == ("memory", method, seed)]
            for seed in range(5)
        ]
        reached = [[e["accuracy"] for e in run if e["seconds"] <= quickest][-1] for run in within]
        assert rows[method][2].startswith(f"{np.mean(reached):.3f} (")
    assert [rows[m][:2] for m in (CHECKPOINT, "spsa")] == [["32", "92.8\u00a0KiB"], ["160", "96.7\u00a0KiB"]]
    assert "within 97.7\u00a0KiB above the loaded model" in memory.note
    assert f"with gradients, {CHECKPOINT} ended at" in memory.sentence
    assert f"Not even one row fits with {BACKPROP}." in memory.sentence
    assert set(dict(time.rows)) == {m["method"] for m in found.methods}
    page = unescape(render(found))
    for table in (memory, time):
        assert table.note in page
        assert f'id="{table.id}"' in page


def test_without_a_bound_of_memory_there_are_no_tables(results: Any) -> None:
    assert {table.id for table in tables(results(without=["fit"]))} == {"estimates"}


def test_what_papers_report_stands_beside_what_was_reached_and_is_no_target(results: Any, tmp_path: Path) -> None:
    assert "published" not in {table.id for table in tables(results())}
    records = made_up()
    figures = {
        "accuracy": 97.45,
        "backprop": 97.59,
        "data": "MNIST",
        "network": "LocalMixer",
        "source": "Ren et al. 2022",
    }
    for record in records:
        if record["kind"] == "method" and record["method"] in ("spsa", CHECKPOINT):
            alone = {"accuracy": 92.5, "backprop": None} if record["method"] == CHECKPOINT else {}
            record["published"] = [{"settings": {}, **figures, **alone}]
    save(records, tmp_path)
    found = read(tmp_path)
    table = next(table for table in tables(found) if table.id == "published")
    here = {m: 100 * np.mean([e["metric"] for e in ends_of(found, m)]) for m in ("spsa", CHECKPOINT, BACKPROP)}
    rows = dict(table.rows)
    assert rows.keys() == {"spsa", CHECKPOINT}
    assert rows["spsa"][0].startswith(f"{here['spsa']:.1f} (")
    assert rows["spsa"][1:] == ["97.45", "97.59", "MNIST", "LocalMixer", "Ren et al. 2022"]
    assert rows[CHECKPOINT][1:3] == ["92.5", "–"]
    gap = here["spsa"] - here[BACKPROP]
    assert table.sentence == f"spsa is 0.14 points below backprop on MNIST in its paper, and {_points(gap)} it here."
    assert table.note in unescape(render(found))
    assert (_points(0.14), _points(-3.2), _points(1e-9)) == ("0.14 points above", "3.2 points below", "level with")


def test_a_run_that_was_lost_is_said_and_ranks_behind_those_that_were_not(results: Any, tmp_path: Path) -> None:
    records = made_up()
    for record in records:
        if record["kind"] == "end" and record["study"] == "memory" and record["method"] == CHECKPOINT:
            record["reason"] = "diverged"
    save(records, tmp_path)
    (first, _), (second, cells), _ = tables(read(tmp_path))[0].rows
    assert (first, second, cells[2]) == ("spsa", CHECKPOINT, "lost in 5 runs")
