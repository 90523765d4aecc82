"""Vico on AnimateDiff: against a loop of its own, where it stops, company, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import VSTAR, AttentionCall, SoftPAG, Technique, Vico, Where
from attnctl.bench.effect.motion import ENTRIES
from attnctl.errors import (
    ConflictError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.report import Report
from attnctl.shapes.captions import prompts
from tests.core.samples import Climb
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate
from tests.support.projections import projected
from tests.techniques.clip_runs import clip, video

FRAMES = 3
TWO = ["a cat and a frog", "a red dog on the blue photo"]


def vico(subjects: Any = ("cat", "frog"), **settings: Any) -> Vico:
    """One move at each of the first steps, large enough to show."""
    given = {"init_step": 0.05, "thresholds": {}, "threshold": 0.0}
    return Vico(subjects, **{**given, **settings})


def moved(pipe: Any, *techniques: Technique, **options: Any) -> tuple[Tensor, Report]:
    with attnctl.attach(pipe, techniques) as session:
        return generate(pipe, **options), session.report()


class Recorded:
    """Attention written out, which keeps its map."""

    def __init__(self) -> None:
        self.map = torch.zeros(0)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        probs = (query @ key.mT * attn.scale).softmax(-1)
        self.map = probs.mean(1)
        return attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))


def soft_path(left: Tensor, right: Tensor) -> Tensor:
    """The soft product, written as in the method's description."""
    g = 0.01
    narrow = [
        -g
        * torch.log(torch.exp(-left[..., :, k, None] / g) + torch.exp(-right[..., None, k, :] / g))
        for k in range(right.shape[-2])
    ]
    return g * torch.log(sum(torch.exp(one / g) for one in narrow))


def flow_of(maps: dict[str, Recorded], where: str) -> Tensor:
    """Influence ``(F, 8, 8, T)`` at one place of the coarse level."""
    block, number = where.split("/")
    cross = maps[f"{block}.attentions.{number}.transformer_blocks.0.attn2.processor"].map
    behind = f"{block}.motion_modules.{number}.transformer_blocks.0"
    first, second = (
        (maps[f"{behind}.attn{k}.processor"].map + torch.eye(FRAMES)) / 2 for k in (1, 2)
    )
    reached = soft_path(soft_path(second, first), cross.transpose(0, 1))
    return reached.transpose(0, 1).unflatten(1, (8, 8))


def weakest(flow: Tensor, subjects: list[int], end: int) -> Tensor:
    sharp = (100 * flow[..., 1:end]).softmax(-1)
    line = torch.tensor([math.exp(-1), 1, math.exp(-1)], dtype=flow.dtype)
    line = line / line.sum()
    losses = []
    for subject in subjects:
        blurred = sharp[..., subject - 1]
        for axis in range(3):
            size = blurred.shape[axis]
            before = torch.tensor([1, *range(size - 1)])
            after = torch.tensor([*range(1, size), size - 2])
            near = blurred.index_select(axis, before) + blurred.index_select(axis, after)
            blurred = line[1] * blurred + line[0] * near
        losses.append(1 - blurred.max())
    return torch.stack(losses).max()


def written_out(pipe: Any, steps: int, plan: list[int], init_step: float) -> Tensor:
    """The whole run by hand: gradients, Adam, guidance, scheduler."""
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    positive, negative = (e.repeat_interleave(FRAMES, 0) for e in (positive, negative))
    maps = {
        path: Recorded()
        for path in pipe.unet.attn_processors
        if "motion_modules" in path or "attn2" in path
    }
    recording = {k: maps.get(k, p) for k, p in pipe.unet.attn_processors.items()}
    plain = dict(pipe.unet.attn_processors)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, FRAMES, 16, 16, generator=generator, dtype=positive.dtype)
    pipe.scheduler.set_timesteps(steps)
    places = ["down_blocks.1/0", "mid_block/0", "up_blocks.0/0", "up_blocks.0/1"]
    for index, timestep in enumerate(pipe.scheduler.timesteps):
        leaf = latents.clone().requires_grad_()
        size = init_step * math.sqrt(1 - 0.5 * index / (steps - 1))
        optimiser = torch.optim.Adam([leaf], lr=size, eps=1e-7)
        pipe.unet.set_attn_processor(dict(recording))
        for _ in range(plan[index]):
            optimiser.zero_grad()
            with torch.enable_grad():
                pipe.unet(leaf, timestep, encoder_hidden_states=positive)
                flow = torch.stack([flow_of(maps, place) for place in places]).mean(0)
                weakest(flow, [2, 5], 6).backward()
            optimiser.step()
        latents = leaf.detach()
        pipe.unet.set_attn_processor(dict(plain))
        with torch.no_grad():
            both = pipe.unet(
                torch.cat([latents] * 2), timestep, torch.cat([negative, positive])
            ).sample
        away, towards = both.chunk(2)
        noise = away + 7.5 * (towards - away)
        latents = pipe.scheduler.step(noise, timestep, latents).prev_sample
    return latents


