"""What the benchmark commands print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnctl.cli.progress import Progress
from attnctl.cli.tables import print_json, print_table
from attnctl.files import write_json

if TYPE_CHECKING:
    from attnctl.bench.steering import Steering, SteeringSettings


def steering_progress(settings: SteeringSettings, conditions: int, *, quiet: bool) -> Progress:
    """Count denoising steps of all pictures of all conditions."""
    pictures = len(settings.objects) * settings.count * conditions
    return Progress(pictures * settings.steps, quiet=quiet)


def remark(quiet: bool) -> Callable[[str], None]:
    """Tell a person what happens, on stderr."""
    if quiet:
        return lambda _text: None
    return lambda text: print(text, file=sys.stderr, flush=True)  # noqa: T201


def print_steering(done: Steering, sheets: Mapping[str, Path], *, as_json: bool) -> None:
    """Print the table of results, what the conditions cost, and where everything lies."""
    from attnctl.bench.steering import RESULT_FILE
    from attnctl.bench.tally import HEAD, table

    files = {"result": str(done.folder / RESULT_FILE)}
    files |= {name: str(path) for name, path in sheets.items()}
    if as_json:
        print_json({**done.record, "files": files})
        return
    print_table(HEAD, table(done.lines))
    _write("")
    rows = [
        (f"{c['gradient_passes']:.1f}", f"{c['seconds']:.2f}", f"{c['time_ratio']:.2f}",
         c["condition"])
        for c in done.record["costs"]
    ]  # fmt: skip
    print_table(("gradients", "seconds a picture", "times plain", "condition"), rows)
    _write("")
    for text in notes(done):
        _write(text)
    for name, path in files.items():
        _write(f"{name}: {path}")


def notes(done: Steering) -> list[str]:
    """Say what a reader of the table must know."""
    texts = [
        "share: of pictures, and of named objects for `missing objects`; better and worse: "
        "pictures; p: exact McNemar test, two-sided"
    ]
    others = len(done.conditions) - 1
    if others > 1:
        texts.append(
            f"p is not corrected for {others} comparisons: choose on tuning prompts, report on"
            " validation prompts"
        )
    warned = {text for entry in done.entries for text in entry["warnings"]}
    if warned:
        texts.append(f"{len(warned)} different warnings of techniques are in the result file")
    return texts


def print_overhead(record: Mapping[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Print times, ratios and memory of ``bench overhead``."""
    _save(record, out)
    if as_json:
        print_json(record)
        return
    network = record["network"]
    _write(
        f"{network['name']}: {network['parameters'] / 1e6:.1f} M parameters, latents "
        f"{network['latents']}, batch {network['batch']}, {record['settings']['repeats']} rounds"
    )
    rows = [
        (name, f"{side['seconds']:.4f}", _ratio(side["ratio"]), _ratio(side["cpu_ratio"]))
        for name, side in record["sides"].items()
    ]
    head = ("side", "seconds a forward", "ratio [quartiles]", "ratio of CPU time")
    print_table(head, rows)
    cost = record["idle"]
    low, high = cost["quartiles"]
    _write(
        f"idle, measured alone: {cost['microseconds_a_forward']:.0f} microseconds a forward "
        f"[{low:.0f}, {high:.0f}], {100 * cost['share']:.4f}% of a plain one; attaching once: "
        f"{cost['attach_milliseconds']:.1f} ms"
    )
    memory = record["memory"]
    _write(
        f"heat maps at {memory['tokens']} tokens: {memory['columns_bytes'] / 2**20:.1f} MiB at "
        f"the peak, explicit maps {memory['explicit_bytes'] / 2**20:.1f} MiB "
        f"({100 * memory['share']:.1f}%)"
    )


def print_port(record: Mapping[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Print times, work and differences of ``bench attend-and-excite``."""
    _save(record, out)
    if as_json:
        print_json(record)
        return
    for one in record["networks"]:
        run = one["run"]
        _write(
            f"{one['network']}: {one['parameters'] / 1e6:.1f} M parameters, {run['images']} "
            f"picture(s), {run['steps']} steps, {run['altered']} of them move the latents"
        )
        rows = [
            (name, f"{one[side]['seconds']:.3f}", *_work(one[side]["work"]))
            for name, side in (("diffusers", "port"), ("attnctl", "ours"), ("plain", "plain"))
        ]
        head = ("side", "seconds", "forwards", "with gradient", "to the end", "backwards")
        print_table(head, rows)
        _write(f"times as fast, whole run [quartiles]: {_ratio(one['speedup'])}")
        _write(f"the same in CPU time: {_ratio(one['cpu_speedup'])}")
        _write(f"times as fast, what is added to a plain run: {_ratio(one['added_speedup'])}")
        equal = "equal" if one["is_equal"] else "NOT EQUAL"
        _write(f"largest difference of the latents: {one['largest_difference']:.1e} ({equal})")
        _write("")


def print_perturbation(record: Mapping[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Print what guidance adds to a plain run, of ``bench perturbation``."""
    _save(record, out)
    if as_json:
        print_json(record)
        return
    network = record["network"]
    _write(
        f"{network['name']}: {network['parameters'] / 1e6:.1f} M parameters in {network['dtype']}, "
        f"latents {network['latents']}, {record['settings']['repeats']} rounds"
    )
    for place in record["places"]:
        rows = [
            (name, f"{place[side]['seconds']:.3f}")
            for name, side in (("plain", "plain"), ("diffusers", "port"), ("attnctl", "ours"))
        ]
        _write("")
        print_table((f"at {place['where']}", "seconds"), rows)
        _write(f"added, of what diffusers adds, CPU time: {_ratio(place['added_cpu_ratio'])}")
        _write(f"the same by the clock: {_ratio(place['added_ratio'])}")
        if place["goal"] is not None:
            _write(f"goal: at most {place['goal']}")
        equal = "equal" if place["is_equal"] else "NOT EQUAL"
        _write(
            f"largest difference of the latents: {place['largest_difference']:.1e} ({equal}); "
            f"effect of the guidance {place['effect']:.1e}, rounding {place['rounding']:.1e}"
        )


def _work(work: Mapping[str, int]) -> list[str]:
    return [str(work[name]) for name in ("plain", "gradient", "gradient_whole", "backward")]


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['median']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _save(record: Mapping[str, Any], out: Path | None) -> None:
    if out is not None:
        write_json(out, record)


def _write(text: str) -> None:
    print(text)  # noqa: T201
