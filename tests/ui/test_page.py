"""The page in a real browser, with the bundled model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect

from attnctl.imaging import read_record
from tests.ui.browser import PHONE, assert_fits, run_to_the_end, set_number

STAGE = "#ac-stage"
LONG = 200  # steps of a run that is stopped on the way


def set_steps(page: Page, steps: int) -> None:
    page.locator("#ac-more .label-wrap").click()
    set_number(page, "steps", steps)
    page.locator("#ac-more .label-wrap").click()


def add(page: Page, technique: str) -> None:
    page.locator("#ac-techniques .ac-adder").select_option(technique)
    expect(page.locator(f"#ac-techniques [data-technique={technique}]")).to_be_visible()


def generate(page: Page) -> None:
    page.locator("#ac-run").click()


def wait_for_steps(page: Page) -> None:
    expect(page.locator(f"{STAGE} .ac-steps")).to_have_text(re.compile(r"step [1-9]"))


def pictures(page: Page) -> int:
    return page.locator("#ac-gallery button.thumbnail-item").count()


def test_a_clicked_word_becomes_a_subject_and_generate_shows_both_pictures(page: Page) -> None:
    set_steps(page, 40)  # enough that the page shows it while it acts
    page.locator("#ac-subjects [data-word=circle]").click()
    card = page.locator("#ac-techniques [data-technique=attend-and-excite]")
    expect(card.locator("[data-parameter=subjects] input")).to_have_value("circle")
    expect(page.locator("#ac-techniques .ac-lane:not(.ac-axis) .ac-cells i")).to_have_count(40)
    generate(page)
    expect(page.locator(f"{STAGE} .ac-chip")).to_have_text("attend-and-excite")
    run_to_the_end(page)
    slider = page.locator("#ac-slider")
    expect(slider.locator("img")).to_have_count(2)
    expect(page.locator("#ac-facts")).to_contain_text("seed 0 · attend-and-excite")
    assert pictures(page) == 1
    before = slider.locator("img").nth(1).get_attribute("style") or ""
    box = slider.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=4)
    page.mouse.up()
    assert (slider.locator("img").nth(1).get_attribute("style") or "") != before


def test_a_click_on_a_word_shows_its_heat_map_by_layer_and_step(page: Page) -> None:
    set_steps(page, 3)
    generate(page)
    run_to_the_end(page)
    expect(page.locator("#ac-single img")).to_be_visible()
    heat = page.locator("#ac-heat img")
    expect(heat).to_be_hidden()
    page.locator("#ac-looked [data-word=circle]").click()
    expect(heat).to_be_visible()
    circle = str(heat.get_attribute("src"))
    page.locator("#ac-looked [data-word=square]").click()
    expect(heat).not_to_have_attribute("src", circle)
    square = str(heat.get_attribute("src"))
    page.locator("#ac-layers input").click()
    page.get_by_role("option", name="down 0 · 0", exact=True).click()
    expect(heat).not_to_have_attribute("src", square)
    layer = str(heat.get_attribute("src"))
    last = page.locator("#ac-last input[type=range]")
    last.focus()
    last.press("Home")
    expect(heat).not_to_have_attribute("src", layer)


def test_stop_ends_the_run_and_keeps_the_finished_pictures(page: Page) -> None:
    set_steps(page, 10)
    set_number(page, "count", 16)
    generate(page)
    expect(page.locator(f"{STAGE} h3")).to_have_text(re.compile("picture [2-9] of 16"))
    page.locator("#ac-stop").click()
    expect(page.locator(f"{STAGE} [data-state=stopped]")).to_contain_text("kept")
    expect(page.locator("#ac-run")).to_be_enabled()
    assert 1 <= pictures(page) < 16


def test_a_dropped_picture_brings_its_settings_back(page: Page, out: Path) -> None:
    set_steps(page, 3)
    set_number(page, "seed", 41)
    add(page, "seg")
    generate(page)
    run_to_the_end(page)
    (made,) = out.glob("*-s41-seg-*.png")
    before = made.read_bytes()
    page.reload(wait_until="domcontentloaded")
    expect(page.locator("#ac-techniques .ac-card")).to_have_count(0)
    page.get_by_text("Start from a preset, or from a picture").click()
    page.locator("#ac-drop input[type=file]").set_input_files(made)
    expect(page.locator(f"{STAGE} [data-state=restored]")).to_be_visible()
    expect(page.locator("#ac-seed input")).to_have_value("41")
    expect(page.locator("#ac-techniques [data-technique=seg]")).to_be_visible()
    made.unlink()
    generate(page)
    run_to_the_end(page)
    assert made.read_bytes() == before


def test_a_mistake_is_shown_beside_its_card_and_when_it_is_run(page: Page) -> None:
    add(page, "soft-pag")
    card = page.locator("#ac-techniques [data-technique=soft-pag]")
    card.get_by_label("steps, as text").fill("half of it")
    expect(card.locator(".ac-problem")).to_contain_text("cannot read steps='half of it'")
    generate(page)
    expect(page.locator(f"{STAGE} .ac-error")).to_contain_text("allowed: '0-50%'")
    card.get_by_label("steps, as text").fill("0-50%")
    expect(card.locator(".ac-problem")).to_be_empty()
    expect(page.locator("#ac-run")).to_be_enabled()


def test_the_state_of_the_page_can_be_taken_elsewhere(page: Page) -> None:
    page.locator("#ac-export .label-wrap").click()
    add(page, "seg")
    expect(page.locator("#ac-recipe")).to_contain_text("techniques: [seg]")
    expect(page.locator("#ac-python")).to_contain_text("attnctl.SEG()")
    expect(page.locator("#ac-line")).to_contain_text("-t seg --compare")


def test_html_in_a_prompt_stays_text(page: Page) -> None:
    hostile = '<img src=x onerror="window.hacked=1"><b>circle</b> ${window.hacked=1} {{hacked}}'
    set_steps(page, 1)
    page.locator("#ac-prompt textarea").fill(hostile)
    expect(page.locator("#ac-subjects [data-word=hacked]").first).to_be_visible()
    generate(page)
    run_to_the_end(page)
    page.locator("#ac-looked [data-word=circle]").click()
    expect(page.locator("#ac-heat img")).to_be_visible()
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_phone_shows_everything_without_scrolling_sideways(
    open_page: Callable[..., Page],
) -> None:
    page = open_page(**PHONE)
    expect(page.locator("#ac-run")).to_be_in_viewport()
    assert_fits(page)
    set_steps(page, 2)
    page.locator("#ac-subjects [data-word=square]").tap()
    page.locator("#ac-run").tap()
    run_to_the_end(page)
    page.locator("#ac-looked [data-word=circle]").tap()
    expect(page.locator("#ac-heat img")).to_be_visible()
    page.locator("#ac-export .label-wrap").tap()
    expect(page.locator("#ac-line")).to_be_visible()
    page.locator("#ac-facts summary").tap()
    expect(page.locator("#ac-facts pre")).to_be_visible()
    assert_fits(page)


def test_two_visitors_see_only_their_own_runs(open_page: Callable[..., Page]) -> None:
    first, second = open_page(), open_page()
    set_steps(first, LONG)
    set_number(first, "seed", 111)
    set_steps(second, 2)
    set_number(second, "seed", 222)
    generate(first)
    wait_for_steps(first)
    generate(second)
    expect(second.locator(STAGE)).to_contain_text("1 job before this one")
    assert "111" not in second.locator(STAGE).inner_text()
    expect(first.locator(STAGE)).to_contain_text("seed 111")
    first.locator("#ac-stop").click()
    expect(first.locator(f"{STAGE} [data-state=stopped]")).to_be_visible()
    run_to_the_end(second)
    expect(second.locator("#ac-facts")).to_contain_text("seed 222")
    assert (pictures(first), pictures(second)) == (0, 1)


def test_closing_the_page_ends_its_run(open_page: Callable[..., Page]) -> None:
    first, second = open_page(), open_page()
    set_steps(first, LONG)
    generate(first)
    wait_for_steps(first)
    set_steps(second, 1)
    generate(second)
    expect(second.locator(STAGE)).to_contain_text("1 job before this one")
    first.context.close()
    run_to_the_end(second)


def test_a_picture_is_edited_with_words(page: Page, tmp_path: Path, out: Path) -> None:
    picture = tmp_path / "mine.png"
    Image.new("RGB", (64, 64), (90, 90, 90)).save(picture)
    page.get_by_role("tab", name="Edit").click()
    page.locator("#ac-edit-run").click()
    expect(page.locator("#ac-edit-stage .ac-error")).to_contain_text("there is no picture")
    page.locator("#ac-edit-drop input[type=file]").set_input_files(picture)
    page.locator("#ac-edit-source textarea").fill("a red circle")
    page.locator("#ac-edit-target textarea").fill("a blue circle")
    page.locator("#ac-edit-more .label-wrap").click()
    set_number(page, "edit-steps", 3)
    page.locator("#ac-edit-techniques .ac-adder").select_option("prompt-to-prompt")
    expect(page.locator("#ac-edit-drop")).to_contain_text("mine")
    page.locator("#ac-edit-run").click()
    expect(page.locator("#ac-edit-stage .ac-ended[data-state=done]")).to_be_visible()
    expect(page.locator("#ac-edit-slider img")).to_have_count(2)
    expect(page.locator("#ac-edit-facts")).to_contain_text("psnr")
    (sheet,) = out.glob("a-blue-circle-*-sheet.png")
    made = out / sheet.name.replace("-sheet", "")
    assert read_record(made)["recipe"]["guidance"] == 5.0  # an empty field is the model's own
