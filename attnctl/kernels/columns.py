"""Exact columns of an attention map, and its mass on groups of keys, without the map itself."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.errors import KernelError
from attnctl.kernels.column_gradients import differentiable_columns
from attnctl.kernels.dense import attention
from attnctl.kernels.explicit import (
    attention_scores,
    explicit_log_sum_exp,
    explicit_probabilities,
)
from attnctl.kernels.masks import as_four_axes

EXPLICIT_KEYS = 512  # up to here the whole softmax is cheaper than any detour
ROWS_SHARE = 128  # a chunked log-sum-exp sees 1/128 of the query rows at a time
SWAMPED = -1e30  # below it a log-sum-exp is the bias alone: the scores were rounded away


def probability_columns(
    query: Tensor,
    key: Tensor,
    tokens: Tensor | slice,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Compute the columns ``tokens`` of ``softmax(scale * query key^T + mask)``.

    Up to 512 keys the softmax is computed as written. With more keys the map is never made:
    a column is ``exp(score - lse)``, with a backward pass of its own if a gradient is wanted; under
    a mask the gradient is that of the mass of all columns together (attention onto an indicator
    value) shared out by a softmax among them.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        tokens: Key positions: a slice or an integer tensor ``(n,)``; negative ones count from the
            end, repeated ones are allowed.
        mask: Boolean (True = attend) or additive, broadcastable to ``(B, H, Q, K)``, or None.
        scale: Factor on the scores; None means ``D ** -0.5``.
        lse: Log-sum-exp over *all* keys if the caller has it, ``(B, H, Q)``, natural log; it must
            belong to the same mask and scale. Used only without gradients.
        differentiable: Record the gradient with respect to query, key and additive mask. If
            False the result is detached.

    Returns:
        ``(B, H, Q, n)``, float32 (float64 for float64 inputs), each in [0, 1]. Rows without an
        allowed key are 0.

    Raises:
        ValueError: A position is outside the keys, or ``tokens`` has the wrong form.

    Source: attention weights as in Vaswani et al. 2017, eq. 1; the two shortcuts are exact
    identities (see the column maps and the mass value in the design notes of attnctl).
    """
    keys = key.shape[2]
    positions = _positions(tokens, keys, key.device)
    with nullcontext() if differentiable else torch.no_grad():
        if keys <= EXPLICIT_KEYS:
            probs = explicit_probabilities(query, key, mask, scale)
            return probs[..., tokens if isinstance(tokens, slice) else positions]
        if differentiable:
            return _differentiable(query, key, positions, mask, scale)
        if lse is None:
            lse = log_sum_exp(query, key, mask, scale)
        return _columns_by_lse(query, key, positions, mask, scale, lse)


