"""Make the studio's screenshots in docs/images: ``python docs/studio_images.py``.

With ``pictures`` or ``video`` it makes those of the first two tabs, or of the third, alone. Needs
Chromium, the extra ``ui`` and Playwright. Look at every picture afterwards.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from playwright.sync_api import Page, expect, sync_playwright

from attnctl.cli.studio import silence_loading
from attnctl.shapes.clips import draw_clip
from attnctl.ui import StudioSettings, serve
from attnctl.video import Video, write_video

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ui.browser import DESKTOP, PHONE, chromium, open_studio, run_to_the_end

PARTS = ("pictures", "video")
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


def moving_clip(folder: Path) -> tuple[Path, str]:
    """Write a rendered clip in which one object is red; give its caption, too."""
    for seed in range(1000):
        clip = draw_clip(torch.Generator().manual_seed(seed))
        caption = str(clip.caption)
        if caption.startswith("a red square and") and caption.count("red") == 1:
            break
    file = folder / "clip.mp4"
    return write_video(file, Video.of_tensor(clip.frames, Fraction(8)))[0], caption


def shoot_video(page: Page, url: str, clip: Path, caption: str, kind: str) -> None:
    """Plan and edit a clip, and save the states of the third tab."""
    open_studio(page, url)
    page.get_by_role("tab", name="Video").click()
    expect(page.locator("#ac-video-techniques .ac-card")).to_have_count(2)
    shoot(page, f"{kind}-video-empty")
    page.locator("#ac-video-drop input[type=file]").set_input_files(clip)
    expect(page.locator("#ac-video-told")).to_contain_text("16 frames")
    page.locator("#ac-video-source-words textarea").fill(caption)
    page.locator("#ac-video-target-words textarea").fill(caption.replace("red", "green"))
    page.locator("#ac-video-plan-it").click()
    page.locator("#ac-video-plan dl").wait_for()
    expect(page.locator("#ac-video-run")).to_be_enabled()
    shoot(page, f"{kind}-video-plan", "#ac-video-stage")
    page.locator("#ac-video-run").click()
    expect(page.locator("#ac-video-stage .ac-steps")).to_contain_text("left")
    shoot(page, f"{kind}-video-running", "#ac-video-stage")
    page.locator("#ac-video-stage .ac-ended[data-state=done]").wait_for(timeout=900_000)
    for name in ("source", "edit"):
        expect(page.locator(f"#ac-video-{name} video")).to_have_js_property("videoWidth", 64)
    page.locator("#ac-video-edit video").evaluate("clip => { clip.pause(); clip.currentTime = 1; }")
    page.locator("#ac-video-motion img").wait_for()
    page.wait_for_timeout(500)
    shoot(page, f"{kind}-video", "#ac-video-stage")
    page.locator("#ac-video-target-words textarea").fill("a green square")
    page.locator("#ac-video-run").click()
    page.locator("#ac-video-stage .ac-error").wait_for()
    shoot(page, f"{kind}-video-error", "#ac-video-stage")


def main(parts: Sequence[str] = PARTS) -> None:
    """Serve the studio, and take the pictures on a desk's and on a phone's width."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    silence_loading()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        running = serve(StudioSettings(out=Path(folder), port=0))
        browser = play.chromium.launch(executable_path=chromium())
        try:
            kinds = (("desktop", DESKTOP), ("phone", PHONE))
            if "pictures" in parts:
                for kind, size in kinds:
                    shoot_all(browser.new_page(**size), running.url, kind)
                made = next(Path(folder).glob("*attend-and-excite-soft-pag*.png"))
                shoot_edit(browser.new_page(**DESKTOP), running.url, made)
            for kind, size in kinds if "video" in parts else ():
                clip = moving_clip(Path(folder))
                shoot_video(browser.new_page(**size), running.url, *clip, kind)
        finally:
            browser.close()
            running.close()


if __name__ == "__main__":
    main(sys.argv[1:] or PARTS)
