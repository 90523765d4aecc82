"""``attnctl video``: clips from a prompt, with a pipeline that makes videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options

Frames = Annotated[
    int | None, typer.Option(min=1, help="Frames of a clip [default: the pipeline's].")
]
Rate = Annotated[
    str | None, typer.Option(metavar="FPS", help="Frames a second [default: the model's].")
]
Then = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PROMPT",
        help="What comes next, in one long clip whose tiles overlap; repeat for more prompts.",
    ),
]
Overlap = Annotated[
    int | None,
    typer.Option(min=0, help="With --then: latent frames that tiles share [default: 9 in 13]."),
]
Transitions = Annotated[
    int | None, typer.Option(min=0, help="With --then: tiles between two prompts [default: 2].")
]
Pairs = Annotated[
    int | None,
    typer.Option(min=1, help="With --then: pairs of tiles in one forward [default: all]."),
]
NoSharing = Annotated[
    bool,
    typer.Option("--no-sharing", help="With --then: tiles share no keys and values (ditctrl)."),
]
Gif = Annotated[bool, typer.Option("--gif", help="Also write GIFs.")]


def video(
    prompt: options.Prompt = None,
    model: options.Model = None,
    technique: options.Techniques = None,
    recipe: options.RecipeFile = None,
    seed: options.Seed = None,
    count: options.Count = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    negative: options.Negative = None,
    scheduler: options.Scheduler = None,
    frames: Frames = None,
    rate: Rate = None,
    then: Then = None,
    overlap: Overlap = None,
    transitions: Transitions = None,
    pairs: Pairs = None,
    no_sharing: NoSharing = False,
    out: options.Out = Path("out"),
    gif: Gif = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make clips from a prompt; each carries its whole recipe in its metadata."""
    from attnctl.cli.order import Machine, new_order
    from attnctl.cli.video_order import new_long_order, read_rate

    fields: dict[str, Any] = {
        "prompt": prompt, "model": model, "seed": seed, "count": count, "steps": steps,
        "guidance": guidance, "size": size, "negative": negative, "scheduler": scheduler,
    }  # fmt: skip
    machine = Machine(dtype, device, offload)
    order = new_order(fields, technique or [], recipe, machine, words=(), out=out)
    long = new_long_order(then or [], overlap, transitions, pairs, no_sharing=no_sharing)
    _run(order, long, frames, read_rate(rate), gif=gif, as_json=as_json, quiet=quiet or as_json)


def _run(
    order: Any,
    long: Any,
    frames: int | None,
    rate: Any,
    *,
    gif: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from attnctl.cli.interrupt import Interrupt
    from attnctl.cli.progress import Progress
    from attnctl.cli.remarks import remark
    from attnctl.cli.studio import load
    from attnctl.cli.video_editing import check_techniques
    from attnctl.pipelines.fitting import resolve  # pyright: ignore[reportMissingImports]
    from attnctl.pipelines.text_to_image import jobs_of  # pyright: ignore[reportMissingImports]
    from attnctl.pipelines.text_to_video import (  # pyright: ignore[reportMissingImports]
        check_frame_count,
        check_video_pipeline,
    )
    from attnctl.pipelines.tiling import plan_long_video  # pyright: ignore[reportMissingImports]

    if order.has_random_seed:
        remark([f"seed {order.recipe.seed} (random; repeat with --seed)"], quiet)
    pipe = load(order)
    check_video_pipeline(pipe)
    if frames is not None:
        check_frame_count(pipe, frames)
    recipe = resolve(order.recipe, pipe)
    if long is not None:
        plan_long_video(pipe, 1 + len(long.then), long.tiling, frames or recipe.frames)
    check_techniques(pipe, recipe.build_techniques())
    clips = len(jobs_of(recipe))
    answers: list[dict[str, Any]] = []
    total = clips * (recipe.steps or 1)
    with Interrupt(quiet=quiet) as interrupt, Progress(total, quiet=quiet) as progress:

        def on_step(done: int) -> None:
            progress.step(done)
            interrupt.check()

        settings = {"frames": frames, "rate": rate, "on_step": on_step}
        for made in _drawn(pipe, recipe, long, settings):
            answers.append(save_clip(made, order.out, gif=gif))
            progress.say(f"{len(answers)}/{clips} {answers[-1]['video']}")
            if made.report is not None:
                remark([f"note: {text}" for text in made.report.warnings], quiet)
    if as_json:
        print(json.dumps({"recipe": recipe.to_dict(), "clips": answers}, ensure_ascii=False))  # noqa: T201
        return
    for answer in answers:
        for name in ("video", "gif", "sheet"):
            if name in answer:
                print(answer[name])  # noqa: T201


def _drawn(pipe: Any, recipe: Any, long: Any, settings: dict[str, Any]) -> Iterator[Any]:
    """The clips that were ordered, one after the other."""
    from attnctl.pipelines.long_clips import (  # pyright: ignore[reportMissingImports]
        draw_long_videos,
    )
    from attnctl.pipelines.text_to_video import (  # pyright: ignore[reportMissingImports]
        draw_videos,
    )

    if long is None:
        return draw_videos(pipe, recipe, **settings)
    more = {"tiling": long.tiling, "sharing": long.sharing, "pairs_at_once": long.pairs}
    return draw_long_videos(pipe, recipe, long.then, **settings, **more)


def save_clip(made: Any, out: Path, *, gif: bool = False, stem: str = "") -> dict[str, Any]:
    """Write a clip that was made from words, and its sheet; give where they are, as plain values.

    Args:
        made: The clip.
        out: Folder.
        gif: Whether to write a GIF too.
        stem: Name of the files without their ending; prompt and seed by default.
    """
    from attnctl.cli.results import slug
    from attnctl.imaging import save_png
    from attnctl.pipelines.video_sheets import draw_frames  # pyright: ignore[reportMissingImports]
    from attnctl.video import write_video

    prompts = [str(made.recipe.prompt), *made.record.get("long_video", {}).get("then", [])]
    stem = stem or f"{slug(' then '.join(prompts))}-{made.recipe.seed}"
    path, notes = write_video(out / f"{stem}.mp4", made.video, record=made.record)
    answer = {"video": str(path), "seed": made.recipe.seed, "frames": len(made.video.frames),
              "rate": str(made.video.rate), "notes": list(notes)}  # fmt: skip
    if gif:
        answer["gif"] = str(write_video(out / f"{stem}.gif", made.video, record=made.record)[0])
    sheet = draw_frames([("", made.video.frames)], title=f"“{'” “'.join(prompts)}”")
    answer["sheet"] = str(save_png(sheet, out / f"{stem}-sheet.png", made.record))
    return answer
