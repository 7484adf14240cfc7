"""Makes the picture of the README from a run: ``python -m tests.browser.picture DIRECTORY docs/report.png``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from dldw.report import write

PARTS = """
  .claim:nth-child(n + 3), .gaps, .downloads, .note, details, #appendix, #methods, #theme, footer { display: none }
  .figures section:not(#learning), #target { display: none }
  .hero { margin-top: 1.2rem } .claims { margin-bottom: 1.6rem }
  .claim { padding: 1.1rem 0 } .chips { position: static }
  section { margin-bottom: 1.6rem }
"""


def picture(directory: Path, target: Path, width: int = 1120) -> Path:
    """The opening, two claims and the learning curves of the report on ``directory``, as a PNG."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme="light")
        page.goto(write(directory).resolve().as_uri())
        page.wait_for_function("window.dldw && window.dldw.drawn")
        page.add_style_tag(content=PARTS)
        page.screenshot(path=str(target), full_page=True)
        chromium.close()
    return target


if __name__ == "__main__":
    print(picture(Path(sys.argv[1]), Path(sys.argv[2])))
