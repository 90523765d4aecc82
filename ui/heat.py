"""Heat maps of a finished picture, by word, layer and steps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from PIL import Image

from attnctl.errors import SettingError
from attnctl.sheets import enlarge

from .visit import Shown

if TYPE_CHECKING:
    from attnctl.maps import AttentionMaps

VIEW_PX = 512
ALL = "all layers"
_STAGES = ("down_blocks", "mid_block", "up_blocks")


def view(image: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor, so that it fills the page."""
    return enlarge(image.convert("RGB"), VIEW_PX)


def draw_heat(
    shown: Shown | None, word: str, layers: str = ALL, first: int = 0, last: int | None = None
) -> Image.Image:
    """Lay a word's map over its picture.

    Args:
        shown: The picture.
        word: A word of its prompt.
        layers: ``all layers``, or a path or glob of layers.
        first: First step that counts.
        last: Last step that counts; ``None`` for all steps.

    Raises:
        AttnctlError: no such word or layer, or the maps are gone.
    """
    if shown is None:
        raise SettingError("there is no picture; press Generate first")
    if shown.maps is None:
        raise SettingError(
            "no maps of this picture are in memory; make it again with “Heat maps” on"
        )
    steps = None if last is None else (int(first), int(last) + 1)
    if steps is not None and steps[0] >= steps[1]:
        raise SettingError(f"the steps {first} to {last} are none; put the first before the last")
    chosen = None if layers == ALL else layers
    return shown.maps.overlay(view(shown.image), word, steps=steps, layers=chosen)


def layer_choices(maps: AttentionMaps) -> list[tuple[str, str]]:
    """Labels and values of what can be looked at: all layers, each stage, each layer."""
    paths = maps.layers
    choices = [(ALL, ALL)]
    for stage in _STAGES:
        if any(path.startswith(stage) for path in paths):
            choices.append((f"all of {stage.split('_')[0]}", f"{stage}*"))
    return choices + [(_label(path), path) for path in paths]


def _label(path: str) -> str:
    """Make ``down_blocks.0.attentions.1.transformer_blocks.0.attn2`` short: ``down 0 · 1``."""
    parts = re.findall(r"([a-z_]+)\.(\d+)", path)
    if not parts or path.startswith("mid_block"):
        return path.split(".")[0].split("_")[0] + "".join(f" · {n}" for _, n in parts[1:])
    names = [f"{parts[0][0].removesuffix('_blocks').removesuffix('s')} {parts[0][1]}"]
    return " · ".join(names + [number for kind, number in parts[1:] if kind == "attentions"])
