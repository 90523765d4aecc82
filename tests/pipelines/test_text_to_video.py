"""Clips from words with pipelines that make videos."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.pipelines.text_to_video import (
    MadeVideo,
    check_frame_count,
    check_video_pipeline,
    draw_videos,
    usual_rate,
)
from attnctl.recipes import Recipe
from tests.support.pipelines import build


def recipe(**changes: Any) -> Recipe:
    values = {"model": "tiny", "prompt": "a cat", "seed": 3, "steps": 1, "guidance": 3.0}
    return Recipe.from_dict(values | changes, name="")


def drawn(name: str, frames: int, **changes: Any) -> list[MadeVideo]:
    return list(draw_videos(build(name), recipe(**changes), frames=frames))


@pytest.mark.parametrize(
    ("name", "frames", "size", "rate"),
    [("animatediff", 3, "32x32", 8), ("wan", 5, "64x64", 16)],
)
def test_each_kind_of_pipeline_makes_its_frames(
    name: str, frames: int, size: str, rate: int
) -> None:
    (made,) = drawn(name, frames, size=size)
    width, height = (int(side) for side in size.split("x"))

    assert made.video.frames.shape == (frames, height, width, 3)
    assert made.video.rate == rate
    assert made.recipe.size == size
    assert made.record["video"] == {"frames": frames, "rate": str(rate)}


def test_clip_i_can_be_made_alone() -> None:
    both = drawn("animatediff", 2, size="32x32", count=2)
    (alone,) = drawn("animatediff", 2, size="32x32", seed=4)

    assert [made.recipe.seed for made in both] == [3, 4]
    assert np.array_equal(both[1].video.frames, alone.video.frames)
    assert not np.array_equal(both[0].video.frames, alone.video.frames)


def test_techniques_act_and_are_recorded() -> None:
    (plain,) = drawn("animatediff", 2, size="32x32")
    (steered,) = drawn("animatediff", 2, size="32x32", techniques=[{"flatten": {}}])

    assert not np.array_equal(plain.video.frames, steered.video.frames)
    assert plain.report is None
    assert "flatten" in steered.report.table()


def test_steps_are_told_and_may_stop_the_run() -> None:
    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(draw_videos(build("animatediff"), recipe(size="32x32"), frames=2, on_step=stop))


def test_numbers_of_frames_that_a_model_would_change_are_refused() -> None:
    check_frame_count(build("wan"), 9)
    with pytest.raises(SettingError, match="compresses time by 4; take 9"):
        check_frame_count(build("wan"), 8)


def test_picture_models_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="makes pictures, not videos"):
        check_video_pipeline(build("sd1"))


def test_rates_are_those_of_the_models() -> None:
    assert usual_rate(build("wan")) == Fraction(16)
    assert usual_rate(build("animatediff")) == Fraction(8)
