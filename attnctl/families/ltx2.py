"""LTX-2: video and sound side by side. What sound attends to, and what to sound, is no site."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.families import ROW_ARGUMENTS, register_family
from attnctl.families.ltx import LTX
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site

_ROWS = {
    "audio_hidden_states",
    "audio_encoder_hidden_states",
    "audio_encoder_attention_mask",
    "audio_timestep",
    "sigma",
    "audio_sigma",
    "video_coords",
    "audio_coords",
    "perturbation_mask",
    "video_self_attention_mask",
    "video_keyframes_mask",
}


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    kind = {"attn1": "self", "attn2": "cross"}.get(path.rpartition(".")[2])
    return None if kind is None else replace(generic_site(path, module, config), kind=kind)


def _leaves_out(arguments: Mapping[str, Any]) -> bool:
    """Spatio-temporal guidance leaves the attention of some blocks out, in a call of its own."""
    return bool(arguments.get("all_perturbed"))


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """The connectors move the prompt to the front and fill up with registers."""
    if pipe.connectors.config.video_connector_num_learnable_registers is None:
        return ()
    return tuple(replace(segment, prepare=str.strip, is_front=True) for segment in segments)


LTX2 = register_family(
    replace(
        LTX,
        name="LTX-2",
        classes=("LTX2VideoTransformer3DModel",),
        combine="renormalised",  # as clean latents, together with the terms of further calls
        weaker_calls=True,
        batched=ROW_ARGUMENTS | _ROWS,
        prompt_arguments={},
        site=_site,
        blocks=(BlockList("transformer_blocks", streams=("hidden_states", "audio_hidden_states")),),
        text=_text_of,
        leaves_out=_leaves_out,
    )
)
