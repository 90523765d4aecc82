"""Suites ``scenes`` and ``characters``: cases with known answers, scores, repeated and resumed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import attnctl
from attnctl.bench.edit.scores import MOST_PSNR, score
from attnctl.bench.effect import character_cases, scene_cases
from attnctl.bench.effect.character_cases import (
    Places,
    find_places,
    joined,
    likeness,
    matched,
    parted,
)
from attnctl.bench.effect.parts import EffectSettings
from attnctl.bench.effect.scene_ways import Stage, make, placed_scores
from attnctl.bench.effect.scenes import BARE, COMPOSED, PLAIN, UNINFUSED
from attnctl.bench.effect.table import Asked, Effect, measure
from attnctl.bench.effect.text import effect_text
from attnctl.bench.journal import FILE_NAME
from attnctl.cli import main
from attnctl.errors import SettingError
from attnctl.shapes.captions import ObjectKind
from attnctl.shapes.verifier import Seen, look, verify

SETTINGS = EffectSettings("777", cases=2, steps=6)
BOTH = Asked(("scenes", "characters"), (), ("shapes",))


@cache
def load(model: str) -> Any:
    pipe = attnctl.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Effect:
    return measure(SETTINGS, BOTH, tmp_path_factory.mktemp("whole"), load)


def test_cases_are_scenes_with_one_object_and_another_one_that_fits_beside_it() -> None:
    cases = scene_cases.make_cases("777", 6)
    for case in cases:
        [old], new = case.edit.source.objects, case.kind
        assert old.colour != new.colour
        assert old.shape != new.shape
        assert [seen.kind for seen in look(case.scene)] == [old]
        assert [seen.kind for seen in look(case.subject)] == [new]
        assert verify(case.edit.answer, case.prompt).exact
        different = np.asarray(case.scene) != np.asarray(case.edit.answer)
        around = np.asarray(ndimage.binary_dilation(case.box_px, np.ones((3, 3))), bool)
        assert not different.any(axis=2)[~around].any()
        left, top, right, bottom = (round(side) for side in case.edit.boxes[0])
        assert not case.box_px[top:bottom, left:right].any()
        coloured = np.ptp(np.asarray(case.subject).astype(int), axis=2) > 90
        white = np.asarray(case.mask) > 0
        assert (coloured == white).mean() > 0.99
    shorter, other = scene_cases.make_cases("777", 2), scene_cases.make_cases("778", 6)
    assert [c.edit.seed for c in cases[:2]] == [c.edit.seed for c in shorter]
    assert not {c.edit.seed for c in cases} & {c.edit.seed for c in other}


def test_a_scene_that_stays_as_it_is_keeps_all_and_shows_nothing_new() -> None:
    [case] = scene_cases.make_cases("777", 1)
    stage = Stage(load("shapes"), case, 2, 5.0)
    found = score(case.edit, case.scene)
    assert (found["reached"], found["kept"], found["psnr"]) == (False, True, MOST_PSNR)
    placed = placed_scores(stage, case.scene)
    assert placed["psnr_outside"] == MOST_PSNR
    assert placed["psnr_object"] < 20
    assert placed_scores(stage, stage.placement.pasted)["psnr_object"] == MOST_PSNR
    empty = Image.new("RGB", case.scene.size, (128, 128, 128))
    assert not score(case.edit, empty)["kept"]
    assert placed_scores(stage, empty)["psnr_outside"] < 30


def test_infusion_and_confined_words_change_the_picture_that_pasting_alone_gives() -> None:
    [case] = scene_cases.make_cases("777", 1)
    stage = Stage(load("shapes"), case, 10, 5.0)
    stage.prepare(COMPOSED)
    made = [np.asarray(make(stage, way).picture) for way in (COMPOSED, UNINFUSED, BARE)]
    assert (made[0] != made[1]).any()
    assert (made[1] != made[2]).any()
    again = np.asarray(make(stage, COMPOSED).picture)
    assert (again == made[0]).all()


def test_every_technique_has_its_claims_and_its_baselines(whole: Effect) -> None:
    claims = {(x.technique, x.measure, x.baseline_name) for x in whole.lines if x.claimed}
    assert claims == {
        ("prime-composer", "both objects right", "without infusion"),
        ("prime-composer", "likeness of the object to pasting, dB", "without infusion"),
        ("grad-sam", "likeness to the scene, dB", "plain"),
        ("grad-sam", "likeness to the scene, dB", "SDEdit [0.9]"),
        ("grad-sam", "new object shown", "SDEdit [0.7]"),
        ("ir-diffusion", "all right", "plain"),
        ("ir-diffusion", "likeness to the portraits, dB", "plain"),
    }
    assert {x.count for x in whole.lines if x.suite == "scenes"} == {2}
    assert all(Image.open(path).width > 600 for path in whole.sheets.values())
    assert {name.partition(":")[0] for name in whole.sheets} == {
        "scenes-shapes",
        "characters-shapes",
    }
    assert {c["suite"] for c in whole.costs} == {"scenes", "characters"}
    assert all(c["seconds"] > 0 for c in whole.costs)
    assert "| both objects right | 2 | without infusion |" in effect_text(whole)
    assert whole.record["runs"]["scenes-shapes"]["settings"]["cases"] == 2


def test_a_plain_picture_shares_its_noise_with_that_of_grad_sam(whole: Effect) -> None:
    [case] = scene_cases.make_cases("777", 1)
    picture = make(Stage(load("shapes"), case, 6, 5.0), PLAIN).picture
    [line] = [
        x
        for x in whole.lines
        if (x.technique, x.baseline_name, x.measure)
        == ("grad-sam", "plain", "likeness to the scene, dB")
    ]
    assert line.difference is not None
    assert line.difference > 0
    stored = Image.open(whole.folder / "scenes-shapes" / "pictures" / "00000-plain.png")
    assert (np.asarray(stored.convert("RGB")) == np.asarray(picture)).all()


def test_two_runs_are_equal_and_a_stopped_one_goes_on(
    whole: Effect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_text: str) -> None:
        raise KeyboardInterrupt

    for suite in BOTH.suites:  # one case of each, then its last line is cut off
        with pytest.raises(KeyboardInterrupt):
            measure(SETTINGS, replace(BOTH, suites=(suite,)), tmp_path, load, say=stop)
        journal = tmp_path / f"{suite}-shapes" / FILE_NAME
        journal.write_bytes(journal.read_bytes()[:-20])
    with pytest.raises(SettingError, match="--resume"):
        measure(SETTINGS, BOTH, tmp_path, load)
    done = measure(SETTINGS, BOTH, tmp_path, load, resume=True)
    assert done.record == whole.record

    for name in ("scenes.make", "characters.draw"):  # all is read back
        monkeypatch.setattr(f"attnctl.bench.effect.{name}", refuse)
    assert measure(SETTINGS, BOTH, tmp_path, load, resume=True).record == whole.record


def refuse(*_: Any) -> Any:
    raise AssertionError("made again")


RED, BLUE = ObjectKind("red", "circle"), ObjectKind("blue", "square")


def seen(colour: str, shape: str | None) -> Seen:
    return Seen(colour, shape, (0.0, 0.0, 8.0, 8.0), 1.0, 1.0)


def test_objects_of_a_scene_belong_to_the_characters_that_they_are_most_like() -> None:
    square, circle, blob = seen("blue", "square"), seen("green", "circle"), seen("blue", None)
    assert matched([RED, BLUE], [square, circle]) == [circle, square]
    assert matched([RED, BLUE], [blob, circle, square]) == [circle, square]
    assert matched([RED, BLUE], [square]) is None


def test_likeness_is_about_colour_and_shape_and_not_about_backgrounds() -> None:
    cases = scene_cases.make_cases("777", 2)
    portrait = cases[0].subject
    whole_box = Places(((0.0, 0.0, 1.0, 1.0),), ((0.0, 0.0, 1.0, 1.0),))
    assert likeness(whole_box, [portrait, portrait]) == MOST_PSNR
    pixels = np.asarray(portrait).copy()
    pixels[np.ptp(pixels.astype(int), axis=2) < 20] = 60
    darker = Image.fromarray(pixels)
    assert (np.asarray(darker) != np.asarray(portrait)).any()
    repainted = Image.fromarray(np.asarray(portrait)[..., [1, 2, 0]])
    assert likeness(whole_box, [portrait, darker]) > likeness(whole_box, [portrait, repainted]) + 10


def test_characters_that_a_plain_run_does_not_show_are_left_out() -> None:
    [case] = character_cases.make_cases("777", 1)
    scene = scene_cases.make_cases("777", 1)[0]
    [old, new] = scene.edit.target.objects
    mine = replace(case, prompt=replace(case.prompt, objects=(old, new)))
    drawn = [scene.scene, scene.subject, scene.edit.answer]
    places = find_places(mine, drawn)
    assert places is not None
    assert places.scene[1] == pytest.approx(scene.box, abs=0.03)
    assert find_places(mine, [scene.scene, scene.subject, scene.scene]) is None
    assert find_places(mine, [scene.subject, scene.subject, scene.edit.answer]) is None
    again = parted(joined(drawn), 3)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(drawn, again, strict=True))


def test_the_command_takes_a_number_of_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["bench", "effect", "--model", "shapes", "--suite", "scenes", "-t", "grad-sam"]
    small = ["--cases", "1", "--steps", "1", "--out", str(tmp_path), "--quiet"]
    assert main([*asked, *small]) == 0
    assert "| shapes | grad-sam | new object shown | 1 | SDEdit" in capsys.readouterr().out
    with pytest.raises(SettingError, match="--cases 0"):
        EffectSettings(cases=0)
