"""Serve the page: safe by default, and closed behind itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attnctl.errors import SettingError

from .settings import StudioSettings

_CACHE = "GRADIO_TEMP_DIR"
ROOM_BYTES = 2**20
"""Room for a request's other fields beside an upload."""


@dataclass(slots=True)
class Running:
    """A studio that is being served.

    Attributes:
        url: Where it is.
        studio: Its machinery.
        page: The Gradio page.
    """

    url: str
    studio: Any
    page: Any
    _tidy: Callable[[], None]

    def close(self) -> None:
        """Stop serving, end all jobs and remove the copies made for browsers."""
        self.page.close(verbose=False)
        self.studio.close()
        self._tidy()


def serve(settings: StudioSettings) -> Running:
    """Start the studio in this process and return.

    Raises:
        SettingError: Gradio is not installed.
        OSError: the port is taken, or the folder cannot be written.
    """
    if find_spec("gradio") is None:
        raise SettingError("the studio needs Gradio: pip install 'attnctl[ui]'")
    folder, tidy = _open_folder()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from .page import build_page
    from .studio import Studio

    studio = Studio.open(settings, folder)
    try:
        page = build_page(studio)
        url = _launch(page, settings)
    except BaseException:
        studio.close()
        tidy()
        raise
    return Running(url, studio, page, tidy)


def _open_folder() -> tuple[Path, Callable[[], None]]:
    """Make the folder of the copies for browsers; give also what removes it again."""
    folder = tempfile.TemporaryDirectory(prefix="attnctl-studio-")
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = folder.name  # Gradio reads it when a page is built and a file comes in

    def tidy() -> None:
        folder.cleanup()
        if os.environ.get(_CACHE) != folder.name:
            return
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before  # of a studio that is still served

    return Path(folder.name), tidy


def _launch(page: Any, settings: StudioSettings) -> str:
    from starlette.middleware import Middleware

    from .guards import BodyLimit, refuse_addresses
    from .page import looks

    limits = settings.limits
    refuse_addresses(page)
    page.queue(max_size=4 * limits.waiting, default_concurrency_limit=4, api_open=False)
    _, local, shared = page.launch(
        **looks(),
        server_name=settings.host,
        server_port=settings.port or None,
        share=settings.share,
        auth=list(settings.users) or None,
        max_file_size=limits.upload_bytes,
        show_error=False,
        strict_cors=True,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(BodyLimit, most=limits.upload_bytes + ROOM_BYTES)]},
    )
    return shared or local
