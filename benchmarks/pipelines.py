"""Whole pipelines of real sizes with random weights: what being attached costs and saves."""

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

import attnctl
from attnctl.bench import port
from attnctl.bench.machine import machine_record
from attnctl.bench.memory import peak_bytes
from attnctl.bench.networks import pipeline_around, stable_diffusion_unet, tiny_unet
from attnctl.bench.overhead import Idle
from attnctl.bench.sparse.layers import Watch
from attnctl.bench.statistics import median
from attnctl.bench.timing import Times, ratio, take_turns
from attnctl.calls import AttentionCall
from attnctl.errors import AttnctlError
from attnctl.files import write_text
from benchmarks.models import MODELS, PAG_SCALE, STEPS, Model, denoiser_of

EXCITE = "SD 1.5, Attend-and-Excite"
Run = Callable[[], Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; all sides have a turn each")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps of a run")
    parser.add_argument("--toy", action="store_true", help="toy sizes: only shows that all runs")
    names = [*(model.name for model in MODELS), EXCITE]
    parser.add_argument("--model", action="append", choices=names, help="this one; may be repeated")


def run(arguments: argparse.Namespace) -> None:
    """Measure each model and write ``results/<machine>/pipelines.json`` after every one.

    A file of the same settings is completed: models that stand in it are not measured again.
    """
    machine = machine_record(arguments.device)
    name = re.sub(r"[^a-z0-9]+", "-", machine["name"].lower()).strip("-")
    path = arguments.out / name / f"pipelines{'-toy' if arguments.toy else ''}.json"
    settings = {"toy": arguments.toy, "repeats": arguments.repeats, "steps": arguments.steps}
    record: dict[str, Any] = {"machine": machine, "settings": settings, "models": {}}
    if path.exists():
        found = json.loads(path.read_text())
        if {k: found[k] for k in ("machine", "settings")} == json.loads(
            json.dumps({"machine": machine, "settings": settings})
        ):
            record = found
    wanted = arguments.model or [*(model.name for model in MODELS), EXCITE]
    for one in wanted:
        if one in record["models"]:
            continue
        print(f"\n{one}", flush=True)
        if one == EXCITE:
            record["models"][one] = measure_exciting(arguments)
        else:
            (model,) = [model for model in MODELS if model.name == one]
            record["models"][one] = measure_model(model, arguments)
        write_text(path, json.dumps(record, indent=1) + "\n")
    print(f"\nwritten: {path}")


def measure_model(model: Model, arguments: argparse.Namespace) -> dict[str, Any]:
    """Idle overhead, sparse attention, perturbed guidance and heat maps of one model."""
    on_cuda = arguments.device.startswith("cuda")
    dtype = torch.bfloat16 if on_cuda else torch.float32
    pipe = model.build(arguments.device, dtype, toy=arguments.toy)
    inputs = model.inputs(pipe, toy=arguments.toy, steps=arguments.steps)
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in denoiser_of(pipe).parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "largest_map_bytes": largest_map(pipe, inputs),
    }
    sides = {"plain": runner(pipe, inputs), "idle": runner(pipe, inputs, Idle())}
    small: dict[str, Any] = {"block": 16, "least_tokens": 16} if arguments.toy else {}
    settings: dict[str, Any] = {"sparsity": 0.9, "where": model.where, "steps": "20%-", **small}
    sides["sparse-attention"] = runner(pipe, inputs, attnctl.SparseAttention(**settings))
    sides["re-ttention"] = runner(pipe, inputs, attnctl.Rettention(**settings))
    sides["heat-maps"] = runner(pipe, inputs, attnctl.HeatMaps())
    found["sides"] = measure_sides(sides, arguments)
    if model.pag is not None:
        found["pag"] = measure_pag(model, pipe, inputs, arguments)
    return found


def runner(pipe: Any, inputs: dict[str, Any], *techniques: Any) -> Run:
    """A run with techniques, attaching and detaching included."""

    def draw() -> Tensor:
        inputs["generator"].manual_seed(7)
        if not techniques:
            return output_of(pipe(**inputs))
        with attnctl.attach(pipe, list(techniques)):
            return output_of(pipe(**inputs))

    return draw


def output_of(made: Any) -> Tensor:
    """Latents of a picture or a clip."""
    return made.images if hasattr(made, "images") else made.frames


