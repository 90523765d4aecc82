"""How much memory a denoising step of a clip takes on a UNet, computed before anything runs."""

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from attnctl.editing.injection import injection_places
from attnctl.families import find_family
from attnctl.families.unet import halve
from attnctl.ops.lanes import CHUNK_BYTES
from attnctl.sites import find_sites, model_config, unwrapped

FEED_FORWARD = 22
"""Tensors of a layer's width that a gated feed-forward of four times the width holds at once, with
what the blocks around it have not let go of; weighed."""

DENSE = 15
"""The same for attention over all frames, with its copies of queries, keys, values and output."""

LANES = 13
"""The same for attention along the motion, beside the chunk of lanes that is gathered."""


@dataclass(frozen=True, slots=True)
class ClipMemory:
    """Memory of one denoising step, in bytes; parts that are held at the same time add up.

    Workspaces of convolution libraries, the text encoder and the decoder are not in it; pictures
    are decoded a few at a time.

    Attributes:
        weights: Of the denoiser.
        skips: What the way up still needs of the way down.
        working: The largest working set of any layer.
        features: Queries, keys and residual features of an inversion, in the memory of the host.
    """

    weights: int
    skips: int
    working: int
    features: int

    @property
    def device(self) -> int:
        """Memory on the device of the denoiser."""
        return self.weights + self.skips + self.working

    def table(self) -> str:
        """Lines for people, in GiB."""
        lines = [(f.name, getattr(self, f.name)) for f in fields(self)]
        lines.insert(3, ("on the device", self.device))
        return "\n".join(f"{name:<14}{size / 2**30:8.2f} GiB" for name, size in lines)


def plan_clip_memory(
    model: nn.Module,
    frames: int,
    size: tuple[int, int],
    *,
    branches: int = 2,
    injected_steps: int = 0,
    element_bytes: int | None = None,
) -> ClipMemory:
    """Compute the memory of a step with ``Flatten`` on all self-attention of a UNet.

    Args:
        model: ``UNet2DConditionModel`` or ``UNetMotionModel``; its weights may be on any device.
        frames: Of the clip.
        size: Height and width of the latents.
        branches: Guidance branches in one batch.
        injected_steps: Steps whose features are kept; 0: none.
        element_bytes: Of activations; ``None``: those of the weights.
    """
    config: Any = model_config(model)
    parameters = list(unwrapped(model).parameters())
    bytes_each = element_bytes or parameters[0].element_size()
    widths = [int(width) for width in config["block_out_channels"]]
    cells = [halve(size[0], level) * halve(size[1], level) for level in range(len(widths))]
    rows = frames * branches
    return ClipMemory(
        weights=sum(p.numel() for p in parameters) * bytes_each,
        skips=_skips(widths, cells, config["layers_per_block"]) * rows * bytes_each,
        working=_working(widths, cells, rows * bytes_each),
        features=_features(model, widths, cells) * frames * injected_steps * bytes_each,
    )


def _skips(widths: list[int], cells: list[int], layers: Any) -> int:
    """Values a row of all skip connections: the first convolution, layers, down-sampled outputs."""
    counts = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    values = widths[0] * cells[0]
    values += sum(n * w * c for n, w, c in zip(counts, widths, cells, strict=True))
    return values + sum(w * c for w, c in zip(widths[:-1], cells[1:], strict=True))


def _working(widths: list[int], cells: list[int], scale: int) -> int:
    """Bytes of the layer that needs most: attention, feed-forward, or a residual block."""
    most = 0
    for level, (width, places) in enumerate(zip(widths, cells, strict=True)):
        below = widths[min(level + 1, len(widths) - 1)]
        residual = 3 * (below + width) + 2 * width  # input, its norm and activation, two outputs
        tensors = max(FEED_FORWARD * width, DENSE * width, residual, 2 * below)
        gathered = min(CHUNK_BYTES, 4 * width * places * scale)
        lanes = LANES * width * places * scale + gathered
        most = max(most, tensors * places * scale, lanes)
    return most


def _features(model: nn.Module, widths: list[int], cells: list[int]) -> int:
    """Values a frame and step of what an inversion records for ``Flatten``."""
    sites = find_sites("unet", model, find_family(model))
    places = injection_places(sites.values())
    levels = [sites[path].level for path in places.sites]
    attention = sum(2 * widths[level] * cells[level] for level in levels)
    blocks = {".".join(p.split(".")[:2]): s.level for p, s in sites.items() if s.stage == "up"}
    modules = [blocks[".".join(path.split(".")[:2])] for path in places.modules]
    return attention + sum(widths[level] * cells[level] for level in modules)