def probability_masses(
    query: Tensor,
    key: Tensor,
    groups: Tensor,
    *,
    mask: Tensor | None = None,
    scale: float | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Sum attention weights over groups of keys: ``softmax(scale * query key^T + mask) groups``.

    With more than 512 keys this is attention with the groups in place of the value, as many
    groups at once as the heads are wide; the map is never made.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        groups: ``(K, g)``: membership (bool or 0/1) or weights of each key in each group.
        mask: Boolean (True = attend) or additive, broadcastable to ``(B, H, Q, K)``, or None.
        scale: Factor on the scores; None means ``D ** -0.5``.
        differentiable: Record the gradient; if False the result is detached.

    Returns:
        ``(B, H, Q, g)``, float32 (float64 for float64 inputs). With half-precision inputs and
        more than 512 keys the values carry the rounding of that precision.

    Raises:
        ValueError: ``groups`` is not ``(K, g)``.
    """
    keys = key.shape[2]
    if groups.ndim != 2 or groups.shape[0] != keys:
        raise ValueError(f"groups must be ({keys} keys, groups); got shape {tuple(groups.shape)}")
    wide = torch.promote_types(query.dtype, torch.float32)
    groups = groups.to(key.device)
    with nullcontext() if differentiable else torch.no_grad():
        if keys <= EXPLICIT_KEYS:
            probs = explicit_probabilities(query, key, mask, scale)
            return probs @ groups.to(probs.dtype)
        members = groups.to(query.dtype)
        width = query.shape[-1]
        parts = [
            _attend_onto(query, key, members[:, start : start + width], mask, scale).to(wide)
            for start in range(0, groups.shape[1], width)
        ]
        if not parts:
            return query.new_zeros(*query.shape[:3], 0, dtype=wide)
        return torch.cat(parts, dim=-1)


def log_sum_exp(
    query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute the log-sum-exp of each row of scores without the map and without gradients.

    A fused kernel is used if one returns it, else blocks of 1/128 of the query rows.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        mask: Boolean (True = attend) or additive, broadcastable to ``(B, H, Q, K)``, or None.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        ``(B, H, Q)``, natural log, float32 (float64 for float64 inputs); ``-inf`` for a row
        without an allowed key.
    """
    with torch.no_grad():
        try:
            # The key serves as a value of the right width; only the log-sum-exp is kept.
            lse = attention(query, key, key, mask, scale, need_lse=True, kernel="sdpa-lse")[1]
        except KernelError:
            lse = None
        return _log_sum_exp_in_chunks(query, key, mask, scale) if lse is None else lse


def _log_sum_exp_in_chunks(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    rows = max(1, query.shape[2] // ROWS_SHARE)
    mask = None if mask is None else as_four_axes(mask)
    parts: list[Tensor] = []
    for start in range(0, query.shape[2], rows):
        block = slice(start, start + rows)
        shared = mask is None or mask.shape[2] == 1
        block_mask = mask if shared or mask is None else mask[:, :, block]
        parts.append(explicit_log_sum_exp(query[:, :, block], key, block_mask, scale))
    return torch.cat(parts, dim=2)


def _columns_by_lse(
    query: Tensor,
    key: Tensor,
    positions: Tensor,
    mask: Tensor | None,
    scale: float | None,
    lse: Tensor,
) -> Tensor:
    scores = _scores_at(query, key, positions, mask, scale)
    lse = lse.to(scores.dtype).unsqueeze(-1)
    columns = scores.sub_(lse).exp_().masked_fill_(lse == -torch.inf, 0.0)
    columns.masked_fill_((lse < SWAMPED) & (columns > 0), 1 / key.shape[2])
    return columns.clamp_(max=1.0)


def _differentiable(
    query: Tensor, key: Tensor, positions: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    if mask is None and positions.numel():
        try:
            return differentiable_columns(query, key, positions, scale=scale)
        except KernelError:  # no fused kernel here gives a log-sum-exp
            pass
    return _columns_by_mass(query, key, positions, mask, scale)


def _columns_by_mass(
    query: Tensor, key: Tensor, positions: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    if positions.numel() == 0:
        return _scores_at(query, key, positions, mask, scale)
    if query.dtype == torch.float16:  # weights of long rows times gradients underflow in it
        query, key = query.float(), key.float()
    # A repeated position counts twice in the mass and twice in the softmax, which cancels.
    counts = torch.bincount(positions, minlength=key.shape[2]).to(query.dtype).unsqueeze(-1)
    mass = _attend_onto(query, key, counts, mask, scale)
    chosen_mask = None if mask is None else _take_keys(as_four_axes(mask), positions)
    shares = explicit_probabilities(query, key[:, :, positions], chosen_mask, scale)
    return mass.to(shares.dtype) * shares


def _attend_onto(
    query: Tensor, key: Tensor, columns: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attend with ``columns`` ``(K, g <= D)`` as the value, padded to width D: ``(B, H, Q, g)``."""
    count = columns.shape[1]
    width = query.shape[-1]
    value = F.pad(columns, (0, width - count)).expand(*key.shape[:3], width)
    out, _ = attention(query, key, value, mask, scale)
    return out[..., :count]


def _scores_at(
    query: Tensor, key: Tensor, positions: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    scores = attention_scores(query, key[:, :, positions], scale)
    if mask is None:
        return scores
    at = _take_keys(as_four_axes(mask), positions)
    if at.dtype == torch.bool:
        return scores.masked_fill(~at, -torch.inf)
    return scores + at.to(scores.dtype)


def _take_keys(mask: Tensor, positions: Tensor) -> Tensor:
    return mask if mask.shape[-1] == 1 else mask[..., positions]


def _positions(tokens: Tensor | slice, keys: int, device: torch.device) -> Tensor:
    if isinstance(tokens, slice):
        return torch.arange(keys, device=device)[tokens]
    if tokens.ndim != 1 or tokens.dtype == torch.bool or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be a slice or an integer tensor of shape (n,); got {tokens.dtype} "
            f"of shape {tuple(tokens.shape)}"
        )
    tokens = tokens.to(device=device, dtype=torch.long)
    if tokens.numel() and not bool(((tokens >= -keys) & (tokens < keys)).all()):
        raise ValueError(
            f"tokens run from {int(tokens.min())} to {int(tokens.max())}; "
            f"allowed are the key positions 0 to {keys - 1}, or negative ones from the end"
        )
    return tokens % keys if keys else tokens
