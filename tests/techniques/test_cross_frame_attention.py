"""CrossFrameAttention: against diffusers' processor, its invariants, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image
from torch import Tensor

import attnctl
from attnctl import CrossFrameAttention, Flatten
from attnctl.errors import SettingError, UnsupportedModelError
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.clip_runs import FRAMES, PIXELS, Keep, clip, video

CLOSE = 1e-4


def peer(batch: int) -> Any:
    """diffusers' processor; it moved between versions."""
    try:
        from diffusers.pipelines.deprecated.text_to_video_synthesis import (
            pipeline_text_to_video_zero as module,
        )
    except ImportError:
        from diffusers.pipelines.text_to_video_synthesis import (
            pipeline_text_to_video_zero as module,
        )
    return module.CrossFrameAttnProcessor(batch_size=batch)


class WrittenOut:
    """Frames one by one, with the keys and values of chosen frames."""

    def __init__(self, sources: list[list[int]]) -> None:
        self.sources = sources

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        outs: list[Tensor] = []
        for place, one in enumerate(hidden_states):
            start = place - place % len(self.sources)
            seen = torch.cat([hidden_states[start + s] for s in self.sources[place - start]])
            outs.append(AttnProcessor()(attn, one[None], encoder_hidden_states=seen[None]))
        return torch.cat(outs)


def with_processor(pipe: Any, processor: Any) -> Tensor:
    own = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({k: processor if "attn1" in k else p for k, p in own.items()})
    try:
        return clip(pipe)
    finally:
        pipe.unet.set_attn_processor(own)


def test_the_first_frame_equals_the_processor_of_diffusers() -> None:
    pipe = build("sd1")
    plain = clip(pipe)
    ours = clip(pipe, CrossFrameAttention())
    theirs = with_processor(pipe, peer(2))
    assert (theirs - plain).abs().max() > 0.01
    assert torch.allclose(ours, theirs, atol=CLOSE)


@pytest.mark.parametrize(
    ("source", "sources"),
    [
        ("first", [[0], [0], [0]]),
        ("previous", [[0], [0], [1]]),
        ("both", [[0, 0], [0, 0], [0, 1]]),
    ],
)
def test_every_source_equals_attention_written_out(source: str, sources: list[list[int]]) -> None:
    pipe = build("sd1")
    expected = with_processor(pipe, WrittenOut(sources))
    assert torch.allclose(clip(pipe, CrossFrameAttention(source)), expected, atol=CLOSE)


@pytest.mark.parametrize("source", ["first", "previous", "both"])
def test_the_first_frame_and_equal_frames_stay_as_they_are(source: str) -> None:
    pipe = build("sd1")
    plain, edited = clip(pipe), clip(pipe, CrossFrameAttention(source))
    assert torch.allclose(edited[0], plain[0], atol=CLOSE)
    assert (edited[1:] - plain[1:]).abs().max() > 0.01
    same = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = same.repeat(FRAMES, 1, 1, 1)
    plain = clip(pipe, latents=latents.clone())
    edited = clip(pipe, CrossFrameAttention(source), latents=latents.clone())
    assert torch.allclose(edited, plain, atol=CLOSE)


@pytest.mark.parametrize("chosen", [(2,), (2, 0), (1, 2, 0)])
def test_every_frame_attends_to_chosen_frames_whatever_their_order(chosen: Any) -> None:
    pipe = build("sd1")
    expected = with_processor(pipe, WrittenOut([list(chosen)] * FRAMES))
    ours = clip(pipe, CrossFrameAttention(keyframes=chosen))
    assert torch.allclose(ours, expected, atol=CLOSE)
    other = clip(pipe, CrossFrameAttention("both", keyframes=chosen[::-1]))
    assert torch.allclose(other, ours, atol=CLOSE)


def test_all_frames_are_dense_attention_over_the_clip() -> None:
    pipe = build("sd1")
    chosen = clip(pipe, CrossFrameAttention(keyframes=(0, 1, 2)))
    assert torch.allclose(chosen, clip(pipe, Flatten()), atol=CLOSE)


@pytest.mark.parametrize("name", ["sd1_inpaint", "sd1_inpaint9"])
def test_frames_that_are_painted_inside_masks_look_at_each_other(name: str) -> None:
    pipe: Any = build(name)
    masks = []
    for frame in range(FRAMES):
        mask = Image.new("L", (PIXELS, PIXELS))
        mask.paste(255, (4 * frame, 8, 4 * frame + 16, 24))
        masks.append(mask)
    plain = clip(pipe, mask_image=masks)
    edited = clip(pipe, CrossFrameAttention(keyframes=(0, 1)), mask_image=masks)
    assert torch.isfinite(edited).all()
    assert (edited - plain).flatten(1).abs().amax(1).min() > 1e-3


