"""The verifier: right on what was rendered, not fooled by other captions."""

import numpy as np
import pytest
import torch
from PIL import Image

from attnctl.shapes import (
    LARGE_VOCABULARY,
    SMALL_VOCABULARY,
    Caption,
    SceneBatch,
    VerifierSettings,
    Vocabulary,
    WorldSettings,
    draw_scenes,
    look,
    render,
    verify,
)
from attnctl.shapes.captions import ObjectKind, scene_kinds
from attnctl.shapes.verifier import Seen, Verdict


def drawn(count: int, vocabulary: Vocabulary, seed: int = 3) -> tuple[SceneBatch, torch.Tensor]:
    settings = WorldSettings(vocabulary=vocabulary)
    scenes = draw_scenes(count, torch.Generator().manual_seed(seed), settings)
    return scenes, render(scenes)


@pytest.mark.parametrize("vocabulary", [SMALL_VOCABULARY, LARGE_VOCABULARY], ids=["4x4", "8x8"])
def test_nearly_every_rendered_object_is_recognised(vocabulary: Vocabulary) -> None:
    scenes, pictures = drawn(200, vocabulary)
    settings = VerifierSettings(vocabulary=vocabulary)
    total = missing = extra = 0
    for row, picture in enumerate(pictures):
        verdict = verify(picture, Caption(tuple(scene_kinds(scenes, row))), settings)
        total += len(verdict.wanted)
        missing += len(verdict.missing)
        extra += len(verdict.extra)
    assert total >= 345
    assert missing <= 5 * total / 345
    assert extra <= 5


def test_captions_of_other_scenes_are_accepted_only_where_true() -> None:
    scenes, pictures = drawn(150, SMALL_VOCABULARY)
    for row, picture in enumerate(pictures):
        shown = set(scene_kinds(scenes, row))
        caption = Caption(tuple(scene_kinds(scenes, (row + 1) % 150)))
        assert verify(picture, caption).all_right == (set(caption.objects) <= shown)


def test_boxes_lie_where_the_objects_were_drawn() -> None:
    scenes, pictures = drawn(60, SMALL_VOCABULARY)
    for row, picture in enumerate(pictures):
        verdict = verify(picture, Caption(tuple(scene_kinds(scenes, row))))
        for thing, kind in zip(scenes.scene(row).objects, verdict.wanted, strict=True):
            box = verdict.box_of(kind)
            assert box is not None
            slack = 0.2 * thing.radius_px + 1.5
            assert all(abs(a - b) < slack for a, b in zip(box, thing.box, strict=True))


def test_all_kinds_of_pictures_are_read_alike() -> None:
    _, pictures = drawn(1, SMALL_VOCABULARY)
    array = (pictures[0].permute(1, 2, 0) * 255).round().byte().numpy()
    kinds = [str(seen) for seen in look(pictures[0])]
    assert kinds
    assert [str(seen) for seen in look(array)] == kinds
    assert [str(seen) for seen in look(array.astype(np.float32) / 255)] == kinds
    assert [str(seen) for seen in look(Image.fromarray(array))] == kinds


def test_two_touching_objects_of_one_colour_are_two() -> None:
    scenes, _ = drawn(1, SMALL_VOCABULARY)
    for value, new in (
        (scenes.present, [1, 1, 0]),
        (scenes.colour, [0, 0, 0]),
        (scenes.shape, [0, 1, 0]),
        (scenes.x_px, [20.0, 42.0, 0.0]),
        (scenes.y_px, [32.0, 34.0, 0.0]),
        (scenes.radius_px, [11.0, 12.0, 1.0]),
    ):
        value[0] = torch.tensor(new).to(value.dtype)
    scenes.paint[0] = torch.tensor([0.86, 0.14, 0.14])
    assert verify(render(scenes)[0], "a red circle and a red square").exact


def test_a_duplicate_does_not_stand_in_for_a_missing_object() -> None:
    scenes, _ = drawn(1, SMALL_VOCABULARY)
    scenes.present[0] = torch.tensor([True, True, False])
    scenes.colour[0], scenes.shape[0] = 0, 1
    scenes.paint[0] = torch.tensor([0.86, 0.14, 0.14])
    scenes.x_px[0], scenes.y_px[0] = torch.tensor([16.0, 46.0, 0.0]), 32.0
    scenes.radius_px[0] = 10.0
    verdict = verify(render(scenes)[0], "a red square and a blue circle")
    assert not verdict.all_right
    assert not verdict.is_neglect
    assert verdict.label() == "no blue circle, extra red square"


def test_an_empty_picture_is_neglect() -> None:
    verdict = verify(torch.full((3, 64, 64), 0.5), "a red circle")
    assert verdict.is_neglect
    assert verdict.label() == "no red circle"


@pytest.mark.parametrize(
    ("shown", "is_absence"),
    [
        ([("red", "square"), ("red", "square")], True),  # a duplicate
        ([("red", "square"), ("blue", None)], False),  # a blob of the right colour
        ([("red", "square"), ("red", "circle")], False),  # a wrong colour
        ([("red", "circle")], True),  # one object stands for one
        ([("red", "circle"), ("blue", "square")], False),  # colours swapped
        ([("blue", "circle"), ("red", "square")], False),
        ([], True),
    ],
)
def test_absence_is_neither_colour_nor_shape(shown, is_absence) -> None:
    found = [Seen(colour, shape, (0.0, 0.0, 9.0, 9.0), 0.9, 0.9) for colour, shape in shown]
    verdict = Verdict.of([ObjectKind("red", "square"), ObjectKind("blue", "circle")], found)
    assert verdict.is_absence is is_absence


def test_pictures_of_the_wrong_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\)"):
        look(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"\(H, W, 3\)"):
        look(np.zeros((64, 64)))
