"""IR-Diffusion: subjects of a scene kept apart, each reading its portrait, moved to its place.

Source: He, Wang, Zhou, Cai, Chao, Yin, Yang, "Improving Multi-Subject Consistency in Open-Domain
Image Generation with Isolation and Reposition Attention", 2024, arXiv 2411.19261, and the code that
it shares with DreamStory, arXiv 2407.12899.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.otsu import mask_of_map

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
KeyValue = tuple[Tensor, Tensor]


def layer_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Take a mask, or a map, to the grid of a layer: bilinear, then in two by Otsu's method.

    Args:
        mask: bool or float, ``(h, w)``.
        size: Height and width of the layer in cells.

    Returns:
        bool ``(H, W)``; where all cells are equal, those of at least 0.5 are inside.

    Source: layer masks of the official code.
    """
    resized = F.interpolate(
        mask[None, None].float(), size=size, mode="bilinear", align_corners=False
    )[0, 0]
    return mask_of_map(resized)


def without_overlaps(masks: Tensor, maps: Tensor) -> Tensor:
    """Give a cell that several masks hold to the one whose map is strongest there.

    Args:
        masks: bool ``(S, H, W)``.
        maps: What they were made of, ``(S, H, W)``; each is scaled to [0, 1] first.

    Returns:
        bool ``(S, H, W)``, disjoint.
    """
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    strongest = scaled.masked_fill(~masks, -1.0).argmax(dim=0)
    return masks & (strongest == torch.arange(len(masks), device=masks.device)[:, None, None])


def isolated_pairs(masks: Tensor) -> Tensor:
    """Mark the pairs of image tokens that may not see one another: those of two subjects.

    Args:
        masks: Cells of each subject, bool ``(S, n)``. A cell of two subjects sees neither of them.

    Returns:
        bool ``(n, n)``, queries first. A cell always sees itself, which is an addition: where
        subjects overlap, a row could else be empty.

    Source: arXiv 2411.19261, isolation attention.
    """
    members = masks.float()
    subjects = members.sum(dim=0)
    pairs = subjects[:, None] * subjects[None, :] - members.T @ members  # pairs of two subjects
    return (pairs > 0).fill_diagonal_(fill_value=False)


def moved_tokens(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Move a subject from where it is in its portrait to its place in the scene.

    The bounding box of the source is scaled to that of the target, each cell taking the nearest
    one; cells that do not show the subject are left out.

    Args:
        source: The subject in its portrait, bool ``(H, W)``.
        target: The subject in the scene, bool ``(H, W)``.

    Returns:
        Positions in the portrait that are read, and where they come to lie in the scene, ``(m,)``
        each; no positions if one of the masks is empty.

    Source: arXiv 2411.19261, reposition attention; ``floor(i * from / to)`` of nearest resizing.
    """
    if not (bool(source.any()) and bool(target.any())):
        nothing = torch.zeros(0, dtype=torch.long, device=source.device)
        return nothing, nothing
    reads: list[Tensor] = []
    places: list[Tensor] = []
    for axis in (0, 1):  # rows, then columns
        (from_, taken), (to, wanted) = (_extent(mask, axis) for mask in (source, target))
        cells = torch.arange(wanted, device=source.device)
        reads.append(from_ + cells * taken // wanted)
        places.append(to + cells)
    width = source.shape[1]
    read, place = (rows[:, None] * width + columns for rows, columns in (reads, places))
    kept = source.flatten()[read]
    return read[kept], place[kept]


def dropped(mask: Tensor, dropout: float, *key: int | str) -> Tensor:
    """Leave out cells of a mask at random; one that would be empty is kept as it is.

    Args:
        mask: bool ``(n,)``.
        dropout: Probability of each cell, in [0, 1).
        key: Equal keys leave out the same cells. The generator is one of its own: neither torch's
            global state nor the user's is touched.

    Source: arXiv 2411.19261; subject dropout of ConsiStory, arXiv 2402.03286.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    kept = mask & (torch.rand(len(mask), generator=generator) >= dropout).to(mask.device)
    return kept if bool(kept.any()) else mask


def portrait_logits(
    forbidden: Tensor, seeing: Tensor, counts: Sequence[int], bias: float, dtype: torch.dtype
) -> Tensor:
    """Bias on the logits of portraits and scene, in this order on the key axis.

    Args:
        forbidden: Pairs of the scene's own tokens, bool ``(n, n)``.
        seeing: Queries that see each portrait, bool ``(S, n)``.
        counts: Tokens of each portrait.
        bias: Added to the logits of all portraits.
        dtype: Of the logits.

    Returns:
        ``(n, sum(counts) + n)``; what is forbidden has half the least number of ``dtype``.

    Source: arXiv 2411.19261; official code, whose ``ref_sa_lambda`` is ``bias``.
    """
    parts = [~of_one[:, None].expand(-1, m) for of_one, m in zip(seeing, counts, strict=True)]
    logits = torch.zeros(len(forbidden), sum(counts), dtype=dtype, device=forbidden.device)
    logits = F.pad(logits + bias, (0, len(forbidden)))
    return logits.masked_fill(torch.cat([*parts, forbidden], dim=1), torch.finfo(dtype).min / 2)


def extended_attention(
    query: Tensor, own: KeyValue, portraits: Sequence[KeyValue], mask: Tensor | None, attend: Attend
) -> Tensor:
    """Attention to the portraits and to the own tokens in one softmax.

    Args:
        query: ``(B, H, n, D)``.
        own: Key and value of the scene, ``(B, H, n, D)`` each.
        portraits: Key and value of each portrait's moved tokens, ``(B, H, m, D)`` each.
        mask: Additive, broadcastable to ``(B, H, n, keys)``, portraits first.
        attend: Attention of query, key, value and mask.

    Source: arXiv 2411.19261, reposition attention.
    """
    key, value = (torch.cat(parts, dim=2) for parts in zip(*portraits, own, strict=True))
    return attend(query, key, value, mask)


def blend_portraits(out: Tensor, portraits: Tensor, masks: Tensor, weight: float) -> Tensor:
    """Mix the text of each portrait into the tokens of its subject.

    Args:
        out: Cross-attention of the scene, ``(B, H, n, D)``.
        portraits: The scene's queries on each portrait's text, ``(S, B, H, n, D)``.
        masks: Cells of each subject, bool ``(S, n)``; where several lie, their mean counts.
        weight: Weight of the portraits' text, in [0, 1].

    Returns:
        Same shape; cells of no subject keep ``out`` bit for bit.

    Source: mutual cross-attention of the official code. It blends behind the output projection,
        which is linear, so that the result is the same.
    """
    members = masks.to(out)[:, None, None, :, None]
    mean = (members * portraits).sum(dim=0) / members.sum(dim=0).clamp_min(1)
    mixed = (1 - weight) * out + weight * mean
    return torch.where(masks.any(dim=0)[:, None], mixed, out)


def _extent(mask: Tensor, axis: int) -> tuple[int, int]:
    """First row (axis 0) or column of a mask, and how many from there to the last one."""
    lines = mask.any(dim=1 - axis).nonzero()
    first, last = int(lines[0]), int(lines[-1])
    return first, last - first + 1
