"""Settings of the whole test run: no network, one thread, no leftovers between tests."""

from __future__ import annotations

import os

# Before torch and the hub client are imported: both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("NO_COLOR", "1")

import pytest
import torch
from diffusers import DiffusionPipeline

from attnctl import families
from attnctl.families import find_family
from tests.support.pipelines import build


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def unknown_pipe(monkeypatch: pytest.MonkeyPatch) -> DiffusionPipeline:
    """A pipeline around a denoiser that no family describes."""
    pipe = build("lumina2")
    find_family(pipe.transformer)  # families are registered by now
    monkeypatch.delitem(families._families, "Lumina2Transformer2DModel")
    return pipe


@pytest.fixture(autouse=True)
def _same_start_for_every_test() -> None:
    """Make a test's random numbers independent of the tests that ran before it."""
    torch.manual_seed(0)
