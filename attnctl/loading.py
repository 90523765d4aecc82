"""Load a pipeline: a bundled model by its name, a local folder, or a hub id."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from attnctl.errors import SettingError, UnknownModelError, nearest

COMPUTING_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BUNDLED = ("shapes", "shapes-mmdit", "shapes-motion")
ADAPTED = {"shapes-motion": "shapes"}
"""Bundled adapters, with the bundled model that each is put on."""


def load_pipeline(
    model: str | PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    local_only: bool = False,
) -> Any:
    """Load a diffusers pipeline, ready to call.

    Only safetensors are read; no code from a model's folder or repository is run.

    Args:
        model: A bundled name such as ``"shapes"``, a folder in diffusers' layout, or a hub id.
        dtype: Weights and computation; fp32 for bundled models and on a CPU, else what is stored.
        device: Where to put it; the CPU by default.
        local_only: Whether a hub id must have been downloaded before.

    Raises:
        UnknownModelError: there is no such model, or it cannot be loaded.
        SettingError: the device cannot compute in ``dtype``.
    """
    from diffusers import DiffusionPipeline

    if dtype is not None:
        check_dtype(dtype, device or "cpu")

    source = find_model(model)
    if str(model) in ADAPTED or _is_adapter(Path(source)):
        from attnctl.shapes.motion import load_motion_pipeline

        base = load_pipeline(ADAPTED.get(str(model), "shapes"), dtype=dtype)
        moving = load_motion_pipeline(base, source)
        return moving if device is None else moving.to(device)
    if dtype is None and (str(model) in BUNDLED or torch.device(device or "cpu").type == "cpu"):
        dtype = torch.float32
    options: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    options |= dict.fromkeys(_absent_parts(Path(source)))
    if local_only:
        options["local_files_only"] = True
    try:
        pipe = DiffusionPipeline.from_pretrained(source, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise UnknownModelError(f"cannot load {str(model)!r}: {_first_line(error)}") from error
    return pipe if device is None else pipe.to(device)


def check_dtype(dtype: torch.dtype, device: str | torch.device) -> None:
    """Compute with a handful of numbers what every denoiser needs, before anything is loaded.

    Raises:
        SettingError: the device cannot convolve, multiply, normalise or attend in ``dtype``.
    """
    refused = _refusal(dtype, device)
    if refused is None:
        return
    able = [d for d in COMPUTING_DTYPES if _refusal(d, device) is None]
    raise SettingError(
        f"{device} cannot compute in {dtype} ({refused}); it can in "
        f"{', '.join(map(str, able))}: give one of these as dtype, or another device"
    )


def _refusal(dtype: torch.dtype, device: str | torch.device) -> str | None:
    """What torch says against computing in ``dtype``; ``None`` if it does it."""
    ones = torch.ones(1, 8, 8, 8, device=device)
    try:
        x = ones.to(dtype)
        x = F.conv2d(x, x[0].expand(8, 8, 8, 8)[..., :3, :3], padding=1)
        x = F.group_norm(F.linear(x, x[0, 0]), 2)
        F.scaled_dot_product_attention(x, x, x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # NotImplementedError is one
        return _first_line(error)
    return None


def find_model(model: str | PathLike[str]) -> str:
    """Say where a model is to be loaded from: a folder or a hub id.

    Raises:
        UnknownModelError: it is neither bundled, nor a folder, nor looks like a hub id.
    """
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


def _is_adapter(folder: Path) -> bool:
    """Whether a folder holds a motion adapter alone, as the training of ``shapes-motion`` does."""
    return (folder / "motion_adapter").is_dir() and not (folder / "unet").is_dir()


def _absent_parts(folder: Path) -> list[str]:
    """Parts that a folder says it does not have, such as Stable Diffusion 3's T5 encoder.

    diffusers saves a pipeline without them, and loads it only if it is told so.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return []
    parts: dict[str, Any] = json.loads(index.read_text())
    return [name for name, kind in parts.items() if kind == [None, None]]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
