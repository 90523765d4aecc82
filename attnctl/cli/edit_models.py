"""Which models can edit pictures, told from their folder before any weights are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnctl.errors import UnsupportedModelError
from attnctl.families import list_families
from attnctl.inversion import PICTURE_FAMILIES
from attnctl.loading import BUNDLED


def refuse_model(
    model: str, families: Sequence[str] = PICTURE_FAMILIES, doing: str = "invert or edit"
) -> None:
    """Refuse a bundled model or a local folder of other families.

    A hub id is looked at once it is loaded.

    Args:
        model: Name, folder or hub id.
        families: Names of those that can.
        doing: What the others cannot do with pictures.

    Raises:
        UnsupportedModelError: naming its denoiser and the families that can.
    """
    folder = Path(model)
    if model in BUNDLED:
        from attnctl.shapes import model_folder

        folder = Path(model_folder(model))
    index = folder / "model_index.json"
    if not index.is_file():
        return
    parts: dict[str, Any] = json.loads(index.read_text())
    named = [parts.get(name) for name in ("unet", "transformer")]
    classes = [part[1] for part in named if isinstance(part, list) and part[1]]
    able = {c for f in list_families() if f.name in families for c in f.classes}
    other = [name for name in classes if name not in able]
    if other or not classes:
        raise UnsupportedModelError(
            f"{model!r} ({', '.join(other) or parts.get('_class_name')}) cannot {doing} "
            f"pictures; families that can: {', '.join(families)}"
        )
