"""Composing an object into a scene: on tiny pipelines, and with the bundled model end to end."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import attnctl
from attnctl import HeatMaps
from attnctl.errors import SettingError, UnsupportedModelError, WordNotFoundError
from attnctl.inversion import decode, sampler_of
from attnctl.inversion.hosts import Call, run_pipeline
from attnctl.ops.composition import paired_tokens
from attnctl.pipelines.compose import compose
from attnctl.pipelines.compose_places import place, read_box
from attnctl.pipelines.compose_settings import ComposeSettings
from attnctl.pipelines.edit_scores import score
from attnctl.shapes import verify
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate, picture

PROMPT = "a cat and a frog"
BOX = (0.5, 0.25, 0.95, 0.75)


def tiny(pipe: Any = None, **changes: Any) -> Any:
    settings = ComposeSettings(**{"steps": 3, "refinements": 0, **changes.pop("settings", {})})
    given = {"words": ["cat"], "box": BOX, "settings": settings, **changes}
    scene, subject = given.pop("background", picture()), picture(40)
    return compose(pipe or build("sd1"), scene, subject, given.pop("prompt", PROMPT), **given)


def shape(kind: str, colour: tuple[int, int, int], ground: int, place: tuple[int, ...]) -> Any:
    """A square or circle on a plain ground, 64 by 64 pixels."""
    values = np.full((64, 64, 3), ground, np.uint8)
    y, x = np.mgrid[:64, :64]
    left, top, right, bottom = place
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    if kind == "circle":
        middle, radius = ((left + right - 1) / 2, (top + bottom - 1) / 2), (right - left) / 2
        inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 <= radius**2
    values[inside] = colour
    return Image.fromarray(values), Image.fromarray(np.uint8(inside) * 255)


# --- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box", [BOX, (0.0, 0.0, 0.4, 1.0), (0.6, 0.7, 1.0, 1.0), (0, 0, 1, 1), (0.99, 0.99, 1, 1)]
)
def test_an_object_fits_its_box_and_its_cells_correspond_in_every_layer(box: Any) -> None:
    pipe: Any = build("sd1")
    subject, mask = shape("circle", (250, 0, 0), 20, (10, 20, 40, 50))
    placed = place(pipe, picture(), subject, mask, read_box(box))
    scene, canvas = np.asarray(picture()), np.asarray(placed.canvas)
    changed = (np.asarray(placed.pasted) != scene).any(axis=2)
    assert not (changed & ~placed.box).any()
    shown = (canvas != 128).any(axis=2)
    factor, coarsest = pipe.vae_scale_factor, 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    assert all(cells % coarsest == 0 for cells in placed.shift)
    by = [factor * cells for cells in placed.shift]
    moved = np.roll(shown, by, (0, 1))
    there, here = np.asarray(placed.pasted), np.roll(canvas, by, (0, 1))
    assert np.array_equal(there[moved], here[moved])
    middle = slice(factor // 2, None, factor)
    assert torch.equal(placed.mask, torch.from_numpy(shown)[middle, middle])
    for stride in (1, 2, coarsest):
        own, to = paired_tokens(placed.mask, placed.shift, stride)
        assert len(own) == len(to) == int(placed.mask[::stride, ::stride].sum())
        assert torch.equal(to, placed.region[::stride, ::stride].flatten().nonzero()[:, 0])
    assert not (placed.region & ~placed.free).any()


def test_proportions_are_kept_and_the_object_is_centred() -> None:
    subject, mask = shape("square", (250, 0, 0), 20, (10, 20, 40, 30))
    placed = place(build("sd1"), Image.new("RGB", (32, 32)), subject, mask, (0.0, 0.5, 1.0, 1.0))
    rows, columns = (np.asarray(placed.pasted)[..., 0] > 100).nonzero()
    assert (columns.min(), columns.max()) == (0, 31)
    assert (rows.min(), rows.max()) == (18, 28)


@pytest.mark.parametrize("box", ["0.1,0.2,0.5", "a,b,c,d", (0.5, 0, 0.5, 1), (-0.1, 0, 1, 1), None])
def test_a_box_that_is_none_is_refused(box: Any) -> None:
    with pytest.raises(SettingError, match="must be x0,y0,x1,y1 in parts"):
        read_box(box)


# --- whole compositions --------------------------------------------------------------------------


def test_a_composition_repeats_itself_and_leaves_the_pipeline_alone() -> None:
    pipe: Any = build("sd1")
    generate(pipe)  # pipelines keep values of their first call
    known, scheduler = fingerprint(pipe), pipe.scheduler
    told: list[tuple[int, int]] = []
    first = tiny(pipe, on_evaluation=lambda done, total: told.append((done, total)))
    second = tiny(pipe, inversion=first.inversion)
    assert first.composed.tobytes() == second.composed.tobytes()
    assert told == [(1, 3), (2, 3), (3, 3)] * 2
    assert first.evaluations == 6
    assert differences(known, fingerprint(pipe)) == []
    assert pipe.scheduler is scheduler
    assert first.settings.guidance == 2.0
    assert first.composed.tobytes() != tiny(pipe, settings={"seed": 1}).composed.tobytes()


def test_with_everything_off_it_is_plain_sampling_from_the_start_latents() -> None:
    pipe: Any = build("sd1")
    off = {"infuse": 0.0, "paste": 0.0, "blend": 0.0, "confine": False, "domain": "sketch"}
    made = tiny(pipe, settings=off)
    trajectory = made.inversion.trajectory
    start = trajectory.noise[:1].clone()
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    start = torch.where(made.placement.free, noise, start)
    for y, x in made.placement.mask.nonzero().tolist():
        to = (y + made.placement.shift[0], x + made.placement.shift[1])
        start[..., *to] = trajectory.noise[1:, :, y, x]
    latents, _ = run_pipeline(pipe, sampler_of(pipe), start, Call([PROMPT], (32, 32), 3, 2.5))
    (plain,) = decode(pipe, latents, (32, 32))
    assert made.composed.tobytes() == plain.tobytes()


def test_shares_of_the_run_are_the_authors_windows() -> None:
    made = tiny(settings={"steps": 7, "infuse": 0.3, "paste": 0.2, "blend": 0.8})
    assert made.report.active_steps("prime-composer") == (0, 1)  # int(0.3 * 7) steps
    assert made.report.active_steps("region-words") == tuple(range(7))


def test_further_techniques_go_with_it() -> None:
    made = tiny(techniques=[HeatMaps()])
    assert made.composed.tobytes() == tiny().composed.tobytes()


def test_sdxl_composes_too() -> None:
    assert tiny(build("sdxl")).composed.size == (32, 32)


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart_alpha"])
def test_models_without_such_a_unet_are_refused_before_anything_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnctl.pipelines.compose.invert", None)
    with pytest.raises(UnsupportedModelError, match=r"cannot compose pictures.*UNet \(SD"):
        tiny(build(name))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"prompt": " "}, SettingError, "the prompt is empty"),
        ({"words": []}, SettingError, "must list the object's words"),
        ({"words": "cat"}, SettingError, "must list the object's words"),
        ({"words": ["bird"]}, WordNotFoundError, "'bird' is not in the prompt"),
        ({"mask": Image.new("L", picture().size)}, SettingError, "no white pixel"),
        ({"mask": Image.new("L", (8, 8), 255)}, SettingError, "make them one size"),
        ({"box": (0.505, 0.505, 0.53, 0.53)}, SettingError, "use a larger box"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    changes: dict[str, Any], error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnctl.pipelines.compose.invert", None)
    with pytest.raises(error, match=text):
        tiny(**changes)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"domain": "cartoons"}, "did you mean 'cartoon'"),
        ({"infuse": 1.5}, "infuse=1.5 must be a finite number from 0 to 1"),
        ({"guidance": -1}, "guidance=-1"),
        ({"steps": 0}, "steps=0 must be a whole number from 1"),
        ({"refinements": True}, "refinements=True must be a whole number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        ComposeSettings(**settings)


def test_an_inversion_of_other_steps_is_refused() -> None:
    made = tiny()
    with pytest.raises(SettingError, match="in 3 steps with 'ddim'; wanted are scene and canvas"):
        tiny(inversion=made.inversion, settings={"steps": 4})


# --- the bundled model ---------------------------------------------------------------------------


@cache
def shapes() -> Any:
    pipe = attnctl.load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("domain", ["same", "cartoon"])
def test_an_object_of_one_scene_joins_another_whose_rest_remains(domain: str) -> None:
    scene, _ = shape("square", (40, 80, 230), 235, (7, 30, 25, 48))
    subject, mask = shape("circle", (220, 40, 40), 50, (12, 20, 40, 48))
    prompt = "a blue square and a red circle"
    settings = ComposeSettings(domain=domain)
    made = compose(
        shapes(), scene, subject, prompt, words=["red circle"], box=BOX, mask=mask,
        settings=settings,
    )  # fmt: skip
    again = shapes()(
        prompt, num_inference_steps=20, guidance_scale=5.0, generator=torch.Generator()
    ).images[0]
    outside = made.scores.psnr_outside
    assert verify(made.composed, prompt).all_right
    assert outside > 24
    assert outside > score(scene, again, made.placement.box).psnr_outside + 8
    inside = made.placement.box & (np.asarray(made.placement.pasted) != np.asarray(scene)).any(2)
    assert score(made.placement.pasted, made.composed, inside).psnr_inside > 10
