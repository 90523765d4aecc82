"""Sparse attention kernels beside dense attention, turn by turn, on the same tensors."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnctl.bench.machine import machine_record
from attnctl.bench.statistics import median
from attnctl.bench.timing import Times, ratio, take_turns
from attnctl.files import write_text
from attnctl.kernels import (
    Band,
    BlockLayout,
    SameId,
    agent_attention,
    attention,
    block_sparse_attention,
    choose,
    column_maps,
    patterns,
    sparse_refresh,
    sparse_reuse,
)
from attnctl.ops.masked_attention import attend_masked

CHECKED_ROWS = 32
WARM_UPS = 20
FLUSHED_BYTES = 2**28
PLAIN = "plain step, band"

Side = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention call; the grid is (frames, height, width) in tokens."""

    name: str
    batch: int
    heads: int
    width: int
    grid: tuple[int, int, int]
    text: int = 0

    @property
    def tokens(self) -> int:
        frames, height, width = self.grid
        return self.text + frames * height * width


CPU_SHAPES = (
    Shape("image 64 x 64", 1, 8, 64, (1, 64, 64)),
    Shape("video 16 x 16 x 16", 1, 8, 64, (16, 16, 16)),
)
TOY_SHAPES = (
    Shape("toy image", 1, 2, 16, (1, 16, 16)),
    Shape("toy clip", 1, 2, 16, (4, 8, 8), text=16),
)
CUDA_SHAPES = (
    Shape("SDXL 1024 px, 64 x 64", 2, 10, 64, (1, 64, 64)),
    Shape("PixArt 1024 px", 2, 16, 72, (1, 64, 64)),
    Shape("FLUX 1024 px", 1, 24, 128, (1, 64, 64), text=512),
    Shape("CogVideoX", 2, 30, 64, (13, 30, 45), text=226),
    Shape("Wan 480p", 1, 12, 128, (21, 30, 52)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="rounds, 50 on CUDA and 7 on a CPU")
    parser.add_argument("--toy", action="store_true", help="toy sizes: only shows that all runs")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU")
    parser.add_argument("--flex", action="store_true", help="on a CPU, compile FlexAttention too")


def run(arguments: argparse.Namespace) -> None:
    """Measure every case and write ``results/<machine>/kernels.json``."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    on_cuda = arguments.device.startswith("cuda")
    arguments.repeats = arguments.repeats or (50 if on_cuda else 7)
    dtype = torch.bfloat16 if on_cuda else torch.float32
    found: list[dict[str, Any]] = []
    shapes = TOY_SHAPES if arguments.toy else CUDA_SHAPES if on_cuda else CPU_SHAPES
    for shape in shapes:
        tensors = draw(shape, arguments.device, dtype)
        found += measure_layouts(shape, tensors, arguments)
        found += measure_others(shape, tensors, arguments)
    machine = machine_record(arguments.device)
    folder = arguments.out / re.sub(r"[^a-z0-9]+", "-", machine["name"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "dtype": str(dtype), "repeats": arguments.repeats, "cases": found}
    path = folder / f"kernels{'-toy' if arguments.toy else ''}.json"
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(f"\nwritten: {path}")


def draw(shape: Shape, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Draw query, key and value as transposed views of (B, N, H, D), as diffusers has them."""
    source = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.tokens, shape.heads, shape.width)
    tensors = [torch.randn(size, generator=source) for _ in range(3)]
    return [tensor.to(device, dtype).transpose(1, 2) for tensor in tensors]


