"""VSTAR on AnimateDiff: against attention written out, levels, stages, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import VSTAR, SoftPAG
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.temporal_maps import blend_stages
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build
from tests.support.projections import projected
from tests.techniques.clip_runs import Keep, clip, video

ALWAYS = {"steps": "always"}


class WrittenOut:
    """Temporal self-attention with the band."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = projected(attn, hidden_states)
        scores = query @ key.mT * attn.scale
        frames = scores.shape[-1]
        for i in range(frames):
            peak = scores[..., i, :].amax(-1, keepdim=True).clone()
            distance = (torch.arange(frames) - i) ** 2
            scores[..., i, :] += peak * torch.exp(-distance / (2 * self.sigma**2))
        out = scores.softmax(-1) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("sigma", [0.7, 4.0])
def test_it_equals_attention_written_out(sigma: float) -> None:
    pipe = build("animatediff")
    plain = video(pipe)
    ours = video(pipe, VSTAR((sigma, sigma), **ALWAYS))
    own = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(
        {k: WrittenOut(sigma) if "motion_modules" in k else p for k, p in own.items()}
    )
    theirs = video(pipe)
    assert (theirs - plain).abs().max() > 0.01
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_level_has_its_own_width_and_others_are_untouched() -> None:
    def outputs(*techniques: VSTAR) -> dict[str, Tensor]:
        kept = Keep(where="temporal,down")
        video(build("animatediff"), *techniques, kept, steps=1)
        return {call.site.path: out for call, out in kept.calls}

    plain, fine, both, other = (
        outputs(),
        outputs(VSTAR()),
        outputs(VSTAR("64D1_32D8")),
        outputs(VSTAR((1.0, 2.0))),
    )
    finest = [path for path in plain if path.startswith("down_blocks.0")]
    assert finest
    for path in finest:
        assert not torch.allclose(fine[path], plain[path], atol=1e-4)
        assert torch.equal(both[path], fine[path])
        assert torch.equal(other[path], fine[path])
    with attnctl.attach(build("animatediff"), VSTAR()) as session:
        levels = {site.path: site.level for site in session.sites if site.kind == "temporal"}
        video(session._control.pipe)
        matched = session.report().matched["vstar"]
    assert {levels[path.removeprefix("unet.")] for path in matched} == {0}


def test_the_peak_is_taken_before_the_bias_of_another_technique() -> None:
    from tests.core.samples import Watch

    class Favours(Watch):
        name = "favours"

        def edit_qkv(self, call: Any) -> None:
            bias = torch.zeros(1, 1, 1, call.key.shape[2])
            bias[..., 0] = 20.0
            call.add_bias(bias)

    kept = Keep(where="temporal,layers=0")
    where = "temporal,layers=0"
    video(build("animatediff"), Favours(where=where), VSTAR(where=where, **ALWAYS), kept, steps=1)
    call, out = kept.calls[0]
    scores = call.query @ call.key.mT * call.scale
    frames = torch.arange(3)
    band = torch.exp(-0.5 * (frames[:, None] - frames) ** 2)
    lifted = scores + scores.amax(-1, keepdim=True) * band
    lifted[..., 0] += 20.0
    assert torch.allclose(out, lifted.softmax(-1) @ call.value, atol=1e-4)


def test_it_acts_in_its_window_and_off_changes_no_bit() -> None:
    pipe = build("animatediff")
    plain, before = video(pipe, steps=4), fingerprint(pipe)
    with attnctl.attach(pipe, VSTAR()) as session:
        assert not torch.equal(video(pipe, steps=4), plain)
        assert session.report().active_steps("vstar") == (0, 1, 2)
    assert differences(before, fingerprint(pipe)) == []
    for off in (VSTAR(scale=0), VSTAR(steps="0-0"), VSTAR(steps=attnctl.after(9))):
        assert torch.equal(video(pipe, off, steps=4), plain)
    assert VSTAR().steps.active_steps(25) == tuple(range(14))  # as the authors have it


def test_each_frame_sees_the_text_between_its_stages() -> None:
    pipe = build("animatediff")
    texts: list[Tensor] = []
    layer = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    hook = layer.register_forward_hook(lambda _, args, out: texts.append(args[0].clone()))
    video(pipe, steps=1)
    stages = ("a cat", "a red dog")
    video(pipe, VSTAR(scale=0, stages=stages, **ALWAYS), steps=1)
    hook.remove()
    plain, staged = texts
    encoded = torch.cat([pipe.encode_prompt(s, "cpu", 1, False)[0] for s in stages])
    assert torch.equal(staged[:3], plain[:3])  # unconditional
    assert torch.allclose(staged[3:], blend_stages(encoded, 3), atol=1e-5)
    given = VSTAR(scale=0, stage_embeds=encoded, **ALWAYS)
    assert torch.equal(video(pipe, given), video(pipe, VSTAR(scale=0, stages=stages, **ALWAYS)))


def test_added_rows_see_the_stages_too() -> None:
    pipe = build("animatediff")
    stages = VSTAR(scale=0, stages=("a cat", "a red dog"), **ALWAYS)
    weak = SoftPAG(scale=1e-9)
    assert torch.allclose(video(pipe, stages, weak), video(pipe, stages), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", VSTAR(), NoSiteError, "temporal.*matches no attention site"),
        ("cogvideox", VSTAR(), NoSiteError, "temporal.*matches no attention site"),
        ("animatediff", VSTAR(where="self"), UnsupportedModelError, "self attention"),
        ("animatediff", VSTAR(where="temporal,level=1"), NoSiteError, "a sigma for each level"),
        ("animatediff", VSTAR(stages=("a",) * 4), SettingError, "4 stages for 3 frames"),
        ("animatediff", VSTAR(stage_embeds=torch.zeros(2, 5, 3)), SettingError, "stage_embeds"),
        ("sd1", VSTAR(scale=0, stages=("a",)), UnsupportedModelError, "text for each frame"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, technique: VSTAR, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        (clip if name == "sd1" else video)(build(name), technique)


@pytest.mark.parametrize(
    "settings",
    [
        {"sigmas": "32D1"},
        {"sigmas": ()},
        {"sigmas": (0.0,)},
        {"sigmas": (1.0, float("nan"))},
        {"scale": -1},
        {"peak": "none"},
        {"stages": "a cat"},
        {"stage_embeds": torch.zeros(2, 3)},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        VSTAR(**settings)


def test_presets_of_the_authors_are_read() -> None:
    assert VSTAR("64D4").sigmas == (4.0,)
    assert VSTAR("64D1_32D12").sigmas == (1.0, 12.0)
    assert VSTAR(2).sigmas == (2.0,)
