"""Masks of regions as settings: files, pictures, arrays and tensors."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attnctl.errors import SettingError
from attnctl.imaging import open_picture


def as_mask(technique: str, name: str, value: Any) -> Tensor:
    """Read a mask.

    Args:
        technique: Name for messages.
        name: Name of the setting.
        value: File or PIL picture (lighter than middle grey is inside), or an array or tensor
            ``(H, W)`` of booleans or of numbers in [0, 1] (from 0.5 is inside).

    Returns:
        bool ``(H, W)``.

    Raises:
        SettingError: it is none of these.
    """
    if isinstance(value, str | os.PathLike):
        value = open_picture(value)
    if isinstance(value, Image.Image):
        value = np.asarray(value.convert("L")) / 255
    if isinstance(value, np.ndarray | list | tuple):
        value = torch.as_tensor(np.asarray(value))
    if not isinstance(value, Tensor) or value.dim() != 2 or not value.numel():
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise SettingError(
            f"{technique}: {name}= must be a picture or an array (height, width), got "
            f"{type(value).__name__}{shape}"
        )
    return value.cpu() if value.dtype == torch.bool else value.cpu() >= 0.5


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the nearest cells of a mask: bool ``(H, W)`` to bool ``size``."""
    return F.interpolate(mask[None, None].float(), size=size, mode="nearest")[0, 0] > 0.5


def plain_mask(value: Any) -> str | None:
    """Name a mask in reports: its file, or its size."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    mask = as_mask("", "mask", value)
    return f"mask of {mask.shape[0]} x {mask.shape[1]}"
