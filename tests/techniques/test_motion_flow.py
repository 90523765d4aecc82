"""MotionFlow on AnimateDiff and Wan: against a loop of its own, masks, company, mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import VSTAR, MotionFlow, SoftPAG, Technique, Where
from attnctl.editing.features import FeatureStore
from attnctl.errors import (
    ConflictError,
    FeatureError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.ops.attend_and_excite import smooth_maps
from attnctl.ops.otsu import otsu_threshold
from attnctl.report import Report
from attnctl.techniques.recorders import AttentionRecorder, WordRecorder
from tests.core.samples import Climb
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate
from tests.techniques.clip_runs import clip, video
from tests.techniques.test_vico import Recorded

FRAMES = 3
GIVEN = "a red dog on the blue photo"


def recorded(pipe: Any, words: Any = ("dog",), **changes: Any) -> FeatureStore:
    """A run of another clip, of which the maps of its subject are kept."""
    store = FeatureStore()
    options = {"prompt": GIVEN, "seed": 5, "guidance_scale": 1.0, **changes}
    video(pipe, WordRecorder(store, words), **options)
    return store


def moving(frames: int = FRAMES, side: int = 8) -> Tensor:
    """Masks of a subject that moves right."""
    masks = torch.zeros(frames, side, side)
    for frame in range(frames):
        masks[frame, 2:5, frame : frame + 3] = 1
    return masks


def motion_flow(subjects: Any = ("cat",), **settings: Any) -> MotionFlow:
    """One move in the first of two steps, large enough to show."""
    given = {"scale_factor": 200.0, "iterations": 1, "steps": "0-1"}
    return MotionFlow(subjects, **{**given, **settings})


def moved(pipe: Any, *techniques: Technique, **options: Any) -> tuple[Tensor, Report]:
    with attnctl.attach(pipe, techniques) as session:
        return generate(pipe, **options), session.report()


def outside(maps: Tensor, masks: Tensor) -> Tensor:
    """The loss, written as in the method's description."""
    total = torch.zeros((), dtype=maps.dtype)
    for frame, mask in zip(maps, masks, strict=True):
        scaled = (frame - frame.min()) / (frame.max() - frame.min())
        total = total + (1 - scaled[mask].sum() / scaled.sum()) ** 2
    return total / len(maps)


def given_masks(store: FeatureStore, told: float, paths: list[str]) -> Tensor:
    """Otsu's masks of the recorded maps, frame by frame."""
    mean = torch.stack([store.get(told, path, "words") for path in paths]).mean(0)
    masks: list[Tensor] = []
    for frame in mean.unflatten(1, (8, 8)):
        scaled = smooth_maps((frame - frame.min()) / (frame.max() - frame.min()))
        masks.append(scaled > otsu_threshold(scaled))
    return torch.stack(masks)


def written_out(pipe: Any, store: FeatureStore, sizes: list[float], iterations: int) -> Tensor:
    """The whole run by hand: maps, gradients, guidance, scheduler."""
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    positive, negative = (e.repeat_interleave(FRAMES, 0) for e in (positive, negative))
    plain = dict(pipe.unet.attn_processors)
    paths = [path.removesuffix(".processor") for path in plain if _is_coarse(path)]
    maps = {f"{path}.processor": Recorded() for path in paths}
    recording = {name: maps.get(name, processor) for name, processor in plain.items()}
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, FRAMES, 16, 16, generator=generator, dtype=positive.dtype)
    pipe.scheduler.set_timesteps(len(sizes))
    for told, size in zip(pipe.scheduler.timesteps, sizes, strict=True):
        masks = given_masks(store, float(told), paths)
        pipe.unet.set_attn_processor(dict(recording))
        for _ in range(iterations):
            leaf = latents.clone().requires_grad_()
            with torch.enable_grad():
                pipe.unet(leaf, told, encoder_hidden_states=positive)
                mean = torch.stack([one.map[..., 2] for one in maps.values()]).mean(0)
                loss = outside(mean.unflatten(1, (8, 8)), masks)
                (gradient,) = torch.autograd.grad(loss, leaf)
            latents = latents - size * gradient
        pipe.unet.set_attn_processor(dict(plain))
        with torch.no_grad():
            both = pipe.unet(torch.cat([latents] * 2), told, torch.cat([negative, positive])).sample
        away, towards = both.chunk(2)
        latents = pipe.scheduler.step(away + 7.5 * (towards - away), told, latents).prev_sample
    return latents


def _is_coarse(path: str) -> bool:
    places = ("down_blocks.1.", "mid_block.", "up_blocks.0.")
    return path.startswith(places) and ".attentions." in path and "attn2" in path


