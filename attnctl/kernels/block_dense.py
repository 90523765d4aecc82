"""Block layouts on dense kernels: under an explicit mask, and the readable reference."""

import torch
from torch import Tensor

from attnctl.kernels.dense import attention
from attnctl.kernels.kernel import ANY_DEVICE, FLOAT_DTYPES, Kernel, any_width
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import default_scale
from attnctl.ops.masked_attention import attend_masked


def run_masked_sdpa(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """Expand the layout into a mask and take a dense kernel; see `Kernel.run` for the shapes.

    A layout of all blocks needs no mask. With gradients the softmax is computed as written, since
    no fused kernel has the gradient of the log-sum-exp.
    """
    is_whole = layout.rule is None and layout.density == 1.0
    mask = None if is_whole else layout.element_mask()
    return attention(query, key, value, mask, scale, need_lse=True)


def run_reference(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Compute one block of queries after the other, as written; see `Kernel.run` for the shapes.

    Half precision is computed in float32, float64 in itself.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    tensors = [tensor.to(wide) for tensor in (query, key, value)]
    if layout.order is not None:
        tensors = [tensor[:, :, layout.order] for tensor in tensors]
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for block in range(layout.q_blocks):
        rows = tensors[0][:, :, block * layout.q_block : (block + 1) * layout.q_block]
        mask = layout.strip_mask(block, block + 1)
        out, lse = attend_masked(rows, tensors[1], tensors[2], mask, default_scale(query, scale))
        outs.append(out)
        lses.append(lse)
    out, lse = torch.cat(outs, 2), torch.cat(lses, 2)
    if layout.order is not None:
        original = layout.order.argsort()
        out, lse = out[:, :, original], lse[:, :, original]
    return out.to(query.dtype), lse


MASKED_SDPA = Kernel(
    name="masked-sdpa",
    summary="block layouts as a mask on a dense kernel: any device, every gradient",
    run=run_masked_sdpa,
    devices=ANY_DEVICE,
    dtypes=FLOAT_DTYPES,
    head_width=any_width,
    mask=frozenset({"block"}),
    lse=True,
    gqa=False,
    exact=True,
    backward="out+lse",
)
REFERENCE = Kernel(
    name="reference",
    summary="block layouts as written, one block of queries at a time; for comparison",
    run=run_reference,
    devices=ANY_DEVICE,
    dtypes=FLOAT_DTYPES,
    head_width=any_width,
    mask=frozenset({"block"}),
    lse=True,
    gqa=False,
    exact=True,
    backward="out+lse",
)
