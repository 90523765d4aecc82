"""FloAt: against attention written out, which frames it reads, company, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import CrossFrameAttention, Flatten, FloAt, SoftPAG
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    FlowError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
)
from attnctl.flow import ClipFlow, resize_flow, save_flow
from tests.ops.test_flo_at import sampling
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.support.projections import projected
from tests.techniques.clip_runs import FRAMES, PIXELS, Keep, clip, video

CLOSE = 1e-4


def flow_of(frames: int = FRAMES, seed: int = 0, cuts: tuple[int, ...] = ()) -> ClipFlow:
    """Smooth motion of about two tokens, partly out of the picture."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 6 * torch.randn(2 * (frames - 1), 2, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (PIXELS, PIXELS), mode="bilinear")
    return ClipFlow(fine[: frames - 1], fine[frames - 1 :], cuts)


def still(frames: int = FRAMES) -> ClipFlow:
    return ClipFlow(*torch.zeros(2, frames - 1, 2, PIXELS, PIXELS))


def followed(maps: Tensor, flow: ClipFlow, own_weight: float, recursive: bool) -> Tensor:
    """Maps ``(F, H, n, n)`` of one clip, with both axes warped by sampling matrices."""
    assert flow.backward is not None
    side = round(maps.shape[-1] ** 0.5)
    made = [maps[0]]
    for frame in range(1, len(maps)):
        if frame - 1 in flow.cuts:
            made.append(maps[frame])
            continue
        motion = resize_flow(flow.backward, side, side)[frame - 1]
        places = torch.arange(side, dtype=torch.float32)
        x, y = places + motion[0], places[:, None] + motion[1]
        inside = ((x >= -0.5) & (x <= side - 0.5) & (y >= -0.5) & (y <= side - 0.5)).flatten()
        matrix = sampling(motion)
        before = made[-1] if recursive else maps[frame - 1]
        warped = torch.where(inside, matrix @ before @ matrix.T, maps[frame])
        mixed = own_weight * maps[frame] + (1 - own_weight) * warped
        mixed = mixed / mixed.sum(-1, keepdim=True)
        made.append(torch.where(inside[:, None], mixed, maps[frame]))
    return torch.stack(made)


class WrittenOut:
    """Self-attention with followed maps, clip by clip; branches one after the other."""

    def __init__(self, flow: ClipFlow, own_weight: float = 0.5, recursive: bool = False) -> None:
        self.flow, self.own_weight, self.recursive = flow, own_weight, recursive

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = projected(attn, hidden_states)
        probs = (query @ key.mT * attn.scale).softmax(-1)
        clips = [
            followed(one, self.flow, self.own_weight, self.recursive)
            for one in probs.split(self.flow.frames)
        ]
        return attn.to_out[0]((torch.cat(clips) @ value).transpose(1, 2).flatten(2))


def written_out(pipe: Any, processor: WrittenOut, **changes: Any) -> Tensor:
    own = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(
        {k: processor if k.startswith("up") and "attn1" in k else p for k, p in own.items()}
    )
    try:
        return clip(pipe, **changes)
    finally:
        pipe.unet.set_attn_processor(own)


@pytest.fixture(scope="module")
def sd1() -> Any:
    return build("sd1")


@pytest.mark.parametrize(
    ("own_weight", "recursive", "cuts"), [(0.5, False, ()), (0.2, True, ()), (0.5, True, (0,))]
)
def test_a_run_equals_attention_written_out(
    sd1: Any, own_weight: float, recursive: bool, cuts: tuple[int, ...]
) -> None:
    flow = flow_of(cuts=cuts)
    expected = written_out(sd1, WrittenOut(flow, own_weight, recursive))
    ours = clip(sd1, FloAt(flow, own_weight=own_weight, recursive=recursive))
    assert torch.allclose(ours, expected, atol=CLOSE)
    plain = clip(sd1)
    changed = [bool((a - b).abs().max() > 0.01) for a, b in zip(ours, plain, strict=True)]
    assert changed == [False, not cuts, True]


@pytest.mark.parametrize(
    ("name", "run"), [("animatediff", video), ("pixart_sigma", clip), ("sdxl", clip)]
)
def test_the_output_of_a_site_is_that_of_followed_maps(name: str, run: Any) -> None:
    pipe, keep, flow = build(name), Keep(where="self"), flow_of()
    run(pipe, FloAt(flow, where="self"), keep, steps=1)
    for call, out in keep.calls:
        probs = (call.query @ call.key.mT * call.scale).softmax(-1)
        clips = [followed(one, flow, 0.5, False) for one in probs.split(FRAMES)]
        assert torch.allclose(out, torch.cat(clips) @ call.value, atol=1e-5)
        assert not torch.allclose(out, probs @ call.value, atol=1e-3)
    assert keep.calls


