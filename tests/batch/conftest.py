from __future__ import annotations

import json
from pathlib import Path

import pytest

import attnctl
from attnctl.batch import BatchRun, BatchSettings, jobs_from
from tests.cli.conftest import run, tiny_model

__all__ = ["run", "tiny_model"]

CIRCLE = "a red circle"


@pytest.fixture(scope="session")
def tiny_pipe(tiny_model):
    pipe = attnctl.load_pipeline(tiny_model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def batch(tiny_pipe, tmp_path):
    """Run jobs of the tiny model in this process; they are values beside the defaults."""

    def run_batch(rows, out="out", *, load=None, on_step=lambda _count: None, **settings):
        said = []
        listed = jobs_from(rows, defaults={"steps": 2, "seed": 0})
        ready = BatchRun(
            listed,
            tmp_path / out,
            BatchSettings(**settings),
            load=load or (lambda _name: tiny_pipe),
        )
        outcome = ready.run(on_step=on_step, say=said.append)
        return outcome, said

    return run_batch


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
