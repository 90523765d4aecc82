"""Can Triton kernels run here, and for what? Importing this needs no Triton."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from attnctl.kernels.flex import is_tile
from attnctl.kernels.kernel import HALF_DTYPES, Kernel, Request
from attnctl.kernels.layout import BlockLayout

WIDEST = 128
LARGEST_BLOCK = 128
HOPPER_SHARED = 227 * 1024  # bytes of shared memory that a program may take


def is_interpreted() -> bool:
    """Say whether Triton's interpreter is on: ``TRITON_INTERPRET=1`` before the first import."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_missing() -> str | None:
    """Return None if Triton kernels can run on this machine, else the reason."""
    if find_spec("triton") is None:
        return "Triton is not installed: pip install triton"
    if not torch.cuda.is_available() and not is_interpreted():
        return "no CUDA device"
    return None


def run_triton(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel; see `Kernel.run` for the shapes."""
    from attnctl.kernels.triton.launch import launch_forward

    return launch_forward(query, key, value, layout, scale)


def takes_width(head_width: int, value_width: int) -> bool:
    """Say whether the kernels take these widths: equal, multiples of 8, up to 128."""
    return head_width == value_width and head_width % 8 == 0 and 8 <= head_width <= WIDEST


def takes_blocks(q_block: int, k_block: int) -> bool:
    """Say whether the kernels take these blocks: powers of two, 16 to 128."""
    return is_tile(q_block, k_block) and max(q_block, k_block) <= LARGEST_BLOCK


def _on_cuda(request: Request) -> bool:
    return request.device == "cuda"


TRITON = Kernel(
    name="triton",
    summary="block-sparse: own kernel for CUDA, half precision, widths up to 128",
    run=run_triton,
    devices=frozenset({"cuda", "cpu"} if is_interpreted() else {"cuda"}),
    dtypes=HALF_DTYPES | {torch.float32} if is_interpreted() else HALF_DTYPES,
    head_width=takes_width,
    mask=frozenset({"block"}),
    lse=True,
    gqa=False,
    exact=True,
    backward="none",
    why_missing=why_missing,
    blocks=takes_blocks,
    suits=_on_cuda,
)
