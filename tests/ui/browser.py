"""Chromium for the tests of the page and for its screenshots."""

from __future__ import annotations

import os
import shutil
from typing import Any

from playwright.sync_api import Page, expect

SKIP = "ATTNCTL_NO_BROWSER"
PATIENCE_MS = 120_000  # a busy machine may need long; nothing here waits for a time to pass
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def chromium() -> str:
    """Path of a Chromium or Chrome on this machine."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    raise RuntimeError(
        "the browser tests need Chromium, and there is none: apt-get install chromium; "
        f"{SKIP}=1 leaves them out"
    )


def is_left_out() -> bool:
    """Whether somebody asked for no browser tests."""
    return os.environ.get(SKIP, "") not in ("", "0")


def open_studio(page: Page, url: str) -> None:
    """Open the page and wait until its own parts are there; nothing outside is asked for."""
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page.route(lambda address: not address.startswith((url, "data:", "blob:")), lambda r: r.abort())
    page.goto(url, wait_until="domcontentloaded")
    page.locator("#ac-subjects .ac-word").first.wait_for()
    page.locator("#ac-techniques .ac-adder").wait_for()
    expect(page.locator("#ac-run")).to_be_enabled()


def run_to_the_end(page: Page) -> None:
    """Wait for the end of a run that was started."""
    expect(page.locator("#ac-stage .ac-ended[data-state=done]")).to_be_visible()
    expect(page.locator("#ac-run")).to_be_enabled()


def set_number(page: Page, name: str, value: int) -> None:
    """Write a number into the field ``#ac-NAME``."""
    field = page.locator(f"#ac-{name} input[type=number]")
    field.fill(str(value))
    field.blur()


def assert_fits(page: Page) -> None:
    """Nothing makes the page wider than its window."""
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
