"""Attention along trajectories: gather tokens into lanes, attend inside segments, scatter back."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from attnctl.flow.lanes import Lanes

CHUNK_BYTES = 256 * 2**20
"""Lanes are attended in chunks whose gathered query, key, value and result take about this much."""


def join_frames(tokens: Tensor, frames: int) -> Tensor:
    """From frames in the batch to one sequence a clip.

    Args:
        tokens: ``(B * F, H, n, D)``, frames fastest on the batch axis.
        frames: F.

    Returns:
        ``(B, H, F * n, D)``, frames slowest on the token axis.
    """
    return tokens.unflatten(0, (-1, frames)).transpose(1, 2).flatten(2, 3)


def split_frames(tokens: Tensor, frames: int) -> Tensor:
    """The inverse of :func:`join_frames`: ``(B, H, F * n, D)`` to ``(B * F, H, n, D)``."""
    return tokens.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)


def gather_lanes(tokens: Tensor, index: Tensor) -> Tensor:
    """Lay tokens out by lane.

    Args:
        tokens: ``(B, H, F * n, D)``.
        index: ``(lanes, F)``, from ``Lanes.index`` or some of its rows.

    Returns:
        ``(B * H, lanes, F, D)``.
    """
    return tokens.flatten(0, 1)[:, index]


def scatter_lanes(values: Tensor, index: Tensor, heads: int) -> Tensor:
    """The inverse of :func:`gather_lanes` over all lanes: ``(B * H, n, F, D)`` to tokens.

    Returns:
        ``(B, heads, F * n, D)``.
    """
    tokens = values.new_empty(values.shape[0], index.numel(), values.shape[-1])
    tokens = tokens.index_copy(1, index.flatten(), values.flatten(1, 2))
    return tokens.unflatten(0, (-1, heads))


def lane_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lanes: "Lanes",
    scale: float | None = None,
    *,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Let each token attend to the tokens of its own trajectory, itself included.

    Args:
        query: ``(B, H, F * n, D)``, frames slowest, cells row by row.
        key: The same shape.
        value: ``(B, H, F * n, Dv)``.
        lanes: Of the same grid, on the same device.
        scale: Factor on the scores; ``None`` means ``D ** -0.5``.
        chunk_bytes: Memory for gathered tensors; fewer bytes mean more, smaller chunks.

    Returns:
        ``(B, H, F * n, Dv)``: ``softmax(scale q_i . k_T(i)) v_T(i)`` with T(i) the trajectory of
        token i. Exact, and independent of how lanes were completed and chunked.

    Raises:
        ValueError: the tokens are not those of the lanes.

    Source: Cong et al., FLATTEN, arXiv 2310.05922, equation 5.
    """
    frames, height, width = lanes.grid
    if query.shape[2] != frames * height * width:
        raise ValueError(
            f"{query.shape[2]} tokens arrived, the lanes are for {frames} x {height} x {width}"
        )
    index = lanes.index
    result = value.new_empty(value.shape[0] * value.shape[1], index.numel(), value.shape[-1])
    width_bytes = 2 * (query.shape[-1] + value.shape[-1]) * query.element_size()
    a_lane = frames * (width_bytes * query.shape[0] * query.shape[1] + frames)
    rows = max(1, chunk_bytes // a_lane)
    for start in range(0, len(index), rows):
        part = slice(start, start + rows)
        mask = None if lanes.is_unbroken else lanes.mask(part)[None]
        out = F.scaled_dot_product_attention(
            *(gather_lanes(tensor, index[part]) for tensor in (query, key, value)),
            attn_mask=mask,
            scale=scale,
        )
        result.index_copy_(1, index[part].flatten(), out.flatten(1, 2))
    return result.unflatten(0, (value.shape[0], value.shape[1]))


def lane_bytes(
    frames: int, cells: int, channels: int, element_bytes: int = 2, batch: int = 1
) -> int:
    """Memory that attention along lanes needs at most beside its inputs, in bytes.

    Gathered query, key, value and result of all lanes in one chunk, the mask, cells and segments.
    """
    tokens = frames * cells
    gathered = 4 * batch * tokens * channels * element_bytes
    return gathered + tokens * frames + tokens * (8 + 8 + 2)


def token_gather_bytes(
    frames: int, cells: int, channels: int, element_bytes: int = 2, batch: int = 1
) -> int:
    """Memory of the form that gathers every token's own trajectory, in bytes.

    Keys and values ``(B, F, n, F, C)``, padded to F, with a boolean mask and an index; the query
    and the result are not gathered.
    """
    tokens = frames * cells
    return 2 * batch * tokens * frames * channels * element_bytes + tokens * frames * (1 + 8)


def attend_token_lists(
    query: Tensor, key: Tensor, value: Tensor, roots: Tensor, scale: float | None = None
) -> Tensor:
    """The plain loop that :func:`lane_attention` equals: one token and its trajectory at a time.

    Args:
        query: ``(B, H, N, D)``; give float64 for a reference.
        key: The same shape.
        value: ``(B, H, N, Dv)``.
        roots: ``(N,)``, equal for tokens of one trajectory.
        scale: As above.

    Returns:
        ``(B, H, N, Dv)``.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    out = torch.empty_like(value)
    for token in range(query.shape[2]):
        own = (roots == roots[token]).nonzero().flatten()
        scores = factor * query[:, :, token : token + 1] @ key[:, :, own].mT
        out[:, :, token : token + 1] = scores.softmax(-1) @ value[:, :, own]
    return out
