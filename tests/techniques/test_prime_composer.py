"""PrimeComposer and RegionWords on tiny models, beside a run by hand in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import (
    AttentionCall,
    HeatMaps,
    MasaCtrl,
    Needs,
    PrimeComposer,
    RegionWords,
    SoftPAG,
    Technique,
    TokenMerging,
)
from attnctl.calls import AddedRow, PredictionCall
from attnctl.editing.trajectories import Trajectory
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    FeatureError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.inversion import sampler_of
from attnctl.ops.composition import paired_tokens
from attnctl.techniques.keep_outside import KeepOutside
from attnctl.techniques.keep_scene import KeepScene
from tests.core.samples import Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate
from tests.techniques.composer_reference import Plan, composed, install

STEPS = 5
SHIFT = (4, -4)
SCALE = 3.0
CAT = [2]  # "a cat and a frog" behind BOS


@cache
def pipe_of(name: str) -> Any:
    pipe: Any = build(name)
    pipe.scheduler = sampler_of(pipe)
    return pipe


def cells() -> Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:10, 6:13] = True
    mask[3, 6] = False
    return mask


def box() -> Tensor:
    free = torch.zeros(16, 16, dtype=torch.bool)
    free[6:15, 1:10] = True
    return free


@cache
def trajectory(seed: int, name: str = "sd1", steps: int = STEPS) -> Trajectory:
    sampler = sampler_of(pipe_of(name))
    sampler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(1, 4, 16, 16, generator=generator) for _ in range(steps + 1)]
    return Trajectory([float(t) for t in sampler.timesteps], latents)


def composer(**changes: Any) -> PrimeComposer:
    given = {"background": trajectory(1), "subject": trajectory(2), "mask": cells(), "shift": SHIFT}
    return PrimeComposer(**{**given, "steps": attnctl.until(3), **changes})


def keeper(**changes: Any) -> KeepScene:
    pair = paired_tokens(cells(), SHIFT)
    given = {"paste_until": 1, "steps": attnctl.until(4), **changes}
    return KeepScene(trajectory(1), trajectory(2), box(), pair, **given)


def confined(**changes: Any) -> RegionWords:
    region = torch.roll(cells(), SHIFT, (0, 1))
    return RegionWords(**{"words": CAT, "region": region, **changes})


def run(*techniques: Any, name: str = "sd1", **changes: Any) -> Tensor:
    arguments = {"prompt": PROMPT, "steps": STEPS, "guidance_scale": SCALE, **changes}
    if not techniques:
        return generate(pipe_of(name), **arguments)
    with attnctl.attach(pipe_of(name), techniques):
        return generate(pipe_of(name), **arguments)


def behind_each_step(*techniques: Any, **changes: Any) -> list[Tensor]:
    kept: list[Tensor] = []

    def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.append(values["latents"].clone())
        return values

    run(*techniques, callback_on_step_end=keep, **changes)
    return kept


def by_hand(until: tuple[int, int, int], words: list[int], mask: Tensor) -> list[Tensor]:
    pipe: Any = build("sd1")
    pipe.scheduler = sampler_of(pipe)
    texts = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    plan = Plan(mask, SHIFT, words)
    install(pipe.unet, plan)
    pipe.scheduler.set_timesteps(STEPS)
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    levels = (trajectory(1).latents, trajectory(2).latents)
    made = composed(pipe, plan, start, levels, texts, until, box(), SCALE)
    assert plan.largest_error < 1e-12
    return made


@pytest.mark.parametrize(
    ("until", "words"),
    [((3, 1, 4), CAT), ((3, 0, 0), []), ((0, 1, 4), []), ((0, 0, 0), CAT), ((5, 2, 2), CAT)],
    ids=["usual", "infusion alone", "scene alone", "words alone", "all steps"],
)
def test_whole_runs_equal_those_by_hand(until: tuple[int, int, int], words: list[int]) -> None:
    infuse, paste, blend = until
    made = behind_each_step(
        composer(steps=attnctl.until(infuse)),
        keeper(paste_until=paste, steps=attnctl.until(blend)),
        confined(words=words),
    )
    truth = by_hand(until, words, cells())
    plain = behind_each_step()
    assert float((truth[-1] - plain[-1]).abs().max()) > 1e-2
    for ours, theirs in zip(made, truth, strict=True):
        assert float((ours - theirs).abs().max()) < 3e-5 * max(1.0, float(theirs.abs().max()))


def test_outside_the_box_latents_are_the_scenes_until_the_limit() -> None:
    made = behind_each_step(composer(), keeper(), confined())
    for index, latents in enumerate(made):
        scene = trajectory(1).latents[index + 1]
        assert torch.equal(latents[..., ~box()], scene[..., ~box()]) == (index < 4)
        assert not torch.equal(latents[..., box()], scene[..., box()])
    own, to = paired_tokens(cells(), SHIFT)
    first, canvas = made[0].flatten(2), trajectory(2).latents[1].flatten(2)
    assert torch.equal(first[..., to], canvas[..., own])


OFF = {
    "no scene": composer(background=None),
    "no canvas": composer(subject=None),
    "no mask": composer(mask=None),
    "empty mask": composer(mask=torch.zeros(16, 16, dtype=torch.bool)),
    "no steps": composer(steps="0-0"),
    "strength 0": composer(steps=attnctl.ramp(0.0, 0.0)),
    "no scene written": keeper(paste_until=0, steps="0-0"),
    "no words": confined(words=()),
    "no region": confined(region=None),
    "words at no step": confined(steps="0-0"),
}


@pytest.mark.parametrize("name", OFF)
def test_off_changes_no_bit(name: str) -> None:
    assert torch.equal(run(OFF[name]), run())


def test_coarse_layers_that_see_no_token_of_the_object_are_left_alone() -> None:
    small = torch.zeros(16, 16, dtype=torch.bool)
    small[5:8, 9:12:2] = True  # no fourth, and every second cell
    made = behind_each_step(composer(mask=small))
    truth = by_hand((3, 0, 0), [], small)
    assert float((made[-1] - truth[-1]).abs().max()) < 3e-5 * float(truth[-1].abs().max())


def test_rows_are_added_at_its_steps_alone_and_no_other_technique_sees_them() -> None:
    watch = Watch(seen=[])
    pag = SoftPAG(where="mid:self", steps="0-2")
    with attnctl.attach(pipe_of("sd1"), [composer(), pag, watch]) as session:
        generate(pipe_of("sd1"), PROMPT, STEPS)
    kinds = {
        call.step.index: [(r.branch, r.kind) for r in call.rows if r.is_other_picture]
        for call in watch.seen
    }
    beside = [("cond", "object"), ("cond", "composite")]
    assert kinds == {0: beside, 1: beside, 2: beside, 3: [], 4: []}
    call = watch.seen[0]
    call.owner = "watch"
    seen = [call.rows[int(i)] for i in call.pick("cond")]
    assert [row.kind for row in seen] == ["main", "perturbed"]
    assert session.report().active_steps("prime-composer") == (0, 1, 2)


@dataclass(frozen=True)
class Twin(Technique):
    """Adds a row that nobody but others edit, and keeps how far it comes from its own."""

    name: ClassVar[str] = "twin"
    apart: list[float] = field(default_factory=list[float], compare=False)

    def needs(self) -> Needs:
        return Needs(rows=(AddedRow("twin"),))

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        return out

    def edit_prediction(self, call: PredictionCall) -> None:
        difference = call.get("cond") - call.get("cond", "twin")
        self.apart.append(float(difference.abs().max()))


def test_a_row_that_another_technique_adds_is_edited_like_the_one_that_it_shadows() -> None:
    twin = Twin()
    made = run(twin, composer(), confined())
    assert max(twin.apart) < 1e-5
    assert torch.allclose(made, run(composer(), confined()), atol=1e-4)


def test_pictures_of_a_batch_have_rows_of_their_own() -> None:
    prompts = [PROMPT, "a red dog on the blue photo"]
    made = run(composer(), keeper(), prompt=prompts)
    first = run(composer(), keeper())
    second = run(composer(), keeper(), prompt=prompts[1], seed=1)
    assert torch.allclose(made, torch.cat([first, second]), atol=2e-4)


def test_without_guidance_and_in_sdxl_it_works_too() -> None:
    alone = run(composer(), confined(), guidance_scale=1.0)
    assert torch.isfinite(alone).all()
    assert not torch.equal(alone, run(guidance_scale=1.0))
    given = {"background": trajectory(1, "sdxl"), "subject": trajectory(2, "sdxl")}
    large = run(composer(**given), confined(), name="sdxl")
    assert torch.isfinite(large).all()
    assert not torch.equal(large, run(name="sdxl"))


def test_heads_and_strength_limit_it() -> None:
    usual = run(composer())
    assert not torch.equal(run(composer(where="self,heads=0")), usual)
    weak = run(composer(steps=attnctl.ramp(1e-6, 1e-6, during=attnctl.until(3))))
    assert torch.allclose(weak, run(), atol=1e-4)


class Probabilities(Watch):
    """Keeps maps of cross-attention."""

    def edit_probs(self, call: Any, probs: Tensor) -> Tensor:
        self.seen.append((call, probs))
        return probs


def test_words_have_no_probability_outside_the_region_and_all_of_it_inside() -> None:
    def maps(*techniques: Any) -> list[Any]:
        keep = Probabilities(seen=[], where="cross")
        run(*techniques, keep, steps=1)
        return keep.seen

    # One step: the first cross-attention layer has the same inputs with and without.
    (call, made), (_, plain) = maps(confined())[0], maps()[0]
    side = round(made.shape[2] ** 0.5)
    region = torch.roll(cells(), SHIFT, (0, 1))[:: 16 // side, :: 16 // side].flatten()
    (cond,) = call.pick("cond", kind="main").tolist()
    (uncond,) = call.pick("uncond").tolist()
    assert not made[cond][:, ~region][..., CAT].any()
    assert torch.equal(made[cond][:, region], plain[cond][:, region])
    assert torch.equal(made[uncond], plain[uncond])
    others = [t for t in range(made.shape[3]) if t not in CAT]
    ratio = made[cond][:, ~region][..., others] / plain[cond][:, ~region][..., others]
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4)


def test_a_box_and_a_mask_of_it_confine_alike() -> None:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[8:24, 16:] = True
    by_box = run(confined(region=(0.5, 0.25, 1.0, 0.75), words=["cat"]))
    assert torch.equal(by_box, run(confined(region=mask, words=["cat"])))
    assert not torch.equal(by_box, run())


def test_each_word_has_its_own_region_and_each_prompt_its_own_words() -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    one = {"region": None, "regions": [left, right], "words": ["cat", "frog"]}
    both = run(confined(**one))
    assert not torch.equal(both, run(confined(**{**one, "regions": [right, left]})))
    assert torch.equal(both, run(confined(**{**one, "words": [["cat", "frog"]]})))
    single = run(confined(region=left, words=["cat"]))
    assert torch.equal(single, run(confined(**{**one, "regions": [left], "words": ["cat"]})))

    prompts = [PROMPT, PROMPT]
    lists = [["cat", "frog"], []]
    made = run(confined(**{**one, "words": lists}), prompt=prompts)
    plain = run(prompt=prompts)
    assert not torch.equal(made[0], plain[0])
    assert torch.allclose(made[1], plain[1], atol=1e-5)


def test_attaching_and_detaching_leaves_no_trace() -> None:
    pipe: Any = pipe_of("sd1")
    before, plain = fingerprint(pipe), run()
    run(composer(), keeper(), confined())
    assert differences(before, fingerprint(pipe)) == []
    with pytest.raises(RuntimeError, match="fault"), attnctl.attach(pipe, [composer()]):
        generate(pipe, PROMPT, STEPS, callback_on_step_end=fail)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(run(), plain)


def fail(*_: Any) -> Any:
    raise RuntimeError("fault")


def test_heat_maps_beside_it_change_nothing() -> None:
    assert torch.equal(run(HeatMaps(), composer(), confined()), run(composer(), confined()))


@pytest.mark.parametrize(
    ("first", "other", "text"),
    [
        (composer(), MasaCtrl(start_layer=0, steps="always"), "keys and values"),
        (composer(), TokenMerging(), "replaces keys and values where"),
        (keeper(), KeepOutside(torch.ones(4, 16, 16)), "to write the latents after the step"),
    ],
    ids=["masa-ctrl", "token-merging", "keep-outside"],
)
def test_what_needs_the_same_is_refused(first: Any, other: Any, text: str) -> None:
    with pytest.raises(ConflictError, match=text):
        run(first, other, prompt=[PROMPT] * 2)


@pytest.mark.parametrize(
    ("technique", "changes", "error", "text"),
    [
        (composer(), {"steps": 4}, FeatureError, "background has 5 steps and the run 4"),
        (keeper(), {"steps": 4}, FeatureError, "the scene has 5 steps"),
        (composer(), {"height": 48, "width": 48}, FeatureError, "of the size of the run"),
        (composer(mask=cells()[:8]), {}, SettingError, r"mask has \(8, 16\) cells"),
        (composer(where="all"), {}, UnsupportedModelError, "acts on self-attention"),
        (confined(words=["bird"]), {}, WordNotFoundError, "region-words: words: 'bird' is not"),
        (confined(words=[99]), {}, SettingError, "there is no token 99"),
        (confined(where="self"), {}, UnsupportedModelError, "is self attention"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    technique: Any, changes: dict[str, Any], error: type[AttnctlError], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(technique, **changes)


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart_alpha", "cogvideox"])
def test_transformers_are_refused_when_it_is_attached(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="belongs to a transformer; it supports Stable"):
        attnctl.attach(build(name), composer())


def test_clips_are_refused_before_the_first_step() -> None:
    pipe = build("animatediff")
    for technique, text in ((composer(), "not clips"), (confined(), "on single pictures")):
        with (
            attnctl.attach(pipe, technique),
            pytest.raises(UnsupportedModelError, match=text),
        ):
            generate(pipe, PROMPT)


@pytest.mark.parametrize(
    ("make", "changes", "text"),
    [
        (composer, {"shift": (1.5, 0)}, "whole numbers of rows and columns"),
        (composer, {"mask": torch.ones(16, 16)}, "must be a bool tensor"),
        (composer, {"background": "scene.png"}, "must come from an inversion"),
        (confined, {"words": [-1]}, "must be words or token positions"),
        (confined, {"region": (0.5, 0.5, 0.2, 0.9)}, "must be a box"),
        (confined, {"regions": [(0.0, 0.0, 0.5, 0.9)]}, "not both"),
        (
            confined,
            {"region": None, "regions": [(0, 0, 1, 1)] * 3, "words": [["cat", 3], []]},
            "each word, or phrase, a region of its own",
        ),
    ],
)
def test_a_bad_setting_is_refused_at_construction(make: Any, changes: Any, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        make(**changes)


def test_settings_build_it_again() -> None:
    made = PrimeComposer(shift=(2, -3), steps="0-60%")
    assert PrimeComposer.from_settings(made.settings()) == made
    words = RegionWords(["cat", 3], (0.1, 0.2, 0.5, 0.9))
    again = RegionWords.from_settings(words.settings())
    assert (again, tuple(again.region)) == (words, words.region)
