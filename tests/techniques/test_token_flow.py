"""TokenFlow in pipelines: what keyframes and other frames are given, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import CrossFrameAttention, Flatten, TokenFlow
from attnctl.editing.features import FeatureStore
from attnctl.errors import ConflictError, FeatureError, SettingError, UnsupportedModelError
from attnctl.ops.token_flow import draw_keyframes, spread_outputs
from attnctl.techniques.recorders import ModuleRecorder
from attnctl.techniques.token_flow import matched_modules
from tests.support.pipelines import build
from tests.techniques.clip_runs import Keep, clip, video

FRAMES = 5


def run(pipe: Any, *techniques: Any, frames: int = FRAMES, **changes: Any) -> Tensor:
    return clip(pipe, *techniques, frames=frames, **changes)


def recorded(pipe: Any, frames: int = FRAMES, **changes: Any) -> FeatureStore:
    """What the self-attention of another clip was given."""
    store = FeatureStore()
    with attnctl.attach(pipe, []) as session:
        modules = matched_modules(session.sites)
    recorder = ModuleRecorder(store, modules)
    run(pipe, recorder, prompt=["a frog"] * frames, frames=frames, **changes)
    return store


def test_every_site_equals_plain_loops_over_keyframes() -> None:
    pipe = build("sd1")
    store, kept = recorded(pipe), Keep(where="self")
    run(pipe, TokenFlow(store, chunk=2, seed=3), kept)
    assert {call.step.index for call, _ in kept.calls} == {0, 1}
    for call, out in kept.calls:
        keyframes = draw_keyframes(FRAMES, 2, 3, call.step.index)
        path = call.site.path.removesuffix("attn1") + "norm1"
        source = store.get(call.step.timestep, path, "output")
        for start in (0, FRAMES):  # branches
            keys, values = (
                torch.cat([tensor[start + k] for k in keyframes], dim=1)
                for tensor in (call.key, call.value)
            )
            outputs = torch.stack(
                [
                    (call.query[start + k] @ keys.mT * call.scale).softmax(-1) @ values
                    for k in keyframes
                ],
                dim=1,
            )
            expected = spread_outputs(outputs[None], source, keyframes, 2)[0].transpose(0, 1)
            assert torch.allclose(out[start : start + FRAMES], expected, atol=1e-5)


def test_with_a_keyframe_in_every_frame_it_is_attention_over_all_frames() -> None:
    pipe = build("sd1")
    every = TokenFlow(recorded(pipe), chunk=1)
    assert torch.allclose(run(pipe, every), run(pipe, Flatten()), atol=1e-5)


def test_runs_repeat_and_the_seed_decides() -> None:
    pipe = build("sd1")
    store = recorded(pipe)
    first = run(pipe, TokenFlow(store, chunk=5))
    assert torch.equal(run(pipe, TokenFlow(store, chunk=5)), first)
    assert not torch.equal(run(pipe, TokenFlow(store, chunk=5, seed=3)), first)


def test_animate_diff_has_frames_of_its_own() -> None:
    pipe, store = build("animatediff"), FeatureStore()
    with attnctl.attach(pipe, []) as session:
        modules = matched_modules(session.sites)
    plain = video(pipe, ModuleRecorder(store, modules))
    assert not torch.equal(video(pipe, TokenFlow(store)), plain)


def test_off_and_one_frame_change_no_bit() -> None:
    pipe = build("sd1")
    plain, store = run(pipe), recorded(pipe)
    assert torch.equal(run(pipe, TokenFlow()), plain)
    assert torch.equal(run(pipe, TokenFlow(store, steps="0-0")), plain)
    alone = recorded(pipe, frames=1)
    assert torch.equal(run(pipe, TokenFlow(alone), frames=1), run(pipe, frames=1))


def test_what_does_not_fit_is_refused() -> None:
    pipe = build("sd1")
    store = recorded(pipe)
    with pytest.raises(FeatureError, match="those of 5 frames, the run has 4"):
        run(pipe, TokenFlow(store), frames=4)
    with pytest.raises(FeatureError, match="token-flow: the features lack"):
        partial = FeatureStore()
        first = "down_blocks.0.attentions.0.transformer_blocks.0.norm1"
        run(pipe, ModuleRecorder(partial, first))
        run(pipe, TokenFlow(partial))
    with pytest.raises(ConflictError, match=r"cross-frame-attention.*token-flow|token-flow"):
        run(pipe, CrossFrameAttention(), TokenFlow(store))
    with pytest.raises(UnsupportedModelError, match="norm1"):
        video(build("wan"), TokenFlow(store))
    for bad in ({"chunk": 0}, {"chunk": 1.5}, {"seed": "a"}, {"frames": -1}):
        with pytest.raises(SettingError):
            TokenFlow(**bad)  # type: ignore[arg-type]
