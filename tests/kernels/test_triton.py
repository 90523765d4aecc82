"""Triton kernels: interpreted in another process, compiled for Hopper, run where CUDA is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor

from attnctl.kernels import (
    Band,
    BlockLayout,
    agent_attention,
    attention,
    block_sparse_attention,
    column_maps,
    explicit_probabilities,
    list_kernels,
    sparse_blend,
    sparse_refresh,
    sparse_reuse,
)
from attnctl.ops.agents import attend_by_agents
from tests.kernels.layouts import LAYOUTS, compare, make_inputs

triton = pytest.importorskip("triton", reason="Triton is not installed")

CASES = Path(__file__).with_name("interpreted_triton.py")
INTERPRETER_FAILS = Version(triton.__version__) < Version("3.7") and Version(
    np.__version__
) >= Version("2.4")
QUICK = (0, 7, 11, 12, 18)  # places in the list of variants


@pytest.mark.skipif(
    INTERPRETER_FAILS, reason="the interpreter of Triton before 3.7 needs NumPy before 2.4"
)
def test_kernels_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 30
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    "number", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(25)]
)
def test_kernels_compile_for_hopper_and_copy_ahead(number: int) -> None:
    from attnctl.kernels.triton.compiled import TARGETS, compile_variant, list_variants

    variants = list_variants()
    assert len(variants) == 25
    figures = compile_variant(variants[number])
    assert figures.spilled_bytes == 0
    assert 0 < figures.registers <= 255
    assert figures.instructions
    assert 0 < figures.shared_bytes <= TARGETS[90]
    if figures.stages == 3:  # there is room to copy ahead
        assert figures.copies_ahead >= 2, "it waits for every copy of keys and values"


def test_the_record_says_why_it_cannot_run_here() -> None:
    record = next(kernel for kernel in list_kernels() if kernel.name == "triton")
    if torch.cuda.is_available():
        assert record.why_missing() is None
    else:
        assert record.why_missing() == "no CUDA device"


def test_stages_are_as_many_as_fit_in_the_memory_of_the_gpu() -> None:
    from attnctl.kernels.triton.launch import Epilogue, variant

    layout = BlockLayout.from_pattern(Band(100), 512)
    found = [
        variant(layout, torch.bfloat16, 128, Epilogue(), size * 1024)["num_stages"]
        for size in (227, 99, 64)
    ]
    assert found == [3, 2, 1]


def draw_and_poison(layout: BlockLayout, width: int, dtype: torch.dtype) -> list[Tensor]:
    """Draw inputs anew in every run, and leave NaN in the memory that results will lie in.

    The printed line, written in place of ``torch.seed()``, draws a failure's inputs again.
    """
    sys.stdout.write(f"torch.manual_seed({torch.seed()})\n")
    tensors = [tensor.cuda() for tensor in make_inputs(layout, width, dtype)]
    size = 2 * tensors[0].numel()
    kinds = (dtype, torch.float32) * 4
    poison = [torch.full((size,), torch.nan, dtype=kind, device="cuda") for kind in kinds]
    del poison
    return tensors


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [40, 64, 72, 96, 128])
@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("name", ["triton", "flex"])
def test_cuda_kernels_equal_the_definition(
    name: str, form: str, width: int, dtype: torch.dtype
) -> None:
    if name == "flex" and width != 64:
        pytest.skip("one width is enough for torch's own kernel")
    layout = LAYOUTS[form]()
    tensors = draw_and_poison(layout, width, dtype)
    out, lse = block_sparse_attention(*tensors, layout, kernel=name)
    host = [tensor.cpu() for tensor in tensors]
    compare((out.cpu(), lse.cpu()), layout, host, width**-0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_epilogues_equal_their_definition(dtype: torch.dtype) -> None:
    layout = LAYOUTS["band with text"]()
    query, key, value = draw_and_poison(layout, 64, dtype)
    limit = 8 * torch.finfo(dtype).eps
    out, lse = attention(query, key, value, need_lse=True)
    assert lse is not None
    mass, residual = sparse_refresh(query, key, value, layout, out, lse, kernel="triton")
    again = sparse_reuse(query, key, value, layout, mass, residual, kernel="triton")
    assert (again - out).abs().max() < limit
    strength = torch.tensor([0.0, 0.3, 1.0])
    found, composed = (
        sparse_blend(query, key, value, layout, strength, kernel=name)
        for name in ("triton", "masked-sdpa")
    )
    assert (found - composed).abs().max() < limit
    agents = query[:, :, :20].contiguous()
    found = agent_attention(query, agents, key, value, shortcut=0.075, kernel="triton")
    wide = [tensor.double() for tensor in (query, agents, key, value)]
    exact = attend_by_agents(*wide, 0.125, 0.125, 0.075)
    assert (found - exact).abs().max() < limit
    probs = explicit_probabilities(query, key, None, None)
    _, lse = attention(query, key, key, need_lse=True, kernel="explicit")
    assert lse is not None
    columns = column_maps(query, key, slice(0, 30), lse, fused=True)
    assert (columns - probs[..., :30]).abs().max() < 1e-3
