"""Work of the second tab: a picture changed with words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import attnctl
from attnctl.cli.edit_order import EditOrder
from attnctl.cli.editing import Work as SavedWork
from attnctl.cli.editing import save_work
from attnctl.inversion import refuse_unsupported
from attnctl.pipelines.edit import edit  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.edit_pictures import (  # pyright: ignore[reportMissingImports]
    check_size,
    fit_picture,
    fitted_size,
)

from .job import Job
from .preview import LatentPreview


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit gave.

    Attributes:
        source: The picture, as large as the model sees it.
        edited: The edit.
        files: Files by kind: ``edited``, ``difference``, ``sheet``.
        scores: Likeness of both, by name.
        summary: What the techniques did.
    """

    source: Image.Image
    edited: Image.Image
    files: dict[str, Path]
    scores: dict[str, float]
    summary: str = ""


@dataclass(frozen=True, slots=True)
class EditWish:
    """What one visitor wants changed.

    Attributes:
        order: The same order that ``attnctl edit`` carries out.
    """

    order: EditOrder

    @property
    def model(self) -> str:
        """Model that it needs."""
        return self.order.recipe.model

    def carry_out(self, job: Job, pipe: Any, preview: LatentPreview | None) -> None:
        """Edit the picture and save it, telling the job of every evaluation of the denoiser.

        Raises:
            AttnctlError: the model cannot edit, or something does not fit it.
            Stopped: the visitor has stopped the job.
        """
        order = self.order
        refuse_unsupported(pipe, pictures=True)
        techniques = order.recipe.build_techniques()
        if techniques:
            attnctl.attach(pipe, techniques).detach()
        size = order.recipe.size_px or fitted_size(pipe, order.picture.size)
        check_size(pipe, size)
        picture = fit_picture(order.picture, size)
        job.plan(0)
        job.make("inverting the picture, and editing it")

        def on_evaluation(done: int, total: int) -> None:
            job.count(done, total)

        made = edit(
            pipe,
            picture,
            order.source,
            str(order.recipe.prompt),
            settings=order.settings,
            techniques=techniques,
            on_evaluation=on_evaluation,
        )
        recipe = order.recipe.changed(
            steps=order.settings.steps,
            guidance=made.settings.guidance,
            size=f"{size[0]}x{size[1]}",
        )
        work = SavedWork(order, recipe, picture, None, made)
        save_work(work, pipe, techniques)
        summary = made.report.table() if made.report is not None and techniques else ""
        job.deliver(Edited(picture, made.edited, work.files, made.scores.to_dict(), summary))
