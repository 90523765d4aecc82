"""Token merging: similar image tokens become one, and share its result afterwards.

Source: Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", arXiv 2303.17604.
"""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Ranking:
    """Source tokens, the one most like a destination first.

    Attributes:
        sources: ``(B, S)``, positions of the sources in that order.
        into: ``(B, S)``, for each of them the place of its best destination, in [0, n).
        destinations: ``(n,)``, positions of the destinations.
    """

    sources: Tensor
    into: Tensor
    destinations: Tensor


@dataclass(frozen=True, slots=True)
class MergeMap:
    """Which tokens become one.

    Attributes:
        rows: ``(B, N)``, for each token its row among the merged ones, in [0, count).
        count: Rows that are left; kept sources come first, then the destinations.
    """

    rows: Tensor
    count: int


def cell_destinations(
    frames: int, height: int, width: int, cell: int, key: tuple[int | str, ...] | None = None
) -> Tensor:
    """Choose one token of each ``cell x cell`` square; tokens beyond the last square are left out.

    Args:
        frames: Frames of the grid; all have the same destinations.
        height: Rows of tokens in a frame, at least ``cell``.
        width: Columns of tokens in a frame, at least ``cell``.
        cell: Side of a square in tokens.
        key: Equal keys give equal random choices, drawn from a generator of their own; ``None``
            takes the top left token of each square.

    Returns:
        Ascending positions ``(frames * (height // cell) * (width // cell),)``, on the CPU.
    """
    down, across = height // cell, width // cell
    if key is None:
        chosen = torch.zeros(down, across, dtype=torch.long)
    else:
        digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        chosen = torch.randint(cell * cell, (down, across), generator=generator)
    y = torch.arange(down)[:, None] * cell + chosen // cell
    x = torch.arange(across)[None, :] * cell + chosen % cell
    first = (y * width + x).flatten()
    whole = torch.arange(frames)[:, None] * height * width + first
    return whole.flatten().sort().values


@torch.no_grad()
def rank_sources(tokens: Tensor, destinations: Tensor) -> Ranking:
    """Find the destination most like each other token, and sort those tokens by the likeness.

    Args:
        tokens: ``(B, N, C)``, compared by cosine similarity.
        destinations: ``(n,)``, positions; every other token is a source.

    Returns:
        The sources, most similar first; of equal ones the earlier token is first.
    """
    is_source = torch.ones(tokens.shape[1], dtype=torch.bool)
    is_source[destinations.cpu()] = False
    sources = is_source.nonzero().flatten().to(tokens.device)
    destinations = destinations.to(tokens.device)
    units = F.normalize(tokens.float(), dim=-1).to(tokens.dtype)
    likeness = units[:, sources] @ units[:, destinations].transpose(1, 2)
    best, into = likeness.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    return Ranking(sources[order], into.gather(1, order), destinations)


def merge_map(ranking: Ranking, merged: int) -> MergeMap:
    """Merge the first ``merged`` sources of a ranking into their destinations.

    Args:
        ranking: From :func:`rank_sources`.
        merged: How many, in [0, S].

    Returns:
        The map of all tokens: ``S - merged`` kept sources, then the destinations.
    """
    batch, count = ranking.sources.shape
    kept, goals = count - merged, len(ranking.destinations)
    rows = ranking.sources.new_empty(batch, count + goals)
    places = torch.arange(kept + goals, device=rows.device)
    rows.scatter_(1, ranking.sources[:, merged:], places[:kept].expand(batch, -1))
    rows.scatter_(1, ranking.sources[:, :merged], ranking.into[:, :merged] + kept)
    rows[:, ranking.destinations] = places[kept:]
    return MergeMap(rows, kept + goals)


def merge_tokens(values: Tensor, tokens: slice, chosen: MergeMap) -> Tensor:
    """Average the tokens that become one, the destination included; the others stay.

    Args:
        values: ``(B, H, K, D)``.
        tokens: The N of the K tokens that the map is about.
        chosen: Their map, for these B entries.

    Returns:
        ``(B, H, K - N + count, D)``, the merged rows where the N tokens were.
    """
    batch, heads, _, width = values.shape
    image = values[:, :, tokens].transpose(1, 2).flatten(2).flatten(0, 1)  # (B * N, H * D)
    wide = image.float() if image.dtype in (torch.float16, torch.bfloat16) else image
    rows = _flat_rows(chosen)
    total = wide.new_zeros(batch * chosen.count, heads * width).index_add(0, rows, wide)
    members = wide.new_zeros(batch * chosen.count).index_add(0, rows, wide.new_ones(len(rows)))
    mean = (total / members[:, None]).to(values.dtype)
    mean = mean.view(batch, chosen.count, heads, width).transpose(1, 2)
    return _replaced(values, tokens.start, tokens.stop, mean)


def spread_tokens(values: Tensor, tokens: slice, chosen: MergeMap) -> Tensor:
    """Give each token the row that it was merged into: the way back from :func:`merge_tokens`.

    Args:
        values: ``(B, H, K - N + count, D)``.
        tokens: Where the N tokens stood.
        chosen: Their map.

    Returns:
        ``(B, H, K, D)``.
    """
    batch, heads, _, width = values.shape
    stop = tokens.start + chosen.count
    rows = values[:, :, tokens.start : stop].transpose(1, 2).flatten(2).flatten(0, 1)
    spread = rows.index_select(0, _flat_rows(chosen)).view(batch, -1, heads, width)
    return _replaced(values, tokens.start, stop, spread.transpose(1, 2))


def _flat_rows(chosen: MergeMap) -> Tensor:
    """Rows of all batch entries one after the other: ``(B * N,)``."""
    batch = chosen.rows.shape[0]
    first = torch.arange(batch, device=chosen.rows.device)[:, None] * chosen.count
    return (chosen.rows + first).flatten()


def _replaced(values: Tensor, start: int, stop: int, middle: Tensor) -> Tensor:
    """``values`` with other tokens from ``start`` to ``stop``."""
    if start == 0 and stop == values.shape[2]:
        return middle
    return torch.cat([values[:, :, :start], middle, values[:, :, stop:]], dim=2)
