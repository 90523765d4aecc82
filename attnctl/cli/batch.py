"""``attnctl batch``: many pictures from a job file, on one process or many."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnctl.cli import FAILED, WRONG, options
from attnctl.errors import SettingError

if TYPE_CHECKING:
    from attnctl.batch import BatchRun, JobList, Outcome
    from attnctl.cli.order import Machine

JobFile = Annotated[
    Path, typer.Argument(metavar="JOBS", help="Job file: YAML, JSON, JSONL or CSV.")
]
Out = Annotated[Path, typer.Option(help="Folder for pictures and manifests.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a batch that was stopped.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, make nothing.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first job that fails.")]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Make only the first so many pictures.", metavar="N")
]
Defaults = Annotated[
    Path | None,
    typer.Option("--defaults", metavar="FILE", help="YAML with defaults: and matrix: for all."),
]
Model = Annotated[str | None, typer.Option(metavar="MODEL", help="Model of jobs that name none.")]
Roots = Annotated[
    list[Path] | None,
    typer.Option("--root", metavar="DIR", help="Folder that jobs may read; may be repeated."),
]
Download = Annotated[bool, typer.Option("--download", help="Let jobs download models.")]
BatchSize = Annotated[
    int, typer.Option(min=1, help="Pictures made together, where they stay the same bit for bit.")
]


def batch(
    jobs: JobFile,
    out: Out = Path("batch-out"),
    resume: Resume = False,
    dry_run: DryRun = False,
    fail_fast: FailFast = False,
    limit: Limit = None,
    defaults: Defaults = None,
    model: Model = None,
    root: Roots = None,
    download: Download = False,
    batch_size: BatchSize = 1,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    kernel: options.Kernel = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> int:
    """Make every picture of a job file; processes under `accelerate launch` share it."""
    from attnctl.batch import BatchRun, BatchSettings

    settings = BatchSettings(batch_size, kernel or "auto", resume, fail_fast, limit)
    try:
        listed = _read(jobs, defaults, model, root or [], download)
        machine = _machine(dtype, device, offload, settings)
        ready = BatchRun(listed, out, settings, load=_loader(machine, out, not download))
    except SettingError:
        if int(os.environ.get("RANK", "0")):
            raise typer.Exit(WRONG) from None  # the first process tells it
        raise
    is_silent = quiet or as_json or not ready.team.is_first
    _remark(ready, is_silent)
    if dry_run:
        _tell_plan(ready, listed, out, as_json)
        ready.team.leave()
        return 0
    return _finish(ready, _run(ready, is_silent), out, as_json)


def _read(
    jobs: Path, defaults: Path | None, model: str | None, roots: list[Path], download: bool
) -> JobList:
    from attnctl.batch import Limits, read_jobs

    trusted = frozenset({model} if model else ())
    limits = Limits.around(jobs.parent, *roots, trusted=trusted, may_download=download)
    return read_jobs(jobs, defaults=defaults, model=model, limits=limits)


def _machine(dtype: str | None, device: str | None, offload: str, settings: Any) -> Machine:
    from attnctl.cli.order import Machine, check_machine
    from attnctl.headhunter.team import Team

    device = device or Team.join().device
    machine = Machine(dtype, device, offload, settings.batch_size, settings.kernel)
    check_machine(machine)
    return machine


def _loader(machine: Machine, out: Path, local_only: bool) -> Any:
    from attnctl.cli.order import Order
    from attnctl.cli.studio import load
    from attnctl.recipes import Recipe

    def load_model(name: str) -> Any:
        order = Order(Recipe(model=name, prompt=""), machine, (), out)
        return load(order, local_only=local_only)

    return load_model


def _run(ready: BatchRun, is_silent: bool) -> Outcome:
    from attnctl.cli.interrupt import Interrupt
    from attnctl.cli.progress import Progress

    with (
        Interrupt(quiet=is_silent) as interrupt,
        Progress(ready.total_steps, quiet=is_silent) as progress,
    ):

        def on_step(pictures: int) -> None:
            progress.step(pictures)
            interrupt.check()

        try:
            return ready.run(on_step=on_step, say=progress.say)
        except (KeyboardInterrupt, OSError):
            progress.say("go on later with the same command and --resume")
            raise


def _finish(ready: BatchRun, outcome: Outcome, out: Path, as_json: bool) -> int:
    """Tell the outcome, part from the other processes, and give the exit code."""
    if ready.team.is_first:
        _tell(outcome, out, as_json)
    ready.team.leave()
    return FAILED if ready.team.is_first and outcome.failed + outcome.absent else 0


def _remark(ready: BatchRun, is_silent: bool) -> None:
    remarks = list(ready.remarks)
    if ready.jobs_repeated:
        remarks.append(f"{ready.jobs_repeated} pictures are asked for more than once; made once")
    waiting = len(ready.todo)
    if ready.settings.resume:
        remarks.append(f"{waiting} pictures are still to be made by this process")
    for text in remarks if not is_silent else ():
        print(text, file=sys.stderr)  # noqa: T201


def _tell_plan(ready: BatchRun, listed: JobList, out: Path, as_json: bool) -> None:
    from attnctl.cli.tables import print_json, print_table

    if not ready.team.is_first:
        return
    counts = Counter(job.kind for job in ready.jobs)
    rows: list[tuple[object, ...]] = []
    for kind, count in sorted(counts.items()):
        recipe = listed.kinds[kind].recipe
        names = " + ".join(entry.name for entry in recipe.techniques)
        rows.append((count, recipe.model, recipe.size, recipe.steps, recipe.guidance, names))
    if as_json:
        keys = ("pictures", "model", "size", "steps", "guidance", "techniques")
        answer = {
            "pictures": len(ready.jobs),
            "to_make": len(ready.todo),
            "steps": ready.total_steps,
            "kinds": [dict(zip(keys, row, strict=True)) for row in rows],
            "out": str(out),
        }
        print_json(answer)
        return
    head = ("pictures", "model", "size", "steps", "guidance", "techniques")
    print_table(head, [["-" if cell in (None, "") else cell for cell in row] for row in rows])
    typer.echo(
        f"{len(ready.jobs)} pictures, {len(ready.todo)} still to be made"
        f"{f' by this of {ready.team.count} processes' if ready.team.count > 1 else ''}; "
        f"they would go to {out}; nothing was loaded or written"
    )


def _tell(outcome: Outcome, out: Path, as_json: bool) -> None:
    from attnctl.cli.tables import print_json

    files = {name: str(path) for name, path in outcome.files.items()}
    counts = {"done": outcome.done, "failed": outcome.failed, "absent": outcome.absent}
    if as_json:
        print_json({"out": str(out), **counts, "made": outcome.made, **files})
        return
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    for name, path in files.items():
        typer.echo(f"{name}: {path}")
