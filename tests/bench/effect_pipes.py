"""Bundled pipelines, loaded once for all tests of suites."""

from __future__ import annotations

from functools import cache
from typing import Any

import attnctl


@cache
def load(model: str) -> Any:
    """Load a bundled pipeline that shows no progress."""
    pipe = attnctl.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe
