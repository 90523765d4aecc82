"""Where optical flow comes from: OpenCV without weights, RAFT if torchvision is there, a file."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from attnctl.errors import FlowError, nearest
from attnctl.flow.clip_flow import ClipFlow, find_cuts
from attnctl.flow.fields import resize_flow
from attnctl.flow.files import read_flow

LEAST_SIDE_PX = 128
"""Smaller pictures are enlarged before dense inverse search, whose patches are 8 pixels wide."""


class FlowProvider(Protocol):
    """Anything that tells how pixels move between pairs of pictures."""

    @property
    def name(self) -> str:
        """Short name for reports."""
        ...

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from ``first`` to ``second``, ``(B, 3, H, W)`` in [0, 1], as ``(B, 2, H, W)``."""
        ...


@dataclass(frozen=True)
class DISFlow:
    """Dense inverse search, OpenCV; no weights.

    Attributes:
        preset: ``ultrafast``, ``fast`` or ``medium``.

    Source: Kroeger et al., "Fast Optical Flow using Dense Inverse Search", arXiv 1603.03590.
    """

    preset: str = "medium"
    name: str = "dis"

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from ``first`` to ``second``; see :class:`FlowProvider`."""
        cv2 = _opencv()
        method = cv2.DISOpticalFlow_create(
            getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{self.preset.upper()}")
        )
        return _by_opencv(cv2, lambda a, b: method.calc(a, b, None), first, second, LEAST_SIDE_PX)


@dataclass(frozen=True)
class FarnebackFlow:
    """Polynomial expansion, OpenCV; no weights.

    Source: Farnebäck, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003.
    """

    name: str = "farneback"

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from ``first`` to ``second``; see :class:`FlowProvider`."""
        cv2 = _opencv()

        def calc(a: Any, b: Any) -> Any:
            return cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)

        return _by_opencv(cv2, calc, first, second, 1)


@dataclass(frozen=True)
class RAFTFlow:
    """RAFT (large) of torchvision; its weights are fetched once by torchvision.

    Source: Teed and Deng, "RAFT", arXiv 2003.12039.
    """

    name: str = "raft"

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow from ``first`` to ``second``; see :class:`FlowProvider`."""
        if find_spec("torchvision") is None:
            raise FlowError("flow 'raft' needs torchvision; pip install torchvision, or use 'dis'")
        from torchvision.models import optical_flow as models  # pyright: ignore[reportMissingImports]

        weights: Any = models.Raft_Large_Weights.DEFAULT
        return raft_between(models.raft_large(weights=weights), weights.transforms(), first, second)


PROVIDERS: dict[str, Callable[[], FlowProvider]] = {
    "dis": DISFlow,
    "farneback": FarnebackFlow,
    "raft": RAFTFlow,
}


def list_providers() -> dict[str, str]:
    """Name and first line of every provider."""
    return {name: str(kind.__doc__).partition("\n")[0] for name, kind in PROVIDERS.items()}


def find_provider(name: str) -> FlowProvider:
    """The provider of that name.

    Raises:
        FlowError: there is none.
    """
    if name not in PROVIDERS:
        raise FlowError(f"unknown flow provider {name!r}; {nearest(name, PROVIDERS)}")
    return PROVIDERS[name]()


def estimate_flow(
    frames: Tensor,
    provider: str | FlowProvider | ClipFlow | Path = "dis",
    *,
    backward: bool = True,
) -> ClipFlow:
    """Estimate the motion of a clip.

    Args:
        frames: ``(F, 3, H, W)`` in [0, 1]; a single frame gives an empty flow.
        provider: A name from :func:`list_providers`, an object of your own, a precomputed flow, or
            a file that :func:`attnctl.flow.read_flow` reads.
        backward: Estimate the way back too, which the occlusion check needs.

    Returns:
        Flow in pixels of ``frames``, with the scene cuts that no motion explains. A precomputed
        flow keeps its own cuts and is resized to the frames.

    Raises:
        FlowError: no such provider, what it needs is not installed, frames are no clip, or a
            precomputed flow is for another number of frames.
    """
    if frames.dim() != 4 or frames.shape[1] != 3 or not len(frames):
        raise FlowError(f"frames are (F, 3, H, W) in [0, 1]; these are {tuple(frames.shape)}")
    if isinstance(provider, Path):
        provider = read_flow(provider)
    if isinstance(provider, ClipFlow):
        provider.check_frames(len(frames))
        return provider.resized(frames.shape[2], frames.shape[3])
    chosen = find_provider(provider) if isinstance(provider, str) else provider
    if len(frames) == 1:
        empty = torch.zeros(0, 2, *frames.shape[2:])
        return ClipFlow(empty, empty if backward else None)
    forward = chosen.between(frames[:-1], frames[1:])
    back = chosen.between(frames[1:], frames[:-1]) if backward else None
    return ClipFlow(forward, back, find_cuts(frames, forward.to(frames.device)))


def raft_between(model: Any, transform: Any, first: Tensor, second: Tensor) -> Tensor:
    """Run a RAFT network on pairs of pictures of any size.

    Args:
        model: Returns a list of flows, the best one last.
        transform: Brings a pair from [0, 1] to what the network takes.
        first: ``(B, 3, H, W)``.
        second: The same shape.

    Returns:
        ``(B, 2, H, W)`` in pixels; smaller sides than 128 are enlarged, others rounded up to 8.
    """
    height, width = first.shape[-2:]
    factor = max(1.0, 128 / min(height, width))
    sides = [-(-round(side * factor) // 8) * 8 for side in (height, width)]
    sized = [
        torch.nn.functional.interpolate(part.float(), sides, mode="bilinear", align_corners=False)
        for part in (first, second)
    ]
    model = model.eval().to(first.device)
    with torch.no_grad():
        pairs = [transform(a[None], b[None]) for a, b in zip(*sized, strict=True)]
        flow = torch.cat([model(a, b)[-1] for a, b in pairs])
    return resize_flow(flow.cpu(), height, width)


def _opencv() -> Any:
    if find_spec("cv2") is None:
        raise FlowError(
            "optical flow needs OpenCV; pip install 'attnctl[video]', or give a precomputed flow"
        )
    import cv2

    return cv2


def _by_opencv(
    cv2: Any, calc: Callable[[Any, Any], Any], first: Tensor, second: Tensor, least_side_px: int
) -> Tensor:
    height, width = first.shape[-2:]
    factor = max(1, -(-least_side_px // min(height, width)))
    size = (width * factor, height * factor)
    fields: list[Tensor] = []
    for a, b in zip(first, second, strict=True):
        flow = calc(_grey(cv2, a, size), _grey(cv2, b, size))
        fields.append(torch.from_numpy(np.array(flow, dtype=np.float32)).permute(2, 0, 1))
    return resize_flow(torch.stack(fields), height, width)


def _grey(cv2: Any, picture: Tensor, size: tuple[int, int]) -> Any:
    """One channel, 8 bit, ``(height, width)`` of ``size``, which is width and height."""
    weights = torch.tensor([0.299, 0.587, 0.114])
    grey = (picture.detach().float().cpu().permute(1, 2, 0) @ weights).clamp(0, 1) * 255
    values = grey.round().to(torch.uint8).numpy()
    if values.shape[::-1] == size:
        return np.ascontiguousarray(values)
    return cv2.resize(values, size, interpolation=cv2.INTER_CUBIC)
