"""Sparse layouts that follow the tensors: predicted top blocks, and a choice for each head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.kernels.block_sparse import block_sparse_attention
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import default_scale, repeat_heads
from attnctl.ops.masked_attention import attend_masked


def predict_layout(
    query: Tensor,
    key: Tensor,
    *,
    q_block: int = 64,
    k_block: int = 64,
    keep: float | None = 0.5,
    mass: float | None = None,
    similarity: float = -0.1,
    always_keys: Tensor | None = None,
    scale: float | None = None,
) -> BlockLayout:
    """Guess which key blocks matter to each query block from the blocks' mean vectors.

    The mean query of a block is scored against the mean keys; each row keeps its best blocks.
    A block whose tokens differ too much has no telling mean: such key blocks are kept by every
    row and left out of the softmax, such query blocks keep all keys.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        q_block: Query tokens in a block.
        k_block: Key tokens in a block.
        keep: Share of the key blocks that each row keeps, in (0, 1]; rounded up.
        mass: Instead of ``keep`` (then None): keep the best blocks until their predicted weights
            sum to this, in (0, 1].
        similarity: Least mean cosine between the tokens of a block, in [-1, 1], for its mean to
            be trusted; -1 trusts every mean.
        always_keys: bool ``(K,)``: blocks with such a key are kept by every row (text, injected
            reference tokens, a first frame). None: none.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        A layout of whole blocks with lists for each batch item and head.

    Raises:
        ValueError: Not exactly one of ``keep`` and ``mass`` is given, or it is out of range.

    Source: SpargeAttn, arXiv 2502.18137, the first stage; without its quantisation and its second
    filter inside the kernel.
    """
    share = keep if mass is None else mass
    if (keep is None) == (mass is None) or share is None or not 0 < share <= 1:
        raise ValueError(f"give one of keep and mass, in (0, 1]; got keep={keep}, mass={mass}")
    with torch.no_grad():
        key = repeat_heads(key, query.shape[1])
        query_mean, query_alike = _summarise(query, q_block)
        key_mean, key_alike = _summarise(key, k_block)
        unsure_keys = (key_alike < similarity).unsqueeze(-2)
        scores = default_scale(query, scale) * query_mean @ key_mean.transpose(-1, -2)
        scores = scores.masked_fill(unsure_keys, -torch.inf)
        chosen = _best(scores, share) if mass is None else _until(scores, share)
        chosen = chosen | unsure_keys | (query_alike < similarity).unsqueeze(-1)
        if always_keys is not None:
            padded = F.pad(always_keys.to(chosen.device), (0, -key.shape[2] % k_block))
            chosen = chosen | padded.view(-1, k_block).any(-1)
    return BlockLayout.from_block_mask(chosen, q_block, k_block, query.shape[2], key.shape[2])


def pick_by_sample(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layouts: list[BlockLayout],
    *,
    rows: int = 32,
    seed: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Find for each head the layout that comes closest to dense attention on a few query rows.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, Dv)``.
        layouts: Candidates for these tokens, lists shared by all heads, for example one that
            keeps neighbouring frames and one that keeps the same place in all frames.
        rows: Query rows that are compared, at least 1.
        seed: Seed of their choice; no other source of random numbers is touched.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        ``(B, H)`` index into ``layouts`` of the least squared error.

    Source: Sparse VideoGen, arXiv 2502.01776, its choice between spatial and temporal heads.
    """
    if rows < 1 or not layouts:
        raise ValueError(f"give at least one row and one layout; got {rows} and {len(layouts)}")
    source = torch.Generator().manual_seed(seed)
    taken = torch.randperm(query.shape[2], generator=source)[:rows].to(query.device)
    wide = torch.promote_types(query.dtype, torch.float32)
    sample, key, value = query[:, :, taken].to(wide), key.to(wide), value.to(wide)
    factor = default_scale(query, scale)
    with torch.no_grad():
        exact, _ = attend_masked(sample, key, value, None, factor)
        errors: list[Tensor] = []
        for layout in layouts:
            mask = layout.to(query.device).row_mask(taken)
            out, _ = attend_masked(sample, key, value, mask, factor)
            errors.append((out - exact).square().sum((-1, -2)))
        return torch.stack(errors).argmin(0)


def attend_by_choice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layouts: list[BlockLayout],
    choice: Tensor,
    *,
    scale: float | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend with another layout in each head.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, Dv)``.
        layouts: Layouts with lists shared by all items and heads; their orders may differ.
        choice: ``(B, H)`` index into ``layouts``, as from `pick_by_sample`.
        scale: Factor on the scores; None means ``D ** -0.5``.
        kernel: As in `block_sparse_attention`.

    Returns:
        out ``(B, H, Q, Dv)`` and lse ``(B, H, Q)``.

    Raises:
        ValueError: ``choice`` has the wrong shape or names a layout that is not there.
    """
    if choice.shape != query.shape[:2] or not bool(((choice >= 0) & (choice < len(layouts))).all()):
        raise ValueError(
            f"choice must be {tuple(query.shape[:2])} numbers below {len(layouts)}; got shape "
            f"{tuple(choice.shape)}"
        )
    flat = [tensor.flatten(0, 1) for tensor in (query, key, value)]
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    taken: list[Tensor] = []
    for number, layout in enumerate(layouts):
        rows = (choice.flatten() == number).nonzero().flatten()
        if rows.numel():
            q, k, v = (tensor[rows].unsqueeze(0) for tensor in flat)
            out, lse = block_sparse_attention(q, k, v, layout, scale=scale, kernel=kernel)
            outs.append(out[0])
            lses.append(lse[0])
            taken.append(rows)
    back = torch.cat(taken).argsort()
    out, lse = torch.cat(outs)[back], torch.cat(lses)[back]
    return out.unflatten(0, choice.shape), lse.unflatten(0, choice.shape)


def _summarise(tokens: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Mean vector of each block ``(B, H, blocks, D)`` and the mean cosine of its pairs."""
    batch, heads, count, width = tokens.shape
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    padded = F.pad(tokens, (0, 0, 0, -count % block)).view(batch, heads, -1, block, width)
    sizes = F.pad(tokens.new_ones(count), (0, -count % block)).view(-1, block).sum(-1, keepdim=True)
    mean = padded.sum(-2) / sizes
    # The mean cosine over all pairs, a token with itself included, is the mean direction squared.
    alike = (F.normalize(padded, dim=-1).sum(-2) / sizes).square().sum(-1)
    return mean, alike


def _best(scores: Tensor, keep: float) -> Tensor:
    count = max(1, -int(-keep * scores.shape[-1] // 1))
    top = scores.topk(count, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, top, True)


def _until(scores: Tensor, mass: float) -> Tensor:
    weights = scores.softmax(-1).nan_to_num()
    ranked, order = weights.sort(dim=-1, descending=True)
    kept = ranked.cumsum(-1) - ranked < mass
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, kept)
