"""Vico: how much influence each word has on a clip, through attention over space and time.

Source: Yang, Wang, "Compositional Video Generation as Flow Equalization", 2024, arXiv 2407.06182,
section 3 and its official code.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.attend_and_excite import gaussian_kernel, kept_columns, sharpen

FORMS = ("soft", "hard", "rollout")
TEMPERATURE = 0.01  # of the soft minimum and maximum, as in the official code
FEWEST_SUBJECTS = 2  # one alone competes with no other


def best_path(left: Tensor, right: Tensor, temperature: float = 0.0) -> Tensor:
    """Join two maps by their widest path: ``max_k min(left[i, k], right[k, j])``.

    Args:
        left: Capacities ``(..., I, K)``.
        right: Capacities ``(..., K, J)``.
        temperature: Softness; 0 takes the minimum and the maximum themselves, a larger one
            ``-t log(e^(-a/t) + e^(-b/t))`` and ``t log sum_k e^(x_k/t)``, which lie within
            ``t (log 2 + log K)`` of them.

    Returns:
        ``(..., I, J)``, differentiable.
    """
    a, b = left[..., :, :, None], right[..., None, :, :]  # (..., I, K, J)
    if temperature == 0:
        return torch.minimum(a, b).amax(dim=-2)
    narrowest = -torch.logaddexp(-a / temperature, -b / temperature)
    return temperature * narrowest.logsumexp(dim=-2)


def word_influence(
    cross: Tensor,
    temporal: Sequence[Tensor],
    form: str = "soft",
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Score how much each word reaches each frame, over its own pixels and those of other frames.

    A word flows into the pixels of a frame by cross-attention and on to other frames by temporal
    attention, of which half stays with the frame itself: ``(map + I) / 2``.

    Args:
        cross: Mean cross-attention over heads, ``(..., P, F, T)``: positions, frames, tokens.
        temporal: Mean temporal attention over heads, ``(..., P, F, F)`` for each layer in the
            order in which they run.
        form: ``hard`` is the capacity of the best single path, a lower bound of the maximum flow;
            ``soft`` smooths it, so that every path gets a gradient; ``rollout`` multiplies the
            maps instead.
        temperature: Softness of ``soft``, above 0.

    Returns:
        ``(..., P, F, T)``.

    Source: arXiv 2407.06182, section 3.2.
    """
    layers = [(one + torch.eye(one.shape[-1]).to(one)) / 2 for one in temporal]
    softness = temperature if form == "soft" else 0.0
    whole = layers[0]
    for layer in layers[1:]:
        whole = layer @ whole if form == "rollout" else best_path(layer, whole, softness)
    return whole @ cross if form == "rollout" else best_path(whole, cross, softness)


def smoothing_kernel() -> Tensor:
    """Build the kernel of the official code over frames, rows and columns.

    It has the width of :func:`~attnctl.ops.attend_and_excite.gaussian_kernel` on every axis.

    Returns:
        ``(3, 3, 3)``, float32, sums to 1.
    """
    square = gaussian_kernel(3, 0.5)
    return square.sum(dim=0)[:, None, None] * square


def smooth_clips(maps: Tensor) -> Tensor:
    """Blur maps over frames, rows and columns, keeping their size.

    Borders are reflected; an axis of one cell repeats it. A constant map is a fixed point.

    Args:
        maps: ``(..., F, h, w)``, float32 or wider.
    """
    kernel = smoothing_kernel().to(maps)
    flat = maps.reshape(-1, 1, *maps.shape[-3:])
    for side, padding in (
        (-1, (1, 1, 0, 0, 0, 0)),
        (-2, (0, 0, 1, 1, 0, 0)),
        (-3, (0, 0, 0, 0, 1, 1)),
    ):
        mode = "reflect" if flat.shape[side] > 1 else "replicate"
        flat = F.pad(flat, padding, mode=mode)
    return F.conv3d(flat, kernel[None, None]).reshape(maps.shape)


def weakest_losses(
    flow: Tensor, subjects: Sequence[Sequence[int]], kept: Sequence[tuple[int, int | None]]
) -> Tensor:
    """Return each item's loss: that of its subject with the least influence.

    Words compete for each pixel of each frame (``softmax(100 * flow)``); a subject's loss is one
    minus its strongest smoothed pixel.

    Args:
        flow: Influence ``(B, F, h, w, T)``, from :func:`word_influence`.
        subjects: For each item the token positions of its subjects, BOS = 0.
        kept: For each item the token columns that compete, as the ends of a slice: its words.

    Returns:
        ``(B,)``, in [0, 1], differentiable. An item with fewer than two subjects has loss 0.

    Raises:
        ValueError: A subject is not among the kept columns.

    Source: official code; the paper states equal flows, the code lifts the weakest.
    """
    losses: list[Tensor] = []
    for item, (positions, (first, last)) in enumerate(zip(subjects, kept, strict=True)):
        columns = kept_columns(positions, item, flow.shape[-1], first, last)
        if len(columns) < FEWEST_SUBJECTS:
            losses.append(flow[item].sum() * 0)
            continue
        sharp = sharpen(flow[item], first=first, last=last)
        maps = smooth_clips(sharp[..., columns].movedim(-1, 0))  # (n, F, h, w)
        losses.append((1 - maps.flatten(1).amax(dim=1)).clamp_min(0).amax())
    return torch.stack(losses)
