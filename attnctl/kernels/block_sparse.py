"""Attention over the blocks of a layout, with the cheapest kernel that can."""

import torch
from torch import Tensor

from attnctl.kernels.block_dense import MASKED_SDPA, REFERENCE
from attnctl.kernels.cpu_gather import CPU_GATHER
from attnctl.kernels.dense import _check_shapes
from attnctl.kernels.flex import FLEX
from attnctl.kernels.kernel import Backward, Kernel, choose, register_kernel
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import repeat_heads
from attnctl.kernels.triton.record import TRITON


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    *,
    scale: float | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend to the pairs that ``layout`` allows, computing its listed blocks only.

    The ladder, in order of preference: ``triton`` (CUDA, half precision, no gradients), ``flex``
    (CUDA, other widths and dtypes), ``cpu-gather`` (CPU, up to 90 percent of the blocks),
    ``masked-sdpa`` (anything), ``reference``.

    Args:
        query: ``(B, H, Q, D)``; strided views such as a transposed ``(B, Q, H, D)`` are fine.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        value: ``(B, H, K, Dv)``, heads as in ``key``.
        layout: Which pairs; its lists serve one or all batch items and heads.
        scale: Factor on the scores; None means ``D ** -0.5``.
        kernel: A name from `list_kernels`, or ``"auto"``.

    Returns:
        out ``(B, H, Q, Dv)`` in the dtype of ``query`` and lse ``(B, H, Q)``, natural log,
        float32 (float64 for float64 inputs). A row without an allowed key has out 0 and lse
        ``-inf``. If gradients are recorded they flow through both.

    Raises:
        KernelError: The named kernel cannot do this; the message lists those that can.
        ValueError: Shapes do not fit each other or the layout.
    """
    chosen = choose_for_layout(query, key, value, layout, kernel)
    key, value = (repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    out, lse = chosen.run(query, key, value, layout.to(query.device), scale)
    assert lse is not None  # asked for in `choose`
    return out, lse


def choose_for_layout(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, kernel: str
) -> Kernel:
    """Check the shapes and return the kernel that `block_sparse_attention` takes.

    Raises:
        KernelError: The named kernel cannot do this.
        ValueError: Shapes do not fit each other or the layout.
    """
    _check_shapes(query, key, value)
    check_layout(query, key, layout)
    recorded = any(tensor.requires_grad for tensor in (query, key, value))
    backward: Backward = "out+lse" if torch.is_grad_enabled() and recorded else "none"
    return choose(
        device=query.device,
        dtype=query.dtype,
        head_width=query.shape[-1],
        value_width=value.shape[-1],
        mask="block",
        lse=True,
        backward=backward,
        layout=layout,
        forced=kernel,
    )


def check_layout(query: Tensor, key: Tensor, layout: BlockLayout) -> None:
    """Refuse a layout that was made for other sizes.

    Raises:
        ValueError: Its tokens, batch items or heads differ from those of the tensors.
    """
    tokens = (query.shape[2], key.shape[2])
    if tokens != (layout.q_tokens, layout.k_tokens):
        raise ValueError(
            f"the layout is for {layout.q_tokens} queries and {layout.k_tokens} keys; "
            f"got {tokens[0]} and {tokens[1]}"
        )
    lists = tuple(layout.full_count.shape[:2])
    if lists[0] not in (1, query.shape[0]) or lists[1] not in (1, query.shape[1]):
        raise ValueError(
            f"the layout has lists for {lists[0]} batch items and {lists[1]} heads; "
            f"allowed are 1 or {query.shape[0]}, and 1 or {query.shape[1]}"
        )


for _kernel in (TRITON, FLEX, CPU_GATHER, MASKED_SDPA, REFERENCE):
    register_kernel(_kernel)
