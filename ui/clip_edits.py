"""Work of the third tab: a clip edited with words, or what that would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.cli.order import Machine
from attnctl.cli.video_editing import check_techniques, record_of, save_video_edit
from attnctl.cli.video_order import VideoOrder
from attnctl.errors import SettingError
from attnctl.imaging import versions
from attnctl.pipelines.edit_pictures import check_size  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.video_chunks import (  # pyright: ignore[reportMissingImports]
    ChunkStore,
    chunks_of,
)
from attnctl.pipelines.video_edit import (  # pyright: ignore[reportMissingImports]
    check_pipeline,
    edit_video,
    resolve_video,
)
from attnctl.pipelines.video_memory import (  # pyright: ignore[reportMissingImports]
    VideoPlan,
    plan_video,
)
from attnctl.pipelines.video_settings import (  # pyright: ignore[reportMissingImports]
    VideoEditSettings,
)
from attnctl.recipes import Recipe
from attnctl.technique import Technique
from attnctl.video import FrameRange, Video, write_video

from .clips import read_clip
from .exporting import clip_command_of
from .job import Job
from .outputs import Outputs
from .preview import LatentPreview
from .settings import Limits
from .visit import Visit

PREVIEW_PX = 256


@dataclass(frozen=True, slots=True)
class MadeClip:
    """A clip that was edited, or made from words.

    Attributes:
        files: Files by kind: ``video``, ``sheet``, and where there are such ``flow`` and
            ``source``, which lies where browsers may fetch it already.
        facts: What there is to know about it, one line each.
        summary: What the techniques did.
        command: Command line that does the same; empty if there is none.
    """

    files: dict[str, Path]
    facts: tuple[str, ...] = ()
    summary: str = ""
    command: str = ""

    def handed_out(self, outputs: Outputs, visit: Visit) -> dict[str, Path]:
        """Copy the files to where the visitor's browser may fetch them; the visit forgets them."""
        shown = {
            kind: file if kind == "source" else outputs.hand_out(file)
            for kind, file in self.files.items()
        }
        visit.hold(shown.values())
        return shown


@dataclass(frozen=True, slots=True)
class ClipWish:
    """What one visitor wants changed in a clip.

    Attributes:
        file: The dropped file, which was looked at already.
        chosen: Which frames of it.
        recipe: What it should show, with which model and techniques.
        settings: How to edit.
        sound: Whether to copy the sound.
        machine: On what.
        out: Folder for the results.
        beside: Where the chosen frames of the source go, as a clip that every browser plays.
        limits: How much is accepted.
        only_plan: Whether to compute what it takes, and no more.
    """

    file: Path
    chosen: FrameRange
    recipe: Recipe
    settings: VideoEditSettings
    sound: bool
    machine: Machine
    out: Path
    beside: Path
    limits: Limits
    only_plan: bool = False

    @property
    def model(self) -> str:
        """Model that it needs."""
        return self.recipe.model

    def carry_out(self, job: Job, pipe: Any, preview: LatentPreview | None) -> None:
        """Plan, and edit chunk by chunk, telling the job of every evaluation of the denoiser.

        Raises:
            AttnctlError: the model cannot edit clips, or something does not fit it.
            Stopped: the visitor has stopped the job.
        """
        job.plan(0)
        job.make("reading the clip")
        check_pipeline(pipe)
        video = read_clip(self.file, self.chosen, self.limits)
        job.check()
        settings = resolve_video(pipe, video, self.settings)
        assert settings.size is not None  # filled in
        check_size(pipe, settings.size)
        techniques = self.recipe.build_techniques()
        check_techniques(pipe, techniques)
        plan = plan_video(pipe, video, settings, techniques)
        if self.only_plan:
            job.deliver(plan)
            return
        self._refuse_too_many_features(plan)
        job.deliver(self._edit(job, pipe, video, settings, techniques))

    def _edit(
        self,
        job: Job,
        pipe: Any,
        video: Video,
        settings: VideoEditSettings,
        techniques: Sequence[Technique],
    ) -> MadeClip:
        order = VideoOrder(
            Path(self.file.name), video, self.chosen, self.recipe, settings, self.machine, self.out,
            gif=False, sound=self.sound,
        )  # fmt: skip
        record = record_of(order, settings, pipe, techniques)
        store = ChunkStore(self.out, {**record, "versions": versions()}, video.frames)
        steps = _Steps(job, settings, video)
        done = edit_video(
            pipe, video, settings, techniques,
            store=store, on_step=steps.step, on_chunk=steps.next_chunk,
        )  # fmt: skip
        job.make("writing the files")
        files, notes = save_video_edit(order, done, record, store.key)
        store.clear()
        files["source"], _ = write_video(self.beside, video)
        facts = [f"{len(video.frames)} frames, {float(video.rate):.4g} a second", *video.notes]
        if done.resumed:
            facts.append(f"{done.resumed} of {done.chunks} chunks were finished before")
        report = done.report if techniques else None
        facts += [*notes, *(report.warnings if report else ())]
        command = clip_command_of(
            self.file.name, self.recipe, self.settings, self.chosen, sound=self.sound
        )
        return MadeClip(files, tuple(facts), report.table() if report else "", command)

    def _refuse_too_many_features(self, plan: VideoPlan) -> None:
        most = self.limits.feature_bytes
        if plan.memory is not None and plan.memory.features > most:
            raise SettingError(
                f"what is taken over from the clip needs {plan.memory.features / 2**30:.1f} GiB; at"
                f" most {most / 2**30:.1f} are kept: take fewer frames together, fewer steps, a"
                " smaller size, or inject 0"
            )


class _Steps:
    """Counts evaluations of the denoiser, and says what is done now.

    Args:
        job: Who is told.
        settings: With every choice filled in.
        video: The clip.
    """

    def __init__(self, job: Job, settings: VideoEditSettings, video: Video) -> None:
        self._job, self._video = job, video
        self._each, self._inverting = settings.evaluations, settings.evaluations - settings.steps
        self._chunks = chunks_of(len(video.frames), settings.chunk)
        self._number = self._done = 0
        self._tell()

    def step(self, frames: int) -> None:
        """Count an evaluation of all frames of a chunk, or all evaluations of a finished chunk."""
        self._done += max(1, frames // len(self._chunks[self._number].frames))
        if self._done % self._each == self._inverting:
            self._tell()
        self._job.count(self._done, self._each * len(self._chunks))

    def next_chunk(self, number: int, count: int, was_there: bool) -> None:
        """Go on to the chunk after ``number``."""
        self._number = min(number + 1, count - 1)
        self._done = self._each * (number + 1)
        if number + 1 < count:
            self._tell()

    def _tell(self) -> None:
        kept = self._chunks[self._number].kept
        is_inverting = self._done % self._each < self._inverting
        many = len(self._chunks)
        part = f", chunk {self._number + 1} of {many}" if many > 1 else ""
        verb = "inverting" if is_inverting else "editing"
        self._job.make(f"{verb} frames {kept[0]} to {kept[-1]}{part}")
        image = Image.fromarray(self._video.frames[kept[0]])
        image.thumbnail((PREVIEW_PX, PREVIEW_PX))
        self._job.show(image)
