"""Captions: written, read back, made for training and for benchmarks."""

import pytest
import torch

from attnctl.shapes import (
    Caption,
    CaptionSettings,
    ObjectKind,
    draw_scenes,
    parse_caption,
    prompts,
    write_captions,
)
from attnctl.shapes.captions import scene_kinds

RED_CIRCLE, BLUE_SQUARE = ObjectKind("red", "circle"), ObjectKind("blue", "square")
GREEN_CROSS = ObjectKind("green", "cross")


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        (Caption((RED_CIRCLE,)), "a red circle"),
        (Caption((RED_CIRCLE, BLUE_SQUARE)), "a red circle and a blue square"),
        (
            Caption((RED_CIRCLE, BLUE_SQUARE, GREEN_CROSS), "dark"),
            "a red circle, a blue square and a green cross on a dark background",
        ),
    ],
)
def test_captions_round_trip(caption: Caption, text: str) -> None:
    assert str(caption) == text
    assert parse_caption(text) == caption
    assert parse_caption(text.upper()) == caption


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a beige circle", "beige circle"),
        ("red circle", "red circle"),
        ("a red circle on a pink background", "pink"),
        ("", "cannot read"),
        ("a red circle, a blue square, a green cross and a red cross", "at most 3"),
    ],
)
def test_other_sentences_are_refused_with_the_part_that_is_wrong(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        parse_caption(text)


def test_truthful_captions_name_exactly_what_a_scene_shows() -> None:
    scenes = draw_scenes(100, torch.Generator().manual_seed(1))
    texts = write_captions(scenes, torch.Generator().manual_seed(2), CaptionSettings(0.0, 1.0))
    for row, text in enumerate(texts):
        caption = parse_caption(text)
        assert set(caption.objects) == set(scene_kinds(scenes, row))
        assert caption.background == scenes.scene(row).background


def test_web_like_captions_name_one_more_object() -> None:
    scenes = draw_scenes(300, torch.Generator().manual_seed(1))
    texts = write_captions(scenes, torch.Generator().manual_seed(2), CaptionSettings(1.0, 0.0))
    for row, text in enumerate(texts):
        shown, named = set(scene_kinds(scenes, row)), set(parse_caption(text).objects)
        assert shown <= named
        assert len(named) == min(len(shown) + 1, 3)


def test_prompt_lists_are_repeatable_and_longer_lists_begin_alike() -> None:
    assert prompts("tuning", 2, 50) == prompts("tuning", 2, 50)
    assert prompts("tuning", 2, 80)[:50] == prompts("tuning", 2, 50)


def test_splits_share_no_seed() -> None:
    seeds = [
        {prompt.seed for prompt in prompts(split, objects, 500)}
        for split in ("tuning", "validation", "glance")
        for objects in (1, 2, 3)
    ]
    assert len(set.union(*seeds)) == sum(len(part) for part in seeds) == 4500


def test_prompts_name_different_colours_and_shapes() -> None:
    for prompt in prompts("validation", 3, 100):
        assert parse_caption(prompt.text).objects == prompt.objects
        assert len({kind.colour for kind in prompt.objects}) == 3
        assert len({kind.shape for kind in prompt.objects}) == 3


def test_too_many_objects_in_a_prompt_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3"):
        prompts("tuning", 4, 1)
