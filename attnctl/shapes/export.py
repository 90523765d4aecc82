"""From a training folder to a pipeline's folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from attnctl.loading import load_pipeline
from attnctl.shapes.mmdit import (
    TEXT_TOKENS,
    build_mmdit_pipeline,
    build_text_encoders,
    build_transformer,
)
from attnctl.shapes.model import build_pipeline, build_unet, save_pipeline
from attnctl.shapes.motion import save_motion
from attnctl.shapes.text import build_text_encoder, build_tokenizer
from attnctl.shapes.train_motion import adapter_of, motion_modules

MOTION = "shapes-motion"
DENOISERS = {"shapes": "unet", "shapes-mmdit": "transformer", MOTION: "motion"}
"""Models that can be trained, and the folder of each one's denoiser in its training folder."""


def export(
    model: str, folder: Path, target: Path, average: Path | None, widths: tuple[int, int, int]
) -> None:
    """Write a pipeline folder from the moving averages of a training folder.

    Args:
        model: Which model was trained.
        folder: Training folder.
        target: Folder of the pipeline, float16 weights.
        average: A kept average; ``None`` takes the latest one.
        widths: Widths of the UNet.
    """
    latest = folder / DENOISERS[model] / "latest.pt"
    state = load_state(average) if average else load_state(latest)["average"]
    if model == MOTION:
        base = load_pipeline("shapes", dtype=torch.float32)
        save_motion(base, adapter_of(base, state), target)
        return
    vae = AutoencoderKL.from_pretrained(folder / "vae" / "model")
    if model == "shapes":
        tokenizer = build_tokenizer()
        unet, encoder = build_unet(widths), build_text_encoder(tokenizer)
        nn.ModuleDict({"unet": unet, "text_encoder": encoder}).load_state_dict(state)
        save_pipeline(build_pipeline(vae, unet, encoder, tokenizer), target)
        return
    tokenizer = build_tokenizer(TEXT_TOKENS)
    transformer, encoders = build_transformer(), build_text_encoders(tokenizer)
    parts = {"transformer": transformer, "text_encoders": nn.ModuleList(encoders)}
    nn.ModuleDict(parts).load_state_dict(state)
    save_pipeline(build_mmdit_pipeline(vae, transformer, encoders, tokenizer), target)


def trained_parts(model: str, pipe: Any) -> nn.ModuleDict:
    """The parts of a pipeline that its training changes, named as in the training folder."""
    if model == MOTION:
        return motion_modules(pipe.unet)
    if model == "shapes":
        return nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    encoders = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2])
    return nn.ModuleDict({"transformer": pipe.transformer, "text_encoders": encoders})


def load_state(path: Path) -> dict[str, Any]:
    """Load what a stage of training left on disk.

    Raises:
        ValueError: it left nothing.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing; run the stage before this one first")
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
