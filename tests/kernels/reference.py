"""Plain float64 loops that the kernels are compared with."""

import math

import torch
from torch import Tensor


def loop_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, lse and weights by a loop over every row, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    run = heads // key.shape[1]
    factor = width**-0.5 if scale is None else scale
    allowed = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        allowed = allowed + mask.double()
    out = torch.zeros(batch, heads, queries, value.shape[-1], dtype=torch.float64)
    lse = torch.full((batch, heads, queries), -torch.inf, dtype=torch.float64)
    weights = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                scores = key[b, h // run] @ query[b, h, i] * factor + allowed[b, h, i]
                top = scores.max().item()
                if top == -math.inf:
                    continue
                lse[b, h, i] = top + (scores - top).exp().sum().log()
                weights[b, h, i] = (scores - lse[b, h, i]).exp()
                out[b, h, i] = weights[b, h, i] @ value[b, h // run]
    return out, lse, weights


def random_qkv(
    *shape: int,
    keys: int,
    key_heads: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw query ``shape`` = (B, H, Q, D) and key and value with ``keys`` tokens."""
    batch, heads, _, width = shape
    generator = torch.Generator().manual_seed(seed)
    own = heads if key_heads is None else key_heads
    query = torch.randn(shape, generator=generator, dtype=torch.float64)
    key = torch.randn(batch, own, keys, width, generator=generator, dtype=torch.float64)
    value = torch.randn(batch, own, keys, width, generator=generator, dtype=torch.float64)
    return query.to(dtype), key.to(dtype), value.to(dtype)
