"""Clips over the network: the endpoints for programs, and what is not taken or handed out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from attnctl.ui import Running
from attnctl.video import read_video
from tests.ui.clip_files import SOURCE, TARGET, make_clip
from tests.ui.conftest import UPLOAD_BYTES
from tests.ui.test_serving import outside_files
from tests.ui.web import call_function, function_of

RECIPE: dict[str, Any] = {"prompt": TARGET, "steps": 2, "techniques": ["flatten", "word-swap"]}


@pytest.fixture(scope="module")
def client(studio: Running) -> Client:
    return Client(studio.url, verbose=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.gif")


def edit(client: Client, clip: Path, *, plan: bool = False, **options: Any) -> Any:
    return client.predict(
        handle_file(str(clip)), SOURCE, RECIPE, options, plan, api_name="/edit_video"
    )


def test_a_program_plans_and_edits_a_clip(client: Client, clip: Path, out: Path) -> None:
    files, planned = edit(client, clip, plan=True)
    assert files == []
    assert (planned["plan"]["frames"], planned["plan"]["size"]) == (3, [64, 64])
    files, answer = edit(client, clip, frames="0-2", flow="none")
    assert (answer["state"], answer["step"], answer["steps"]) == ("done", 4, 4)
    kinds = dict(zip(answer["kinds"], files, strict=True))
    assert set(kinds) == {"video", "sheet", "source"}
    assert len(read_video(kinds["video"]).frames) == 2
    assert answer["command"].endswith("--frames 0-2 --chunk 16 --flow none --inject 0.8")
    assert {path.suffix for path in out.glob("a-blue-square-flatten*")} == {".mp4", ".png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow": "/etc/hostname"}, "flow"),
        ({"out": "/tmp"}, "unknown key 'out'"),
        ({"chunk": 1000}, "above the limit of 32"),
        ({"frames": "0-1", "inject": 2}, "inject"),
    ],
)
def test_a_program_is_trusted_no_more_than_the_page(
    client: Client, clip: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(AppError, match=message):
        edit(client, clip, **options)


def test_a_picture_model_makes_no_clip_from_words(client: Client) -> None:
    with pytest.raises(AppError, match="makes pictures, not videos"):
        client.predict(RECIPE, api_name="/make_video")


def test_a_path_or_address_is_not_taken_for_a_dropped_clip(studio: Running, tmp_path: Path) -> None:
    number = function_of(studio, "edit_video")
    kept = make_clip(studio.studio.settings.out / "kept.mp4")
    paths = [*outside_files(tmp_path, studio), str(kept), "http://169.254.169.254/x.mp4"]
    with httpx.Client(base_url=studio.url, timeout=120) as web:
        with kept.open("rb") as file:
            (dropped,) = web.post("/gradio_api/upload", files={"files": file}).json()
        for path in [dropped, *paths]:
            value = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            data = [None, value, SOURCE, RECIPE, {}, True]
            ended = call_function(web, number, data)
            assert ended["success"] == (path == dropped), path
            assert "secret" not in json.dumps(ended["output"])
    kept.unlink()


def test_a_result_is_served_as_a_copy_and_the_folder_is_not(
    client: Client, studio: Running, clip: Path
) -> None:
    edit(client, clip, frames="0-1", flow="none")
    made = next(studio.studio.settings.out.glob("a-blue-square*.mp4")).resolve()
    with httpx.Client(base_url=studio.url) as web:
        assert web.get(f"/gradio_api/file={made}").status_code in (400, 403, 404)


def test_a_clip_above_the_limit_is_not_uploaded(studio: Running) -> None:
    with httpx.Client(base_url=studio.url) as web:
        files = {"files": ("clip.mp4", b"\0" * (UPLOAD_BYTES + 1))}
        assert web.post("/gradio_api/upload", files=files).status_code == 413
