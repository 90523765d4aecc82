"""Keys and values of other frames.

Source: Khachatryan et al., "Text2Video-Zero", ICCV 2023, section 3.3 (first frame); Wu et al.,
"Tune-A-Video", ICCV 2023, section 3.2 (first and previous frame); Zamani et al., arXiv 2406.00272
(chosen frames).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

SOURCES = ("first", "previous", "both")


def source_frames(count: int, source: str | Sequence[int]) -> tuple[list[int], ...]:
    """Frames whose keys each frame attends to.

    Args:
        count: Frames of a clip.
        source: ``first``, ``previous`` (the first frame has itself), ``both``, or numbers of frames
            that every frame attends to.

    Returns:
        One list for each source frame, with an entry for each frame of the clip.
    """
    if not isinstance(source, str):
        return tuple([frame] * count for frame in source)
    first, previous = [0] * count, [max(0, frame - 1) for frame in range(count)]
    return {"first": (first,), "previous": (previous,), "both": (first, previous)}[source]


def gather_frames(tensor: Tensor, source: str | Sequence[int]) -> Tensor:
    """Give each frame the tokens of its source frames.

    Args:
        tensor: Keys or values, ``(clips, H, F, n, D)``.
        source: See :func:`source_frames`.

    Returns:
        ``(clips, H, F, n, D)``, with ``n`` tokens for each source frame, in their order; for
        ``both`` those of the first frame come first.
    """
    parts = [
        tensor[:, :, torch.tensor(frames, device=tensor.device)]
        for frames in source_frames(tensor.shape[2], source)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def share_bias(own: int, others: int, shares: Tensor) -> Tensor:
    """Bias on the logits that gives other frames' keys a share beside the frame's own.

    The weights are ``(1 - share) exp(s)`` for own keys and ``share exp(s)`` for the others, so a
    share of 0 is plain attention and 1 is attention to the others alone.

    Args:
        own: Own keys, which come first.
        others: Keys of other frames, behind them.
        shares: Share of each head, ``(H,)``, in [0, 1].

    Returns:
        ``(1, H, 1, own + others)``; a forbidden key has half the dtype's minimum.
    """
    low = torch.finfo(shares.dtype).min / 2
    logs = [weight.log().clamp_min(low) for weight in (1 - shares, shares)]
    spread = [log[:, None].expand(-1, n) for log, n in zip(logs, (own, others), strict=True)]
    return torch.cat(spread, dim=1)[None, :, None]
