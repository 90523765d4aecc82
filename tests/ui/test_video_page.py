"""The third tab in a real browser, with the bundled model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.browser import PHONE, assert_fits, set_number
from tests.ui.clip_files import SOURCE, TARGET, make_clip

STAGE = "#ac-video-stage"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "mine.mp4", count=4)


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Video").click()
    expect(page.locator("#ac-video-techniques .ac-card")).to_have_count(2)


def ask(page: Page, clip: Path, *, steps: int = 3, source: str = SOURCE) -> None:
    """Drop a clip in and fill the fields; the accordion with the steps stays open."""
    page.locator("#ac-video-drop input[type=file]").set_input_files(clip)
    expect(page.locator("#ac-video-told")).to_contain_text("frames of 64 x 64")
    page.locator("#ac-video-source-words textarea").fill(source)
    page.locator("#ac-video-target-words textarea").fill(TARGET)
    page.locator("#ac-video-more .label-wrap").click()
    set_number(page, "video-steps", steps)


def wait_for_the_end(page: Page) -> None:
    expect(page.locator(f"{STAGE} .ac-ended[data-state=done]")).to_be_visible()
    expect(page.locator("#ac-video-run")).to_be_enabled()


def test_a_clip_is_planned_and_edited_beside_its_source(page: Page, clip: Path) -> None:
    open_tab(page)
    ask(page, clip)
    expect(page.locator("#ac-video-techniques .ac-ends")).to_contain_text("2")  # steps 0 to 2
    page.locator("#ac-video-plan-it").click()
    expect(page.locator("#ac-video-plan")).to_contain_text("4, edited at 64 x 64")
    expect(page.locator("#ac-video-run")).to_be_enabled()
    page.locator("#ac-video-run").click()
    wait_for_the_end(page)
    expect(page.locator("#ac-video-plan dl")).to_have_count(0)
    for name in ("source", "edit"):
        player = page.locator(f"#ac-video-{name} video")
        expect(player).to_have_js_property("videoWidth", 64)
        expect(player).to_have_js_property("error", None)
    for name in ("sheet", "motion"):
        expect(page.locator(f"#ac-video-{name} img")).to_be_visible()
    facts = page.locator("#ac-video-facts")
    expect(facts).to_contain_text("4 frames, 8 a second")
    facts.get_by_text("on the command line").click()
    expect(facts).to_contain_text("attnctl video-edit mine.mp4")
    assert "--guidance" not in facts.inner_text()  # an empty field is the model's own
    with page.expect_download() as given:
        page.locator("#ac-video-file").click()
    assert given.value.suggested_filename.endswith(".mp4")


def test_both_clips_are_paused_together(page: Page, clip: Path) -> None:
    open_tab(page)
    ask(page, clip, steps=1)
    page.locator("#ac-video-run").click()
    wait_for_the_end(page)
    source, made = (page.locator(f"#ac-video-{name} video") for name in ("source", "edit"))
    expect(source).to_have_js_property("videoWidth", 64)
    expect(made).to_have_js_property("videoWidth", 64)
    source.evaluate("clip => clip.play()")
    expect(made).to_have_js_property("paused", False)
    source.evaluate("clip => clip.pause()")
    expect(made).to_have_js_property("paused", True)
    source.evaluate("clip => { clip.currentTime = 0.25; }")
    expect(made).to_have_js_property("currentTime", 0.25)


def test_progress_is_shown_and_stop_ends_the_edit(page: Page, clip: Path) -> None:
    open_tab(page)
    ask(page, clip, steps=200)
    page.locator("#ac-video-run").click()
    stage = page.locator(STAGE)
    expect(stage.locator("h3")).to_have_text("inverting frames 0 to 3")
    expect(stage.locator(".ac-steps")).to_have_text(re.compile(r"step \d+ of 400 · about .* left"))
    expect(page.locator("#ac-video-run")).to_be_disabled()
    page.locator("#ac-video-stop").click()
    expect(page.locator(f"{STAGE} [data-state=stopped]")).to_be_visible()
    expect(page.locator("#ac-video-run")).to_be_enabled()


def test_mistakes_are_short_instructions(page: Page, clip: Path, tmp_path: Path) -> None:
    open_tab(page)
    error = page.locator(f"{STAGE} .ac-error")
    page.locator("#ac-video-run").click()
    expect(error).to_contain_text("there is no clip; drop one in first")
    text = tmp_path / "text.mp4"
    text.write_text("<b>no video</b>")
    page.locator("#ac-video-drop input[type=file]").set_input_files(text)
    expect(page.locator("#ac-video-told .ac-problem")).to_contain_text("it is no video")
    page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
    expect(page.locator("#ac-video-told")).to_be_hidden()
    ask(page, clip, source="<img src=x onerror='window.hacked=1'> a red square")
    page.locator("#ac-video-run").click()
    expect(error).to_contain_text("write prompts of the same length")
    expect(error).to_contain_text("<img src=x")
    assert page.locator("img[src=x]").count() == 0


def test_words_alone_need_no_clip(page: Page) -> None:
    open_tab(page)
    page.get_by_label("words alone").check()
    expect(page.locator("#ac-video-drop")).to_be_hidden()
    expect(page.locator("#ac-video-plan-it")).to_be_hidden()
    expect(page.locator("#ac-video-techniques .ac-card")).to_have_count(0)
    page.locator("#ac-video-target-words textarea").fill("a red circle")
    page.locator("#ac-video-run").click()
    expect(page.locator(f"{STAGE} .ac-error")).to_contain_text("makes pictures, not videos")
    page.get_by_label("a clip").check()
    expect(page.locator("#ac-video-drop")).to_be_visible()
    expect(page.locator("#ac-video-techniques .ac-card")).to_have_count(2)


def test_a_phone_shows_the_clips_beside_each_other(
    open_page: Callable[..., Page], clip: Path
) -> None:
    page = open_page(**PHONE)
    open_tab(page)
    assert_fits(page)
    ask(page, clip, steps=1)
    page.locator("#ac-video-frames-more .label-wrap").tap()
    page.locator("#ac-video-run").tap()
    wait_for_the_end(page)
    source, made = (page.locator(f"#ac-video-{name}").bounding_box() for name in ("source", "edit"))
    words, stage = (page.locator(name).bounding_box() for name in ("#ac-video-target-words", STAGE))
    assert source
    assert made
    assert words
    assert stage
    assert source["x"] + source["width"] <= made["x"]
    assert abs(source["y"] - made["y"]) < 2
    assert words["y"] < stage["y"] < made["y"]
    for summary in page.locator("#ac-video-facts summary").all():
        summary.tap()
    expect(page.locator("#ac-video-facts pre")).to_have_count(2)
    assert_fits(page)
