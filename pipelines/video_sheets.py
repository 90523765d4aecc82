"""Pictures of an edited clip: frames before and after, and how they move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from attnctl.flow import ClipFlow, colour_flow, flow_wheel
from attnctl.sheets import Cell, Row, draw_sheet
from attnctl.video.clip import Frames

SHOWN = 8
"""Frames on a sheet, evenly spread."""


def shown_frames(count: int, most: int = SHOWN) -> list[int]:
    """Evenly spread frames, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})


def draw_frames(
    rows: Sequence[tuple[str, Frames]], *, title: str = "", most: int = SHOWN
) -> Image.Image:
    """Draw clips under each other: the same frames of each, ``(F, H, W, 3)`` uint8."""
    places = shown_frames(min(len(frames) for _, frames in rows), most)
    lines = [
        Row(
            label, [Cell(Image.fromarray(frames[t]), f"frame {t}" if not n else "") for t in places]
        )
        for n, (label, frames) in enumerate(rows)
    ]
    return draw_sheet(lines, title=title)


def draw_motion(frames: Frames, flow: ClipFlow, most: int = SHOWN) -> Image.Image:
    """Draw frames and the flow from each to the next: hue is direction, colour is speed."""
    places = shown_frames(flow.frames - 1, most) if flow.frames > 1 else []
    fastest = max(0.5, float(flow.forward.norm(dim=1).max()) if places else 0.0)
    pictures = [Cell(Image.fromarray(frames[t]), f"frame {t}") for t in places or [0]]
    fields = [
        Cell(colour_flow(flow.forward[t], fastest), "scene cut" if t in flow.cuts else "")
        for t in places
    ]
    key = Cell(flow_wheel(), f"full colour: {fastest:.1f} px")
    lines = [Row("source", pictures), Row("motion", fields), Row("direction", [key])]
    return draw_sheet([line for line in lines if line.cells])
