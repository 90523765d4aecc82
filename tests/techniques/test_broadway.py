"""BroadWay on AnimateDiff: against attention written out, rows, blocks, and what it refuses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter
from torch import Tensor

import attnctl
from attnctl import VSTAR, AttentionCall, BroadWay, SoftPAG
from attnctl.calls import Layout, Pass, Row, RunStart, Step
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.sites import Site
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build
from tests.support.pipelines.unets import DEEP, components
from tests.support.projections import projected
from tests.techniques.clip_runs import Keep, clip, video

ALWAYS = {"steps": "always"}
UP = re.compile(r"up_blocks\.(\d)\.(motion_modules.*)\.processor")


def deep(heads: tuple[int, int, int] = (2, 2, 2)) -> AnimateDiffPipeline:
    """Up blocks of 4 x 4, 8 x 8 and 16 x 16 positions, with maps that are not flat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        motion = MotionAdapter(
            block_out_channels=DEEP["block_out_channels"],
            motion_layers_per_block=1,
            motion_num_attention_heads=heads,
            motion_norm_num_groups=8,
            motion_max_seq_length=8,
        )
        for name, weight in motion.named_parameters():
            if name.endswith("proj_out.weight"):
                weight.data.normal_(std=0.1)  # zero by design: untrained, it would do nothing
            if name.endswith(("to_q.weight", "to_k.weight")):
                weight.data *= 3
        parts = components(**DEEP)
        del parts["safety_checker"]
        pipe = AnimateDiffPipeline(motion_adapter=motion, **parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return pipe


@dataclass
class WrittenOut:
    """Temporal self-attention with the authors' edits, for one clip with guidance."""

    site: tuple[int, str]
    maps: dict[str, Tensor]
    settings: BroadWay

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = projected(attn, hidden_states)
        probs = (query @ key.mT * attn.scale).softmax(-1)
        out = self.edited(probs) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def edited(self, probs: Tensor) -> Tensor:
        block, layer = self.site
        if block == 1:
            self.maps[layer] = probs
        coarse = self.maps[layer].unflatten(0, (2, -1))
        old, new = math.isqrt(coarse.shape[1]), math.isqrt(len(probs) // 2)
        coarse = coarse.unflatten(1, (old, old))
        coarse = coarse.repeat_interleave(new // old, 1).repeat_interleave(new // old, 2)
        coarse = coarse.flatten(0, 2)
        if coarse.shape[1] != probs.shape[1]:
            coarse = coarse.mean(1, keepdim=True)
        pulled = probs + self.settings.alpha * (coarse - probs)

        frames = probs.shape[-1]
        tau = frames // 2 - 1 if self.settings.tau is None else self.settings.tau
        ends = (frames // 2 - tau, frames - frames // 2 + tau)
        high = torch.tensor([ends[0] <= k <= ends[1] for k in range(frames)])
        spectrum = torch.fft.fft(pulled)
        cond = spectrum.chunk(2)[1].abs() ** 2 / frames
        one = (probs.chunk(2)[1] ** 2).sum(-1).mean()
        ratio = (one - cond[..., ~high].sum(-1).mean()) / cond[..., high].sum(-1).mean()
        factor = max(self.settings.beta, math.sqrt(max(float(ratio), 0)))
        made = torch.fft.ifft(torch.where(high, factor * spectrum, spectrum)).real
        return made / made.sum(-1, keepdim=True)


def written_out(pipe: AnimateDiffPipeline, settings: BroadWay, **changes: Any) -> Tensor:
    own, maps = dict(pipe.unet.attn_processors), {}
    ours = {}
    for path, processor in own.items():
        found = UP.fullmatch(path)
        is_edited = found is not None and int(found[1]) > 0
        place = (int(found[1]), found[2]) if found else (0, "")
        ours[path] = WrittenOut(place, maps, settings) if is_edited else processor
    pipe.unet.set_attn_processor(ours)
    made = video(pipe, **changes)
    pipe.unet.set_attn_processor(own)
    return made


@pytest.mark.parametrize(
    ("settings", "frames", "heads"),
    [
        ({}, 4, (2, 2, 2)),
        ({"alpha": 1.0, "beta": 0.0}, 6, (2, 2, 2)),
        ({"tau": 1, "alpha": 0.3, "beta": 3.0}, 8, (2, 2, 2)),
        ({"beta": 0.0}, 5, (4, 2, 2)),
    ],
)
def test_it_equals_attention_written_out(
    settings: dict[str, Any], frames: int, heads: tuple[int, int, int]
) -> None:
    pipe = deep(heads)
    plain = video(pipe, num_frames=frames)
    ours = video(pipe, BroadWay(**settings, **ALWAYS), num_frames=frames)
    theirs = written_out(pipe, BroadWay(**settings), num_frames=frames)
    assert (theirs - plain).abs().max() > 0.01
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_it_acts_in_up_blocks_behind_the_first_and_in_its_window() -> None:
    pipe = deep()
    plain, before = video(pipe, steps=10), fingerprint(pipe)
    with attnctl.attach(pipe, BroadWay()) as session:
        assert not torch.equal(video(pipe, steps=10), plain)
        report = session.report()
    assert report.active_steps("broadway") == (0, 1)  # the first fifth
    assert {path.split(".")[2] for path in report.matched["broadway"]} == {"1", "2"}
    assert all(path.startswith("unet.up_blocks") for path in report.matched["broadway"])
    assert len(report.matched["broadway"]) == 2 * 2 * 2
    assert differences(before, fingerprint(pipe)) == []


def test_off_changes_no_bit() -> None:
    pipe = deep()
    plain = video(pipe)
    for off in (
        BroadWay(alpha=0, beta=1, **ALWAYS),
        BroadWay(alpha=0, beta=0, **ALWAYS),
        BroadWay(steps="0-0"),
        BroadWay(steps=attnctl.after(9)),
    ):
        assert torch.equal(video(pipe, off), plain)


def outputs(*techniques: Any, block: int, **changes: Any) -> list[Tensor]:
    """Outputs of the temporal sites of an up block in the first step."""
    kept = Keep(where=f"temporal,path=up_blocks.{block}.*")
    video(deep(), *techniques, kept, steps=1, num_frames=4, **changes)
    return [out for _, out in kept.calls]


def test_in_the_coarsest_block_alpha_changes_nothing() -> None:
    low, high = (outputs(BroadWay(alpha=alpha), block=1) for alpha in (0.1, 0.9))
    plain = outputs(block=1)
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))
    assert not torch.allclose(low[0], plain[0], atol=1e-3)
    finer = [outputs(BroadWay(alpha=alpha), block=2)[0] for alpha in (0.1, 0.9)]
    assert not torch.allclose(*finer, atol=1e-4)


def test_the_coarsest_block_that_is_selected_is_the_one_that_guides() -> None:
    where = "temporal,path=up_blocks.2.*"
    low, high = (outputs(BroadWay(alpha=alpha, where=where), block=2) for alpha in (0.1, 0.9))
    assert all(torch.equal(a, b) for a, b in zip(low, high, strict=True))


def test_equal_branches_stay_equal() -> None:
    for out in outputs(BroadWay(), block=2, prompt="a cat", negative_prompt="a cat"):
        halves = out.chunk(2)
        assert torch.allclose(*halves, atol=1e-5)


def test_single_heads_are_edited_alone() -> None:
    where = "temporal,path=up_blocks.1.motion_modules.0*.attn1"
    plain, edited = outputs(block=1)[0], outputs(BroadWay(where=f"{where},heads=1"), block=1)[0]
    whole = outputs(BroadWay(where=where), block=1)[0]
    assert torch.allclose(edited[:, 0], plain[:, 0], atol=1e-5)
    assert torch.allclose(edited[:, 1], whole[:, 1], atol=1e-6)
    assert not torch.allclose(edited[:, 1], plain[:, 1], atol=1e-3)


def test_a_ramp_weakens_the_edit() -> None:
    where = "temporal,path=up_blocks.1.motion_modules.0*.attn1"
    plain, whole = outputs(block=1)[0], outputs(BroadWay(where=where), block=1)[0]
    half = outputs(BroadWay(where=where, steps="0-100% ramp 0.5..0.5"), block=1)[0]
    assert torch.allclose(half, (plain + whole) / 2, atol=1e-5)


def test_each_clip_of_a_batch_is_made_as_if_it_were_alone() -> None:
    pipe, technique = deep(), BroadWay(beta=0.0, **ALWAYS)
    both = video(pipe, technique, prompt=["a cat", "a red dog"])
    alone = video(pipe, technique, prompt=["a cat"])
    assert torch.allclose(both[:1], alone, atol=1e-4)


@pytest.mark.parametrize("where", ["mid:self", "level=0,up:self"])
def test_rows_that_others_add_are_edited_like_those_that_they_shadow(where: str) -> None:
    pipe, edit = deep(), BroadWay(**ALWAYS)
    weak = SoftPAG(scale=1e-9, where=where)
    assert torch.allclose(video(pipe, edit, weak), video(pipe, edit), atol=1e-4)
    kept = Keep(where="temporal,path=up_blocks.2.motion_modules.0*.attn1")
    video(pipe, edit, SoftPAG(strength=1e-9, where=where), kept, steps=1)
    [(call, out)] = kept.calls
    assert [row.kind for row in call.rows].count("main") == 2 == len(call.rows) - 1
    _, cond, added = out.chunk(3)
    assert torch.allclose(cond, added, atol=1e-4)


def test_it_takes_the_map_that_vstar_leaves() -> None:
    where = "temporal,path=up_blocks.1.motion_modules.0*.attn1"
    band = VSTAR((2.0, 2.0, 2.0), where=where, **ALWAYS)
    kept = Keep(where=where)
    video(deep(), BroadWay(beta=2.0, where=where, **ALWAYS), band, kept, steps=1, num_frames=4)
    [(call, out)] = kept.calls
    scores = call.query @ call.key.mT * call.scale
    frames = torch.arange(4)
    shape = torch.exp(-((frames[:, None] - frames) ** 2) / 8)
    probs = (scores + scores.amax(-1, keepdim=True) * shape).softmax(-1)
    assert torch.allclose(out, (1 / 4 + 2 * (probs - 1 / 4)) @ call.value, atol=1e-4)


FIRST, SECOND = (f"up_blocks.{k}.motion_modules.0.transformer_blocks.0.attn1" for k in (1, 2))
SITES = tuple(
    Site("unet", path, "temporal", "up", index=k) for k, path in enumerate((FIRST, SECOND))
)


class Calls:
    """A run of one site a block and one position, whose maps are given."""

    def __init__(self, technique: BroadWay) -> None:
        nothing = lambda _: None  # noqa: E731
        run = RunStart(1, 1, SITES, {}, None, nothing, nothing, lambda: None)
        self.technique, self.state = technique, technique.begin(run)

    def forward(self, iteration: int, branch: str, coarse: Tensor, fine: Tensor) -> Tensor:
        pass_ = Pass("main", 0, (Row(branch, 0),))
        for site, probs in zip(SITES, (coarse, fine), strict=True):
            grid = Layout((8, 1, 1), slice(0, 8), None, "positions", is_video=True)
            token = torch.zeros(1, 1, 8, 1)
            step = Step(iteration, None, iteration=iteration)
            call = AttentionCall(site, grid, step, pass_, token, token, token, None, 1.0)
            call.state = self.state
            edited = self.technique.edit_probs(call, probs)
        return edited


def map_of(sharpness: float) -> Tensor:
    return (sharpness * torch.randn(1, 1, 8, 8)).softmax(-1)


def factor_of(edited: Tensor, coarse: Tensor, fine: Tensor) -> float:
    """Factor on all but the constant part, from norms."""
    pulled = (coarse + fine) / 2
    return float((edited - 1 / 8).norm() / (pulled - 1 / 8).norm())


def restoring(coarse: Tensor, fine: Tensor) -> float:
    """Factor that gives the finer map its energy back."""
    return float((fine - 1 / 8).norm() / ((coarse + fine) / 2 - 1 / 8).norm())


def test_an_unconditional_call_takes_over_the_factor_of_the_conditional_one_before_it() -> None:
    maps = [(map_of(1.0), map_of(2.0)), (map_of(0.5), map_of(4.0)), (map_of(2.0), map_of(3.0))]
    own = [restoring(*pair) for pair in maps]
    assert min(abs(a - b) for a in own for b in own if a is not b) > 0.02
    calls = Calls(BroadWay(alpha=0.5, beta=0.0))
    factors = [
        factor_of(calls.forward(iteration, branch, *pair), *pair)
        for iteration, branch, pair in [
            (0, "cond", maps[0]),
            (0, "uncond", maps[1]),  # takes over
            (1, "uncond", maps[1]),  # comes first: its own
            (1, "cond", maps[2]),
            (1, "uncond", maps[0]),  # takes over
        ]
    ]
    assert factors == pytest.approx([own[0], own[0], own[1], own[2], own[2]], rel=1e-4)


def test_maps_of_an_earlier_forward_are_never_used() -> None:
    pipe, ran = deep(), []
    modules = list(pipe.unet.up_blocks[1].motion_modules)
    inner = modules[0].forward

    def skips_later(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ran.append(1)
        return inner(hidden_states, *args, **kwargs) if len(ran) == 1 else hidden_states

    modules[0].forward = MethodType(skips_later, modules[0])
    with pytest.raises(UnsupportedModelError, match=r"without up_blocks\.1\.motion_modules\.0"):
        video(pipe, BroadWay(**ALWAYS))
    assert len(ran) == 2
    video(pipe, BroadWay(alpha=0, **ALWAYS))


@pytest.mark.parametrize(
    ("name", "technique", "error", "message"),
    [
        ("sd1", BroadWay(), NoSiteError, "temporal.*matches no attention site"),
        ("cogvideox", BroadWay(), NoSiteError, "temporal.*matches no attention site"),
        ("animatediff", BroadWay(where="self"), UnsupportedModelError, "self attention"),
        ("animatediff", BroadWay(where="temporal,down"), NoSiteError, "behind the first"),
        ("animatediff", BroadWay(tau=1), SettingError, "tau=1 does not fit a clip of 3 frames"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, technique: BroadWay, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        (clip if name == "sd1" else video)(build(name), technique)


def test_a_layer_without_the_one_that_guides_it_is_refused() -> None:
    where = "path=up_blocks.1.motion_modules.0*|path=up_blocks.2.motion_modules.1*"
    with pytest.raises(NoSiteError, match="select whole blocks"):
        video(deep(), BroadWay(where=where))
    video(deep(), BroadWay(alpha=0, where=where), steps=1)


def test_windows_of_frames_are_refused() -> None:
    pipe = deep()
    pipe.enable_free_noise(context_length=4, context_stride=2)
    with pytest.raises(UnsupportedModelError, match="not from all 6 frames"):
        video(pipe, BroadWay(), num_frames=6)


@pytest.mark.parametrize(
    "settings",
    [
        {"tau": -1},
        {"tau": 1.5},
        {"tau": True},
        {"alpha": 1.1},
        {"alpha": -0.1},
        {"beta": -1},
        {"beta": float("nan")},
        {"beta": float("inf")},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        BroadWay(**settings)
