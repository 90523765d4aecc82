"""Editing a picture with every method, in genuine tiny pipelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import attnctl
from attnctl import AttentionCall, ItemGuidance, RFControl, Technique
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.inversion import decode, encode, invert
from attnctl.inversion.hosts import Call, run_pipeline, sampler_of, working_latents
from attnctl.pipelines.edit import Edit, EditSettings, edit
from attnctl.pipelines.edit_scores import PSNR_LIMIT, psnr
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate, picture
from tests.support.pipelines.parts import half_mask

FAMILIES = ("sd1", "sdxl", "sd3", "flux_dev", "pixart_alpha")
EVERY_WAY = ("ddim", "rf-solver", "fireflow", "flow-edit", "sdedit", "regenerate")
STEPS = 4


def edited(pipe: Any, method: str = "auto", **more: Any) -> Edit:
    given = {"steps": STEPS, "guidance": 3.0, "refinements": None, **more.pop("settings", {})}
    settings = EditSettings(method=method, **given)
    return edit(pipe, picture(), "a cat", "a frog", settings=settings, **more)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


@dataclass(frozen=True)
class Rows(Technique):
    """Notes which rows attention saw."""

    name: ClassVar[str] = "rows"
    seen: tuple[list[Any], ...] = ([],)

    def edit_output(self, call: AttentionCall, out: torch.Tensor) -> torch.Tensor:
        self.seen[0].append(tuple((row.branch, row.item) for row in call.rows))
        return out


@pytest.mark.parametrize("name", FAMILIES)
def test_the_source_beside_an_edit_is_what_the_decoder_makes_of_it(name: str) -> None:
    pipe = build(name)
    generate(pipe)  # pipelines keep values of their first call
    known, scheduler = fingerprint(pipe), pipe.scheduler
    made = edited(pipe)
    (alone,) = decode(pipe, encode(pipe, [picture()]), picture().size)

    assert np.abs(pixels(made.reconstruction) - pixels(alone)).max() <= 1
    assert made.edited.size == picture().size
    assert made.evaluations == made.inversion.evaluations + STEPS
    assert differences(known, fingerprint(pipe)) == []
    assert pipe.scheduler is scheduler


@pytest.mark.parametrize("method", [m for m in EVERY_WAY if m != "ddim"])
def test_every_method_edits_a_flow_model_and_repeats_itself(method: str) -> None:
    pipe = build("sd3")
    first, second = edited(pipe, method), edited(pipe, method)

    assert first.edited.tobytes() == second.edited.tobytes()
    assert psnr(first.edited, picture()) < PSNR_LIMIT


def test_the_target_is_the_plain_second_row_of_a_run_from_the_inverted_noise() -> None:
    pipe = build("sd1")
    inversion = invert(pipe, picture(), "a cat", steps=STEPS)
    made = edited(pipe, inversion=inversion)
    call = Call(["a cat", "a frog"], picture().size, STEPS, 3.0)
    start = working_latents(pipe, torch.cat([inversion.noise] * 2))
    latents, _ = run_pipeline(pipe, sampler_of(pipe), start, call)
    plain = decode(pipe, latents, picture().size)[1]

    assert made.edited.tobytes() == plain.tobytes()


def test_an_edit_to_the_sources_own_prompt_without_guidance_is_the_source() -> None:
    pipe = build("sd3")
    settings = EditSettings(steps=STEPS, guidance=1.0, refinements=30)
    made = edit(pipe, picture(), "a cat", "a cat", settings=settings)

    assert np.abs(pixels(made.edited) - pixels(made.reconstruction)).max() <= 1


def test_techniques_see_source_and_target_as_items_0_and_1() -> None:
    rows = Rows(seen=([],))
    made = edited(build("sd1"), techniques=[rows])

    expected = tuple((branch, item) for branch in ("uncond", "cond") for item in (0, 1))
    assert set(rows.seen[0]) == {expected}
    assert made.report is not None


def test_rf_inversion_brings_its_control_and_takes_the_users() -> None:
    pipe = build("sd3")
    own = edited(pipe, "rf-inversion")
    same = edited(pipe, "rf-inversion", techniques=[RFControl()])
    strong = edited(pipe, "rf-inversion", techniques=[RFControl(eta=1.0, steps="0-100%")])
    loose = edited(pipe, "rf-inversion", settings={"consistent": False})

    assert own.edited.tobytes() == same.edited.tobytes()
    assert np.abs(pixels(strong.edited) - pixels(strong.reconstruction)).max() <= 1
    assert own.edited.tobytes() != loose.edited.tobytes()


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux_dev"])
@pytest.mark.parametrize("method", ["auto", "rf-solver", "flow-edit", "sdedit"])
def test_outside_a_mask_no_pixel_changes(name: str, method: str) -> None:
    made = edited(build(name), method, mask=half_mask())
    outside = np.asarray(half_mask()) == 0

    assert np.array_equal(pixels(made.edited)[outside], pixels(picture())[outside])
    assert made.scores.psnr_outside == PSNR_LIMIT
    assert made.scores.psnr_inside is not None
    assert made.scores.psnr_inside < PSNR_LIMIT


def test_a_mask_lets_the_edit_fit_what_lies_outside() -> None:
    """Latents outside follow the source, so more changes inside than in a pasted edit."""
    pipe = build("sd1")
    free, fitted = edited(pipe), edited(pipe, mask=half_mask())
    inside = np.asarray(half_mask()) > 0

    assert not np.array_equal(pixels(free.edited)[inside], pixels(fitted.edited)[inside])


def test_a_region_is_for_the_scores_alone() -> None:
    pipe = build("sd3")
    region = np.asarray(half_mask()) > 0
    plain, scored = edited(pipe), edited(pipe, region=region)

    assert plain.scores.psnr_outside is None
    assert scored.edited.tobytes() == plain.edited.tobytes()
    outside = ((pixels(picture()) - pixels(plain.edited)) / 255)[~region]
    assert scored.scores.psnr_outside == pytest.approx(-10 * np.log10((outside**2).mean()))


def test_stronger_noise_takes_sdedit_further_from_the_source() -> None:
    pipe = build("sd3")
    made = [
        edited(pipe, "sdedit", settings={"strength": strength, "steps": 10})
        for strength in (0.1, 1.0)
    ]
    near, far = (psnr(one.edited, one.reconstruction) for one in made)
    assert near > far


def test_flow_edit_with_one_prompt_and_one_guidance_returns_the_source() -> None:
    for name in ("sd1", "sd3", "flux_dev"):
        pipe = build(name)
        settings = EditSettings("flow-edit", STEPS, 3.0, source_guidance=3.0, edited_share=1.0)
        made = edit(pipe, picture(), "a cat", "a cat", settings=settings)
        nothing = edited(pipe, "flow-edit", settings={"edited_share": 0.0})

        assert made.edited.tobytes() == made.reconstruction.tobytes()
        assert nothing.edited.tobytes() == nothing.reconstruction.tobytes()
        assert nothing.evaluations == 0


@pytest.mark.parametrize("name", ["sd3", "flux_dev"])
def test_items_are_guided_with_scales_of_their_own(name: str) -> None:
    pipe, prompts = build(name), ["a cat", "a frog"]
    low, high = (generate(pipe, prompts, guidance_scale=scale) for scale in (2.0, 6.0))
    with attnctl.attach(pipe, ItemGuidance((2.0, 6.0))):
        both = generate(pipe, prompts, guidance_scale=4.0)

    assert torch.allclose(both[0], low[0], atol=1e-4)
    assert torch.allclose(both[1], high[1], atol=1e-4)
    assert not torch.allclose(low[1], high[1], atol=1e-3)


def test_progress_counts_inversion_and_edit() -> None:
    seen: list[tuple[int, int]] = []
    settings = {"refinements": 1}
    edited(build("sd1"), settings=settings, on_evaluation=lambda d, t: seen.append((d, t)))

    inversion = [(i, 2 * STEPS) for i in range(1, 2 * STEPS + 1)]
    assert seen == [*inversion, *((i, STEPS) for i in range(1, STEPS + 1))]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "ddimm"}, "did you mean 'ddim'"),
        ({"steps": 0}, "steps=0"),
        ({"strength": 0.0}, "strength=0.0"),
        ({"strength": 1.5}, "strength=1.5"),
        ({"guidance": float("inf")}, "guidance=inf"),
        ({"refinements": -1}, "refinements=-1"),
        ({"method": "sdedit", "refinements": 2}, "not for 'sdedit'"),
        ({"edited_share": 2.0}, "edited_share=2.0"),
        ({"inverted_with": "target"}, "inverted_with='target'"),
        ({"seed": True}, "seed=True"),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        EditSettings(**settings)


@pytest.mark.parametrize(("source", "target"), [("", "a frog"), (" \n", "a frog"), ("a cat", "")])
def test_an_empty_prompt_is_refused(source: str, target: str) -> None:
    with pytest.raises(SettingError, match="prompt is empty"):
        edit(build("sd1"), picture(), source, target)


def test_masks_and_inversions_must_fit() -> None:
    pipe = build("sd1")
    other = invert(pipe, picture(), "a cat", steps=STEPS + 1)
    seen: list[int] = []
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mask": Image.new("L", (8, 8), 255)}, "mask has .* one size"),
        ({"mask": Image.new("L", picture().size)}, "no white pixel"),
        ({"inversion": other}, "invert this picture with these settings"),
    ]
    for given, said in cases:
        with pytest.raises(SettingError, match=said):
            edited(pipe, on_evaluation=lambda done, total: seen.append(done), **given)
    with pytest.raises(SettingError, match="needs no inversion"):
        edited(pipe, "sdedit", inversion=other)
    assert seen == []


@pytest.mark.parametrize("name", ["aura_flow", "sd1_pix2pix", "animatediff"])
def test_an_unsupported_family_is_refused_before_any_work(name: str) -> None:
    seen: list[int] = []
    with pytest.raises(UnsupportedModelError):
        edited(build(name), on_evaluation=lambda done, total: seen.append(done))
    assert seen == []
