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


def shoot(page: Page, name: str, part: str = "body") -> None:
    """Save the whole page; on a phone, what its screen shows from a part of the page on."""
    is_phone = name.startswith("phone")
    page.locator(part).first.evaluate("part => part.scrollIntoView()")
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement && document.activeElement.blur()")
    page.screenshot(
        path=IMAGES / f"studio-{name}.png", full_page=not is_phone, animations="disabled"
    )


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
    shoot(page, f"{kind}-running", "#ac-stage")
    run_to_the_end(page)
    shoot(page, f"{kind}-result", "#ac-stage")
    page.locator("#ac-looked [data-word=circle]").click()
    page.locator("#ac-heat img").wait_for()
    shoot(page, f"{kind}-heat-map", "#ac-looked")
    page.locator(
        "#ac-techniques [data-technique=soft-pag] input[aria-label='steps, as text']"
    ).fill("half of it")
    page.locator("#ac-run").click()
    page.locator("#ac-stage .ac-error").wait_for()
    shoot(page, f"{kind}-error", "#ac-stage")


def shoot_edit(page: Page, url: str, picture: Path) -> None:
    """Edit a picture of the shapes model, and save the second tab."""
    open_studio(page, url)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#ac-edit-drop input[type=file]").set_input_files(picture)
    expect(page.locator("#ac-edit-drop")).to_contain_text(picture.stem)
    page.locator("#ac-edit-source textarea").fill("a red circle and a blue square")
    page.locator("#ac-edit-target textarea").fill("a red circle and a green square")
    page.locator("#ac-edit-techniques .ac-adder").select_option("prompt-to-prompt")
    page.locator("#ac-edit-run").click()
    page.locator("#ac-edit-slider img").first.wait_for(timeout=600_000)
    expect(page.locator("#ac-edit-run")).to_be_enabled()
    shoot(page, "desktop-edit")


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
            made = next(Path(folder).glob("*attend-and-excite-soft-pag*.png"))
            shoot_edit(browser.new_page(**DESKTOP), running.url, made)
        finally:
            browser.close()
            running.close()


if __name__ == "__main__":
    main()