def test_a_run_equals_one_written_out() -> None:
    pipe = build("animatediff").to(torch.float64)
    store = recorded(pipe)
    plain = video(pipe)
    flow = motion_flow(features=store, iterations=2, steps="always", scale_range=(1.0, 0.25))
    ours, report = moved(pipe, flow)
    theirs = written_out(build("animatediff").to(torch.float64), store, [200.0, 100.0], 2)
    assert [entry.evaluations for entry in report.losses] == [2, 2]
    assert (theirs - plain).abs().max() > 0.01
    assert (ours - theirs).abs().max() < 1e-3


def test_early_steps_are_the_default_and_off_changes_no_bit() -> None:
    pipe = build("animatediff")
    store, plain = recorded(pipe), video(pipe)
    before = fingerprint(pipe)
    for off in (
        MotionFlow(),
        motion_flow(),
        motion_flow((), features=store),
        motion_flow(features=store, scale_factor=0),
        motion_flow(features=store, steps="0-0"),
        motion_flow(masks=moving(), steps=attnctl.after(9)),
    ):
        ours, report = moved(pipe, off)
        assert torch.equal(ours, plain)
        assert report.losses == []
    assert differences(before, fingerprint(pipe)) == []
    assert MotionFlow(["cat"], store).steps.active_steps(50) == tuple(range(20))


def test_masks_of_everything_move_nothing() -> None:
    pipe = build("animatediff")
    ours, report = moved(pipe, motion_flow(masks=torch.ones(FRAMES, 8, 8)))
    assert torch.equal(ours, video(pipe))
    assert report.losses[0].losses == (0.0,)


@pytest.mark.parametrize("name", ["animatediff", "wan"])
@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_moves_bring_attention_into_the_masks(name: str, beta: float) -> None:
    pipe = build(name)
    once, often = (
        moved(pipe, motion_flow(masks=moving(), iterations=count, beta=beta)) for count in (1, 6)
    )
    assert often[0].isfinite().all()
    assert often[1].losses[0].losses[0] < once[1].losses[0].losses[0]
    assert not torch.equal(often[0], once[0])


@pytest.mark.parametrize("name", ["animatediff", "wan"])
def test_masks_come_from_the_recorded_words(name: str) -> None:
    pipe = build(name)
    results = [
        moved(pipe, motion_flow(features=recorded(pipe, words), **settings))[0]
        for words, settings in (
            (("dog",), {}),
            (("photo",), {}),
            (("dog", "photo"), {}),
            (("dog",), {"threshold": 0.8}),
            (("dog",), {"smoothing": False}),
        )
    ]
    for place, one in enumerate(results):
        for other in results[:place]:
            assert not torch.equal(one, other)


def test_the_recorder_keeps_the_columns_of_its_words_and_changes_nothing() -> None:
    pipe, store = build("animatediff"), FeatureStore()
    both = FeatureStore()
    plain = video(pipe, prompt=GIVEN)
    recorders = (WordRecorder(store, [3, "photo", "dog"]), AttentionRecorder(both, where="cross"))
    assert torch.equal(video(pipe, *recorders, prompt=GIVEN), plain)
    assert store.paths == both.paths
    for told in store.timesteps:
        for path in store.paths:
            query, key = (both.get(told, path, what) for what in ("query", "key"))
            probs = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
            expected = probs[..., [3, 7]].sum(-1).mean(1)  # "dog" is token 3
            assert torch.allclose(store.get(told, path, "words"), expected, atol=1e-6)


def test_words_and_their_positions_are_the_same_subject() -> None:
    pipe = build("animatediff")
    by_word = moved(pipe, motion_flow(masks=moving()))[0]
    assert torch.equal(moved(pipe, motion_flow([2], masks=moving()))[0], by_word)
    assert torch.equal(moved(pipe, motion_flow(["cat", 2], masks=moving()))[0], by_word)
    assert not torch.equal(moved(pipe, motion_flow(["cat", "frog"], masks=moving()))[0], by_word)


def test_other_masks_move_the_subject_elsewhere() -> None:
    pipe = build("animatediff")
    one = moved(pipe, motion_flow(masks=moving()))[0]
    assert torch.equal(moved(pipe, motion_flow(masks=moving().bool()))[0], one)
    assert not torch.equal(moved(pipe, motion_flow(masks=moving().flip(0)))[0], one)
    wide = moving().repeat_interleave(4, 1).repeat_interleave(4, 2)  # as large as the frames
    assert torch.equal(moved(pipe, motion_flow(masks=wide))[0], one)


def test_the_finest_layers_are_left_out_by_default_and_can_be_chosen() -> None:
    pipe = build("animatediff")
    matched: list[tuple[str, ...]] = []
    for where in ("cross", "res=16:cross", "cross,heads=0"):
        with attnctl.attach(pipe, motion_flow(masks=moving(), where=Where(where))) as session:
            generate(pipe)
            found = session.report().matched["motion-flow"]
            matched.append(tuple(path.removeprefix("unet.") for path in found))
    assert {_is_coarse(path) for path in matched[0]} == {True}
    assert {_is_coarse(path) for path in matched[1]} == {False}
    assert len(matched[2]) > len(matched[0])


