"""The report in a real browser: it draws, it filters, it fetches nothing, and it fits on a phone."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.made_up import BACKPROP, NUDGE, made_up, save

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("altair", reason="the report's extra is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("no Chromium is installed", allow_module_level=True)

from dldw.report import write  # noqa: E402

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WIDTHS = (360, 768, 1400)
CHARTS = (
    "curves", "target", "crossed", "generations", "diversity", "budgets", "cost", "memory", "depth", "cosine", "quotient",
    "sigma", "sampling", "alignment", "layerwise", "filters", "samples", "chains", "occluded", "growth", "failures",
    "landscape", "tuning",
)  # fmt: skip

IMAGES = ("filters", "samples", "chains", "occluded")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("run")
    save(made_up(), directory)
    return write(directory).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield chromium
        chromium.close()


class Visit:
    """The page as somebody opened it, with what went wrong and what left it."""

    def __init__(self, browser: Any, address: str, width: int, scheme: str) -> None:
        self.complaints: list[str] = []
        self.warnings: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.hear(m.type, m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.context.route("**/*", self.gate)
        self.page.goto(address)
        self.page.wait_for_function("window.dldw && window.dldw.drawn", timeout=60_000)

    def hear(self, kind: str, text: str) -> None:
        {"error": self.complaints, "warning": self.warnings}.get(kind, []).append(text)

    def gate(self, route: Any) -> None:
        if route.request.url.startswith(("file:", "blob:", "data:")):
            route.continue_()
        else:
            self.requests.append(route.request.url)
            route.abort()

    def marks(self, chart: str, kind: str = "path") -> int:
        """How many marks the chart shows."""
        return int(self.page.evaluate(f"document.querySelectorAll('#{chart} .plot svg {kind}').length"))


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Any]:
    open_pages: list[Visit] = []

    def go(width: int = 1400, scheme: str = "light") -> Visit:
        open_pages.append(Visit(browser, address, width, scheme))
        return open_pages[-1]

    yield go
    for page in open_pages:
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_draws_without_complaint_request_or_overflow(visit: Any, width: int, scheme: str, tmp_path: Path) -> None:
    seen = visit(width, scheme)
    assert (seen.complaints, seen.warnings, seen.requests) == ([], [], [])
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen.page.evaluate("document.documentElement.dataset.theme") == scheme
    for chart in CHARTS:
        assert seen.marks(chart) > 5, chart
        inside = seen.page.evaluate(
            """id => {
              const right = (what) => document.querySelector(`#${id} ${what}`).getBoundingClientRect().right;
              return right(".plot svg") - right(".plot");
            }""",
            chart,
        )
        assert inside < 1.5, (chart, inside)
    where = Path(os.environ.get("DLDW_SCREENSHOTS", tmp_path))
    where.mkdir(parents=True, exist_ok=True)
    picture = where / f"report-{width}-{scheme}.png"
    seen.page.screenshot(path=str(picture), full_page=True)
    assert picture.stat().st_size > 50_000


OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll(".plot svg")) {
    const texts = [...svg.querySelectorAll("text")]
      .filter((t) => t.textContent.trim() && Number(getComputedStyle(t).opacity) > 0.05);
    const boxes = texts.map((t) => [t.textContent, t.getBoundingClientRect()]).filter(([, b]) => b.width > 0);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, p] = boxes[i], [b, q] = boxes[j];
      const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 1 && y > 3) found.push(svg.closest("figure").id + ": " + a + " / " + b);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_overlaps_in_any_chart(visit: Any, width: int) -> None:
    assert visit(width).page.evaluate(OVERLAPS) == []


def test_one_chip_filters_every_chart_and_table(visit: Any) -> None:
    seen = visit()
    without = (
        "quotient",
        "sigma",
        "budgets",
        "depth",
        "generations",
        "diversity",
        "crossed",
        "sampling",
        "alignment",
        "layerwise",
        *IMAGES,
    )
    everywhere = [c for c in CHARTS if c not in without]
    before = {c: seen.marks(c) for c in everywhere}
    seen.page.click(f'.chip[data-method="{NUDGE}"]')
    seen.page.wait_for_timeout(700)
    after = {c: seen.marks(c) for c in everywhere}
    assert all(after[c] < before[c] for c in everywhere), (before, after)
    assert seen.page.get_attribute(f'.chip[data-method="{NUDGE}"]', "aria-pressed") == "false"
    assert not seen.page.is_visible(f'tr[data-method="{NUDGE}"]')
    seen.page.dblclick(f'.chip[data-method="{BACKPROP}"]')
    seen.page.wait_for_timeout(700)
    assert seen.page.evaluate("[...dldw.shown]") == [BACKPROP]
    assert seen.page.locator(".chip[aria-pressed=true]").count() == 1
    assert "empty" in str(seen.page.get_attribute("#cosine", "class"))
    seen.page.click("#all")
    seen.page.wait_for_timeout(900)
    assert {c: seen.marks(c) for c in everywhere} == before
    assert seen.complaints == []


@pytest.mark.parametrize("chart", IMAGES)
def test_images_are_squares_and_those_of_the_method_chosen(visit: Any, chart: str) -> None:
    seen = visit()
    look = f"""[...document.querySelectorAll('#{chart} .plot svg .mark-rect path')].map(
        (p) => [p.getAttribute('fill'), p.getBoundingClientRect().width, p.getBoundingClientRect().height])"""
    first = seen.page.evaluate(look)
    assert len(first) == 9 * {"filters": 12}.get(chart, 40)
    assert max(abs(width / height - 1) for _, width, height in first) < 0.1
    seen.page.click(f"#{chart} [data-choice='1']")
    seen.page.wait_for_timeout(500)
    second = seen.page.evaluate(look)
    assert len(second) == len(first)
    assert [fill for fill, *_ in second] != [fill for fill, *_ in first]


def test_a_hidden_method_stays_hidden_when_a_chart_is_drawn_anew(visit: Any) -> None:
    seen = visit()
    seen.page.click(f'.chip[data-method="{NUDGE}"]')
    seen.page.click('#curves [data-of="against"] >> text=seconds')
    seen.page.wait_for_timeout(500)
    hidden = seen.marks("curves")
    seen.page.click("#all")
    seen.page.wait_for_timeout(500)
    assert hidden < seen.marks("curves")


@pytest.mark.parametrize("of", ["task", "show", "against"])
def test_every_choice_of_the_learning_curves_draws(visit: Any, of: str) -> None:
    seen = visit(768)
    pictures = set()
    for button in seen.page.query_selector_all(f'#curves [data-of="{of}"]'):
        button.click()
        seen.page.wait_for_timeout(400)
        pictures.add(seen.page.inner_html("#curves .plot svg"))
        assert button.get_attribute("aria-pressed") == "true"
    assert len(pictures) == len(seen.page.query_selector_all(f'#curves [data-of="{of}"]'))
    assert seen.complaints == []


def test_pointing_at_a_mark_shows_its_figures(visit: Any) -> None:
    seen = visit()
    seen.page.locator("#cost .plot svg path[aria-roledescription=bar]").first.hover()
    seen.page.wait_for_selector("#vg-tooltip-element.visible")
    assert "two forwards" in seen.page.inner_text("#vg-tooltip-element")


def test_pointing_at_a_learning_curve_names_its_method(visit: Any) -> None:
    seen = visit()
    box = seen.page.locator("#curves .plot svg").bounding_box()
    seen.page.mouse.wheel(0, box["y"] - 200)
    seen.page.wait_for_timeout(300)
    point = seen.page.locator("#curves .plot svg .mark-symbol path").nth(20)
    point.hover(force=True)
    seen.page.wait_for_selector("#vg-tooltip-element.visible")
    text = seen.page.inner_text("#vg-tooltip-element")
    assert "forward-pass equivalents" in text
    assert any(record["method"] in text for record in made_up() if record["kind"] == "method"), text
    assert "undefined" not in text


def test_the_toggle_turns_page_and_charts_dark_and_back(visit: Any) -> None:
    seen = visit()

    def colours() -> tuple[str, str]:
        return (
            seen.page.evaluate("getComputedStyle(document.body).backgroundColor"),
            seen.page.evaluate("document.querySelector('#cosine .plot svg text').getAttribute('fill')"),
        )

    light = colours()
    seen.page.click("#theme")
    seen.page.wait_for_timeout(1500)
    dark = colours()
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    seen.page.click("#theme")
    seen.page.wait_for_timeout(1500)
    assert colours() == light


@pytest.mark.parametrize(("kind", "begins"), [("csv", "task,method,"), ("json", '{\n "rows"'), ("svg", "<svg")])
def test_the_data_and_the_picture_can_be_saved(visit: Any, kind: str, begins: str, tmp_path: Path) -> None:
    seen = visit()
    for chart in CHARTS:
        seen.page.wait_for_timeout(110)  # a browser drops what is more than ten downloads in a second
        with seen.page.expect_download(timeout=10_000) as download:
            seen.page.click(f'#{chart} [data-save="{kind}"]')
        assert download.value.suggested_filename == f"dldw-{chart}.{kind}"
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        text = path.read_text(encoding="utf-8")
        assert text.startswith(begins) or (kind == "csv" and len(set(map(len, csv.reader(text.splitlines())))) == 1)
    assert seen.requests == []


def test_the_rule_of_a_verdict_opens_in_its_place(visit: Any) -> None:
    seen = visit(360)
    rule = seen.page.locator("#claim-1 details p")
    assert not rule.is_visible()
    seen.page.click("#claim-1 summary")
    assert rule.is_visible()
