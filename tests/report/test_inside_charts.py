"""The charts of what was seen inside models say what was recorded."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="the report's extra is not installed")

from dldw.report.charts.crossed import crossed
from dldw.report.charts.inside import alignment, layers
from dldw.report.charts.pictures import GAP, chains, filters, occluded, samples
from dldw.report.charts.sampling import sampling
from dldw.report.charts.variants import variants
from dldw.report.results import read
from tests.made_up import BACKPROP, World, made_up, save


def test_angles_are_drawn_in_degrees_and_the_sentence_names_the_largest_fall(results: Any) -> None:
    chart = alignment(results(World(aligned={"spsa": (88.0, 89.0), "forward-gradient": (80.0, 20.0)})))
    assert chart is not None
    last = {r["method"]: r["angle"] for r in chart.rows["rows"] if r["last"]}
    assert last == {"spsa": 89.0, "forward-gradient": 20.0}
    assert BACKPROP not in {r["method"] for r in chart.rows["rows"]}
    assert chart.sentence == (
        "In the first layer, the estimate of forward-gradient stays at 82° or more and spsa stays at 90° or more."
    )


def test_the_sentence_tells_what_comes_into_line(tmp_path: Path) -> None:
    records = made_up()
    for record in records:
        if record["kind"] == "inside" and record["method"] == "spsa":
            for i, point in enumerate(record["angles"]):
                point["first"] = 90.0 - 5 * i
    save(records, tmp_path)
    chart = alignment(read(tmp_path))
    assert chart is not None
    assert "the estimate of spsa comes from 85° to 20° and forward-gradient stays at 89° or more." in chart.sentence


def test_layers_are_in_their_order_and_the_sentence_has_the_best_and_the_last(results: Any) -> None:
    chart = layers(results())
    assert chart is not None
    own = [(r["layer"], r["accuracy"]) for r in chart.rows["rows"] if r["method"] == "spsa"]
    assert own == [("input", 0.9), ("layer 1", 0.92), ("layer 2", 0.93), ("output", 0.95)]
    assert chart.sentence == (
        "A linear read-out of the pixels themselves is right for 92.0\u00a0%; of the best hidden layer that backprop has "
        "trained, for 95.0\u00a0%, and of forward-gradient’s, for 91.0\u00a0%."
    )


@pytest.mark.parametrize(("draw", "count"), [(filters, 12), (samples, 40), (chains, 40), (occluded, 40)])
def test_every_image_is_there_with_its_pixels_for_every_method(results: Any, draw: Any, count: int) -> None:
    found = results()
    chart = draw(found)
    tiles = chart.rows["rows"]
    assert Counter(t["method"] for t in tiles) == dict.fromkeys((BACKPROP, "spsa", "forward-gradient"), count)
    recorded = {i["method"]: {p["name"]: p for p in i["pictures"]}[chart.id] for i in found.insides}
    for tile in tiles:
        assert tile["pixels"] == recorded[tile["method"]]["pixels"][tile["row"]][tile["column"]]
        assert tile["x"] == pytest.approx(tile["column"] * (1 + GAP), abs=1e-3)
    assert chart.choices == [("trained by", [BACKPROP, "spsa", "forward-gradient"])]
    assert list(chart.specs) == [BACKPROP, "spsa", "forward-gradient"]
    rows = sorted({t["y"] for t in tiles})
    assert all(b - a >= 1 for a, b in pairwise(rows))  # images do not lie over one another
    across = max(t["x"] for t in tiles) + 1
    assert chart.aspect == pytest.approx((rows[-1] + 1) / across, abs=1e-3)


def test_figures_of_the_images_are_in_the_sentences(results: Any) -> None:
    found = results()
    said = {chart.id: chart.sentence for draw in (occluded, chains, samples) if (chart := draw(found))}
    assert said["occluded"] == (
        "Error of a filled-in pixel, where the mean digit has 0.41: backprop 0.3, spsa 0.32 and forward-gradient 0.34."
    )
    assert "with backprop 60\u00a0% after 10 steps and 5\u00a0% after 1,000" in said["chains"]
    assert "accuracy at the end: backprop 0.97, spsa 0.95" in said["samples"]


def test_methods_whose_models_became_best_come_first(tmp_path: Path) -> None:
    records = made_up()
    for record in records:
        if record["kind"] == "inside" and record["method"] == "forward-gradient":
            record["metric"] = 0.99
    save(records, tmp_path)
    chart = filters(read(tmp_path))
    assert chart is not None
    assert chart.choices[0][1][0] == "forward-gradient"


def test_the_bias_of_sampling_is_told_at_the_last_point(results: Any) -> None:
    chart = sampling(results())
    assert chart is not None
    assert "CD-1 0.88 and 0.76 of its length" in chart.sentence
    assert "The lowest cosine is 0.88, of CD-1 after 1,000." in chart.sentence
    assert list(chart.specs) == ["cosine", "norm"]
    assert len(chart.rows["rows"]) == 16


def test_the_table_of_ways_has_the_published_figure_under_ours(results: Any) -> None:
    chart = crossed(results())
    assert chart is not None
    cells = {(r["trained"], r["evaluated"]): (r["ours"], r["paper"]) for r in chart.rows["rows"]}
    assert cells["full", "2"] == ("60.0", "76.9")
    assert cells["4", "full"] == ("1.0", "0.8")
    assert chart.sentence == (
        "Trained with 4 and evaluated with 8, 100.0\u00a0% of the symbols are right; the furthest from the published table "
        "is training with full and evaluating with 2: 60.0\u00a0% against 76.9\u00a0%."
    )


def test_variants_of_a_method_stand_side_by_side_and_exact_ones_do_not(results: Any) -> None:
    other = "spsa[directions=8]"
    w = World(extra={other: ("spsa", "unbiased", "loss values", "16", 16.0, {"directions": 8})})
    w.work[other] = float("inf")
    chart = variants(results(w))
    assert chart is not None
    assert {r["method"] for r in chart.rows["rows"]} == {"spsa", other}
    ends = {m: sorted(r["metric"] for r in chart.rows["rows"] if r["method"] == m) for m in ("spsa", other)}
    assert (
        f"spsa {100 * ends['spsa'][2]:.1f}\u00a0% against {other} {100 * ends[other][2]:.1f}\u00a0%" in chart.sentence
    )
    assert variants(results()) is None  # backprop, checkpointed or not, is one gradient
