"""Load a pipeline: a bundled model by its name, a local folder, or a hub id."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from attnctl.errors import UnknownModelError, nearest

BUNDLED = ("shapes", "shapes-mmdit", "shapes-motion")


def load_pipeline(
    model: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Load a diffusers pipeline, ready to call.

    Only safetensors are read; no code from a model's folder or repository is run.

    Args:
        model: A bundled name such as ``"shapes"``, a folder in diffusers' layout, or a hub id.
        dtype: Weights and computation; fp32 for bundled models and on a CPU, else what is stored.
        device: Where to put it; the CPU by default.

    Raises:
        UnknownModelError: there is no such model, or it cannot be loaded.
    """
    from diffusers import DiffusionPipeline

    source = _source(model)
    if dtype is None and (str(model) in BUNDLED or str(device or "cpu") == "cpu"):
        dtype = torch.float32
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    try:
        pipe = DiffusionPipeline.from_pretrained(source, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise UnknownModelError(f"cannot load {str(model)!r}: {_first_line(error)}") from error
    return pipe if device is None else pipe.to(device)


def _source(model: str | PathLike[str]) -> str:
    name = str(model)
    if name in BUNDLED:
        from attnctl.shapes import model_folder

        return str(model_folder(name))
    path = Path(name)
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise UnknownModelError(
                f"{name!r} is a folder without model_index.json; give the folder of a diffusers "
                "pipeline, as save_pretrained writes it"
            )
        return name
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not is_hub_id:
        raise UnknownModelError(
            f"no model {name!r}: neither a folder nor a hub id such as 'owner/name'; "
            + nearest(name, BUNDLED)
        )
    return name


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
