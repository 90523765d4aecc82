from __future__ import annotations

import pytest

import attnctl
from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]


@pytest.fixture(scope="session")
def pipe(tiny_model):
    loaded = attnctl.load_pipeline(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded
