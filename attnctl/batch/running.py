"""Run a job list: this process's share, with a manifest that survives a kill."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from attnctl.batch.clips import Clip, save_clip
from attnctl.batch.jobs import BatchJob, JobList
from attnctl.batch.making import Made, Maker, Say
from attnctl.batch.manifest import (
    ABSENT,
    DONE,
    FAILED,
    MERGED,
    Entry,
    Manifest,
    digest_of,
    is_finished,
    merge,
    read_entries,
)
from attnctl.batch.pages import write_index, write_sheet
from attnctl.errors import AttnctlError, SettingError
from attnctl.headhunter.team import Team
from attnctl.imaging import save_png, versions
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    OnStep,
    Picture,
)
from attnctl.settings import check_number

Load = Callable[[str], Any]

_GUESSED_STEPS = 25
_PARTIAL = re.compile(r"^\.\d+-([0-9a-f]{8})\.")


class BatchStoppedError(AttnctlError):
    """A job failed and nothing more was to be made."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How a batch is run; nothing here changes a picture but the kernel.

    Attributes:
        batch_size: Pictures made together where that gives the same bits.
        kernel: Attention kernel for the techniques.
        resume: Go on with a folder that holds a batch.
        fail_fast: Stop at the first job that fails.
        limit: Make only the first so many pictures of the list.
    """

    batch_size: int = 1
    kernel: str = "auto"
    resume: bool = False
    fail_fast: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        check_number("batch", "batch_size", self.batch_size, at_least=1)
        if self.limit is not None:
            check_number("batch", "limit", self.limit, at_least=1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch has come to.

    Attributes:
        done: Pictures of the list that are there.
        failed: Jobs that failed.
        absent: Jobs that nobody has tried.
        made: Pictures that this process made now.
        files: Manifest, page and sheet, by name; only the first process writes them.
    """

    done: int
    failed: int
    absent: int
    made: int
    files: dict[str, Path] = field(default_factory=dict[str, Path])


class BatchRun:
    """A batch that is ready to run: everything is checked, nothing is written yet.

    Args:
        jobs: What to make, from :func:`attnctl.batch.read_jobs` or :func:`attnctl.batch.jobs_from`.
        out: Folder for pictures and manifests; the same for all processes.
        settings: How to run.
        load: Gives the pipeline for the name of a model; :func:`attnctl.load_pipeline` without
            downloads by default.

    Raises:
        SettingError: the folder holds a batch already, and ``resume`` is not set.
    """

    def __init__(
        self,
        jobs: JobList,
        out: str | Path,
        settings: BatchSettings | None = None,
        *,
        load: Load | None = None,
    ) -> None:
        self.settings = settings or BatchSettings()
        self.out = Path(out)
        self.jobs = jobs.jobs[: self.settings.limit]
        self._list = jobs
        self._load = load or _load
        self.team = Team.join()
        known, runs = read_entries(self.out)
        if runs and not self.settings.resume:
            raise SettingError(
                f"{str(self.out)!r} holds a batch already; go on with it with --resume, or give "
                "another folder with --out"
            )
        self.remarks = _remarks(runs)
        self.jobs_repeated = jobs.repeats
        share = self.team.share(self.jobs)
        self.todo = [job for job in share if not is_finished(self.out, known.get(job.id))]
        self._digits = max(4, len(str(len(jobs.jobs))))
        self._made = 0

    @property
    def total_steps(self) -> int:
        """Denoising steps that this process has before it, as far as they are known."""
        kinds = self._list.kinds
        return sum(kinds[job.kind].recipe.steps or _GUESSED_STEPS for job in self.todo)

    def run(
        self, *, on_step: OnStep = lambda _count: None, say: Say = lambda _text: None
    ) -> Outcome:
        """Make what is not there yet.

        Args:
            on_step: Called after each denoising step with the number of pictures moved on; may
                raise ``KeyboardInterrupt``, what is finished stays.
            say: Told about every picture.

        Raises:
            BatchStoppedError: a job failed, and the settings ask to stop then.
            OSError: the folder cannot be written.
        """
        self.team.wait()  # nobody may look for an older batch once one has begun to write
        manifest = Manifest(self.out, self.team.index)
        manifest.open()
        self._remove_halves()
        manifest.add([{"run": self._record()}])
        try:
            for made in self._make(on_step, say):
                self._keep(made, manifest, say)
        except BaseException:
            with contextlib.suppress(OSError):  # of a full disk there is word already
                merge(self.out, self.jobs)
            raise
        self.team.wait()
        outcome = self._finish()
        self.team.wait()  # a launcher ends the others when one process ends with an error
        return outcome

    def _make(self, on_step: OnStep, say: Say) -> Iterator[Made]:
        kinds = self._list.kinds

        def model_of(job: BatchJob) -> str:
            return kinds[job.kind].recipe.model

        models = list(dict.fromkeys(map(model_of, self.todo)))
        for model in models:
            jobs = [job for job in self.todo if model_of(job) == model]
            try:
                pipe = self._load(model)
            except (AttnctlError, ImportError) as error:
                yield from (Made(job, error=str(error)) for job in jobs)
                continue
            maker = Maker(
                pipe,
                batch_size=self.settings.batch_size,
                kernel=self.settings.kernel,
                on_step=on_step,
                say=say,
            )
            ordered = sorted(jobs, key=lambda job: (job.kind, job.edit is not None, job.number))
            for (kind, _), group in groupby(ordered, key=lambda job: (job.kind, job.edit is None)):
                yield from maker.make(kinds[kind].recipe, list(group))
            del maker, pipe

    def _keep(self, made: Made, manifest: Manifest, say: Say) -> None:
        job = made.job
        entry: Entry = {"id": job.id, "number": job.number, "line": job.line, "seed": job.seed}
        if made.picture is None:
            manifest.add([{**entry, "status": FAILED, "error": made.error}])
            say(f"picture {job.number} failed: {made.error}")
            if self.settings.fail_fast:
                raise BatchStoppedError(f"picture {job.number} failed: {made.error}")
            return
        path = self._save(job, made.picture)
        entry |= {
            "status": DONE,
            "path": path.name,
            "sha256": digest_of(path),
            "model": made.picture.recipe.model,
            "seconds": round(made.picture.seconds, 3),
            "techniques": _active(made.picture.report),
            "rank": self.team.index,
        }
        manifest.add([entry])
        self._made += 1
        say(f"picture {job.number}: seed {job.seed}, {made.picture.seconds:.1f} s, {path.name}")

    def _save(self, job: BatchJob, made: Picture | Clip) -> Path:
        path = self.out / f"{job.number:0{self._digits}d}-{job.id[:8]}"
        try:
            if isinstance(made, Clip):
                return save_clip(made, path.with_suffix(".mp4"))
            return save_png(made.image, path.with_suffix(".png"), made.record)
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error

    def _finish(self) -> Outcome:
        if not self.team.is_first:
            entries, _ = read_entries(self.out)
            states = [entries.get(job.id, {"status": ABSENT})["status"] for job in self.jobs]
            counts = {state: states.count(state) for state in (DONE, FAILED, ABSENT)}
            return Outcome(counts[DONE], counts[FAILED], counts[ABSENT], self._made)
        counts = merge(self.out, self.jobs)
        entries, _ = read_entries(self.out)
        files = {"manifest": self.out / MERGED}
        files["index"] = write_index(self.out, self._list, self.jobs, entries)
        sheet = write_sheet(self.out, self._list.name, self.jobs, entries)
        if sheet is not None:
            files["sheet"] = sheet
        return Outcome(counts[DONE], counts[FAILED], counts[ABSENT], self._made, files)

    def _remove_halves(self) -> None:
        """Remove what a kill left of files that were being written, in this process's share."""
        mine = {job.id[:8] for job in self.todo}
        for path in self.out.glob(".*.partial"):
            found = _PARTIAL.match(path.name)
            if (found and found[1] in mine) or (not found and self.team.is_first):
                path.unlink(missing_ok=True)

    def _record(self) -> Entry:
        return {
            "job_file": self._list.name,
            "versions": versions(),
            "processes": self.team.count,
            "rank": self.team.index,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _remarks(runs: Sequence[Entry]) -> list[str]:
    now = versions()
    remarks: dict[str, None] = {}
    for run in runs:
        before = run.get("versions", {})
        for package, version in now.items():
            if before.get(package, version) != version:
                remarks[
                    f"made with {package} {before[package]} so far, this is {version}: new "
                    "pictures may differ in their last bits"
                ] = None
    return list(remarks)


def _active(report: dict[str, Any] | None) -> list[str]:
    """Names of the techniques that acted."""
    if report is None:
        return []
    acted = {name for entry in report["entries"] for name in entry["techniques"]}
    return sorted(acted | {entry["technique"] for entry in report["losses"]})


def _load(model: str) -> Any:
    import attnctl

    pipe = attnctl.load_pipeline(model, local_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe
