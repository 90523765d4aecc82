"""Second stage of ``shapes-mmdit``: the joint transformer and both text encoders, as a flow.

The pipeline puts ``max_sequence_length`` zero tokens behind the text, for the T5 encoder that is
not there: 256 equal tokens, which stay equal in every layer. Training gives the model one of them
and adds the logarithm of their number to the attention score of its key, which is the same
function at a third of the cost; and it varies their number, so that the caller is free to.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from attnctl.shapes.captions import CaptionSettings, write_captions
from attnctl.shapes.latents import LatentCache
from attnctl.shapes.loop import Loop, LoopSettings, Team
from attnctl.shapes.mmdit import encode_tokens
from attnctl.shapes.train_unet import caption_tokens, drop_some

MOST_ZERO_TOKENS = 256


@dataclass(frozen=True)
class FlowSettings:
    """Loss and batch of the joint transformer.

    Attributes:
        batch: Samples a step and worker.
        caption_drop: Share of samples trained without a caption, for classifier-free guidance.
        captions: How captions are written.
    """

    batch: int = 16
    caption_drop: float = 0.1
    captions: CaptionSettings = field(default_factory=CaptionSettings)


class CountedJointAttention:
    """Joint attention of SD3 in plain matrix products, with a bias on the last key.

    On a CPU the backward pass of the fused attention is slower. One object serves all layers.

    Attributes:
        bias: Logarithm of how many equal tokens the last key stands for, ``(B, 1, 1)``.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend over image ``(B, N, C)`` and text ``(B, T, C)``; returns both, projected."""
        image, text = hidden_states, encoder_hidden_states
        query = _heads(
            attn, (attn.to_q, attn.norm_q, image), (attn.add_q_proj, attn.norm_added_q, text)
        )
        key = _heads(
            attn, (attn.to_k, attn.norm_k, image), (attn.add_k_proj, attn.norm_added_k, text)
        )
        value = _heads(attn, (attn.to_v, None, image), (attn.add_v_proj, None, text))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if self.bias is not None:
            scores = scores.float()
            scores[..., -1] = scores[..., -1] + self.bias
        out = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image_out, text_out = out.split([image.shape[1], text.shape[1]], dim=1)
        if not attn.context_pre_only:
            text_out = attn.to_add_out(text_out)
        return attn.to_out[0](image_out), text_out


def _heads(attn: Any, *parts: tuple[nn.Module, nn.Module | None, Tensor]) -> Tensor:
    """Project, split into heads and norm each stream; join the tokens: ``(B, H, T, D)``."""
    streams: list[Tensor] = []
    for project, norm, tokens in parts:
        split = project(tokens).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        streams.append(split if norm is None else norm(split))
    return torch.cat(streams, dim=2)


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1), logit-normal as SD3's, one from each of ``count`` equal slices."""
    slices = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return torch.special.ndtri(slices.clamp(1e-4, 1 - 1e-4)).sigmoid()


def draw_counts(count: int, generator: torch.Generator) -> Tensor:
    """Numbers of zero tokens: 1 or 256, 40 percent each, else between, evenly in logarithm."""
    share = torch.rand(count, generator=generator)
    between = torch.exp(torch.rand(count, generator=generator) * math.log(MOST_ZERO_TOKENS)).round()
    ends = torch.where(share < 0.4, torch.ones(count), torch.full((count,), MOST_ZERO_TOKENS))
    return torch.where(share < 0.8, ends, between)


def compile_parts(transformer: SD3Transformer2DModel) -> None:
    """Compile the layers one by one, for one size of batch; the first step takes minutes longer.

    On a CPU a step then takes about half the time: what lies between the matrix products is fused.
    """
    ends = (transformer.pos_embed, transformer.time_text_embed, transformer.norm_out)
    for part in (*transformer.transformer_blocks, *ends):
        part.compile(dynamic=False)


def flow_loop(
    transformer: SD3Transformer2DModel,
    text_encoders: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
    cache: LatentCache,
    settings: FlowSettings,
    schedule: LoopSettings,
    folder: Path,
    team: Team | None = None,
) -> Loop:
    """Prepare the training of a joint transformer; call ``run`` on the result."""
    device = next(transformer.parameters()).device
    counted = CountedJointAttention()
    transformer.set_attn_processor(cast(Any, counted))
    for encoder in text_encoders:
        encoder.set_attn_implementation("eager")

    def loss(progress: float, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes, latents = cache.draw(settings.batch, generator)
        captions = drop_some(
            write_captions(scenes, generator, settings.captions), settings.caption_drop, generator
        )
        tokens = caption_tokens(tokenizer, captions).to(device)
        noise = torch.randn(latents.shape, generator=generator)
        sigmas = draw_sigmas(settings.batch, generator)
        counted.bias = draw_counts(settings.batch, generator).log().view(-1, 1, 1).to(device)
        mixed = torch.lerp(latents, noise, sigmas.view(-1, 1, 1, 1)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            text, pooled = encode_tokens(text_encoders, tokens)
            times = (1000 * sigmas).to(device)
            predicted = transformer(mixed, text, pooled, cast(Any, times)).sample.float()
        error = (predicted - (noise - latents).to(device)).square().mean()
        return error, {}

    parts = {"transformer": transformer, "text_encoders": nn.ModuleList(text_encoders)}
    return Loop(nn.ModuleDict(parts), loss, schedule, folder, team, seed=29)
