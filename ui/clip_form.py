"""What is asked of a clip, on the page or by a program, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attnctl.cli.video_order import STEPS
from attnctl.errors import SettingError
from attnctl.pipelines.video_settings import (  # pyright: ignore[reportMissingImports]
    VideoEditSettings,
)
from attnctl.recipes import Recipe, explain
from attnctl.video import FrameRange

from .clip_edits import ClipWish
from .clip_words import WordsWish
from .clips import check_amount, look_at
from .studio import Studio

Flow = Literal["dis", "farneback", "none"]
"""What estimates the motion: nothing that reads a file or fetches weights."""

FLOWS: tuple[str, ...] = get_args(Flow)
USUAL = VideoEditSettings("source", "target", steps=STEPS)
"""Where the defaults of clip edits are written."""

MADE_FRAMES = 16
"""Frames of a clip from words; what AnimateDiff was trained for."""

START = [
    {"name": "flatten", "on": True, "parameters": {"carry": True}},
    {"name": "word-swap", "on": True, "parameters": {}},
]
"""Cards that the stack of the tab begins with."""


class ClipOptions(BaseModel):
    """How a clip is edited, beside what its recipe says.

    Attributes:
        frames: ``A-B``: frames A to B - 1 of the file; empty: all.
        stride: Take every so many-th frame.
        chunk: Frames that are edited together; memory grows with them.
        flow: What estimates the motion, or ``none``.
        inject: Features of the clip are taken over until this part of the run, in [0, 1].
        sound: Whether to copy the clip's sound.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    frames: Annotated[str, Field(max_length=40)] = ""
    stride: Annotated[int, Field(ge=1, le=1000)] = 1
    chunk: Annotated[int, Field(ge=1)] = USUAL.chunk
    flow: Flow = "dis"
    inject: Annotated[float, Field(ge=0, le=1)] = USUAL.inject
    sound: bool = True

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ClipOptions:
        """Check plain values.

        Raises:
            SettingError: listing everything that is wrong.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise SettingError(explain(error, cls, "", {})) from None


def clip_wish(
    studio: Studio,
    file: Path,
    source: str,
    recipe: Recipe,
    options: ClipOptions,
    *,
    only_plan: bool = False,
) -> ClipWish:
    """Put together what one visitor wants.

    Args:
        studio: The machinery.
        file: The dropped file.
        source: What the clip shows.
        recipe: What it should show, with which model, techniques and steps; checked.
        options: How it is edited.
        only_plan: Whether to compute what it would take, and no more.

    Raises:
        AttnctlError: saying what is wrong.
    """
    limits = studio.settings.limits
    if len(source) > limits.prompt_letters:
        raise SettingError("what the clip shows takes too many letters; shorten it")
    if options.chunk > limits.chunk:
        raise SettingError(f"chunk {options.chunk} is above the limit of {limits.chunk} frames")
    settings = VideoEditSettings(
        source, str(recipe.prompt), steps=recipe.steps or STEPS, guidance=recipe.guidance,
        negative=recipe.negative, chunk=options.chunk, size=recipe.size_px, flow=options.flow,
        inject=options.inject,
    )  # fmt: skip
    chosen = FrameRange.parse(options.frames.strip() or None, options.stride)
    facts = look_at(file, limits)
    check_amount(len(chosen.of(facts.frames, file.name)), facts.width, facts.height, limits)
    return ClipWish(
        file=file, chosen=chosen, recipe=recipe.changed(seed=None), settings=settings,
        sound=options.sound, machine=studio.settings.machine, out=studio.settings.out,
        beside=studio.outputs.place("source.mp4"), limits=limits, only_plan=only_plan,
    )  # fmt: skip


def words_wish(studio: Studio, recipe: Recipe) -> WordsWish:
    """Put together what one visitor wants to see move.

    Args:
        studio: The machinery.
        recipe: Of one clip, checked, with a seed; ``frames`` of the clip, or the usual number.

    Raises:
        SettingError: more than the limits allow.
    """
    limits = studio.settings.limits
    frames = recipe.frames or MADE_FRAMES
    if frames > limits.frames:
        raise SettingError(f"{frames} frames; at most {limits.frames} are made in one run")
    return WordsWish(recipe.changed(frames=frames, count=1), studio.settings.out)
