"""What was asked for in videos, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from attnctl.cli.order import Machine, check_machine
from attnctl.cli.technique_text import read_technique
from attnctl.errors import SettingError, VideoError
from attnctl.pipelines.tiling import Tiling  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.video_settings import (  # pyright: ignore[reportMissingImports]
    VideoEditSettings,
)
from attnctl.recipes import Recipe
from attnctl.video import FrameRange, Video, read_video

STEPS = 50


@dataclass(frozen=True, slots=True)
class VideoOrder:
    """One run of ``attnctl video-edit``.

    Attributes:
        path: File or folder of the clip.
        video: The clip.
        frames: Which frames of the file it takes.
        recipe: Target prompt, model, techniques, steps.
        settings: How to edit.
        machine: On what.
        out: Folder for the files.
        gif: Whether to write a GIF too.
        sound: Whether to copy the sound.
    """

    path: Path
    video: Video
    frames: FrameRange
    recipe: Recipe
    settings: VideoEditSettings
    machine: Machine
    out: Path
    gif: bool
    sound: bool


def new_video_order(
    path: Path,
    source: str,
    fields: Mapping[str, Any],
    techniques: list[str],
    machine: Machine,
    *,
    frames: str | None,
    stride: int,
    rate: str | None,
    chunk: int,
    flow: str,
    inject: float,
    out: Path,
    gif: bool,
    sound: bool,
) -> VideoOrder:
    """Read the clip, check prompts, techniques and settings.

    Raises:
        SettingError: something cannot be used; no model was loaded.
    """
    values = {name: value for name, value in fields.items() if value is not None}
    values["techniques"] = [read_technique(text) for text in techniques or ["flatten"]]
    recipe = Recipe.from_dict(values, name="")
    recipe.build_techniques()
    settings = VideoEditSettings(
        source=source,
        target=str(recipe.prompt),
        steps=recipe.steps or STEPS,
        guidance=recipe.guidance,
        negative=recipe.negative,
        chunk=chunk,
        size=recipe.size_px,
        flow=flow,
        inject=inject,
    )
    check_machine(machine)
    chosen = FrameRange.parse(frames, stride)
    video = read_video(path, chosen, rate=read_rate(rate))
    return VideoOrder(path, video, chosen, recipe, settings, machine, out, gif, sound)


@dataclass(frozen=True, slots=True)
class LongOrder:
    """What ``attnctl video --then`` was asked for.

    Attributes:
        then: Prompts behind the first one.
        tiling: How tiles overlap.
        pairs: Pairs of tiles in one forward; ``None``: all.
        sharing: Whether they share keys and values.
    """

    then: tuple[str, ...]
    tiling: Tiling
    pairs: int | None
    sharing: bool


def new_long_order(
    then: list[str],
    overlap: int | None,
    transitions: int | None,
    pairs: int | None,
    *,
    no_sharing: bool,
) -> LongOrder | None:
    """Read the options of a long clip; ``None`` if none is wanted.

    Raises:
        SettingError: an option is for long clips, and no further prompt was given.
    """
    given = {
        "--overlap": overlap,
        "--transitions": transitions,
        "--pairs": pairs,
        "--no-sharing": no_sharing or None,
    }
    named = [name for name, value in given.items() if value is not None]
    if not then and named:
        raise SettingError(
            f"{', '.join(named)} goes with a clip of several prompts; add --then PROMPT"
        )
    if not then:
        return None
    tiling = Tiling(overlap) if transitions is None else Tiling(overlap, transitions)
    return LongOrder(tuple(then), tiling, pairs, not no_sharing)


def read_rate(text: str | None) -> Fraction | None:
    """Read ``--rate``.

    Raises:
        VideoError: it is no number above 0.
    """
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise VideoError(f"--rate {text!r}; write frames a second, such as 12, 23.976, 24000/1001")
    return rate
