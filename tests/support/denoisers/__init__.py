"""Tiny configurations of the denoisers in diffusers that have attention."""

from __future__ import annotations

from tests.support.denoisers.audio import AUDIO
from tests.support.denoisers.entry import TinyDenoiser, prediction
from tests.support.denoisers.families import FAMILIES
from tests.support.denoisers.hunyuan_kin import HUNYUAN_KIN
from tests.support.denoisers.images import IMAGES
from tests.support.denoisers.rare import RARE
from tests.support.denoisers.sequences import SEQUENCES
from tests.support.denoisers.streams import STREAMS
from tests.support.denoisers.unets import UNETS
from tests.support.denoisers.videos import VIDEOS
from tests.support.denoisers.wan_kin import WAN_KIN

__all__ = ["DENOISERS", "TinyDenoiser", "family_names", "prediction"]

DENOISERS: dict[str, TinyDenoiser] = {
    entry.name: entry
    for group in (
        FAMILIES,
        UNETS,
        IMAGES,
        SEQUENCES,
        STREAMS,
        VIDEOS,
        HUNYUAN_KIN,
        WAN_KIN,
        AUDIO,
        RARE,
    )
    for entry in group
}


def family_names(family: str | None = None) -> list[str]:
    """Names of the entries of one family, or of every family."""
    return [
        entry.name
        for entry in DENOISERS.values()
        if entry.family is not None and family in (None, entry.family)
    ]
