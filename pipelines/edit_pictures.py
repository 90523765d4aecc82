"""Bring a picture, and its mask, to a size that a model takes."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageOps

from attnctl.errors import SettingError
from attnctl.inversion.hosts import Size, find_denoiser, is_packed
from attnctl.sites import model_config

_USUAL_SIDE = 512
"""Side in pixels where a model does not say its own."""


def fitted_size(pipe: Any, size: Size) -> Size:
    """The size at which a model sees a picture.

    As many pixels as the model's own square has, with the picture's proportions, and sides that
    are multiples of what the model needs.

    Args:
        pipe: A text-to-image pipeline.
        size: Width and height of the picture, pixels.
    """
    factor, largest = side_factor(pipe), _largest_side(pipe)
    scale = own_side(pipe) / (size[0] * size[1]) ** 0.5
    if largest is not None:
        scale = min(scale, largest / max(size))
    width, height = (max(factor, round(side * scale / factor) * factor) for side in size)
    return width, height


def fit_picture(image: Image.Image, size: Size) -> Image.Image:
    """Scale a picture so that it covers a size, and cut off at the centre what stands over."""
    if image.size == size:
        return image
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def fit_mask(mask: Image.Image, picture: Image.Image, size: Size) -> Image.Image:
    """Bring a mask to a size as its picture was brought there; grey above the middle is white.

    Raises:
        SettingError: it has another size than the picture.
    """
    if mask.size != picture.size:
        raise SettingError(
            f"the mask has {mask.width} x {mask.height} pixels and the picture "
            f"{picture.width} x {picture.height}; make them one size"
        )
    grey = mask.convert("L")
    if grey.size != size:
        grey = ImageOps.fit(grey, size, Image.Resampling.BOX)
    return grey.point([0] * 128 + [255] * 128)


def check_size(pipe: Any, size: Size) -> None:
    """Refuse a size that the model does not take.

    Raises:
        SettingError: a side is no multiple of what the model needs.
    """
    factor = side_factor(pipe)
    if any(side % factor for side in size):
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in size)
        raise SettingError(
            f"size {size[0]}x{size[1]}: width and height must be multiples of {factor}; "
            f"nearest: {near}"
        )


def side_factor(pipe: Any) -> int:
    """Pixels that the sides of a picture must be multiples of, for latents and their patches."""
    from .fitting import size_factor

    return max(size_factor(pipe), pipe.vae_scale_factor * (2 if is_packed(pipe) else 1))


def own_side(pipe: Any) -> int:
    """Side of the square pictures that a model was made for, pixels."""
    if is_packed(pipe):
        cells: Any = getattr(pipe, "default_sample_size", None)
    else:
        cells = model_config(find_denoiser(pipe)).get("sample_size")
    side = max(cells) if isinstance(cells, list | tuple) else cells
    return int(side) * pipe.vae_scale_factor if side else _USUAL_SIDE


def _largest_side(pipe: Any) -> int | None:
    """Pixels that a table of positions reaches, where there is one."""
    config = model_config(find_denoiser(pipe))
    cells, patch = config.get("pos_embed_max_size"), config.get("patch_size")
    return int(cells) * int(patch) * pipe.vae_scale_factor if cells and patch else None
