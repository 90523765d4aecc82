from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from attnctl.cli import main


@dataclass
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(capsys) -> Callable[..., Ran]:
    def run_command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A genuine Stable Diffusion pipeline with random weights, small enough to run in a blink."""
    from attnctl.shapes import model, text

    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    pipe = model.build_pipeline(
        model.build_vae(),
        model.build_unet(widths=(16, 16, 16), heads=2),
        text.build_text_encoder(tokenizer),
        tokenizer,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pipeline(pipe, folder)
    return folder
