"""Fields of displacements: sampling, warping, resizing, composing."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.errors import FlowError


def check_flow(flow: Tensor, name: str = "flow") -> Tensor:
    """Return the flow as float32, or say what is wrong with it.

    Raises:
        FlowError: it is not ``(F - 1, 2, H, W)``, or not finite.
    """
    if flow.dim() != 4 or flow.shape[1] != 2:
        raise FlowError(
            f"{name} has the shape {tuple(flow.shape)}; it must be (frames - 1, 2, height, width),"
            " channel 0 = dx, channel 1 = dy, in pixels"
        )
    if not torch.isfinite(flow).all():
        raise FlowError(f"{name} holds values that are not finite; estimate it again")
    return flow.float()


def pixel_places(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Column and row of every pixel, ``(2, height, width)`` float32."""
    rows = torch.arange(height, dtype=torch.float32, device=device)
    columns = torch.arange(width, dtype=torch.float32, device=device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y])


def sample_at(values: Tensor, places: Tensor, padding: str = "border") -> Tensor:
    """Read values between pixels, bilinearly.

    Args:
        values: ``(B, C, H, W)``.
        places: ``(B, 2, h, w)``, column and row in pixels of ``values``; pixel centres are whole.
        padding: ``border`` repeats the outermost pixel outside, ``zeros`` gives 0.

    Returns:
        ``(B, C, h, w)``.
    """
    height, width = values.shape[-2:]
    scale = torch.tensor([width, height], dtype=places.dtype, device=places.device)
    # Without align_corners, -1 and 1 are the outer edges: pixel centres lie at (2 i + 1) / size.
    normal = (2 * places.movedim(1, -1) + 1) / scale - 1
    return F.grid_sample(
        values, normal.to(values.dtype), mode="bilinear", padding_mode=padding, align_corners=False
    )


def warp(values: Tensor, flow: Tensor) -> Tensor:
    """Bring the next frame back: what each pixel's target shows.

    Args:
        values: The next frames, ``(B, C, H, W)``.
        flow: From these frames to the next, ``(B, 2, H, W)`` in pixels.

    Returns:
        ``(B, C, H, W)``: ``values`` at ``(x + dx, y + dy)``; the border repeats outside.
    """
    places = pixel_places(flow.shape[-2], flow.shape[-1], flow.device)
    return sample_at(values, places + flow)


def stays_inside(flow: Tensor) -> Tensor:
    """Whether each pixel's target lies in the picture, bool ``(B, H, W)``."""
    height, width = flow.shape[-2:]
    x, y = (pixel_places(height, width, flow.device) + flow).unbind(1)
    return (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Resize fields, and their displacements with them.

    Args:
        flow: ``(B, 2, H, W)`` in pixels.
        height: New height in pixels, at least 1.
        width: New width in pixels.

    Returns:
        ``(B, 2, height, width)`` in new pixels: dx times ``width / W``, dy times ``height / H``.
        Averages where it shrinks, bilinear where it grows.
    """
    old_height, old_width = flow.shape[-2:]
    if (old_height, old_width) == (height, width):
        return flow
    shrinks = height <= old_height and width <= old_width
    sized = (
        F.interpolate(flow, (height, width), mode="area")
        if shrinks
        else F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
    )
    ratio = torch.tensor([width / old_width, height / old_height], device=flow.device)
    return sized * ratio.view(2, 1, 1).to(sized.dtype)


def compose_flow(first: Tensor, second: Tensor) -> Tensor:
    """Follow two fields ``(B, 2, H, W)`` in turn: ``first(x) + second(x + first(x))``."""
    return first + warp(second, first)


def pick_frames(flow: Tensor, frames: Sequence[int]) -> Tensor:
    """Compose a clip's flow so that it leads from each chosen frame to the next.

    Used where one token frame stands for several pictures (a temporally compressed latent), or
    where a clip is thinned out.

    Args:
        flow: ``(F - 1, 2, H, W)``, forward, in pixels.
        frames: Chosen frames, strictly increasing, each in ``[0, F)``.

    Returns:
        ``(len(frames) - 1, 2, H, W)``.

    Raises:
        FlowError: a frame lies outside the clip, or they do not increase.
    """
    last = len(flow)
    ordered = all(a < b for a, b in pairwise(frames))
    if not frames or not ordered or frames[0] < 0 or frames[-1] > last:
        raise FlowError(
            f"frames {list(frames)} must increase and lie in 0 to {last}, the frames of this flow"
        )
    chosen: list[Tensor] = []
    for start, stop in pairwise(frames):
        field = flow[start : start + 1]
        for t in range(start + 1, stop):
            field = compose_flow(field, flow[t : t + 1])
        chosen.append(field)
    return torch.cat(chosen) if chosen else flow[:0]


def frames_of_latents(frames: int, compression: int) -> list[int]:
    """The picture that stands for each latent frame of a causal video VAE.

    The first latent frame is one picture, each later one stands for ``compression`` pictures, of
    which the middle one is taken.

    Raises:
        FlowError: the number of pictures is not one more than a multiple of ``compression``.
    """
    if frames < 1 or (frames - 1) % compression:
        near = max(1, round((frames - 1) / compression) * compression + 1)
        raise FlowError(
            f"{frames} frames do not fit a temporal compression of {compression};"
            f" take {near} of them"
        )
    later = range(1, frames, compression)
    return [0, *(start + (compression - 1) // 2 for start in later)]
