"""Make the studio's screenshots in docs/images: ``python docs/studio_images.py``.

Needs Chromium, the extra ``ui`` and Playwright. Look at every picture afterwards.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from attnctl.cli.studio import silence_loading
from attnctl.ui import StudioSettings, serve

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ui.browser import DESKTOP, PHONE, chromium, open_studio, run_to_the_end

IMAGES = Path(__file__).parent / "images"


def shoot(page: Page, name: str) -> None:
    """Save the whole page."""
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement && document.activeElement.blur()")
    page.screenshot(path=IMAGES / f"studio-{name}.png", full_page=True, animations="disabled")


def shoot_all(page: Page, url: str, kind: str) -> None:
    """Go through the states of the page."""
    open_studio(page, url)
    shoot(page, f"{kind}-empty")
    page.locator("#ac-subjects [data-word=circle]").click()
    expect(page.locator("#ac-techniques .ac-card")).to_have_count(1)
    page.locator("#ac-subjects [data-word=square]").click()
    expect(page.locator("#ac-subjects [aria-pressed=true]")).to_have_count(2)
    page.locator("#ac-techniques .ac-adder").select_option("soft-pag")
    expect(page.locator("#ac-techniques .ac-lane[class='ac-lane']")).to_have_count(2)
    page.locator("#ac-run").click()
    expect(page.locator("#ac-stage .ac-chip").first).to_be_visible(timeout=120_000)
    page.locator("#ac-stage .ac-preview img").wait_for()
    shoot(page, f"{kind}-running")
    run_to_the_end(page)
    shoot(page, f"{kind}-result")
    page.locator("#ac-looked [data-word=circle]").click()
    page.locator("#ac-heat img").wait_for()
    shoot(page, f"{kind}-heat-map")
    page.locator(
        "#ac-techniques [data-technique=soft-pag] input[aria-label='steps, as text']"
    ).fill("half of it")
    page.locator("#ac-run").click()
    page.locator("#ac-stage .ac-error").wait_for()
    shoot(page, f"{kind}-error")


def main() -> None:
    """Serve the studio, and take the pictures on a desk's and on a phone's width."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    silence_loading()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        running = serve(StudioSettings(out=Path(folder), port=0))
        browser = play.chromium.launch(executable_path=chromium())
        try:
            for kind, size in (("desktop", DESKTOP), ("phone", PHONE)):
                shoot_all(browser.new_page(**size), running.url, kind)
        finally:
            browser.close()
            running.close()


if __name__ == "__main__":
    main()
