"""Safe by default: who may come in, what may be asked for, and what is never handed out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from attnctl.cli import main
from attnctl.errors import SettingError
from attnctl.imaging import save_png
from attnctl.ui import Running, StudioSettings, serve
from tests.ui.conftest import UPLOAD_BYTES
from tests.ui.web import call_function, function_of

RECIPE = {"prompt": "a red circle and a blue square", "seed": 8, "steps": 2, "techniques": ["seg"]}


@pytest.fixture
def web(studio: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=studio.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def client(studio: Running) -> Client:
    return Client(studio.url, verbose=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "studio.example", ""])
def test_other_hosts_need_a_password(host: str) -> None:
    with pytest.raises(SettingError, match="--auth NAME:PASSWORD"):
        StudioSettings(host=host)
    assert StudioSettings(host=host, users=(("ann", "secret"),)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_computer_needs_none(host: str) -> None:
    assert StudioSettings(host=host).users == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other computers; add --auth"),
        (["--share"], "opens the page to the internet; add --auth"),
        (["--auth", "nobody"], "a user needs a name and a password"),
        (["--presets", "/nowhere"], "is no folder"),
        (["--port", "70000"], "port 70000 is outside"),
    ],
)
def test_the_command_refuses_what_is_not_safe(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_with_users_nothing_answers_without_their_password(tmp_path: Path) -> None:
    users = (("ann", "correct horse"),)
    running = serve(StudioSettings(models=("shapes",), out=tmp_path / "out", port=0, users=users))
    try:
        with httpx.Client(base_url=running.url) as web:
            for path in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/hostname"):
                assert web.get(path).status_code == 401, path
            call = {"data": [], "fn_index": 0, "session_hash": "x"}
            assert web.post("/gradio_api/queue/join", json=call).status_code == 401
            wrong = web.post("/login", data={"username": "ann", "password": "battery"})
            assert wrong.status_code == 400
        named = Client(running.url, auth=users[0], verbose=False)
        assert named.predict(api_name="/models") == ["shapes"]
    finally:
        running.close()


def test_a_program_makes_looks_at_and_restores_a_picture(client: Client, out: Path) -> None:
    files, answer = client.predict(RECIPE, True, "by step", api_name="/generate")
    assert (answer["state"], answer["steps"]) == ("done", 4)
    assert answer["recipes"][0]["seed"] == 8
    heat = client.predict(1, "circle", "all layers", 0, 1, api_name="/heat_map")
    assert Image.open(heat).size == (512, 512)
    picture = files[0]["image"]
    restored = client.predict(handle_file(picture), api_name="/restore")
    assert restored["techniques"] == ["seg"]
    assert client.predict(RECIPE, False, api_name="/export")["recipe"].startswith("model: shapes")
    assert {record["name"] for record in client.predict(api_name="/techniques")} >= {"pag", "seg"}
    assert client.predict(api_name="/stop") is False
    assert {path.suffix for path in out.iterdir()} <= {".png", ".mp4"}


def test_another_session_knows_nothing_of_a_picture(client: Client, studio: Running) -> None:
    client.predict(RECIPE, False, "by step", api_name="/generate")
    other = Client(studio.url, verbose=False)
    with pytest.raises(AppError, match="there is no picture"):
        other.predict(1, "circle", "all layers", 0, None, api_name="/heat_map")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "../shapes"}, "is not offered"),
        ({"techniques": [{"soft-pag": {"heads": "/etc/passwd"}}]}, "reads no files"),
        ({"out": "/tmp"}, "unknown key 'out'"),
        ({"steps": 500}, "above the limit of 200"),
    ],
)
def test_a_program_is_trusted_no_more_than_the_page(
    client: Client, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AppError, match=message):
        client.predict({**RECIPE, **changes}, False, "off", api_name="/generate")


def outside_files(tmp_path: Path, studio: Running) -> list[str]:
    secret = tmp_path / "secret.png"
    save_png(Image.new("RGB", (4, 4)), secret, {"recipe": {"prompt": "a secret"}})
    kept = studio.studio.settings.out.resolve()
    kept.mkdir(exist_ok=True)
    save_png(Image.new("RGB", (4, 4)), kept / "kept.png")
    handed = Path(os.environ["GRADIO_TEMP_DIR"])
    link = handed / "link.png"
    if not link.is_symlink():
        link.symlink_to("/etc/hostname")
    return [
        str(secret), "/etc/hostname", f"{handed}/../{tmp_path.name}/secret.png", str(link),
        "../../etc/hostname", "file:///etc/hostname", str(kept / "kept.png"), "~/.bashrc",
    ]  # fmt: skip


def test_no_file_but_those_handed_out_is_served(
    web: httpx.Client, studio: Running, tmp_path: Path
) -> None:
    for path in outside_files(tmp_path, studio):
        for form in (path, quote(path, safe=""), quote(quote(path, safe=""), safe="")):
            answer = web.get(f"/gradio_api/file={form}")
            assert answer.status_code in (400, 403, 404), path


def test_the_page_serves_no_address_of_another_host(web: httpx.Client) -> None:
    for path in ("/gradio_api/file=http://169.254.169.254/latest", "/gradio_api/proxy=http://a.b/"):
        assert web.get(path).status_code in (302, 400, 403, 404, 405)


def test_a_path_or_address_is_not_taken_for_an_uploaded_file(
    studio: Running, tmp_path: Path, web: httpx.Client
) -> None:
    restoring = function_of(studio, "restore")
    addresses = ["http://127.0.0.1:1/x.png", "http://169.254.169.254/x.png", "https://e.com/x.png"]
    for path in [*outside_files(tmp_path, studio), *addresses]:
        value = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        ended = call_function(web, restoring, [value])
        assert not ended["success"], path
        assert "secret" not in json.dumps(ended["output"])


def test_an_upload_above_the_limit_is_refused(web: httpx.Client, studio: Running) -> None:
    for size in (UPLOAD_BYTES + 1, UPLOAD_BYTES + 4 * 2**20):
        files = {"files": ("big.png", b"\0" * size)}
        assert web.post("/gradio_api/upload", files=files).status_code == 413


def test_a_huge_request_is_refused_however_it_is_sent(web: httpx.Client) -> None:
    huge = b'{"data": ["' + b"x" * (UPLOAD_BYTES + 2 * 2**20) + b'"]}'
    assert web.post("/gradio_api/queue/join", content=huge).status_code == 413
    pieces = (huge[i : i + 2**16] for i in range(0, len(huge), 2**16))
    with contextlib.suppress(httpx.WriteError):  # the server may hang up half way
        assert web.post("/gradio_api/queue/join", content=pieces).status_code in (400, 413)


def test_an_upload_named_like_a_path_stays_in_its_folder(web: httpx.Client) -> None:
    handed = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    for name in ("../../evil.png", "/etc/evil.png", "..\\evil.png", "a/../../evil.png"):
        answer = web.post("/gradio_api/upload", files={"files": (name, b"x")})
        if answer.status_code == 200:
            (path,) = answer.json()
            assert Path(path).resolve().is_relative_to(handed)


def test_models_of_clips_are_told_from_models_of_pictures() -> None:
    mixed = StudioSettings(models=("shapes-motion", "shapes", "own/model"))
    assert mixed.picture_models == ("shapes", "own/model")
    assert mixed.clip_models == ("shapes-motion",)
    assert StudioSettings(models=("shapes-motion",)).picture_models == ("shapes-motion",)
