"""Sparse attention with something done to its result: in one kernel on CUDA, else one by one."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.kernels.block_sparse import choose_for_layout
from attnctl.kernels.dense import attention
from attnctl.kernels.kernel import choose
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import repeat_heads
from attnctl.kernels.triton.record import TRITON
from attnctl.ops.masked_attention import merge_attention
from attnctl.ops.statistics_reuse import kept_statistics, reuse_statistics

AGENT_BLOCK = 64
PROGRAMS = 512  # about four for each multiprocessor of a large GPU


def sparse_refresh(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    out: Tensor,
    lse: Tensor,
    *,
    scale: float | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compare dense attention with the kept part of it; see `ops.statistics_reuse`.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        value: As ``key``.
        layout: The kept pairs.
        out: ``(B, H, Q, D)``, dense attention of the same tensors.
        lse: ``(B, H, Q)``, its log-sum-exp.
        scale: Factor on the scores; None means ``D ** -0.5``.
        kernel: As in `block_sparse_attention`.

    Returns:
        mass ``(B, H, Q)``, float32 or wider, and residual ``(B, H, Q, D)``.
    """
    chosen = choose_for_layout(query, key, value, layout, kernel)
    key, value = (repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    layout = layout.to(query.device)
    if chosen is TRITON:
        from attnctl.kernels.triton.launch import Epilogue, launch_forward

        epilogue = Epilogue("refresh", extra=out, share=lse)
        residual, mass = launch_forward(query, key, value, layout, scale, epilogue)
        return mass, residual
    kept_out, kept_lse = chosen.run(query, key, value, layout, scale)
    assert kept_lse is not None  # asked for when it was chosen
    return kept_statistics(out, lse, kept_out, kept_lse)


def sparse_reuse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    mass: Tensor,
    residual: Tensor,
    *,
    shift: float = 0.0,
    clamp: bool = False,
    scale: float | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Attend to the kept pairs and repair the result: ``(mass + shift) * out + residual``.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        value: As ``key``.
        layout: The kept pairs.
        mass: ``(B, H, Q)`` from `sparse_refresh`.
        residual: ``(B, H, Q, D)`` from `sparse_refresh`.
        shift: Added to the mass.
        clamp: Keep the sum at most 1.
        scale: Factor on the scores; None means ``D ** -0.5``.
        kernel: As in `block_sparse_attention`.

    Returns:
        ``(B, H, Q, D)``. A row without a kept key is its residual.
    """
    chosen = choose_for_layout(query, key, value, layout, kernel)
    key, value = (repeat_heads(tensor, query.shape[1]) for tensor in (key, value))
    layout = layout.to(query.device)
    if chosen is TRITON:
        from attnctl.kernels.triton.launch import Epilogue, launch_forward

        epilogue = Epilogue("reuse", extra=residual, share=mass, shift=shift, clamp=clamp)
        return launch_forward(query, key, value, layout, scale, epilogue)[0]
    kept_out, _ = chosen.run(query, key, value, layout, scale)
    return reuse_statistics(kept_out, mass, residual, shift, clamp=clamp)


def sparse_blend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    strength: Tensor,
    *,
    scale: float | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Pull each head of sparse self-attention towards its own value.

    Args:
        query: ``(B, H, N, D)``.
        key: ``(B, H, N, D)``, or fewer heads if they divide H.
        value: As ``key``.
        layout: Which pairs.
        strength: ``(H,)`` or ``(B, H)`` in [0, 1]: 0 is attention, 1 the value. The Triton kernel
            computes no attention for heads at 1.
        scale: Factor on the scores; None means ``D ** -0.5``.
        kernel: As in `block_sparse_attention`.

    Returns:
        ``(B, H, N, D)``: ``(1 - strength) * attention + strength * value``.

    Raises:
        ValueError: ``strength`` has the wrong shape, or queries and keys differ in number.

    Source: SoftPAG, arXiv 2506.10978: linear interpolation to the identity map.
    """
    batch, heads = query.shape[:2]
    if strength.shape not in ((heads,), (batch, heads)) or query.shape[2] != key.shape[2]:
        raise ValueError(
            f"strength must be ({heads},) or ({batch}, {heads}) in self-attention; got "
            f"{tuple(strength.shape)}, {query.shape[2]} queries and {key.shape[2]} keys"
        )
    chosen = choose_for_layout(query, key, value, layout, kernel)
    key, value = (repeat_heads(tensor, heads) for tensor in (key, value))
    layout = layout.to(query.device)
    strength = strength.to(query.device).expand(batch, heads)
    if chosen is TRITON:
        from attnctl.kernels.triton.launch import Epilogue, launch_forward

        epilogue = Epilogue("blend", extra=value, share=strength)
        return launch_forward(query, key, value, layout, scale, epilogue)[0]
    out, _ = chosen.run(query, key, value, layout, scale)
    return torch.lerp(out, value, strength[..., None, None].to(out.dtype))


def agent_attention(
    query: Tensor,
    agents: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    second_scale: float | None = None,
    shortcut: float = 0.0,
    chunks: int | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Attend through agents; the meaning is that of `ops.agents.attend_by_agents`.

    On CUDA the agents' keys are cut into chunks that run side by side and are merged by their
    log-sum-exp; the shortcut is added in the second kernel. Elsewhere both stages are dense.

    Args:
        query: ``(B, H, N, D)``.
        agents: ``(B, H, n, D)``.
        key: ``(B, H, N, D)``.
        value: ``(B, H, N, D)``.
        scale: Factor on the agents' scores; None means ``D ** -0.5``.
        second_scale: Factor on the queries' scores; None means ``D ** -0.5``.
        shortcut: Weight of the token's own value.
        chunks: Chunks of the keys; None takes as many as keep a large GPU busy.
        kernel: ``"auto"``, ``"triton"``, or the name of a dense kernel.

    Returns:
        ``(B, H, N, D)``.
    """
    tensors = (query, agents, key, value)
    if kernel in ("auto", TRITON.name) and _takes_triton(tensors, kernel):
        return _agents_on_triton(tensors, scale, second_scale, shortcut, chunks)
    gathered, _ = attention(agents, key, value, scale=scale, kernel=kernel)
    out, _ = attention(query, agents, gathered, scale=second_scale, kernel=kernel)
    return out + shortcut * value


def _takes_triton(tensors: tuple[Tensor, Tensor, Tensor, Tensor], kernel: str) -> bool:
    query, agents, _, value = tensors
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    chosen = choose(
        device=query.device,
        dtype=query.dtype,
        head_width=query.shape[-1],
        value_width=value.shape[-1],
        mask="block",
        lse=True,
        backward="out" if recorded else "none",
        layout=_everything(query.shape[2], agents.shape[2]),
        forced=kernel,
    )
    return chosen is TRITON


def _agents_on_triton(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float | None,
    second_scale: float | None,
    shortcut: float,
    chunks: int | None,
) -> Tensor:
    from attnctl.kernels.triton.launch import Epilogue, launch_forward

    query, agents, key, value = tensors
    batch, heads, count, _ = agents.shape
    blocks = -(-count // AGENT_BLOCK)
    key_blocks = -(-key.shape[2] // AGENT_BLOCK)
    wanted = -(-PROGRAMS // (batch * heads * blocks)) if chunks is None else chunks
    pieces = max(1, min(wanted, key_blocks))
    padding = (0, 0, 0, blocks * AGENT_BLOCK - count)
    repeated = F.pad(agents, padding).repeat(1, 1, pieces, 1)
    # Each copy of the agents has the key blocks of one chunk.
    chunk_of = torch.arange(key_blocks) * pieces // key_blocks
    listed = torch.arange(pieces).repeat_interleave(blocks)[:, None] == chunk_of
    sizes = (AGENT_BLOCK, AGENT_BLOCK, repeated.shape[2], key.shape[2])
    layout = BlockLayout.from_block_mask(listed, *sizes).to(query.device)
    out, lse = launch_forward(repeated, key, value, layout, scale)
    outs = out.unflatten(2, (pieces, -1))[:, :, :, :count].unbind(2)
    lses = lse.unflatten(2, (pieces, -1))[:, :, :, :count].unbind(2)
    gathered, lse = outs[0].float(), lses[0]
    for more_out, more_lse in zip(outs[1:], lses[1:], strict=True):
        gathered, lse = merge_attention(gathered, lse, more_out, more_lse)
    second = _everything(query.shape[2], count).to(query.device)
    epilogue = Epilogue("add", extra=value, shift=shortcut)
    gathered = gathered.to(query.dtype)
    return launch_forward(query, agents, gathered, second, second_scale, epilogue)[0]


@cache
def _everything(q_tokens: int, k_tokens: int) -> BlockLayout:
    blocks = (-(-q_tokens // AGENT_BLOCK), -(-k_tokens // AGENT_BLOCK))
    ones = torch.ones(blocks, dtype=torch.bool)
    return BlockLayout.from_block_mask(ones, AGENT_BLOCK, AGENT_BLOCK, q_tokens, k_tokens)
