"""One studio and one browser for all tests of a process; a new page, and visit, for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from attnctl.cli.studio import silence_loading
from attnctl.ui import Limits, Running, StudioSettings, serve
from tests.ui.browser import DESKTOP, SKIP, chromium, is_left_out, open_studio

UPLOAD_BYTES = 300_000


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    silence_loading()
    running = serve(
        StudioSettings(
            models=("shapes",),
            out=tmp_path_factory.mktemp("studio") / "out",
            port=0,
            limits=Limits(upload_bytes=UPLOAD_BYTES),
        )
    )
    yield running
    running.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if is_left_out():
        pytest.skip(f"{SKIP} leaves the browser tests out")
    path = chromium()
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser, studio: Running) -> Iterator[Callable[..., Page]]:
    """Opens the studio in a browser context of its own: nothing is shared with another one."""
    contexts = []

    def open_one(**size: Any) -> Page:
        context = browser.new_context(**(size or DESKTOP))
        contexts.append(context)
        page = context.new_page()
        open_studio(page, studio.url)
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    return open_page()


@pytest.fixture
def out(studio: Running) -> Path:
    return studio.studio.settings.out