def measure_sides(sides: dict[str, Run], arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of each side, then times in turn; a side that is refused says why."""
    found: dict[str, Any] = {}
    able: dict[str, Run] = {}
    for name, side in sides.items():
        try:
            found[name] = {"peak_bytes": peak_memory(side, arguments.device)}
            able[name] = side
        except AttnctlError as error:
            found[name] = {"refused": str(error)}
            print(f"  {name}: refused: {error}", flush=True)
    times = take_turns(able, arguments.repeats)
    for name, mine in times.items():
        found[name] |= {"seconds": median(mine.wall), "rounds": mine.wall}
        if name != "plain":
            found[name]["speedup"] = ratio(times["plain"].wall, mine.wall)
        print(f"  {line_of(name, found)}", flush=True)
    return found


def line_of(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    mine = found[name]
    memory = f"{mine['peak_bytes'] / 2**20:9.1f} MiB at the peak"
    speed = mine.get("speedup")
    text = f"{name:<18} {mine['seconds']:8.3f} s {memory}"
    if speed is None:
        return text
    return f"{text}   x {speed['median']:5.2f} ({speed['low']:.2f} to {speed['high']:.2f})"


def measure_pag(
    model: Model, pipe: Any, inputs: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What perturbed guidance adds to a plain run, ours over that of diffusers."""
    assert model.pag is not None
    name, *places = model.pag
    layers, where = places[1 if arguments.toy else 0]
    parts = {k: v for k, v in pipe.components.items() if k != "scheduler"}
    theirs = model.around(getattr(diffusers, name), parts, pag_applied_layers=layers)
    theirs.scheduler = pipe.scheduler
    form = "image-block" if "joint" in where else "joint"
    technique = attnctl.PAG(scale=PAG_SCALE, where=where, form=form)
    sides = {
        "plain": runner(pipe, inputs),
        "diffusers": runner(theirs, inputs | {"pag_scale": PAG_SCALE}),
        "ours": runner(pipe, inputs, technique),
    }
    out = {name: side().float() for name, side in sides.items()}
    times = take_turns(sides, arguments.repeats)
    found = {
        "layers": layers,
        "outputs_should_agree": not has_norms(denoiser_of(pipe)) or "joint" not in where,
        "largest_difference": float((out["ours"] - out["diffusers"]).abs().max()),
        "effect": float((out["diffusers"] - out["plain"]).abs().max()),
        "added_share": ratio(_added(times, "ours"), _added(times, "diffusers")),
        "rounds": {name: mine.wall for name, mine in times.items()},
    }
    print(
        f"  PAG at {layers}: adds {found['added_share']['median']:.2f} of what diffusers adds;"
        f" difference {found['largest_difference']:.1e} of {found['effect']:.1e}",
        flush=True,
    )
    return found


def has_norms(denoiser: Any) -> bool:
    """Whether queries and keys are normalised, which joint PAG of diffusers 0.42 leaves out."""
    return any(getattr(module, "norm_q", None) is not None for module in denoiser.modules())


def _added(times: dict[str, Times], name: str) -> list[float]:
    pairs = zip(times[name].wall, times["plain"].wall, strict=True)
    return [max(mine - plain, 1e-9) for mine, plain in pairs]


def measure_exciting(arguments: argparse.Namespace) -> dict[str, Any]:
    """Attend-and-Excite that stops each forward early, beside the pipeline in diffusers."""
    torch.manual_seed(0)
    unet = tiny_unet() if arguments.toy else stable_diffusion_unet()
    pipe = pipeline_around(unet).to(arguments.device)
    settings = port.RunSettings(arguments.steps, max(1, arguments.steps // 2), 1, 20.0, {})
    sides = {
        "plain": port.plain_run(pipe, settings),
        "diffusers": port.port_run(pipe, settings),
        "ours": port.our_run(pipe, settings),
    }
    out = {name: side() for name, side in sides.items()}
    times = take_turns(sides, arguments.repeats)
    found = {
        "largest_difference": float((out["ours"] - out["diffusers"]).abs().max()),
        "speedup": ratio(times["diffusers"].wall, times["ours"].wall),
        "added_share": ratio(_added(times, "ours"), _added(times, "diffusers")),
        "rounds": {name: mine.wall for name, mine in times.items()},
    }
    print(
        f"  {found['speedup']['median']:.2f} times as fast as diffusers, latents differ by"
        f" {found['largest_difference']:.1e}",
        flush=True,
    )
    return found


def largest_map(pipe: Any, inputs: dict[str, Any]) -> int:
    """Bytes of the largest explicit map of attention to an image, in float32, one step."""
    sizes: list[int] = []

    class Sizes(Watch):
        def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
            batch, heads, queries, _ = call.query.shape
            sizes.append(4 * batch * heads * queries * call.key.shape[2])
            return out

    with attnctl.attach(pipe, [Sizes()]):
        pipe(**inputs | {"num_inference_steps": 1})
    return max(sizes)


def peak_memory(side: Run, device: str) -> int:
    """Most bytes that a run holds at once, beside the weights."""
    if not device.startswith("cuda"):
        return peak_bytes(side)[1]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side()
    return torch.cuda.max_memory_allocated() - before