def test_items_of_a_batch_are_moved_as_if_they_were_alone() -> None:
    pipe = build("animatediff").to(torch.float64)
    store = recorded(pipe)
    prompts, subjects = [PROMPT, GIVEN], [["cat"], ["dog", "photo"]]
    both, report = moved(pipe, motion_flow(subjects, features=store), prompt=prompts)
    for place, prompt in enumerate(prompts):
        flow = motion_flow(subjects[place], features=store)
        alone = moved(pipe, flow, prompt=prompt, seed=place)[0]
        assert (both[place] - alone[0]).abs().max() < 1e-3
    assert len(report.losses[0].losses) == 2
    half = moved(pipe, motion_flow([["cat"], []], features=store), prompt=prompts)[0]
    assert torch.allclose(half[1], video(pipe, prompt=prompts)[1], atol=1e-5)


def test_an_inversion_of_a_clip_gives_the_features() -> None:
    from attnctl.inversion import invert

    pipe, store = build("animatediff"), FeatureStore()
    clean = video(pipe, prompt=GIVEN, seed=5)
    recorder = WordRecorder(store, "dog")
    options = {"num_frames": FRAMES}
    inversion = invert(pipe, clean, GIVEN, steps=2, techniques=[recorder], options=options)
    ours, report = moved(pipe, motion_flow(features=store), latents=inversion.noise)
    assert not torch.equal(ours, video(pipe, latents=inversion.noise))
    assert 0 < report.losses[0].losses[0] < 1


def test_it_goes_with_a_band_and_with_added_rows() -> None:
    pipe = build("animatediff")
    store = recorded(pipe)
    band, added = VSTAR(steps="always"), SoftPAG(scale=2.0, where="mid:self")
    flow = motion_flow(features=store)
    results = [
        moved(pipe, *techniques)[0]
        for techniques in ((flow,), (band,), (flow, band), (flow, band, added))
    ]
    for place, one in enumerate(results):
        assert one.isfinite().all()
        for other in results[:place]:
            assert not torch.allclose(one, other, atol=1e-4)


def test_another_optimiser_is_refused_and_another_loss_adds_up() -> None:
    pipe = build("animatediff")
    flow = motion_flow(masks=moving())
    with pytest.raises(ConflictError, match=r"both move the latents"):
        video(pipe, flow, attnctl.Vico(["cat", "frog"]))
    both, alone = video(pipe, flow, Climb()), video(pipe, flow)
    assert not torch.equal(both, alone)


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", motion_flow(masks=moving()), UnsupportedModelError, "a model of clips"),
        ("animatediff", motion_flow(masks=moving(2)), SettingError, "has 2 frames.*have 3"),
        (
            "animatediff",
            motion_flow(masks=moving(), where="temporal"),
            UnsupportedModelError,
            "temporal attention",
        ),
        ("animatediff", motion_flow(["whale"], masks=moving()), WordNotFoundError, "'whale'"),
        ("animatediff", motion_flow([99], masks=moving()), SettingError, "no token 99"),
        ("animatediff", motion_flow(features=FeatureStore()), FeatureError, "empty"),
        ("animatediff", motion_flow([["cat"]] * 2, masks=moving()), SettingError, "has 2 lists"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, technique: MotionFlow, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        (clip if name == "sd1" else video)(build(name), technique)


def test_features_of_another_run_are_refused() -> None:
    pipe = build("animatediff")
    store = recorded(pipe)
    with pytest.raises(FeatureError, match="does not fit this one"):
        video(pipe, motion_flow(features=store), num_frames=2)
    with pytest.raises(FeatureError, match="at timestep"):
        video(pipe, motion_flow(features=store), steps=3)
    partial = FeatureStore()
    video(pipe, WordRecorder(partial, "cat", where=Where("cross,level=0")))
    with pytest.raises(FeatureError, match="motion-flow: the features lack"):
        video(pipe, motion_flow(features=partial))
    with pytest.raises(WordNotFoundError, match=r"word-recorder: words.*whale"):
        video(pipe, WordRecorder(FeatureStore(), "whale"))


@pytest.mark.parametrize("words", [(), ("",), (True,), (1.5,)])
def test_a_recorder_of_no_words_is_refused(words: Any) -> None:
    with pytest.raises(SettingError, match="word-recorder: "):
        WordRecorder(FeatureStore(), words)


@pytest.mark.parametrize(
    "settings",
    [
        {"subjects": [""]},
        {"subjects": [True]},
        {"masks": torch.zeros(8, 8)},
        {"masks": 2 * torch.ones(3, 8, 8)},
        {"masks": [1.0]},
        {"threshold": 1.5},
        {"scale_factor": -1},
        {"scale_range": (1.0,)},
        {"iterations": 0},
        {"iterations": 1.5},
        {"beta": -1},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="motion-flow: "):
        MotionFlow(**settings)
