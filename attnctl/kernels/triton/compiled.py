"""Compile the Triton kernels for a GPU that need not be there, and read what each variant takes.

``python -m attnctl.kernels.triton`` prints the table.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnctl.errors import KernelError
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.rules import Band, SameId
from attnctl.kernels.triton.record import HOPPER_SHARED, is_interpreted

TARGETS = {90: HOPPER_SHARED}  # compute capability: shared memory of a program in bytes
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")
_VALUES = ("q", "k", "v", "out", "extra")
_FLOATS = ("lse", "share", "groups")
_LISTS = (
    "full_count",
    "full_index",
    "partial_count",
    "partial_index",
    "second",
    "order",
    "programs",
)
NUMBERS = ("scale_log2", "shift")


@dataclass(frozen=True)
class Variant:
    """A kernel with its compile-time arguments.

    Attributes:
        name: What the table calls it.
        kernel: The jitted function.
        dtype: Dtype of query, key and value.
        fixed: Compile-time arguments, with ``num_warps`` and ``num_stages``.
    """

    name: str
    kernel: Any
    dtype: torch.dtype
    fixed: dict[str, Any]


@dataclass(frozen=True)
class Figures:
    """What a compiled variant takes on the GPU.

    Attributes:
        name: Of the variant.
        shared_bytes: Shared memory of a program.
        registers: Registers of a thread, at most 255.
        spilled_bytes: Memory of a thread that registers were spilled to.
        warps: Warps of a program.
        stages: Stages of the software pipeline.
        copies_ahead: Copies of later blocks, keys and values each, that stay under way while the
            program waits for those of its present block; 0 means that it waits for memory.
        instructions: Length of each loop with matrix products, in instructions: what a warp
            executes for a block of keys, first of the full list, then of the partial one.
    """

    name: str
    shared_bytes: int
    registers: int
    spilled_bytes: int
    warps: int
    stages: int
    copies_ahead: int
    instructions: tuple[int, ...]


def list_variants() -> list[Variant]:
    """Return the variants that real models use: head widths, blocks, rules and epilogues."""
    from attnctl.kernels.triton.columns import probability_columns_forward
    from attnctl.kernels.triton.forward import block_sparse_forward
    from attnctl.kernels.triton.launch import Epilogue, variant
    from attnctl.kernels.triton.launch_columns import columns_variant

    made: list[Variant] = []
    for name, width, blocks, kind, epilogue in _CASES:
        layout = _LAYOUTS[kind](*blocks)
        fixed = variant(layout, torch.bfloat16, width, Epilogue(epilogue), HOPPER_SHARED)
        title = f"{name}, {kind}, {blocks[0]} x {blocks[1]}, width {width}"
        made.append(Variant(title, block_sparse_forward, torch.bfloat16, fixed))
    for width, groups, mean in ((64, None, False), (128, None, True), (128, 16, True)):
        fixed = columns_variant(torch.bfloat16, width, groups, mean)
        title = f"columns, {'mean' if mean else 'each'} head, groups {groups}, width {width}"
        made.append(Variant(title, probability_columns_forward, torch.bfloat16, fixed))
    return made


def compile_variant(variant: Variant, capability: int = 90) -> Figures:
    """Compile one variant for a compute capability, 90 for Hopper.

    Raises:
        KernelError: The interpreter is on, so that there is nothing to compile.
    """
    if is_interpreted():
        raise KernelError("TRITON_INTERPRET=1 is set; unset it to compile kernels")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {key: variant.fixed[key] for key in OPTIONS if key in variant.fixed}
    fixed = {key: value for key, value in variant.fixed.items() if key not in options}
    signature = {name: _type_of(name, variant.dtype, fixed) for name in variant.kernel.arg_names}
    compiled: Any = triton.compile(
        ASTSource(variant.kernel, signature, fixed, attrs=_aligned(signature)),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    registers, spilled = _resources(compiled.asm["cubin"])
    shared = compiled.metadata.shared
    waits = re.findall(r"ttg\.async_wait %.*num = (\d+)", compiled.asm["ttgir"])
    return Figures(
        name=variant.name,
        shared_bytes=shared,
        registers=registers,
        spilled_bytes=spilled,
        warps=options["num_warps"],
        stages=options["num_stages"],
        copies_ahead=min(map(int, waits), default=0),
        instructions=_loop_lengths(_cuobjdump(compiled.asm["cubin"], "--dump-sass")),
    )


def compile_all(capability: int = 90) -> Iterable[Figures]:
    """Compile every variant, one after the other."""
    return (compile_variant(variant, capability) for variant in list_variants())


def _type_of(name: str, dtype: torch.dtype, fixed: dict[str, Any]) -> str:
    if name in fixed:
        return "constexpr"
    if name in _FLOATS or (name == "out" and "GROUPED" in fixed):
        return "*fp32"
    if name in _VALUES:
        return f"*{TYPES[dtype]}"
    if name in ("first", "second") and fixed["RULE"] == 2:
        return "*i64"
    if name == "first":
        return "*u8"
    if name in _LISTS:
        return "*i32"
    return "fp32" if name in NUMBERS else "i32"


def _aligned(signature: dict[str, str]) -> dict[tuple[int], list[list[Any]]]:
    """Say that pointers and strides are multiples of 16, as they are for real tensors."""
    names = enumerate(signature.items())
    strides = re.compile(r"(q|k|v|out|extra)_(item|head|row)")
    divisible = [["tt.divisibility", 16]]
    return {
        (place,): divisible
        for place, (name, kind) in names
        if kind.startswith("*") or strides.fullmatch(name)
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Read registers and spilled bytes of the one function in a cubin."""
    told = _cuobjdump(cubin, "--dump-resource-usage")
    registers, stack, local = (
        re.search(rf"{word}:(\d+)", told) for word in ("REG", "STACK", "LOCAL")
    )
    if registers is None or stack is None or local is None:
        raise KernelError(f"cuobjdump told no resources: {told!r}")
    return int(registers[1]), int(stack[1]) + int(local[1])