def layouts_of(shape: Shape) -> dict[str, BlockLayout]:
    """Return the layouts that are timed: random blocks of each head, and patterns."""
    tokens, grid, text = shape.tokens, shape.grid, shape.text
    made: dict[str, BlockLayout] = {}
    for share in (0.5, 0.4, 0.25, 0.1, 0.03):
        for block in (64, 128):
            blocks = -(-tokens // block)
            source = torch.Generator().manual_seed(1)
            ranks = torch.rand(1, shape.heads, blocks, blocks, generator=source).argsort(-1)
            mask = ranks < max(1, round(share * blocks))
            name = f"random, {1 - share:.0%} sparse, blocks of {block}"
            made[name] = BlockLayout.from_block_mask(mask, block, block, tokens, tokens)
    if grid[0] == 1:
        made["raster band, 3.1%"] = band_layout(shape)
        sides = (1, min(15, grid[1]), min(15, grid[2]))
        window = patterns.with_text(patterns.neighbourhood(grid, sides), text)
        order = patterns.tile_order(grid, (1, 8, 8), text)
        made["neighbourhood 15 x 15"] = BlockLayout.from_pattern(window, tokens)
        made["the same, tiles in order"] = BlockLayout.from_pattern(window, tokens, order=order)
        return made
    place = grid[1] * grid[2]
    made["frame band, places in order"] = band_layout(shape)
    radial = patterns.with_text(patterns.radial(grid, least=64), text)
    made["radial"] = BlockLayout.from_pattern(radial, tokens)
    if text == 0:
        lane = torch.arange(tokens) % place
        order = lane.argsort(stable=True)
        ids = lane[order]
        made["lanes"] = BlockLayout.from_pattern(SameId(ids, ids), tokens, order=order)
    return made


def band_layout(shape: Shape) -> BlockLayout:
    """Return the mask of Re-ttention: a band over an image, or over all frames of near places."""
    (frames, height, width), text = shape.grid, shape.text
    if frames == 1:
        band = patterns.raster_band(height * width, 0.03125, text)
        return BlockLayout.from_pattern(band, shape.tokens)
    order = patterns.place_order(frames, height * width, text)
    band = Band(max(1, height * width // 64), text, frames)
    return BlockLayout.from_pattern(band, shape.tokens, order=order)


def dense_sides(tensors: list[Tensor]) -> dict[str, Side]:
    """Dense attention, on CUDA with each backend of torch that takes these tensors."""
    if not tensors[0].is_cuda:
        return {"dense": lambda: F.scaled_dot_product_attention(*tensors)}
    sides: dict[str, Side] = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def run(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*tensors)

        try:
            run()
        except RuntimeError as problem:
            print(f"{backend.name} does not take {tuple(tensors[0].shape)}: {problem}")
            continue
        sides[f"dense, {backend.name.split('_')[0].lower()}"] = run
    return sides


def best_dense(times: dict[str, Times]) -> str:
    """Name the fastest of the dense sides."""
    return min((n for n in times if n.startswith("dense")), key=lambda n: median(times[n].wall))


def measure_layouts(
    shape: Shape, tensors: list[Tensor], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time each layout on the kernel that would be chosen, beside dense attention."""
    found: list[dict[str, Any]] = []
    for name, plain in layouts_of(shape).items():
        layout = plain.to(tensors[0].device)
        names = kernels_for(layout, tensors, arguments.flex)
        sides = dense_sides(tensors)
        for kernel in names:
            sides[kernel] = lambda kernel=kernel, layout=layout: block_sparse_attention(
                *tensors, layout, kernel=kernel
            )
        times = time_sides(sides, arguments)
        for kernel in names:
            out, _ = block_sparse_attention(*tensors, layout, kernel=kernel)
            error = largest_error(layout, tensors, out)
            entry = {"shape": asdict(shape), "case": name, "kernel": kernel, "max_error": error}
            entry |= {"density": layout.density, "kept_share": layout.kept_share}
            found.append(report(entry, times, kernel))
    return found


def measure_others(
    shape: Shape, tensors: list[Tensor], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Time what is built on the kernels: statistics re-use, agents, columns."""
    query, key, value = tensors
    layout = band_layout(shape).to(query.device)
    out, lse = attention(query, key, value, need_lse=True)
    assert lse is not None
    mass, residual = sparse_refresh(query, key, value, layout, out, lse)
    agents = query[:, :, :: max(1, shape.tokens // 256)].contiguous()
    columns = slice(0, shape.text or 77)
    sides = dense_sides(tensors) | {
        PLAIN: lambda: block_sparse_attention(query, key, value, layout),
        "re-use step, same band": lambda: sparse_reuse(query, key, value, layout, mass, residual),
        f"{agents.shape[2]} agents": lambda: agent_attention(query, agents, key, value),
        f"{columns.stop} columns, lse given": lambda: column_maps(query, key, columns, lse),
        f"{columns.stop} columns, mean head": lambda: column_maps(
            query, key, columns, lse, mean_heads=True
        ),
    }
    times = time_sides(sides, arguments)
    found: list[dict[str, Any]] = []
    for case in sides:
        if not case.startswith("dense"):
            entry: dict[str, Any] = {"shape": asdict(shape), "case": case, "kernel": "auto"}
            entry["over_plain_band"] = ratio(times[case].wall, times[PLAIN].wall)
            found.append(report(entry, times, case))
    return found


def kernels_for(layout: BlockLayout, tensors: list[Tensor], flex: bool) -> list[str]:
    """Name the chosen kernel; on a CPU also the gathering one, and FlexAttention if wished."""
    query = tensors[0]
    request = {"dtype": query.dtype, "head_width": query.shape[-1], "lse": True}
    names = [choose(device=query.device, mask="block", layout=layout, **request).name]
    names += ["flex"] if query.is_cuda or flex else []
    return list(dict.fromkeys([*names, *([] if query.is_cuda else ["cpu-gather"])]))


def time_sides(sides: dict[str, Side], arguments: argparse.Namespace) -> dict[str, Times]:
    """Time all sides in turn; on CUDA by events, with the caches emptied before each."""
    if not arguments.device.startswith("cuda"):
        return take_turns(sides, arguments.repeats)
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=arguments.device)
    times = {name: Times() for name in sides}
    for number in range(-WARM_UPS, arguments.repeats):
        for name, side in sides.items():
            flushed.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            side()
            end.record()
            torch.cuda.synchronize()
            if number >= 0:
                times[name].wall.append(start.elapsed_time(end) / 1000)
    return times


def largest_error(layout: BlockLayout, tensors: list[Tensor], out: Tensor) -> float:
    """Compare a few rows with float64."""
    source = torch.Generator().manual_seed(2)
    rows = torch.randperm(layout.q_tokens, generator=source)[:CHECKED_ROWS].to(out.device)
    query, key, value = (tensor.double() for tensor in tensors)
    exact, _ = attend_masked(
        query[:, :, rows], key, value, layout.row_mask(rows), query.shape[-1] ** -0.5
    )
    return float((out[:, :, rows].double() - exact).abs().max())


def report(entry: dict[str, Any], times: dict[str, Times], side: str) -> dict[str, Any]:
    """Add times and the speed-up over the best dense attention to a case, and print its line."""
    fastest = best_dense(times)
    dense, sparse = times[fastest], times[side]
    speed = ratio(dense.wall, sparse.wall)
    entry |= {"speedup": speed, "dense": fastest, "dense_s": dense.wall, "kernel_s": sparse.wall}
    if dense.cpu:  # leaves out what other processes took
        entry["cpu_speedup"] = ratio(dense.cpu, sparse.cpu)
    if "density" in entry:
        entry["efficiency"] = speed["median"] * entry["density"]
    share = f"{entry['density']:6.1%}" if "density" in entry else "      "
    print(
        f"{entry['shape']['name']:<22} {entry['case']:<34} {entry['kernel']:<11} {share}  "
        f"{median(dense.wall) * 1e3:8.2f} ms -> {median(sparse.wall) * 1e3:8.2f} ms   "
        f"x {speed['median']:5.2f} ({speed['low']:.2f} to {speed['high']:.2f})",
        flush=True,
    )
    return entry
