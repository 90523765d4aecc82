"""IR-Diffusion on tiny UNets: parity with processors of its own, invariants, company, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import attnctl
from attnctl import AttentionCall, IRDiffusion, MasaCtrl, Technique
from attnctl.editing.portraits import SubjectPlaces
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.sites import Site
from tests.core.samples import Perturbed, Watch
from tests.support.pipelines import build, generate
from tests.techniques.pair_runs import Outputs
from tests.techniques.portrait_reference import Portraits, reference_run

PROMPTS = ["a red cat", "a frog", "a red cat and a frog"]


def cells(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


CAT, FROG = cells(4, 4, 8, 6) & ~cells(4, 4, 2, 2), cells(2, 6, 10, 8)
LEFT, RIGHT = cells(6, 0, 10, 6), cells(0, 8, 12, 6)
MASKS = {"portrait_masks": [CAT, FROG], "target_masks": [LEFT, RIGHT]}
WITHOUT: dict[str, Any] = {"isolate": False, "reposition": False, "cross_weight": 0.0}
LOW = torch.finfo(torch.float32).min / 2


def noise(items: int = 3) -> Tensor:
    """Portraits share their noise; the scene has its own."""
    one, other = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return torch.stack([one] * (items - 1) + [other])


def run(pipe: Any, *techniques: Any, prompts: list[str] = PROMPTS, **changes: Any) -> Tensor:
    """Latents of portraits and scene; plain if there are no techniques."""
    settings = {"steps": 3, "latents": noise(len(prompts)), **changes}
    if not techniques:
        return generate(pipe, prompts, **settings)
    with attnctl.attach(pipe, techniques):
        return generate(pipe, prompts, **settings)


def portraits(**settings: Any) -> IRDiffusion:
    return IRDiffusion(**{**MASKS, **settings})


@pytest.fixture(scope="module")
def sd1() -> Any:
    return build("sd1")


@pytest.fixture(scope="module")
def plain(sd1: Any) -> Tensor:
    return run(sd1)


@pytest.mark.parametrize(("name", "start"), [("sd1", 3), ("sdxl", 4)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_run_equals_cropping_resizing_and_pasting(name: str, start: int, dropout: float) -> None:
    pipe = build(name)
    given = Portraits([CAT, FROG], [LEFT, RIGHT], start=start, dropout=dropout)
    expected = reference_run(pipe, given, PROMPTS, steps=3, latents=noise())
    ours = run(pipe, portraits(dropout=dropout))  # start: the first layer on the way up
    change = (expected[2] - run(pipe)[2]).abs().max()
    assert change > 0.05
    assert (ours - expected).abs().max() < 0.01 * change


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**WITHOUT, "isolate": True},
        {**WITHOUT, "reposition": True},
        {**WITHOUT, "cross_weight": 0.9},
        {"steps": "0-100% ramp 1..0.5"},
        {"portrait_masks": (), "target_masks": (), "mask_words": ["cat", "frog"]},
    ],
    ids=["all", "isolation", "reposition", "texts", "ramp", "words"],
)
def test_the_scene_changes_and_the_portraits_do_not_notice(
    sd1: Any, plain: Tensor, settings: dict[str, Any]
) -> None:
    ours = run(sd1, portraits(**settings))
    assert torch.equal(ours[:2], plain[:2])
    assert torch.isfinite(ours).all()
    assert (ours[2] - plain[2]).abs().max() > 1e-4


NOTHING = torch.zeros(16, 16)


@pytest.mark.parametrize(
    "technique",
    [
        IRDiffusion(),
        portraits(**WITHOUT),
        portraits(steps="9-"),
        portraits(steps="0-0"),
        portraits(steps=attnctl.ramp(0.0, 0.0)),
        portraits(target_masks=[NOTHING, NOTHING], cross_weight=0),
        portraits(target_masks=[NOTHING, NOTHING]),
        portraits(portrait_masks=[NOTHING, NOTHING], isolate=False, cross_weight=0),
        portraits(
            portrait_masks=[CAT], target_masks=[LEFT], portraits=1,
            isolate=True, reposition=False, cross_weight=0.0,
        ),
    ],
    ids=[
        "no masks", "no parts", "window behind the run", "empty window", "strength 0",
        "empty scene", "empty scene, texts", "empty portraits", "isolation of one subject",
    ],
)  # fmt: skip
def test_off_is_the_plain_batch_bit_for_bit(sd1: Any, plain: Tensor, technique: Any) -> None:
    assert torch.equal(run(sd1, technique), plain)


def test_without_masks_a_run_of_one_picture_is_plain_too(sd1: Any) -> None:
    with attnctl.attach(sd1, [IRDiffusion()]):
        ours = generate(sd1)
    assert torch.equal(ours, generate(sd1))


def test_the_dropout_has_a_seed_of_its_own(sd1: Any) -> None:
    first = run(sd1, portraits(seed=1))
    assert torch.equal(run(sd1, portraits(seed=1)), first)
    assert not torch.equal(run(sd1, portraits(seed=2)), first)
    without = run(sd1, portraits(dropout=0, seed=1))
    assert torch.equal(run(sd1, portraits(dropout=0, seed=2)), without)
    state = torch.get_rng_state()
    run(sd1, portraits())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_large_bias_makes_the_portraits_all_that_is_seen(sd1: Any) -> None:
    only = {**WITHOUT, "reposition": True, "dropout": 0.0, "portrait_bias": 1000.0}

    @dataclass(frozen=True)
    class Mark(Technique):
        """Values of the first portrait are 1, of the second 2, of the scene 0."""

        name: ClassVar[str] = "mark"

        def edit_qkv(self, call: AttentionCall) -> None:
            items = torch.tensor([(r.item + 1) % 3 for r in call.rows])
            call.value = items[:, None, None, None].expand_as(call.value).to(call.value)

    seen = Outputs(where="up:self,level=0")
    run(sd1, Mark(where="up:self"), portraits(**only), seen, steps=1)
    assert seen.by_site
    for out in seen.by_site.values():
        for row in (2, 5):
            assert torch.allclose(out[row][:, LEFT.flatten()], torch.tensor(1.0))
            assert torch.allclose(out[row][:, RIGHT.flatten()], torch.tensor(2.0))
            assert not out[row][:, ~(LEFT | RIGHT).flatten()].any()


def test_layers_before_the_start_see_no_portraits(sd1: Any) -> None:
    def changed(**settings: Any) -> list[int]:
        before, after = Outputs(where="self", place="a"), Outputs(where="self", place="b")
        ours = portraits(**{**WITHOUT, "reposition": True, **settings})
        run(sd1, before, ours, after, steps=1)
        return sorted(
            after.calls[key].site.layer
            for key, out in after.by_site.items()
            if not torch.equal(out, before.by_site[key])
        )

    assert changed() == [3, 4, 5, 6]  # all on the way up
    assert changed(start_layer=5) == [5, 6]
    assert changed(start_layer=0) == list(range(7))
    assert changed(where="layers=2-5", start_layer=1) == [2, 3, 4, 5]


def test_sdxl_begins_where_the_paper_does() -> None:
    stages = ["down"] * 24 + ["mid"] * 10 + ["up"] * 36
    sites = [Site("unet", f"{n}", "self", stage, n, n) for n, stage in enumerate(stages)]  # type: ignore[arg-type]
    assert portraits()._readers(sites) == {str(n) for n in range(36, 70)}  # pyright: ignore[reportPrivateUsage]


def test_heads_that_are_not_selected_stay_plain(sd1: Any) -> None:
    before, after = Outputs(where="mid", place="a"), Outputs(where="mid", place="b")
    run(sd1, before, portraits(where="mid,heads=1"), after, steps=1)
    kinds = {call.site.kind for call in after.calls.values()}
    assert kinds == {"self", "cross"}
    for key, out in after.by_site.items():
        same = (out == before.by_site[key]).flatten(2).all(-1)
        assert same[:, 0].all()
        assert not same[[2, 5], 1].any()
        assert same[[0, 1, 3, 4], 1].all()


def test_masks_of_files_pictures_arrays_and_boxes_are_the_same(sd1: Any, tmp_path: Path) -> None:
    array = LEFT.numpy()
    picture = Image.fromarray((array * 255).astype(np.uint8))
    picture.save(tmp_path / "mask.png")
    box = (0.0, 6 / 16, 6 / 16, 1.0)
    forms: list[Any] = [
        LEFT,
        array,
        picture,
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
        box,
    ]
    given = [portraits(target_masks=[form, RIGHT]) for form in forms]
    made = [run(sd1, one, steps=1) for one in given]
    assert all(torch.equal(made[0], other) for other in made[1:])
    shown = [one.settings()["target_masks"] for one in given]
    assert shown[0] == ["mask of 16 x 16", "mask of 16 x 16"]
    assert shown[4][0].endswith("mask.png")
    assert shown[5][0] == list(box)
    stacked = portraits(target_masks=np.stack([array, RIGHT.numpy()]))
    assert torch.equal(run(sd1, stacked, steps=1), made[0])


def test_words_act_from_the_second_step_on_with_masks_of_the_step_before(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[tuple[Any, Any]] = []
    use = SubjectPlaces.use_maps

    def kept(self: SubjectPlaces, *given: Any) -> None:
        use(self, *given)
        masks.append((self._portraits, self._scene))  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(SubjectPlaces, "use_maps", kept)
    words = IRDiffusion(mask_words=["cat", "frog"])
    assert torch.equal(run(sd1, words, steps=1), run(sd1, steps=1))
    assert masks == [((), ())]
    masks.clear()
    ours = run(sd1, words)
    assert not torch.equal(ours[2], run(sd1)[2])
    assert [len(scene) for _, scene in masks] == [0, 2, 2]
    for of_portraits, scene in masks[1:]:
        assert not (scene[0] & scene[1]).any()
        assert all(mask.any() for mask in (*of_portraits, *scene))
    assert not torch.equal(masks[1][1][0], masks[2][1][0])


def test_maps_of_words_are_those_of_the_heat_maps(sd1: Any, monkeypatch: Any) -> None:
    added: dict[tuple[int, int], list[Tensor]] = {}

    def keep(self: SubjectPlaces, item: int, subject: int, seen: Tensor) -> None:
        added.setdefault((item, subject), []).append(seen)

    monkeypatch.setattr(SubjectPlaces, "add_map", keep)
    words = IRDiffusion(mask_words=["red cat", "frog"])
    heat = attnctl.HeatMaps(where="res=16:cross")
    with attnctl.attach(sd1, [words, heat]) as session:
        generate(sd1, PROMPTS, steps=1, latents=noise())
        for (item, subject), maps in added.items():
            expected = session.maps.word(["red cat", "frog"][subject], item=item)
            ours = torch.stack(maps).mean(0)
            assert ours.shape == (16, 16)
            assert torch.corrcoef(torch.stack([ours.flatten(), expected.flatten()]))[0, 1] > 0.999
    assert set(added) == {(0, 0), (2, 0), (1, 1), (2, 1)}


def test_it_works_without_guidance_and_at_other_places_in_the_batch(sd1: Any) -> None:
    turned = [PROMPTS[2], PROMPTS[1], PROMPTS[0]]
    start = noise().flip(0)
    alone = run(sd1, prompts=turned, latents=start, guidance_scale=1.0)
    ours = run(
        sd1, portraits(portraits=(2, 1), target=0), prompts=turned, latents=start,
        guidance_scale=1.0,
    )  # fmt: skip
    assert torch.equal(ours[1:], alone[1:])
    usual = run(sd1, portraits(), guidance_scale=1.0)
    assert torch.allclose(ours.flip(0), usual, atol=1e-3)
    assert not torch.allclose(ours[0], alone[0], atol=1e-2)


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_pictures_that_are_not_square_work(sd1: Any, size: tuple[int, int]) -> None:
    height, width = size
    start = torch.randn(3, 4, height // 2, width // 2, generator=torch.Generator().manual_seed(1))
    sized = {"height": height, "width": width, "latents": start}
    ours, alone = run(sd1, portraits(), **sized), run(sd1, **sized)
    assert torch.isfinite(ours).all()
    assert torch.equal(ours[:2], alone[:2])
    assert (ours[2] - alone[2]).abs().max() > 1e-3


def test_half_precision_stays_finite() -> None:
    pipe = build("sd1").to(torch.bfloat16)
    ours = run(pipe, portraits(), latents=noise().to(torch.bfloat16))
    assert torch.isfinite(ours).all()


def test_added_rows_are_edited_like_the_rows_that_they_shadow(sd1: Any) -> None:
    seen = Outputs(where="up:self")
    own = portraits(**{**WITHOUT, "reposition": True, "portrait_bias": 30.0})
    run(sd1, Perturbed(where="mid:self"), own, seen, steps=1)
    assert len(seen.by_site) == 4
    for key, out in seen.by_site.items():
        call = seen.calls[key]
        place = {(r.branch, r.item, r.kind): at for at, r in enumerate(call.rows)}
        plain = call.attend(call.query, call.key, call.value)
        for kind in ("main", "perturbed"):
            portrait, scene = (place["cond", item, kind] for item in (0, 2))
            assert torch.allclose(out[portrait], plain[portrait], atol=1e-5)
            assert (out[scene] - plain[scene]).abs().max() > 1e-3
    guided = run(sd1, Perturbed(where="mid:self"))
    company = run(sd1, Perturbed(where="mid:self"), portraits())
    assert torch.equal(company[:2], guided[:2])
    assert not torch.allclose(company[2], guided[2], atol=1e-3)


def test_masks_of_other_techniques_hold_in_the_scene_too(sd1: Any) -> None:
    @dataclass(frozen=True)
    class Hidden(Technique):
        """The last token is loud, and no one may hear it."""

        name: ClassVar[str] = "hidden"

        def edit_qkv(self, call: AttentionCall) -> None:
            call.value = call.value.clone()
            call.value[:, :, -1] = 1e6
            bias = torch.zeros(call.key.shape[2])
            bias[-1] = LOW
            call.add_bias(bias[None, None, None])

    loud, ours = Hidden(where="self"), portraits(where="self")
    seen = Outputs(where="self")
    run(sd1, loud, ours, seen, steps=1)
    assert len(seen.by_site) == 7
    assert all(out.abs().max() < 1e3 for out in seen.by_site.values())


def test_keys_of_another_technique_that_do_not_fit_are_refused(sd1: Any) -> None:
    class MoreKeys(Watch):
        def edit_qkv(self, call: AttentionCall) -> None:
            call.key, call.value = (torch.cat([x, x], dim=2) for x in (call.key, call.value))

    with pytest.raises(ConflictError, match="shows 128 keys to 64 image tokens"):
        run(sd1, MoreKeys(where="mid:self"), portraits(), steps=1)


def test_another_technique_for_keys_and_values_is_refused_at_the_same_layers(sd1: Any) -> None:
    masa = MasaCtrl(start_layer=4, steps="0-")
    with pytest.raises(ConflictError, match="both need keys and values"):
        run(sd1, masa, portraits())
    apart = run(sd1, masa, portraits(where="layers=0-3:self|cross"), steps=1)
    assert torch.isfinite(apart).all()


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart_alpha"])
def test_transformers_are_refused_when_it_is_attached(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"scenes of UNets, but .* transformer"):
        attnctl.attach(build(name), [portraits()])


def test_clips_are_refused_before_the_first_step() -> None:
    pipe = build("animatediff")
    with (
        attnctl.attach(pipe, [portraits()]),
        pytest.raises(UnsupportedModelError, match="pictures, not clips"),
    ):
        generate(pipe, PROMPTS)


@pytest.mark.parametrize(
    ("technique", "prompts", "error", "text"),
    [
        (portraits(), PROMPTS[:2], SettingError, "name picture 2, but this run makes 2"),
        (portraits(portraits=(0, 7)), PROMPTS, SettingError, "name picture 7"),
        (IRDiffusion(mask_words=["cat", "dog"]), PROMPTS, WordNotFoundError, "words: 'dog'"),
        (
            IRDiffusion(mask_words=["cat", "frog"], where="self"),
            PROMPTS, NoSiteError, "no cross-attention",
        ),
    ],
)  # fmt: skip
def test_runs_that_do_not_fit_are_refused_before_the_first_step(
    sd1: Any, technique: Any, prompts: list[str], error: type[AttnctlError], text: str
) -> None:
    entered: list[int] = []
    hook = sd1.unet.conv_in.register_forward_hook(lambda *_: entered.append(1))
    with pytest.raises(error, match=text):
        run(sd1, technique, prompts=prompts)
    hook.remove()
    assert not entered


def test_words_need_the_prompt_itself(sd1: Any) -> None:
    embeds, negative = sd1.encode_prompt(PROMPTS, "cpu", 1, True, [""] * 3)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative, "latents": noise()}
    with (
        attnctl.attach(sd1, [IRDiffusion(mask_words=["cat", "frog"])]),
        pytest.raises(SettingError, match=r"prompt_embeds; call it with prompt="),
    ):
        sd1(num_inference_steps=1, output_type="latent", **given)


def test_a_start_behind_the_last_layer_is_refused_when_it_is_attached(sd1: Any) -> None:
    with pytest.raises(NoSiteError, match="start_layer=7 on; this model has layers 0 to 6"):
        attnctl.attach(sd1, [portraits(start_layer=7)])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"target_masks": ()}, "together"),
        ({"mask_words": ["cat", "frog"]}, "together, or mask_words= alone"),
        ({"target_masks": [LEFT]}, "target_masks has 1 entries for 2 portraits"),
        ({"target_masks": LEFT}, "a mask or a box for each portrait"),
        ({"target_masks": "mask.png"}, "a mask or a box for each portrait, .* got str"),
        ({"target_masks": [LEFT, LEFT[0]]}, r"target_masks\[1\]= must be a picture or an array"),
        ({"target_masks": [LEFT, (0.5, 0, 0.2, 1)]}, "0 <= x0 < x1 <= 1"),
        ({"target_masks": [LEFT, [["a"]]]}, r"target_masks\[1\]= is no mask"),
        ({"target_masks": [LEFT, [[1, 0], [1]]]}, "is no mask"),
        ({"portraits": (0, 0)}, "different pictures"),
        ({"portraits": (0, 1), "target": 1}, "a picture of its own"),
        ({"target": True}, "the number of a picture"),
        ({"isolate": 1}, "isolate=1 must be True or False"),
        ({"start_layer": 1.5}, "whole number"),
        ({"start_layer": -1}, "from 0"),
        ({"seed": True}, "seed=True must be a whole number"),
        ({"dropout": 1}, "would hide the portraits"),
        ({"dropout": -0.1}, "from 0 to 1"),
        ({"cross_weight": 1.1}, "from 0 to 1"),
        ({"portrait_bias": float("inf")}, "finite number"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        portraits(**settings)


def test_settings_survive_a_recipe() -> None:
    boxes = [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    technique = portraits(portrait_masks=boxes, target_masks=boxes, portraits="1+2", target=0)
    again = IRDiffusion.from_settings(technique.settings())
    assert again == technique
    assert again.settings() == technique.settings()
    assert technique.settings()["portrait_masks"] == boxes