def test_a_run_equals_one_written_out() -> None:
    pipe = build("animatediff").to(torch.float64)
    plain = video(pipe, steps=3, num_frames=FRAMES)
    ours, report = moved(pipe, vico(thresholds={0: 0.0}, max_iterations=3), steps=3)
    theirs = written_out(build("animatediff").to(torch.float64), 3, [3, 1, 0], 0.05)
    assert [entry.evaluations for entry in report.losses] == [3, 1]
    assert (theirs - plain).abs().max() > 0.01
    assert (ours - theirs).abs().max() < 1e-3


def test_the_first_half_is_the_default_and_off_changes_no_bit() -> None:
    pipe = build("animatediff")
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *call: calls.append(1))
    plain, before = video(pipe, steps=3), fingerprint(pipe)
    count = len(calls)
    for off in (
        Vico(),
        vico(["cat"]),
        vico(init_step=0),
        vico(steps="0-0"),
        vico(steps=attnctl.after(9)),
    ):
        ours, report = moved(pipe, off, steps=3)
        assert torch.equal(ours, plain)
        assert report.losses == []
    assert len(calls) == 6 * count
    assert differences(before, fingerprint(pipe)) == []
    assert Vico(["cat", "dog"]).steps.active_steps(50) == tuple(range(25))


def test_nothing_moves_below_the_threshold_and_moves_are_counted() -> None:
    pipe = build("animatediff")
    plain = video(pipe, steps=4)
    reached = vico(thresholds={0: 1.0}, threshold=1.0)
    ours, report = moved(pipe, reached, steps=4)
    assert torch.equal(ours, plain)
    assert [(e.step, e.evaluations) for e in report.losses] == [(0, 1), (1, 1)]
    _, report = moved(pipe, vico(thresholds={"25%": 0.0}, max_iterations=3), steps=4)
    assert [(e.step, e.evaluations) for e in report.losses] == [(0, 1), (1, 3)]
    assert all(0 <= value <= 1 for entry in report.losses for value in entry.losses)


@pytest.mark.parametrize("flow", ["soft", "hard", "rollout"])
def test_moves_lower_the_loss_of_the_weakest_subject(flow: str) -> None:
    pipe = build("animatediff")
    _, once = moved(pipe, vico(flow=flow), steps=2)
    _, often = moved(pipe, vico(flow=flow, thresholds={0: 0.0}, max_iterations=5), steps=2)
    assert often.losses[0].losses[0] < once.losses[0].losses[0]


def test_only_the_conditional_rows_run_and_only_to_the_last_map() -> None:
    pipe = build("animatediff")
    ran: list[tuple[str, int]] = []
    for name in ("conv_in", "conv_out"):
        getattr(pipe.unet, name).register_forward_hook(
            lambda _, given, out, name=name: ran.append((name, len(out)))
        )
    moved(pipe, vico(), steps=2)
    ours = [("conv_in", FRAMES)]
    pipelines = [("conv_in", 2 * FRAMES), ("conv_out", 2 * FRAMES)]
    assert ran == ours + 2 * pipelines


def test_the_places_are_pairs_at_the_grid_that_is_asked_for() -> None:
    pipe = build("animatediff")
    with attnctl.attach(pipe, vico()) as session:
        generate(pipe, steps=2)
        coarse = session.report().matched["vico"]
    assert any("attentions" in path for path in coarse)
    for path in coarse:
        assert "attn1" not in path or "motion_modules" in path
        place = path.replace("motion_modules", "attentions").split(".transformer_blocks")[0]
        assert f"{place}.transformer_blocks.0.attn2" in coarse
    with attnctl.attach(pipe, vico(resolution=16)) as session:
        generate(pipe, steps=2)
        fine = session.report().matched["vico"]
    assert fine
    assert not set(fine) & set(coarse)


