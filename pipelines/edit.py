"""Edit a given picture with words: invert it, then run source and target side by side.

Item 0 of the batch is the source, item 1 the target; both start from the inverted noise. The
source follows its own inversion, so techniques that read from it see the true picture.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from attnctl.errors import SettingError
from attnctl.inversion import Inversion, refuse_unsupported
from attnctl.inversion.driven import OnEvaluation
from attnctl.report import Report
from attnctl.technique import Technique

from .edit_methods import Task
from .edit_scores import Scores, score
from .edit_settings import EditSettings, check_prompts
from .fitting import default_guidance


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit gave.

    Attributes:
        source: The picture that was edited.
        reconstruction: The source as the run made it; what the decoder alone makes of it where no
            source ran beside the edit.
        edited: The edited picture.
        scores: Likeness of edit and source.
        settings: With every choice filled in.
        evaluations: Evaluations of the denoiser, inversion and edit; each over all items.
        seconds: Time of everything.
        inversion: Can be given to further edits of the same picture; ``None`` without one.
        report: What techniques did; ``None`` without them.
    """

    source: Image.Image
    reconstruction: Image.Image
    edited: Image.Image
    scores: Scores
    settings: EditSettings
    evaluations: int
    seconds: float
    inversion: Inversion | None = field(default=None, repr=False)
    report: Report | None = field(default=None, repr=False)


def edit(
    pipe: Any,
    picture: Image.Image,
    source: str,
    target: str,
    *,
    settings: EditSettings | None = None,
    techniques: Sequence[Technique] = (),
    mask: Image.Image | None = None,
    region: np.ndarray | None = None,
    inversion: Inversion | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Edit:
    """Edit a picture.

    Args:
        pipe: A text-to-image pipeline of a family whose pictures can be inverted; it is left as
            it was.
        picture: RGB, of a size that the model takes
            (:func:`attnctl.pipelines.edit_pictures.fit_picture`).
        source: What the picture shows.
        target: What the edited picture should show.
        settings: Method and its settings.
        techniques: Attached while source and target run; those that need the inversion, such as
            ``RFControl``, are given it. Item 0 is the source, item 1 the target.
        mask: White where the edit may change the picture. Outside, the edit's latents follow the
            source's, and the pixels are the source's, bit for bit.
        region: ``(H, W)`` bool for the scores alone; ``mask``'s white part by default.
        inversion: An inversion of the same picture with the same settings, to save its time.
        on_evaluation: Is told how many evaluations of the denoiser are done, and of how many; it
            may raise to stop.

    Raises:
        UnsupportedModelError: the pipeline cannot be inverted.
        SettingError: a prompt is empty, or a setting or the mask cannot be used; said before
            anything is computed.
    """
    started = time.perf_counter()
    check_prompts(source, target)
    refuse_unsupported(pipe, pictures=True)
    chosen = _filled(pipe, settings or EditSettings())
    white = None if mask is None else _white(mask, picture)
    if inversion is not None and not chosen.inverts:
        raise SettingError(f"method {chosen.method!r} needs no inversion; leave it out")
    task = Task(pipe, picture, source, target, chosen, tuple(techniques), white, on_evaluation)
    made = task.run(inversion)
    edited = made.edited if white is None else _pasted(picture, made.edited, white)
    where = white if region is None else region
    scores = score(picture, edited, where, made.reconstruction)
    seconds = time.perf_counter() - started
    return Edit(
        picture, made.reconstruction, edited, scores, chosen, made.evaluations, seconds,
        made.inversion, made.report,
    )  # fmt: skip


def _filled(pipe: Any, settings: EditSettings) -> EditSettings:
    if settings.guidance is not None:
        return settings
    return replace(settings, guidance=default_guidance(pipe))


def _white(mask: Image.Image, picture: Image.Image) -> np.ndarray:
    """Where a mask is white, ``(H, W)``.

    Raises:
        SettingError: it has another size than the picture, or nothing white.
    """
    if mask.size != picture.size:
        raise SettingError(
            f"the mask has {mask.size} pixels and the picture {picture.size}; make them one size"
        )
    white = np.asarray(mask.convert("L")) >= 128
    if not white.any():
        raise SettingError("the mask has no white pixel; paint white what the edit may change")
    return white


def _pasted(picture: Image.Image, edited: Image.Image, white: np.ndarray) -> Image.Image:
    """The edit inside the mask, the source's pixels outside."""
    return Image.fromarray(np.where(white[..., None], np.asarray(edited), np.asarray(picture)))
