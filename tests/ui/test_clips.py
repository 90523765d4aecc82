"""A dropped clip is looked at before anything decodes it, and no setting of a clip is a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnctl.errors import AttnctlError, SettingError
from attnctl.ui import Limits
from attnctl.ui.clip_form import ClipOptions
from attnctl.ui.clips import check_amount, look_at, read_clip
from attnctl.ui.controls import describe_all
from attnctl.ui.intake import read_recipe
from attnctl.ui.timeline import check_stack
from attnctl.video import FrameRange
from tests.ui.clip_files import make_clip

LIMITS = Limits()


@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp"])
def test_what_a_file_holds_is_told_without_decoding_it(ending: str, tmp_path: Path) -> None:
    facts = look_at(make_clip(tmp_path / f"clip{ending}", count=5), LIMITS)
    assert (facts.frames, facts.width, facts.height, facts.has_audio) == (5, 64, 64, False)
    assert facts.text().startswith("5 frames of 64 x 64")


def playlists(other: Path) -> dict[str, str]:
    """Texts that FFmpeg takes for containers which name other files."""
    return {
        "concat": f"ffconcat version 1.0\nfile {other.name}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{other}\n#EXT-X-ENDLIST\n",
        "dash": f'<?xml version="1.0"?><MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        f"<Period><BaseURL>file://{other}</BaseURL></Period></MPD>",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\n",
    }


@pytest.mark.parametrize("kind", ["concat", "hls", "dash", "sdp"])
@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_no_playlist_opens_another_file(kind: str, ending: str, tmp_path: Path) -> None:
    other = make_clip(tmp_path / "secret.mp4")
    file = tmp_path / f"clip{ending}"
    file.write_text(playlists(other)[kind])
    with pytest.raises(SettingError, match=rf"'clip\{ending}'") as caught:
        look_at(file, LIMITS)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("name", ["clip.m3u8", "clip.txt", "clip.npz", "clip", "clip.mp4.sdp"])
def test_other_endings_are_not_taken(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"clips end in \.mp4, "):
        look_at(tmp_path / name, LIMITS)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3"])
@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_a_broken_file_is_told_without_its_folder(
    content: bytes, ending: str, tmp_path: Path
) -> None:
    file = tmp_path / f"broken{ending}"
    file.write_bytes(content)
    with pytest.raises(SettingError, match="broken") as caught:
        look_at(file, LIMITS)
    assert str(tmp_path) not in str(caught.value)


def test_a_picture_of_another_kind_is_no_gif(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "clip.gif", format="PNG")
    with pytest.raises(SettingError, match="no animated picture"):
        look_at(tmp_path / "clip.gif", LIMITS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_frames": 4}, "more than 4 frames; cut out a part"),
        ({"file_seconds": 0.5}, "lasts 1 s; at most 0 s"),
        ({"side_px": 63}, "64 x 64 pixels; at most 63"),
    ],
)
def test_a_file_above_the_limits_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        look_at(make_clip(tmp_path / "clip.mp4", count=5), replace(LIMITS, **changes))


def test_what_is_edited_in_one_run_is_bounded(tmp_path: Path) -> None:
    check_amount(240, 640, 360, LIMITS)
    with pytest.raises(SettingError, match="at most 240 are edited in one run: give a range"):
        check_amount(241, 64, 64, LIMITS)
    with pytest.raises(SettingError, match="at most 64 of this size"):
        check_amount(65, 1920, 1080, LIMITS)
    file = make_clip(tmp_path / "clip.mp4", count=5)
    assert len(read_clip(file, FrameRange(0, 4, 2), replace(LIMITS, frames=2)).frames) == 2
    with pytest.raises(SettingError, match="5 frames; at most 2"):
        read_clip(file, FrameRange(), replace(LIMITS, frames=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flow": "/etc/flow.npz"}, "flow"),
        ({"flow": "raft"}, "flow"),
        ({"out": "/tmp"}, "unknown key 'out'"),
        ({"stride": True}, "stride"),
        ({"stride": 0}, "stride"),
        ({"chunk": 1.5}, "chunk"),
        ({"inject": float("nan")}, "inject"),
        ({"frames": 3}, "frames"),
    ],
)
def test_options_are_plain_values_within_their_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ClipOptions.read(values)


@pytest.mark.parametrize("value", ["/etc/flow.npz", "7", "flow.npz"])
def test_a_technique_for_clips_reads_no_file_either(value: str) -> None:
    entry = {"flatten": {"flow": value}}
    with pytest.raises(AttnctlError, match="reads no files"):
        read_recipe({"prompt": "a", "techniques": [entry]}, ("shapes",), LIMITS)


def test_the_stack_offers_what_acts_between_frames() -> None:
    offered = {record["name"]: record["for_clips"] for record in describe_all()}
    for name in ("flatten", "word-swap", "token-flow", "cross-frame-attention", "vstar", "pag"):
        assert offered[name], name
    for name in ("masa-ctrl", "prompt-to-prompt", "rf-control", "item-guidance"):
        assert not offered[name], name
    names = [control["name"] for record in describe_all() for control in record["controls"]]
    assert "features" not in names


@pytest.mark.parametrize("name", ["vico", "vstar"])
def test_what_acts_over_time_is_not_offered_for_pictures(name: str) -> None:
    [record] = [record for record in describe_all() if record["name"] == name]
    assert record["for_clips"]
    assert not record["for_pictures"]
    assert not record["for_edits"]


def test_what_edits_by_instruction_is_offered_nowhere() -> None:
    [record] = [one for one in describe_all() if one["name"] == "focus-on-instruction"]
    assert not any(record[page] for page in ("for_pictures", "for_edits", "for_clips"))


def test_what_needs_features_of_another_run_is_no_card() -> None:
    assert not {"dit-flow", "motion-flow"} & {record["name"] for record in describe_all()}


def test_the_timeline_counts_on_what_the_clip_gives() -> None:
    stack = {"techniques": [{"name": "word-swap", "on": True, "parameters": {}}], "steps": 10}
    (alone,) = check_stack(stack)
    (in_clips,) = check_stack({**stack, "offered": "for_clips"})
    assert alone["strengths"] == [0.0] * 10
    assert in_clips["strengths"] == [1.0] * 8 + [0.0] * 2
