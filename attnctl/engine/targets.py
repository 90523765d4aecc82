"""What techniques are attached to: a pipeline's denoisers, or a bare one."""

from pathlib import Path
from typing import Any

from torch import nn

from attnctl.errors import UnsupportedModelError
from attnctl.families import DENOISER_ATTRIBUTES
from attnctl.loading import BUNDLED
from attnctl.sites import attention_modules, unwrapped


def find_denoisers(target: Any) -> tuple[Any | None, dict[str, nn.Module]]:
    """The pipeline (``None`` for a bare denoiser) and its denoisers by attribute name."""
    if isinstance(target, type):
        raise TypeError(f"attach takes a pipeline object, not the class {target.__name__}")
    if isinstance(target, nn.Module):
        found = {"denoiser": target}
        pipe = None
    else:
        parts = {**getattr(target, "components", {})}
        parts |= {name: getattr(target, name, None) for name in DENOISER_ATTRIBUTES}
        found = {n: m for n, m in parts.items() if isinstance(m, nn.Module) and _is_denoiser(n, m)}
        pipe = target
    found = {n: m for n, m in found.items() if next(attention_modules(m), None) is not None}
    if not found:
        raise UnsupportedModelError(
            f"{type(target).__name__} has no denoiser with attention modules; attach takes a "
            "diffusers pipeline or one of its denoising models"
        )
    return pipe, found


def name_of(pipe: Any) -> str:
    """The name that a pipeline was loaded by: bundled name, folder or hub id; else empty."""
    name = str(getattr(getattr(pipe, "config", None), "_name_or_path", None) or "")
    from attnctl.shapes.bundled import MODELS

    return next((bundled for bundled in BUNDLED if Path(name) == MODELS / bundled), name)


def _is_denoiser(name: str, model: nn.Module) -> bool:
    module = type(unwrapped(model)).__module__
    if type(model).__name__ == "MotionAdapter":  # weights for a UNetMotionModel; it never runs
        return False
    is_one = module.startswith(("diffusers.models.unets", "diffusers.models.transformers"))
    return name in DENOISER_ATTRIBUTES or is_one
