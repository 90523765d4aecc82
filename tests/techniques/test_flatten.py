"""Flatten: against attention written out, its invariants, and where frames lie in each family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import Flatten
from attnctl.errors import (
    FlowError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
)
from attnctl.flow import ClipFlow, build_lanes, save_flow
from attnctl.flow.fields import frames_of_latents
from attnctl.ops.lanes import attend_token_lists
from tests.support.denoisers import DENOISERS
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.clip_runs import (
    FRAMES,
    PIXELS,
    Keep,
    clip,
    followed,
    image_tokens,
    outside,
    random_flow,
    still,
    video,
)

CLOSE = 1e-5


class WrittenOut:
    """Self-attention over all frames, then along the trajectories: one token at a time."""

    def __init__(self, frames: int, flow: ClipFlow | None, old_qk: bool) -> None:
        self.frames, self.flow, self.old_qk = frames, flow, old_qk

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = (
            self._joined(project(hidden_states), attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        out = (query @ key.mT * attn.scale).softmax(-1) @ value
        side = round(hidden_states.shape[1] ** 0.5)
        if self.flow is not None and side == 16:
            roots = build_lanes(self.flow, (side, side)).roots().flatten()
            looked = (query, key) if self.old_qk else (out, out)
            out = attend_token_lists(*looked, out, roots, attn.scale)
        out = out.unflatten(2, (self.frames, -1)).transpose(1, 2).flatten(0, 1)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def _joined(self, tokens: Tensor, heads: int) -> Tensor:
        clips = tokens.unflatten(0, (-1, self.frames)).flatten(1, 2)
        return clips.unflatten(2, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize(("has_flow", "old_qk"), [(False, False), (True, False), (True, True)])
def test_it_equals_attention_written_out_in_fp64(has_flow: bool, old_qk: bool) -> None:
    flow = random_flow() if has_flow else None
    pipe = build("sd1").to(torch.float64)
    plain = clip(pipe)
    ours = clip(pipe, Flatten(flow, old_qk=old_qk))
    pipe.unet.set_attn_processor(
        {
            path: WrittenOut(FRAMES, flow, old_qk) if "attn1" in path else processor
            for path, processor in pipe.unet.attn_processors.items()
        }
    )
    theirs = clip(pipe)

    assert ours.dtype == torch.float64
    assert (theirs - plain).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-11


CASES = {"sd1": FRAMES, "sd3": FRAMES, "animatediff": 3, "cogvideox": 3, "wan": 3}
SIZES = {"cogvideox": 64, "wan": 64}


@pytest.mark.parametrize("name", CASES)
def test_each_token_attends_to_its_own_trajectory_in_every_family(name: str) -> None:
    pipe, size = build(name), SIZES.get(name, PIXELS)
    pictures = 9 if name in SIZES else FRAMES  # CogVideoX and Wan hold four in a latent frame
    flow = random_flow(pictures, size=size)
    where = {"cogvideox": "joint", "sd3": "joint"}.get(name, "self,level=0")
    before, after = Keep(where=where), Keep("after", where=where)
    run = clip if name in ("sd1", "sd3") else video
    run(pipe, before, Flatten(flow, dense=False, where=where), after, steps=1)

    assert len(before.calls) == len(after.calls) > 0
    seen = flow.picked(frames_of_latents(pictures, 4)) if name in SIZES else flow
    for (call, given), (_, made) in zip(before.calls, after.calls, strict=True):
        assert call.layout is not None
        tokens = image_tokens(call, given, CASES[name])
        expected = followed(seen, call.layout.grid[1:], tokens, call.scale)
        assert (expected - tokens).abs().max() > 1e-3
        assert torch.allclose(image_tokens(call, made, CASES[name]), expected, atol=CLOSE)
        rest = torch.ones(given.shape[2], dtype=torch.bool)
        rest[call.layout.image] = False
        assert torch.equal(made[:, :, rest], given[:, :, rest])


@pytest.mark.parametrize("name", ["hunyuan_video", "ltx", "mochi"])
def test_flow_attention_follows_the_motion_in_other_video_transformers(name: str) -> None:
    model, inputs = DENOISERS[name].build(), DENOISERS[name].inputs()
    flow = random_flow(2)
    where = "self" if name == "ltx" else "joint"
    before, after = Keep(where=where), Keep("after", where=where)
    chain = [before, Flatten(flow, dense=False, where=where), after]
    with attnctl.attach(model, chain, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    for (call, given), (_, made) in zip(before.calls, after.calls, strict=True):
        tokens = image_tokens(call, given, 2)
        expected = followed(flow, (4, 4), tokens, call.scale)
        assert (expected - tokens).abs().max() > 1e-3
        assert torch.allclose(image_tokens(call, made, 2), expected, atol=CLOSE)
        assert torch.equal(made[:, :, tokens.shape[2] :], given[:, :, tokens.shape[2] :])


def test_a_still_clip_joins_the_tokens_of_each_place() -> None:
    before, after = Keep(), Keep("after")
    where = "self,level=0"
    pipe = build("sd1")
    clip(pipe, before, Flatten(still(), dense=False, where=where), after, steps=1)
    for (call, given), (_, made) in zip(before.calls, after.calls, strict=True):
        if call.site.kind != "self" or call.site.level:
            assert given is made
            continue
        places = given.unflatten(0, (-1, FRAMES)).permute(0, 2, 3, 1, 4)  # (clips, H, n, F, D)
        probs = (places @ places.mT * call.scale).softmax(-1)
        expected = (probs @ places).permute(0, 3, 1, 2, 4).flatten(0, 1)
        assert torch.allclose(made, expected, atol=CLOSE)


def test_where_everything_leaves_the_picture_flow_attention_changes_no_bit() -> None:
    pipe = build("sd1")
    assert torch.equal(clip(pipe, Flatten(outside())), clip(pipe, Flatten()))
    assert torch.equal(clip(pipe, Flatten(outside(), dense=False)), clip(pipe))


def test_a_cut_between_all_frames_changes_no_bit() -> None:
    flow = ClipFlow(still().forward, None, tuple(range(FRAMES - 1)))
    pipe = build("sd1")
    assert torch.equal(clip(pipe, Flatten(flow, dense=False)), clip(pipe))


def test_one_frame_alone_is_left_as_it_is_with_a_warning() -> None:
    pipe = build("sd1")
    plain = clip(pipe, frames=1)
    with attnctl.attach(pipe, Flatten(random_flow(1))) as session:
        assert torch.equal(generate(pipe, ["a cat"]), plain)
        assert any("one frame" in text for text in session.report().warnings)


@pytest.mark.parametrize(
    "technique",
    [
        Flatten(random_flow(), steps=attnctl.between(0.0, 0.0)),
        Flatten(random_flow(), steps=attnctl.after(7)),
        Flatten(dense=False),
    ],
    ids=["empty window", "window behind the run", "nothing to do"],
)
def test_off_changes_no_bit(technique: Flatten) -> None:
    pipe = build("sd1")
    assert torch.equal(clip(pipe, technique), clip(pipe))


def test_it_acts_in_its_window_and_leaves_no_trace() -> None:
    pipe = build("sd1")
    plain, before = clip(pipe, steps=4), fingerprint(pipe)
    with attnctl.attach(pipe, Flatten(random_flow(), steps=attnctl.between(1, 3))) as session:
        edited = clip(pipe, steps=4)
        assert session.report().active_steps("flatten") == (1, 2)
    assert not torch.equal(edited, plain)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(clip(pipe, steps=4), plain)


def test_a_ramp_and_single_heads_mix_plain_and_edited_output() -> None:
    def output(where: str, steps: Any) -> Tensor:
        kept = Keep(where=where.split(",heads")[0])
        clip(build("sd1"), Flatten(random_flow(), where=where, steps=steps), kept, steps=1)
        return kept.calls[0][1]

    where = "self,layers=0"
    plain = Keep(where=where)
    clip(build("sd1"), plain, steps=1)
    own, full = plain.calls[0][1], output(where, "always")
    one = output(f"{where},heads=1", "always")
    assert torch.equal(one[:, 0], own[:, 0])
    assert torch.allclose(one[:, 1], full[:, 1], atol=1e-2 * float(full.abs().max()))
    assert not torch.allclose(one[:, 1], own[:, 1], atol=CLOSE)


def test_clips_of_one_batch_do_not_mix() -> None:
    pipe = build("sd1")
    two = torch.randn(2 * FRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    flow = random_flow()
    whole = clip(pipe, Flatten(flow, frames=FRAMES), frames=2 * FRAMES, latents=two.clone())
    for start in (0, FRAMES):
        part = slice(start, start + FRAMES)
        alone = clip(pipe, Flatten(flow), latents=two[part].clone())
        assert torch.allclose(whole[part], alone, atol=1e-4)


def test_resolutions_choose_the_grids_with_flow_attention() -> None:
    pipe = build("sd1")
    flow = random_flow()
    finest = clip(pipe, Flatten(flow))
    assert torch.equal(clip(pipe, Flatten(flow, resolutions=(16,))), finest)
    assert torch.equal(clip(pipe, Flatten(flow, resolutions="16x16")), finest)
    assert not torch.equal(clip(pipe, Flatten(flow, resolutions=(16, 8))), finest)
    with pytest.raises(NoSiteError, match=r"64x64.*16x16, 8x8"):
        clip(pipe, Flatten(flow, resolutions=(64,)))


def test_a_flow_is_read_from_a_file_when_a_run_starts(tmp_path: Any) -> None:
    pipe, path = build("sd1"), tmp_path / "flow.npz"
    technique = Flatten(str(path))
    with pytest.raises(FlowError, match=r"flow\.npz"):
        clip(pipe, technique)
    save_flow(random_flow(), path)
    assert torch.equal(clip(pipe, technique), clip(pipe, Flatten(random_flow())))
    assert technique.settings()["flow"] == str(path)
    assert "tensor" not in repr(Flatten(random_flow()))


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", Flatten(random_flow(5)), FlowError, "5 frames, the clip has 3"),
        ("sd1", Flatten(random_flow(2), frames=2), SettingError, "frames=2.*3 items"),
        ("animatediff", Flatten(random_flow(4)), FlowError, "4 frames, the clip has 3"),
        ("animatediff", Flatten(frames=4), SettingError, "frames=4.*3 frames"),
        ("wan", Flatten(random_flow(8)), FlowError, "8 frames, the clip has 3"),
        ("sd1", Flatten(where="cross"), UnsupportedModelError, "cross attention"),
        ("sd3", Flatten(random_flow()), UnsupportedModelError, "dense=False"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    name: str, technique: Flatten, error: type[Exception], message: str
) -> None:
    pipe = build(name)
    calls: list[int] = []
    model = getattr(pipe, "unet", None) or pipe.transformer
    inner = next(m for path, m in model.named_modules() if path.endswith(".to_q"))
    hook = inner.register_forward_hook(lambda *_: calls.append(1))
    run = clip if name in ("sd1", "sd3") else video
    with pytest.raises(error, match=message):
        run(pipe, technique)
    hook.remove()
    assert calls == []


@pytest.mark.parametrize(
    "settings",
    [
        {"frames": 0},
        {"frames": True},
        {"seed": 0.5},
        {"flow": 3},
        {"resolutions": ("wide",)},
        {"inject_until": 1.5},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Flatten(**settings)
