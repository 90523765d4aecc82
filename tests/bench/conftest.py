from __future__ import annotations

from pathlib import Path

import pytest
import torch

import attnctl
from attnctl.bench.networks import pipeline_around
from attnctl.shapes import model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A genuine pipeline with random weights whose pictures show nothing that can be named."""
    torch.manual_seed(0)
    pipe = pipeline_around(model.build_unet(widths=(16, 16, 16), heads=2))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pipeline(pipe, folder)
    return folder


@pytest.fixture
def tiny(tiny_folder):
    pipe = attnctl.load_pipeline(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
