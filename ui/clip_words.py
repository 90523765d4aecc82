"""Work of the third tab: a clip from words, by a model that makes clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctl.cli.results import slug
from attnctl.cli.video import save_clip
from attnctl.pipelines.fitting import check, resolve  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_video import (  # pyright: ignore[reportMissingImports]
    check_frame_count,
    check_video_pipeline,
    draw_videos,
)
from attnctl.recipes import Recipe

from .clip_edits import MadeClip
from .drawing import Steps
from .exporting import words_command_of
from .job import Job
from .preview import LatentPreview


@dataclass(frozen=True, slots=True)
class WordsWish:
    """What one visitor wants to see move.

    Attributes:
        recipe: Of one clip, checked, with a seed and a number of frames.
        out: Folder for the results.
    """

    recipe: Recipe
    out: Path

    @property
    def model(self) -> str:
        """Model that it needs."""
        return self.recipe.model

    def carry_out(self, job: Job, pipe: Any, preview: LatentPreview | None) -> None:
        """Make the clip and save it, telling the job of every step.

        Raises:
            AttnctlError: the model makes no clips, or the recipe does not fit it.
            Stopped: the visitor has stopped the job.
        """
        check_video_pipeline(pipe)
        check_frame_count(pipe, self.recipe.frames or 1)
        recipe = resolve(self.recipe, pipe)
        check(pipe, recipe)
        job.plan(recipe.steps or 1)
        job.make(f"{recipe.frames} frames, seed {recipe.seed}")
        (made,) = draw_videos(pipe, recipe, on_step=Steps(job, recipe))
        job.make("writing the files")
        stem = f"{slug(str(recipe.prompt))}-s{recipe.seed}-{made.recipe.id[:6]}"
        saved = save_clip(made, self.out, stem=stem)
        files = {kind: Path(saved[kind]) for kind in ("video", "sheet")}
        rate = float(made.video.rate)
        facts = [f"{len(made.video.frames)} frames, {rate:.4g} a second, seed {recipe.seed}"]
        facts += [*saved["notes"], *(made.report.warnings if made.report is not None else ())]
        report = made.report.table() if made.report is not None else ""
        job.deliver(MadeClip(files, tuple(facts), report, words_command_of(self.recipe)))