def test_clips_of_one_batch_do_not_mix() -> None:
    pipe = build("sd1")
    two = torch.randn(2 * FRAMES, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    technique = CrossFrameAttention(frames=FRAMES)
    whole = clip(pipe, technique, frames=2 * FRAMES, latents=two.clone())
    for part in (slice(0, FRAMES), slice(FRAMES, 2 * FRAMES)):
        alone = clip(pipe, technique, latents=two[part].clone())
        assert torch.allclose(whole[part], alone, atol=CLOSE)


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart_sigma"])
def test_joint_attention_keeps_each_frames_own_text(name: str) -> None:
    pipe, kept = build(name), Keep()
    clip(pipe, CrossFrameAttention("both"), kept, steps=1)
    plain = Keep()
    clip(build(name), plain, steps=1)
    for (call, _), (own, _) in zip(kept.calls, plain.calls, strict=True):
        if call.site.kind == "cross":
            continue
        assert call.layout is not None
        keys, count = call.key, call.layout.image.stop - call.layout.image.start
        assert keys.shape[2] == own.key.shape[2] + count
        image = keys[:, :, call.layout.image].unflatten(0, (-1, FRAMES))
        assert torch.equal(image[:, 1], image[:, 0])
        if call.site.index == 0 and call.layout.text is not None:
            assert torch.equal(keys[:, :, call.layout.text], own.key[:, :, call.layout.text])


def test_animate_diff_exchanges_keys_between_the_frames_of_a_row() -> None:
    pipe = build("animatediff")
    kept = Keep(where="self,layers=0")
    video(pipe, CrossFrameAttention("previous"), kept, steps=1)
    plain = Keep(where="self,layers=0")
    video(pipe, plain, steps=1)
    keys, own = kept.calls[0][0].key, plain.calls[0][0].key
    for row in range(2):
        for frame in range(3):
            assert torch.equal(keys[3 * row + frame], own[3 * row + max(0, frame - 1)])


def test_single_heads_and_ramps_keep_a_share_of_the_own_keys() -> None:
    where = "self,layers=0"
    outs: dict[str, Tensor] = {}
    for chosen, technique in {
        "plain": (),
        "all": (CrossFrameAttention(where=where),),
        "head 1": (CrossFrameAttention(where=f"{where},heads=1"),),
        "half": (CrossFrameAttention(where=where, steps="always ramp 0.5..0.5"),),
    }.items():
        kept = Keep(where=where)
        clip(build("sd1"), *technique, kept, steps=1)
        outs[chosen] = kept.calls[0][1]
    assert torch.allclose(outs["head 1"][:, 0], outs["plain"][:, 0], atol=1e-5)
    assert torch.allclose(outs["head 1"][:, 1], outs["all"][:, 1], atol=1e-5)
    near, far = ((outs["half"] - outs[end]).abs().max() for end in ("plain", "all"))
    whole = (outs["plain"] - outs["all"]).abs().max()
    assert 0.1 * whole < near < whole
    assert 0.1 * whole < far < whole


def test_off_changes_no_bit_and_it_leaves_no_trace() -> None:
    pipe = build("sd1")
    plain, before = clip(pipe), fingerprint(pipe)
    assert torch.equal(clip(pipe, CrossFrameAttention(steps="0-0")), plain)
    with attnctl.attach(pipe, CrossFrameAttention(steps=attnctl.until(1))) as session:
        assert not torch.equal(clip(pipe), plain)
        assert session.report().active_steps("cross-frame-attention") == (0,)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(clip(pipe), plain)


def test_one_frame_alone_changes_no_bit() -> None:
    pipe = build("sd1")
    plain = clip(pipe, frames=1)
    with attnctl.attach(pipe, CrossFrameAttention("both")) as session:
        assert torch.equal(generate(pipe, ["a cat"]), plain)
        assert any("one frame" in text for text in session.report().warnings)


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", CrossFrameAttention(frames=2), SettingError, "frames=2.*3 items"),
        (
            "sd1",
            CrossFrameAttention(keyframes=(0, 3)),
            SettingError,
            "keyframes=.*3 frames, 0 to 2",
        ),
        ("sd1", CrossFrameAttention(where="cross"), UnsupportedModelError, "cross attention"),
        ("animatediff", CrossFrameAttention(where="temporal"), UnsupportedModelError, "temporal"),
        ("wan", CrossFrameAttention(), UnsupportedModelError, "all frames at once"),
        ("cogvideox", CrossFrameAttention(), UnsupportedModelError, "all frames at once"),
    ],
)
def test_what_has_no_frames_to_exchange_is_refused(
    name: str, technique: CrossFrameAttention, error: type[Exception], message: str
) -> None:
    run = clip if name == "sd1" else video
    with pytest.raises(error, match=message):
        run(build(name), technique)


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "last"},
        {"frames": 0},
        {"frames": 1.5},
        {"keyframes": (0, 0)},
        {"keyframes": [-1]},
        {"keyframes": "first"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        CrossFrameAttention(**settings)