def _loop_lengths(code: str) -> tuple[int, ...]:
    """Count the instructions between the target of each backward jump and the jump."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/ +(.+?);", code)]
    lengths: list[int] = []
    for at, text in lines:
        jump = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if jump is None or int(jump[1], 16) >= at:
            continue
        body = [inner for place, inner in lines if int(jump[1], 16) <= place <= at]
        if any("MMA" in inner for inner in body):
            lengths.append(len(body))
    return tuple(lengths)


def _cuobjdump(cubin: bytes, what: str) -> str:
    """Ask Triton's own copy of NVIDIA's tool about a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        command = [str(tool), what, str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _whole(q_block: int, k_block: int) -> BlockLayout:
    ones = torch.ones(512 // q_block, 512 // k_block, dtype=torch.bool)
    return BlockLayout.from_block_mask(ones, q_block, k_block, 512, 512)


def _ragged(q_block: int, k_block: int) -> BlockLayout:
    ones = torch.ones(512 // q_block, 512 // k_block, dtype=torch.bool)
    return BlockLayout.from_block_mask(ones, q_block, k_block, 500, 500)


def _band(q_block: int, k_block: int) -> BlockLayout:
    return BlockLayout.from_pattern(Band(100), 512, q_block=q_block, k_block=k_block)


def _tiles(q_block: int, k_block: int) -> BlockLayout:
    return BlockLayout.from_pattern(Band(100).allowed, 512, q_block=q_block, k_block=k_block)


def _lanes(q_block: int, k_block: int) -> BlockLayout:
    lane = torch.arange(512) % 32
    order = lane.argsort(stable=True)
    ids = lane[order]
    return BlockLayout.from_pattern(
        SameId(ids, ids), 512, q_block=q_block, k_block=k_block, order=order
    )


_LAYOUTS: dict[str, Callable[[int, int], BlockLayout]] = {
    "whole blocks": _whole,
    "ragged blocks": _ragged,
    "band": _band,
    "element masks": _tiles,
    "lanes": _lanes,
}
_CASES: list[tuple[str, int, tuple[int, int], str, Any]] = [
    ("attention", 64, (64, 64), "whole blocks", "plain"),
    ("attention", 64, (128, 64), "whole blocks", "plain"),
    ("attention", 64, (128, 128), "whole blocks", "plain"),
    ("attention", 72, (64, 64), "band", "plain"),
    ("attention", 88, (64, 64), "band", "plain"),
    ("attention", 128, (64, 64), "whole blocks", "plain"),
    ("attention", 64, (64, 64), "ragged blocks", "plain"),
    ("attention", 128, (128, 64), "whole blocks", "plain"),
    ("attention", 128, (128, 128), "whole blocks", "plain"),
    ("attention", 64, (64, 64), "element masks", "plain"),
    ("attention", 128, (128, 128), "element masks", "plain"),
    ("attention", 128, (128, 64), "element masks", "plain"),
    ("attention", 64, (64, 64), "lanes", "plain"),
    ("attention", 72, (64, 64), "whole blocks", "plain"),
    ("re-use", 64, (64, 64), "band", "reuse"),
    ("re-use", 72, (64, 64), "band", "reuse"),
    ("re-use", 128, (64, 64), "band", "reuse"),
    ("refresh", 64, (64, 64), "band", "refresh"),
    ("blend with value", 64, (64, 64), "whole blocks", "blend"),
    ("blend with value", 128, (64, 64), "whole blocks", "blend"),
    ("agents", 64, (64, 64), "whole blocks", "add"),
    ("agents", 40, (64, 64), "whole blocks", "add"),
]
