"""``attnctl generate``: pictures from a prompt, a recipe, or an earlier picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnctl.cli import options


def generate(
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
    out: options.Out = Path("out"),
    grid: options.Grid = False,
    heatmaps: options.Heatmaps = None,
    compare: options.Compare = False,
    source: options.Source = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    batch_size: options.BatchSize = 1,
    kernel: options.Kernel = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make pictures; every picture carries its whole recipe in its PNG metadata."""
    from attnctl.cli.order import Machine, new_order, order_again, read_words
    from attnctl.cli.studio import run_order

    machine = Machine(dtype, device, offload, batch_size, kernel or "auto")
    fields: dict[str, Any] = {
        "prompt": prompt, "model": model, "seed": seed, "count": count, "steps": steps,
        "guidance": guidance, "size": size, "negative": negative, "scheduler": scheduler,
    }  # fmt: skip
    rest: dict[str, Any] = {"words": read_words(heatmaps), "out": out}
    if source is not None:
        given = {("PROMPT" if name == "prompt" else f"--{name}"): v for name, v in fields.items()}
        given |= {"-t": technique, "--recipe": recipe, "--compare": compare, "--grid": grid}
        order = order_again(source, given, machine, **rest)
    else:
        order = new_order(
            fields, technique or [], recipe, machine, grid=grid, compare=compare, **rest
        )
    run_order(order, as_json=as_json, quiet=quiet)
