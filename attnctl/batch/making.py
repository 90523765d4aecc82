"""Make the pictures of one kind: alone, or together where that gives the same bits."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.batch.apart import PicturesApart
from attnctl.batch.clips import Clip, draw_clip, makes_clips
from attnctl.batch.edits import draw_edit
from attnctl.batch.jobs import BatchJob
from attnctl.errors import AttnctlError, NotANumberError
from attnctl.pipelines.fitting import check, resolve  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job,
    OnStep,
    Picture,
    draw,
)
from attnctl.recipes import Recipe

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one job: a picture or clip, or why there is none."""

    job: BatchJob
    picture: Picture | Clip | None = None
    error: str = ""


class Maker:
    """Makes pictures with one pipeline; a job that fails does not stop the others.

    Args:
        pipe: A pipeline from text to pictures or to videos.
        batch_size: Pictures made together, if they are the same as alone.
        kernel: Attention kernel for the techniques.
        on_step: Called after each denoising step with the number of pictures moved on.
        say: Told what a person should know.
    """

    def __init__(
        self, pipe: Any, *, batch_size: int, kernel: str, on_step: OnStep, say: Say
    ) -> None:
        self._pipe = pipe
        self._batch_size = batch_size
        self._kernel = kernel
        self._on_step = on_step
        self._say = say
        self._makes_clips = makes_clips(pipe)

    def make(self, kind: Recipe, jobs: Sequence[BatchJob]) -> Iterator[Made]:
        """Make pictures that share everything but prompt and seed; all are edits, or none.

        With a batch size the first batch is made twice, alone and together. Only if all its
        pictures are the same, the others are made together; the rest that fills no batch, and
        every picture of a batch that failed, is made alone.
        """
        if jobs[0].edit is not None:
            yield from self._alone(kind, jobs)
            return
        try:
            recipe = resolve(kind.changed(prompt=jobs[0].prompt, seed=jobs[0].seed), self._pipe)
            check(self._pipe, recipe)
        except Exception as error:
            if len(jobs) > 1:  # it may be the first prompt's fault alone
                for job in jobs:
                    yield from self.make(kind, [job])
                return
            yield Made(jobs[0], error=_describe(error))
            return
        size = self._batch_size
        if size == 1 or self._makes_clips or len(jobs) < 2 * size:
            yield from self._alone(recipe, jobs)
            return
        first = list(self._alone(recipe, jobs[:size]))
        yield from first
        if not self._are_same_together(recipe, first):
            yield from self._alone(recipe, jobs[size:])
            return
        full = len(jobs) // size * size
        for start in range(size, full, size):
            yield from self._together(recipe, jobs[start : start + size])
        yield from self._alone(recipe, jobs[full:])

    def _alone(self, recipe: Recipe, jobs: Sequence[BatchJob]) -> Iterator[Made]:
        for job in jobs:
            try:
                yield Made(job, self._draw_one(recipe, job))
            except Exception as error:
                made = Made(job, error=_describe(error))
                error.__traceback__ = None  # it holds on to the tensors of the run
                _free_memory()
                yield made

    def _together(self, recipe: Recipe, jobs: Sequence[BatchJob]) -> Iterator[Made]:
        try:
            pictures = self._draw(recipe, jobs, self._on_step)
        except Exception as error:
            self._say(f"a batch failed ({_describe(error)}); its pictures are made one by one")
            error.__traceback__ = None
            _free_memory()
            pictures = None
        if pictures is None:
            yield from self._alone(recipe, jobs)
        else:
            yield from (Made(job, picture) for job, picture in zip(jobs, pictures, strict=True))

    def _are_same_together(self, recipe: Recipe, alone: Sequence[Made]) -> bool:
        if any(made.picture is None for made in alone):
            return False
        try:
            together = self._draw(recipe, [made.job for made in alone], self._only_check)
        except Exception as error:
            self._say(f"no batches of {self._batch_size}: {_describe(error)}")
            error.__traceback__ = None
            _free_memory()
            return False
        if [_bits(made.picture) for made in alone] == [_bits(picture) for picture in together]:
            return True
        self._say(
            f"pictures would differ in batches of {self._batch_size} on this machine; they are "
            "made one by one"
        )
        return False

    def _only_check(self, pictures: int) -> None:
        """Let Ctrl-C be noticed, without counting the steps of a test."""
        self._on_step(0)

    def _draw_one(self, recipe: Recipe, job: BatchJob) -> Picture | Clip:
        if job.edit is None and not self._makes_clips:
            return self._draw(recipe, [job], self._on_step)[0]
        own = recipe.changed(prompt=job.prompt, seed=job.seed)
        with _no_black_pictures():
            if job.edit is not None:
                made = draw_edit(self._pipe, own, job.edit, on_step=self._on_step)
            else:
                made = draw_clip(self._pipe, own, kernel=self._kernel, on_step=self._on_step)
        _forget_machine(made.record["run"])
        return made

    def _draw(self, recipe: Recipe, jobs: Sequence[BatchJob], on_step: OnStep) -> list[Picture]:
        apart = PicturesApart(len(jobs)) if len(jobs) > 1 else nullcontext()
        with apart, _no_black_pictures():
            drawn = list(
                draw(
                    self._pipe,
                    recipe,
                    jobs=[Job(job.prompt, job.seed) for job in jobs],
                    batch_size=len(jobs),
                    kernel=self._kernel,
                    on_step=on_step,
                    on_latents=_check_latents,
                )
            )
        for picture in drawn:
            _forget_machine(picture.record["run"])
        return drawn


@contextmanager
def _no_black_pictures() -> Generator[None]:
    """Refuse decoded values that are no numbers, which become black pixels otherwise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
        try:
            yield
        except RuntimeWarning:
            raise NotANumberError(
                "the decoded picture has values that are not numbers; try --dtype fp32"
            ) from None


def _bits(picture: Picture | Clip | None) -> bytes | None:
    return None if picture is None or isinstance(picture, Clip) else picture.image.tobytes()


def _check_latents(latents: Tensor) -> None:
    if not bool(torch.isfinite(latents).all()):
        raise NotANumberError(
            "latents that are not finite; use a smaller guidance or scale, or --dtype fp32"
        )


def _forget_machine(run: dict[str, Any]) -> None:
    """Drop what does not decide about the picture: its company, and which of equal GPUs."""
    run.pop("batch", None)
    run["device"] = str(run["device"]).partition(":")[0]


def _describe(error: Exception) -> str:
    if isinstance(error, AttnctlError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in str(error):
        return "out of memory; use a smaller size, or --offload model"
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
