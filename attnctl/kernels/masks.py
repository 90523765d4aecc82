"""What all kernels need to agree on: mask forms, rows without a key, shared key heads."""

import torch
from torch import Tensor

from attnctl.kernels.kernel import MaskKind


def mask_kind(mask: Tensor | None) -> MaskKind | None:
    """Say which kind of mask this is: ``"bool"`` (True = attend), ``"bias"`` (added), or None."""
    if mask is None:
        return None
    return "bool" if mask.dtype == torch.bool else "bias"


def as_four_axes(mask: Tensor) -> Tensor:
    """Give a mask the axes ``(B | 1, H | 1, Q | 1, K | 1)`` by adding leading ones.

    Raises:
        ValueError: The mask has more than four axes.
    """
    if mask.ndim > 4:
        raise ValueError(
            f"mask has {mask.ndim} axes {tuple(mask.shape)}; at most 4 are allowed: (B, H, Q, K)"
        )
    return mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))


def split_empty_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows without an allowed key, and open them so that no kernel sees one.

    Args:
        mask: Boolean (True = attend) or additive mask, ``(B | 1, H | 1, Q | 1, K | 1)``. A row
            counts as empty if it is all False or all ``-inf``; a large finite bias such as
            ``finfo.min / 2`` is a value like any other.

    Returns:
        ``(opened, empty)``: the mask with its empty rows allowed everywhere, and the empty rows,
        bool ``(B | 1, H | 1, Q | 1)``, whose result the caller must overwrite.
    """
    is_bool = mask.dtype == torch.bool
    empty = ~mask.any(dim=-1) if is_bool else (mask == -torch.inf).all(dim=-1)
    # Elsewhere the question would wait for the device, which costs more than the copy.
    if mask.device.type == "cpu" and not bool(empty.any()):
        return mask, empty
    if is_bool:
        return mask | empty.unsqueeze(-1), empty
    return mask.masked_fill(empty.unsqueeze(-1), 0.0), empty


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into an additive one (0 or ``-inf``); cast an additive one."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def repeat_heads(tensor: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads: ``(B, h, K, D) -> (B, heads, K, D)``.

    Each head serves ``heads / h`` query heads in a row, as in
    ``scaled_dot_product_attention(enable_gqa=True)``.

    Raises:
        ValueError: ``heads`` is not a multiple of ``h``.
    """
    own = tensor.shape[1]
    if own == heads:
        return tensor
    if own == 0 or heads % own:
        raise ValueError(
            f"{own} key heads cannot serve {heads} query heads; give a divisor of {heads}"
        )
    return tensor.repeat_interleave(heads // own, dim=1)


def default_scale(query: Tensor, scale: float | None) -> float:
    """Return ``scale``, or ``D ** -0.5`` if it is None."""
    return query.shape[-1] ** -0.5 if scale is None else float(scale)
