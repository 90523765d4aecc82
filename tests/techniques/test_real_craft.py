"""RealCraft: the source's layout around a free object, for conditional rows, until its steps."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import PAG, CrossFrameAttention, Flatten, HeatMaps, RealCraft, WordSwap
from attnctl.editing.features import FeatureStore
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    FeatureError,
    NoSiteError,
    ScheduleError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.pipelines.video_edit import VideoEditSettings, edit_video
from attnctl.techniques.recorders import AttentionRecorder
from attnctl.video import Video
from tests.support.pipelines import build
from tests.support.pipelines.parts import PIXELS
from tests.techniques.clip_runs import FRAMES, Keep, clip, video
from tests.techniques.real_craft_reference import FRAMES_SEEN, Controller, run_reference

SOURCE, TARGET = ["a cat and a frog"] * FRAMES, ["a dog and a frog"] * FRAMES
STEPS = 4


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build("sd1")


@pytest.fixture(scope="module")
def store(pipe: Any) -> FeatureStore:
    return recorded(pipe)[0]


def recorded(pipe: Any) -> tuple[FeatureStore, Tensor]:
    """Queries and keys of the source, and its latents."""
    kept = FeatureStore()
    recorder = AttentionRecorder(kept, where="self|cross")
    return kept, clip(pipe, recorder, prompt=SOURCE, guidance_scale=1.0, steps=STEPS)


def edited(pipe: Any, *techniques: Any, **changes: Any) -> Tensor:
    return clip(pipe, *techniques, **{"prompt": TARGET, "steps": STEPS, **changes})


def test_features_of_the_same_prompt_change_no_bit(pipe: Any) -> None:
    store, plain = recorded(pipe)
    technique = RealCraft(store, attend_to="own", cross_until=1.0, self_until=1.0)
    unguided = {"guidance_scale": 1.0}
    assert torch.equal(edited(pipe, technique, prompt=SOURCE, **unguided), plain)
    assert not torch.equal(edited(pipe, technique, **unguided), plain)


@pytest.mark.parametrize("attend_to", sorted(FRAMES_SEEN))
def test_a_whole_run_equals_a_processor_that_edits_whole_maps(
    pipe: Any, store: FeatureStore, attend_to: str
) -> None:
    settings: dict[str, Any] = {"cross_until": 3, "self_until": 2, "threshold": 0.96}
    ours = edited(pipe, RealCraft(store, ["dog"], attend_to=attend_to, **settings))
    seen = FRAMES_SEEN[attend_to]
    controller = Controller(store, [2], seen, range(3), range(2), threshold=0.96)
    theirs = run_reference(build("sd1"), controller, TARGET, STEPS)
    found = [controller.object_of(frame, 256) for frame in range(FRAMES)]
    assert all(0 < int(cells.sum()) < 256 for cells in found)  # the mask leaves both kinds
    size, effect = float(theirs.abs().max()), float((theirs - edited(pipe)).abs().max())
    assert effect > 1e-2
    assert (ours - theirs).abs().max() < 2e-5 * max(1.0, size)


def test_without_words_everything_follows_the_source_from_the_first_step(
    pipe: Any, store: FeatureStore
) -> None:
    ours = edited(pipe, RealCraft(store, cross_until=2, self_until=2))
    controller = Controller(store, [], FRAMES_SEEN["both"], range(2), range(2))
    theirs = run_reference(build("sd1"), controller, TARGET, STEPS)
    assert (ours - theirs).abs().max() < 2e-5 * max(1.0, float(theirs.abs().max()))


def test_where_everything_is_the_object_self_attention_is_the_models_own(
    pipe: Any, store: FeatureStore
) -> None:
    settings: dict[str, Any] = {"cross_until": 0, "attend_to": "own"}
    free = RealCraft(store, ["dog"], threshold=0.0, **settings)
    assert torch.equal(edited(pipe, free), edited(pipe))
    bound = RealCraft(store, ["dog"], threshold=1.0, **settings)
    assert not torch.equal(edited(pipe, bound), edited(pipe))


@pytest.mark.parametrize(
    ("attend_to", "other"),
    [("first", CrossFrameAttention()), ("both", CrossFrameAttention("both")), ("all", Flatten())],
)
def test_behind_its_steps_frames_attend_to_the_frames_that_they_see(
    pipe: Any, store: FeatureStore, attend_to: str, other: Any
) -> None:
    behind = RealCraft(store, ["dog"], cross_until=0, self_until=0, attend_to=attend_to)
    truth = edited(pipe, other)
    assert (edited(pipe, behind) - truth).abs().max() < 2e-5 * max(1.0, float(truth.abs().max()))


@pytest.mark.parametrize(
    "off",
    [
        RealCraft(words=["dog"]),
        {"steps": "0-0"},
        {"attend_to": "own", "cross_until": 0, "self_until": 0.0},
        {"steps": attnctl.ramp(0.0, 0.0)},
    ],
    ids=["no features", "empty window", "no steps", "strength 0"],
)
def test_off_changes_no_bit(pipe: Any, store: FeatureStore, off: Any) -> None:
    technique = off if isinstance(off, RealCraft) else RealCraft(store, ["dog"], **off)
    assert torch.equal(edited(pipe, technique), edited(pipe))


def test_steps_behind_both_windows_are_left_alone(pipe: Any, store: FeatureStore) -> None:
    technique = RealCraft(store, ["dog"], cross_until=0.5, self_until=0.25, attend_to="own")
    with attnctl.attach(pipe, technique) as session:
        clip(pipe, prompt=TARGET, steps=STEPS)
    assert session.report().active_steps("real-craft") == (0, 1)


def test_unconditional_rows_keep_their_maps(pipe: Any, store: FeatureStore) -> None:
    plain, kept = Keep(), Keep()
    edited(pipe, plain)
    edited(pipe, RealCraft(store, ["dog"], attend_to="own"), kept)
    first = [
        pair for pair in zip(plain.calls, kept.calls, strict=True) if pair[0][0].step.index == 0
    ]
    changed = 0
    for (_, own), (_, made) in first:
        assert torch.equal(made[:FRAMES], own[:FRAMES])
        changed += not torch.equal(made[FRAMES:], own[FRAMES:])
    assert changed


def test_single_heads_alone_take_maps_over(pipe: Any, store: FeatureStore) -> None:
    plain, kept = Keep(where="cross,layers=0"), Keep(where="cross,layers=0")
    edited(pipe, plain)
    technique = RealCraft(store, ["dog"], attend_to="own", where="cross,layers=0,heads=1")
    edited(pipe, technique, kept)
    (_, own), (_, made) = plain.calls[0], kept.calls[0]
    assert torch.equal(made[:, 0], own[:, 0])
    assert not torch.allclose(made[FRAMES:, 1], own[FRAMES:, 1], atol=1e-4)


def test_two_clips_in_a_batch_never_meet(pipe: Any, store: FeatureStore) -> None:
    alone = edited(pipe, RealCraft(store, ["dog"]))
    both = edited(pipe, RealCraft(store, ["dog"], frames=FRAMES), prompt=TARGET * 2)
    assert torch.allclose(both[:FRAMES], alone, atol=2e-4)
    assert not torch.allclose(both[FRAMES:], alone, atol=1e-2)


def test_heat_maps_beside_it_change_nothing_and_added_rows_are_edited(
    pipe: Any, store: FeatureStore
) -> None:
    technique = RealCraft(store, ["dog"])
    alone = edited(pipe, technique)
    assert torch.equal(edited(pipe, HeatMaps(), technique), alone)
    guided = edited(pipe, technique, PAG(where="mid:self"))
    assert torch.isfinite(guided).all()
    assert not torch.allclose(guided, alone, atol=1e-4)


@pytest.mark.parametrize("other", [Flatten(), CrossFrameAttention(), "word-swap"])
def test_what_decides_about_the_same_attention_is_refused(
    pipe: Any, store: FeatureStore, other: Any
) -> None:
    beside = WordSwap(store) if other == "word-swap" else other
    with pytest.raises(ConflictError, match="real-craft"):
        edited(pipe, RealCraft(store, ["dog"]), beside)


def test_animate_diff_exchanges_words_too() -> None:
    pipe, store = build("animatediff"), FeatureStore()
    recorder = AttentionRecorder(store, where="self|cross")
    plain = video(pipe, recorder, prompt="a cat", guidance_scale=1.0)
    whole = {"cross_until": 1.0, "self_until": 1.0}
    own = RealCraft(store, attend_to="own", **whole)
    assert torch.equal(video(pipe, own, prompt="a cat", guidance_scale=1.0), plain)
    technique = RealCraft(store, ["dog"], **whole)
    made = video(pipe, technique, prompt="a dog")
    assert torch.isfinite(made).all()
    assert not torch.equal(made, video(pipe, own, prompt="a dog"))


def test_the_edit_of_a_clip_records_what_it_takes_over() -> None:
    pipe = build("sd1")
    values = torch.rand(FRAMES, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    frames = Video.of_tensor(values, Fraction(8))
    known: dict[str, Any] = {"steps": 2, "guidance": 3.0, "flow": "none"}
    settings = VideoEditSettings(source="a cat", target="a frog", **known)
    made = edit_video(pipe, frames, settings, [RealCraft(words=["frog"])])
    assert made.report.active_steps("real-craft") == (0, 1)
    assert not np.array_equal(made.small[1], edit_video(pipe, frames, settings).small[1])
    longer = VideoEditSettings(source="a cat", target="a red frog", **known)
    with pytest.raises(SettingError, match=r"real-craft exchanges words.*4 tokens.*has 5"):
        edit_video(pipe, frames, longer, [RealCraft(words=["frog"])])


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"words": ["bird"]}, WordNotFoundError, "real-craft: words: 'bird' is not in the prompt"),
        ({"words": [99]}, SettingError, "there is no token 99"),
        ({"words": ["dog"], "mask_grid": 5}, NoSiteError, "no maps are 5 cells high"),
        ({"words": ["dog"], "where": "self"}, NoSiteError, "no cross-attention is selected"),
        ({"frames": 2}, SettingError, "no whole number of clips"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    pipe: Any, store: FeatureStore, settings: dict[str, Any], error: type[AttnctlError], text: str
) -> None:
    with pytest.raises(error, match=text):
        edited(pipe, RealCraft(store, **settings))


def test_features_that_do_not_fit_are_refused(pipe: Any, store: FeatureStore) -> None:
    with pytest.raises(FeatureError, match="those of 3 frames, the run has 2"):
        edited(pipe, RealCraft(store), prompt=TARGET[:2])
    with pytest.raises(FeatureError, match="store is empty"):
        edited(pipe, RealCraft(FeatureStore()))
    partial = FeatureStore()
    edited(pipe, AttentionRecorder(partial, where="cross"))
    with pytest.raises(FeatureError, match=r"real-craft: the features lack.*attn1"):
        edited(pipe, RealCraft(partial))


def test_models_without_attention_of_that_kind_are_refused(store: FeatureStore) -> None:
    with pytest.raises(UnsupportedModelError, match="is temporal attention"):
        video(build("animatediff"), RealCraft(store, where="all"))
    with pytest.raises(UnsupportedModelError, match="over all frames at once"):
        video(build("wan"), RealCraft(store))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"words": [""]}, "words of the target's prompt"),
        ({"words": 1.5}, "such as"),
        ({"attend_to": "next"}, "allowed: 'all', 'both', 'first', 'own', 'previous'"),
        ({"threshold": 2}, "from 0 to 1"),
        ({"mask_grid": 0}, "from 1"),
        ({"frames": 0}, "whole number of frames from 1"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        RealCraft(**settings)


def test_a_bad_bound_is_refused_and_settings_build_it_again() -> None:
    with pytest.raises(ScheduleError):
        RealCraft(cross_until=1.5)
    made = RealCraft(words=["dog", 3], attend_to="all", self_until=3)
    assert RealCraft.from_settings(made.settings()) == made