def test_items_of_a_batch_are_moved_as_if_they_were_alone() -> None:
    pipe = build("animatediff").to(torch.float64)
    subjects = [["cat", "frog"], ["dog", "photo", "red"]]
    twice = {"thresholds": {0: 0.0}, "max_iterations": 2}
    both, report = moved(pipe, vico(subjects, **twice), prompt=TWO, steps=2)
    for place, prompt in enumerate(TWO):
        alone, _ = moved(pipe, vico(subjects[place], **twice), prompt=prompt, steps=2, seed=place)
        assert (both[place] - alone[0]).abs().max() < 1e-3
    assert len(report.losses[0].losses) == 2
    mixed, _ = moved(pipe, vico([["cat", "frog"], ["dog"]]), prompt=TWO, steps=2)
    assert torch.allclose(mixed[1], video(pipe, prompt=TWO, steps=2)[1], atol=1e-5)


def test_checkpointing_changes_nothing_but_memory() -> None:
    pipe = build("animatediff")
    usual, _ = moved(pipe, vico(), steps=2)
    pipe.unet.enable_gradient_checkpointing()
    assert torch.allclose(moved(pipe, vico(), steps=2)[0], usual, atol=1e-3)


def test_words_and_their_positions_are_the_same_subjects() -> None:
    pipe = build("animatediff")
    assert torch.equal(moved(pipe, vico())[0], moved(pipe, vico([2, 5]))[0])
    assert not torch.equal(moved(pipe, vico())[0], moved(pipe, vico(["cat", "and"]))[0])


def test_it_sees_the_temporal_maps_that_others_edited() -> None:
    class Alone(Technique):
        """Every frame looks at itself."""

        name = "alone"

        def edit_probs(self, call: AttentionCall, probs: Tensor) -> Tensor:
            return torch.eye(probs.shape[-1]).expand_as(probs)

    pipe = build("animatediff")
    where = Where("temporal")
    _, own = moved(pipe, vico(flow="hard"), Alone(where=where), steps=2)
    _, rollout = moved(pipe, vico(flow="rollout"), Alone(where=where), steps=2)
    assert own.losses[0].losses == pytest.approx(rollout.losses[0].losses, abs=1e-5)  # A = C
    _, other = moved(pipe, vico(flow="hard"), steps=2)
    assert own.losses[0].losses != other.losses[0].losses


def test_it_goes_with_a_band_and_with_added_rows() -> None:
    pipe = build("animatediff")
    band, added = VSTAR(steps="always"), SoftPAG(scale=2.0, where="mid:self")
    results = [
        moved(pipe, *techniques, steps=2)[0]
        for techniques in ((vico(),), (band,), (vico(), band), (vico(), band, added))
    ]
    for place, one in enumerate(results):
        assert one.isfinite().all()
        for other in results[:place]:
            assert not torch.allclose(one, other, atol=1e-4)
    both = moved(pipe, band, vico(), steps=2)[0]
    assert torch.allclose(both, results[2], atol=1e-4)


def test_another_technique_that_moves_latents_is_refused_at_its_steps() -> None:
    pipe = build("animatediff")
    with pytest.raises(ConflictError, match=r"'vico'.*both move the latents"):
        video(pipe, vico(), Climb())
    assert video(pipe, vico(steps="0-1"), Climb(steps="1-2")).isfinite().all()


def test_the_benchmark_of_clips_names_the_subjects_of_each_prompt() -> None:
    [entry] = [entry for entry in ENTRIES if entry.technique == "vico"]
    [prompt] = prompts("smoke", 2, 1)
    [listed] = entry.condition.entries([prompt])
    assert listed == {"vico": {"subjects": [[one.shape for one in prompt.objects]]}}
    assert Vico(**listed["vico"]).strength_at(0, 25) == 1


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", vico(), UnsupportedModelError, "motion modules.*AnimateDiff"),
        ("cogvideox", vico(), UnsupportedModelError, "motion modules.*AnimateDiff"),
        ("animatediff", vico(where="cross"), NoSiteError, r"such as 'cross\|temporal'"),
        ("animatediff", vico(where="mid:cross|down:temporal"), NoSiteError, "behind it"),
        ("animatediff", vico(resolution=7), NoSiteError, "16x16"),
        ("animatediff", vico(["cat", "whale"]), WordNotFoundError, "'whale'.*frog"),
        ("animatediff", vico([["cat", "frog"]] * 2), SettingError, "vico: subjects has 2 lists"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, technique: Vico, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        (clip if name == "sd1" else video)(build(name), technique)


@pytest.mark.parametrize(
    "settings",
    [
        {"subjects": [""]},
        {"subjects": [True]},
        {"init_step": -1},
        {"scale_range": (1.0,)},
        {"thresholds": {0: 2.0}},
        {"threshold": 1.5},
        {"max_iterations": 0},
        {"flow": "st_soft"},
        {"temperature": 0},
        {"resolution": 0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="vico: "):
        Vico(**settings)