def test_without_motion_every_frame_may_take_the_map_of_the_first(sd1: Any) -> None:
    keep = Keep(where="up:self")
    clip(sd1, FloAt(still(), own_weight=0.0, recursive=True), keep, steps=1)
    for call, out in keep.calls:
        probs = (call.query @ call.key.mT * call.scale).softmax(-1)
        first = probs.unflatten(0, (-1, FRAMES))[:, :1]
        expected = first @ call.value.unflatten(0, (-1, FRAMES))
        assert torch.allclose(out, expected.flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("recursive", [False, True])
def test_equal_frames_without_motion_stay_as_they_are(sd1: Any, recursive: bool) -> None:
    same = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = same.repeat(FRAMES, 1, 1, 1)
    plain = clip(sd1, latents=latents.clone())
    ours = clip(sd1, FloAt(still(), recursive=recursive), latents=latents.clone())
    assert torch.allclose(ours, plain, atol=CLOSE)


def test_motion_out_of_the_picture_and_single_frames_change_nothing(sd1: Any) -> None:
    away = ClipFlow(*torch.full((2, FRAMES - 1, 2, PIXELS, PIXELS), 10.0 * PIXELS))
    assert torch.allclose(clip(sd1, FloAt(away)), clip(sd1), atol=CLOSE)
    with attnctl.attach(sd1, FloAt(flow_of(2))) as session:
        alone = generate(sd1, ["a cat"])
    assert torch.allclose(alone, clip(sd1, frames=1), atol=CLOSE)
    assert any("one frame" in warning for warning in session.report().warnings)


def test_a_frame_reads_no_later_frame_and_clips_do_not_mix(sd1: Any) -> None:
    two = torch.randn(2 * FRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    technique = FloAt(flow_of(), frames=FRAMES, recursive=True)
    whole = clip(sd1, technique, frames=2 * FRAMES, latents=two.clone())
    for part in (slice(0, FRAMES), slice(FRAMES, 2 * FRAMES)):
        alone = clip(sd1, technique, latents=two[part].clone())
        assert torch.allclose(whole[part], alone, atol=CLOSE)
    other = two[:FRAMES].clone()
    other[-1] = two[-1]
    changed = clip(sd1, technique, latents=other)
    assert torch.allclose(changed[:-1], whole[: FRAMES - 1], atol=CLOSE)
    assert not torch.allclose(changed[-1], whole[FRAMES - 1], atol=0.1)


def test_guidance_branches_do_not_mix(sd1: Any) -> None:
    keep = Keep(where="up:self")
    clip(sd1, FloAt(flow_of()), keep, steps=1)
    alone = Keep(where="up:self")
    clip(sd1, FloAt(flow_of()), alone, steps=1, guidance_scale=1.0)
    (call, out), (_, single) = keep.calls[0], alone.calls[0]
    assert torch.allclose(out[call.pick("cond")], single, atol=1e-5)


def test_settings_choose_grids_regions_and_heads(sd1: Any) -> None:
    flow, outs = flow_of(), dict[str, dict[int, Tensor]]()
    for name, settings in {
        "whole": {},
        "fine": {"resolutions": 16},
        "coarse": {"resolutions": ["8x8"]},
        "head": {"where": "up:self,heads=1"},
        "still": {"region": "moving", "least_motion": 99.0},
        "nearest": {"interpolation": "nearest"},
        "query": {"axes": "query"},
    }.items():
        keep = Keep(where="up:self")
        clip(sd1, FloAt(flow, **settings), keep, steps=1)
        first = {call.layout.grid[1]: out for call, out in reversed(keep.calls) if call.layout}
        outs[name] = first
    plain = Keep(where="up:self")
    clip(sd1, plain, steps=1)
    own = plain.calls[0][1]  # 8 by 8, the first site: its input is the same in all runs
    assert torch.equal(outs["fine"][8], own)
    assert torch.equal(outs["coarse"][8], outs["whole"][8])
    assert torch.allclose(outs["still"][8], own, atol=1e-5)
    assert torch.allclose(outs["head"][8][:, 0], own[:, 0], atol=1e-5)
    assert torch.allclose(outs["head"][8][:, 1], outs["whole"][8][:, 1], atol=1e-5)
    kinds = [outs[name][8] for name in ("whole", "nearest", "query")] + [own]
    assert all(not torch.allclose(a, b, atol=1e-3) for a in kinds for b in kinds if a is not b)


def test_the_strength_of_a_step_lies_between_plain_and_whole(sd1: Any) -> None:
    outs: list[Tensor] = []
    for steps in ("0-0", "always ramp 0.5..0.5", "always"):
        keep = Keep(where="up:self")
        clip(sd1, FloAt(flow_of(), steps=steps), keep, steps=1)
        outs.append(keep.calls[0][1])
    assert torch.allclose(outs[1], (outs[0] + outs[2]) / 2, atol=1e-5)


@pytest.mark.parametrize(
    "off",
    [FloAt(), FloAt(flow_of(), own_weight=1.0), FloAt(flow_of(), steps="0-0")],
    ids=["no flow", "own maps alone", "empty window"],
)
def test_off_changes_no_bit(sd1: Any, off: FloAt) -> None:
    plain, before = clip(sd1), fingerprint(sd1)
    with attnctl.attach(sd1, off) as session:
        assert torch.equal(clip(sd1), plain)
    assert session.report().active_steps("flo-at") == ()
    assert differences(before, fingerprint(sd1)) == []


def test_flow_from_a_file_is_the_same(sd1: Any, tmp_path: Any) -> None:
    flow, file = flow_of(), tmp_path / "flow.npz"
    save_flow(flow, file)
    technique = FloAt.from_settings(FloAt(str(file), axes="query").settings())
    assert torch.equal(clip(sd1, technique), clip(sd1, FloAt(flow, axes="query")))


def test_it_acts_beside_guidance_and_cross_frame_attention(sd1: Any) -> None:
    guided = SoftPAG(scale=2.0, where="mid:self")
    keep = Keep(where="up:self")
    clip(sd1, guided, FloAt(flow_of()), keep, steps=1)
    for call, out in keep.calls:
        assert len(call.rows) == 3 * FRAMES
        probs = (call.query @ call.key.mT * call.scale).softmax(-1)
        clips = [followed(one, flow_of(), 0.5, False) for one in probs.split(FRAMES)]
        assert torch.allclose(out, torch.cat(clips) @ call.value, atol=1e-5)
    shared = CrossFrameAttention("both")
    both = clip(sd1, shared, FloAt(flow_of(), axes="query"))
    assert both.isfinite().all()
    assert not torch.allclose(both, clip(sd1, shared), atol=0.01)
    with pytest.raises(UnsupportedModelError, match=r"keys at .*use axes='query'"):
        clip(sd1, shared, FloAt(flow_of()))
    with pytest.raises(ConflictError, match="'flo-at' needs the whole attention map"):
        clip(sd1, Flatten(), FloAt(flow_of()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flow": torch.zeros(2, 2, 4, 4)}, "must be a ClipFlow with its backward flow"),
        ({"own_weight": 1.5}, "own_weight=1.5.*from 0 to 1"),
        ({"least_motion": -1}, "least_motion=-1"),
        ({"axes": "rows"}, "axes='rows'; allowed"),
        ({"region": "move"}, "did you mean 'moving'"),
        ({"interpolation": "cubic"}, "interpolation='cubic'"),
        ({"recursive": 1}, "recursive=1"),
        ({"resolutions": (0,)}, "resolutions=0"),
        ({"frames": 0}, "frames=0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        FloAt(**settings)


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", FloAt(flow_of(5)), FlowError, "the flow is for 5 frames, the clip has 3"),
        ("sd1", FloAt(ClipFlow(flow_of().forward)), FlowError, "no backward part"),
        ("sd1", FloAt("nowhere.npz"), AttnctlError, "nowhere"),
        ("sd1", FloAt(flow_of(), frames=2), SettingError, "frames=2, but the batch has 3"),
        ("sd1", FloAt(flow_of(), resolutions=5), NoSiteError, "the grids 16x16, 8x8"),
        ("sd1", FloAt(flow_of(), where="mid"), UnsupportedModelError, "is cross attention"),
        ("sd3", FloAt(flow_of(), where="joint"), UnsupportedModelError, "is joint attention"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    name: str, technique: FloAt, error: type[AttnctlError], message: str
) -> None:
    with pytest.raises(error, match=message):
        clip(build(name), technique, steps=1)


def test_attention_over_all_frames_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no frame has keys and maps"):
        video(build("wan"), FloAt(flow_of(), where="self"), steps=1)
