"""Settings and inputs that many tiny denoisers share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.denoisers.entry import Draw

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
WIDE_HEADS = {"num_attention_heads": 2, "attention_head_dim": 12}
CHANNELS = {"in_channels": 4, "out_channels": 4}
ROTARY_16 = {**HEADS, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 8)}
TEXT_TOKENS = 6


def times(value: float = 500.0) -> Tensor:
    """One timestep a row, two rows."""
    return torch.full((2,), value)


def text_mask(dtype: torch.dtype = torch.bool) -> Tensor:
    """Valid prompt tokens: all of row 0, the first four of row 1."""
    mask = torch.ones(2, TEXT_TOKENS, dtype=dtype)
    mask[1, 4:] = 0
    return mask


def image_batch(draw: Draw, channels: int = 4, text: int = 16, size: int = 8) -> dict[str, Any]:
    """Two noisy pictures, two prompts, their timestep."""
    return {
        "hidden_states": draw.normal(2, channels, size, size),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, text),
        "timestep": times(),
    }


def video_batch(draw: Draw, channels: int = 4, text: int = 16, frames: int = 2) -> dict[str, Any]:
    """Two noisy clips (channels before frames), two prompts, their timestep."""
    return {
        "hidden_states": draw.normal(2, channels, frames, 8, 8),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, text),
        "timestep": times(),
    }


def masked_video(draw: Draw) -> dict[str, Any]:
    """The same with prompts of two lengths."""
    return {**video_batch(draw), "encoder_attention_mask": text_mask()}


def frames_first(draw: Draw, channels: int = 4, text: int = 8) -> dict[str, Any]:
    """Two noisy clips of three frames (frames before channels), two prompts, their timestep."""
    return {
        "hidden_states": draw.normal(2, 3, channels, 8, 8),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, text),
        "timestep": times(),
    }


def packed_batch(draw: Draw, channels: int = 4, text: int = 16) -> dict[str, Any]:
    """Two pictures as 4 by 4 tokens, two prompts, their timestep in [0, 1]."""
    return {
        "hidden_states": draw.normal(2, 16, channels),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, text),
        "timestep": times(0.5),
    }


def packed_with_positions(draw: Draw, text: int = 16, axes: int = 3) -> dict[str, Any]:
    """Flux and its kin: packed pictures with the positions of picture and text tokens."""
    picture = torch.zeros(16, axes)
    picture[:, 1:3] = grid_positions(1, 4, 4)[:, 1:]
    words = torch.zeros(TEXT_TOKENS, axes)
    return {**packed_batch(draw, text=text), "img_ids": picture, "txt_ids": words}


def grid_positions(frames: int, height: int, width: int) -> Tensor:
    """Positions (frame, row, column) of picture tokens, shape ``(tokens, 3)``, in float."""
    axes = (torch.arange(frames), torch.arange(height), torch.arange(width))
    return torch.cartesian_prod(*axes).float()
