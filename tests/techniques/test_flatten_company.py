"""Flatten in company: rows of other techniques, cross-frame attention, Prompt-to-Prompt, masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnctl
from attnctl import CrossFrameAttention, Flatten, PromptToPrompt
from attnctl.errors import ConflictError, UnsupportedModelError
from tests.core.samples import Watch
from tests.support.pipelines import build
from tests.techniques.clip_runs import FRAMES, Keep, clip, followed, image_tokens, random_flow

CLOSE = 1e-5


def test_added_rows_of_other_techniques_are_clips_of_their_own() -> None:
    pipe = build("sd1")
    pag = attnctl.PAG(scale=1e-9, where="mid:self")  # its rows are there and change nothing
    alone = clip(pipe, Flatten(random_flow()))
    assert torch.allclose(clip(pipe, pag, Flatten(random_flow())), alone, atol=1e-4)
    kept = Keep(where="self,layers=0")
    clip(pipe, pag, Flatten(random_flow()), kept, steps=1)
    call, out = kept.calls[0]
    assert [row.kind for row in call.rows] == ["main"] * 6 + ["perturbed"] * 3
    assert torch.allclose(out[6:], out[3:6], atol=CLOSE)  # not yet perturbed: like their rows


def test_flow_attention_can_be_put_on_cross_frame_attention() -> None:
    pipe = build("sd1")
    with pytest.raises(ConflictError, match=r"'cross-frame-attention'.*'flatten'.*where="):
        clip(pipe, CrossFrameAttention(), Flatten(random_flow()))
    where = "self,level=0"
    kept, after = Keep(where=where), Keep("after", where=where)
    both = [CrossFrameAttention(), kept, Flatten(random_flow(), dense=False), after]
    clip(pipe, *both, steps=1)
    call, given = kept.calls[0]
    tokens = image_tokens(call, given, FRAMES)
    expected = followed(random_flow(), (16, 16), tokens, call.scale)
    assert torch.allclose(image_tokens(call, after.calls[0][1], FRAMES), expected, atol=CLOSE)


def test_prompt_to_prompt_is_refused_at_its_sites_and_goes_with_it_at_others() -> None:
    pipe, flow = build("sd1"), random_flow(2)
    pair = {"prompt": ["a cat", "a frog"], "frames": 2}
    with pytest.raises(ConflictError, match=r"prompt-to-prompt.*flatten|flatten.*prompt-to-prompt"):
        clip(pipe, PromptToPrompt(), Flatten(flow), **pair)
    words = PromptToPrompt(where="cross", edit="replace")
    together = clip(pipe, words, Flatten(flow), **pair)
    assert not torch.equal(together, clip(pipe, Flatten(flow), **pair))


def test_a_mask_that_another_technique_adds_is_refused_by_name() -> None:
    class Forbids(Watch):
        name = "forbids"

        def edit_qkv(self, call: Any) -> None:
            call.add_bias(torch.zeros(1, 1, 1, call.key.shape[2]))

    with pytest.raises(UnsupportedModelError, match=r"flatten.*mask.*where="):
        clip(build("sd1"), Forbids(where="self"), Flatten())


def test_heat_maps_and_gradient_guidance_work_beside_it() -> None:
    pipe, flow = build("sd1"), random_flow()
    alone = clip(pipe, Flatten(flow))
    with attnctl.attach(pipe, [attnctl.HeatMaps(), Flatten(flow)]) as session:
        assert torch.equal(clip(pipe), alone)
        assert session.maps.word("cat").shape[-1] > 0
    excited = clip(pipe, attnctl.AttendAndExcite(["cat"], thresholds={}), Flatten(flow))
    assert torch.isfinite(excited).all()
    assert not torch.equal(excited, alone)
