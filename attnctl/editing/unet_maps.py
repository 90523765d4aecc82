"""Which cross-attention maps of a UNet tell best where a word's object is."""

from collections.abc import Mapping, Sequence

from attnctl.calls import AttentionCall, Layout
from attnctl.errors import NoSiteError, UnsupportedModelError
from attnctl.sites import Site

UNET_STAGES = ("down", "mid", "up")
_INSTEAD = "on FLUX and Stable Diffusion 3 use stable-flow, or attach it to a UNet pipeline"


def refuse_transformers(
    technique: str,
    sites: Sequence[Site],
    doing: str,
    instead: str = _INSTEAD,
) -> None:
    """Refuse a model that is no UNet.

    Args:
        technique: Its name.
        sites: All attention sites of the model.
        doing: What the technique does.
        instead: What to do instead.

    Raises:
        UnsupportedModelError: saying both.
    """
    foreign = [site for site in sites if site.stage not in UNET_STAGES]
    if foreign:
        raise UnsupportedModelError(
            f"{technique} {doing}, but {foreign[0].path} belongs to a transformer; {instead}"
        )


def grid_of(call: AttentionCall) -> tuple[int, int]:
    """Height and width of the image tokens at a site whose layout is known."""
    assert call.layout is not None  # declared in needs, or looked at when the run began
    return call.layout.size


def map_grid(
    technique: str, layouts: Mapping[Site, Layout | None], side: int | None
) -> tuple[int, int]:
    """Choose the resolution at which word maps are read: 16 by 16 of 64 by 64 latents.

    Args:
        technique: Name for messages.
        layouts: Layouts of cross-attention sites.
        side: Height of the wanted maps in cells; by default the smallest of at least a quarter of
            the latents' side and at least 16 cells, else the largest.

    Raises:
        NoSiteError: no site has maps of that height.
    """
    levels = {site: x.size for site, x in layouts.items() if x is not None}
    if side is not None:
        found = [grid for grid in levels.values() if grid[0] == side]
        if not found:
            shown = ", ".join(f"{h}x{w}" for h, w in sorted(set(levels.values()), reverse=True))
            raise NoSiteError(f"{technique}: no maps are {side} cells high; there are {shown}")
        return found[0]
    if not levels:
        raise NoSiteError(f"{technique}: no cross-attention is selected, so no word has a map")
    latents = max(min(grid) * 2**site.level for site, grid in levels.items())
    least = max(16, latents // 4)
    fitting = [grid for grid in levels.values() if min(grid) >= least]
    return min(fitting) if fitting else max(levels.values())
