"""NAG written as plain loops over the blocks of a model, with its text streams side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

Guide = Callable[[Tensor, Tensor], Tensor]


def guide(scale: float, tau: float, alpha: float, power: int) -> Guide:
    """Blend outputs ``(B, tokens, width)`` of the prompt and of the negative prompt."""

    def blend(positive: Tensor, negative: Tensor) -> Tensor:
        guided = positive * (1 + scale) - negative * scale
        size = positive.norm(p=power, dim=-1, keepdim=True)
        ratio = guided.norm(p=power, dim=-1, keepdim=True) / size
        return guided * ratio.clamp(max=tau) / ratio * alpha + positive * (1 - alpha)

    return blend


def softmax_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Attention of ``(B, tokens, heads, width)`` tensors; ``(B, tokens, heads * width)``."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    probs = (scores if bias is None else scores + bias).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", probs, value).flatten(2)


class CrossProcessor:
    """A processor of our own for cross-attention: two answers, blended, for the rows ``cond``."""

    def __init__(self, negative: Tensor, bias: Tensor | None, rows: slice, blend: Guide) -> None:
        self._negative, self._bias, self._rows, self._blend = negative, bias, rows, blend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (attn.heads, -1))

        def answer(query: Tensor, text: Tensor, bias: Tensor | None) -> Tensor:
            key, value = attn.to_k(text), attn.to_v(text)
            if getattr(attn, "norm_k", None) is not None:
                key = attn.norm_k(key)
            return softmax_attention(heads(query), heads(key), heads(value), bias)

        query = attn.to_q(hidden_states)
        if getattr(attn, "norm_q", None) is not None:
            query = attn.norm_q(query)
        bias = None if attention_mask is None else attention_mask[:, None]
        out = answer(query, encoder_hidden_states, bias)
        mine = query[self._rows]
        negative = self._negative.expand(len(mine), -1, -1)
        out[self._rows] = self._blend(out[self._rows], answer(mine, negative, self._bias))
        return attn.to_out[0](out)


def joint_attention(
    attn: Any, image: Sequence[Tensor], texts: Sequence[Sequence[Tensor]], text_first: bool
) -> list[Tensor]:
    """Answers for each of the texts beside the same image: query, key, value of each stream."""
    answers: list[Tensor] = []
    for text in texts:
        both = [[t, i] if text_first else [i, t] for t, i in zip(text, image, strict=True)]
        answers.append(softmax_attention(*(torch.cat(parts, dim=1) for parts in both)))
    return answers


def projected(
    attn: Any, states: Tensor, names: Sequence[str], norms: Sequence[str]
) -> list[Tensor]:
    """Query, key and value ``(B, tokens, heads, width)`` of one stream."""
    made = [getattr(attn, name)(states).unflatten(-1, (attn.heads, -1)) for name in names]
    for place, norm in enumerate(norms):
        layer = getattr(attn, norm, None)
        if layer is not None:
            made[place] = layer(made[place])
    return made


IMAGE = (("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
TEXT = (("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"))


def after_attention(block: Any, states: Tensor, out: Tensor, mods: Any, suffix: str = "") -> Tensor:
    """Gate, residual and feed-forward of one stream of a double block."""
    gate, shift, scale, gate_mlp = mods
    states = states + gate[:, None] * out
    normed = getattr(block, f"norm2{suffix}")(states) * (1 + scale[:, None]) + shift[:, None]
    return states + gate_mlp[:, None] * getattr(block, f"ff{suffix}")(normed)


def flux_nag(
    model: Any, inputs: dict[str, Any], negative: dict[str, Tensor], blend: Guide
) -> Tensor:
    """Prediction of a FLUX transformer: one image stream, the prompt's text and the negative's."""
    rows = len(inputs["hidden_states"])
    pooled = [inputs["pooled_projections"], negative["pooled_projections"].expand(rows, -1)]
    time = [inputs["timestep"] * 1000]
    if inputs.get("guidance") is not None:
        time.append(inputs["guidance"] * 1000)
    embeds = [model.time_text_embed(*time, one) for one in pooled]
    image = model.x_embedder(inputs["hidden_states"])
    wide = negative["encoder_hidden_states"].expand(rows, -1, -1)
    texts = [model.context_embedder(t) for t in (inputs["encoder_hidden_states"], wide)]
    rope = model.pos_embed(torch.cat([inputs["txt_ids"], inputs["img_ids"]]))
    length = texts[0].shape[1]
    ropes = ([r[:length] for r in rope], [r[length:] for r in rope])

    def turned(made: list[Tensor], place: int) -> list[Tensor]:
        query, key = (apply_rotary_emb(t, ropes[place], sequence_dim=1) for t in made[:2])
        return [query, key, made[2]]

    for block in model.transformer_blocks:
        normed, *mods = block.norm1(image, emb=embeds[0])
        contexts = [block.norm1_context(t, emb=e) for t, e in zip(texts, embeds, strict=True)]
        own = turned(projected(block.attn, normed, *IMAGE), 1)
        others = [turned(projected(block.attn, c[0], *TEXT), 0) for c in contexts]
        outs = joint_attention(block.attn, own, others, text_first=True)
        mixed = block.attn.to_out[0](blend(outs[0][:, length:], outs[1][:, length:]))
        image = after_attention(block, image, mixed, mods)
        texts = [
            after_attention(block, t, block.attn.to_add_out(o[:, :length]), c[1:], "_context")
            for t, o, c in zip(texts, outs, contexts, strict=True)
        ]
    for block in model.single_transformer_blocks:
        streams = [(image, embeds[0]), (texts[0], embeds[0]), (texts[1], embeds[1])]
        normed = [block.norm(states, emb=e) for states, e in streams]
        made = [
            turned(projected(block.attn, n, *IMAGE), place)
            for (n, _), place in zip(normed, (1, 0, 0), strict=True)
        ]
        outs = joint_attention(block.attn, made[0], made[1:], text_first=True)
        parts = [blend(outs[0][:, length:], outs[1][:, length:]), *(o[:, :length] for o in outs)]
        image, *texts = [
            states
            + gate[:, None] * block.proj_out(torch.cat([o, block.act_mlp(block.proj_mlp(n))], 2))
            for (states, _), (n, gate), o in zip(streams, normed, parts, strict=True)
        ]
    return model.proj_out(model.norm_out(image, embeds[0]))


def sd3_nag(
    model: Any, inputs: dict[str, Any], negative: dict[str, Tensor], blend: Guide
) -> Tensor:
    """Prediction of a Stable Diffusion 3 transformer, all rows guided; before unpatchifying."""
    rows = len(inputs["hidden_states"])
    pooled = [inputs["pooled_projections"], negative["pooled_projections"].expand(rows, -1)]
    embeds = [model.time_text_embed(inputs["timestep"], one) for one in pooled]
    image = model.pos_embed(inputs["hidden_states"])
    wide = negative["encoder_hidden_states"].expand(rows, -1, -1)
    texts = [model.context_embedder(t) for t in (inputs["encoder_hidden_states"], wide)]
    tokens = image.shape[1]
    for block in model.transformer_blocks:
        normed, *mods = block.norm1(image, emb=embeds[0])
        contexts = [_context_norm(block, t, e) for t, e in zip(texts, embeds, strict=True)]
        own = projected(block.attn, normed, *IMAGE)
        others = [projected(block.attn, c[0], *TEXT) for c in contexts]
        outs = joint_attention(block.attn, own, others, text_first=False)
        mixed = block.attn.to_out[0](blend(outs[0][:, :tokens], outs[1][:, :tokens]))
        if block.use_dual_attention:
            second, gate = mods[4:]
            alone = softmax_attention(*projected(block.attn2, second, *IMAGE))
            image = image + mods[0][:, None] * mixed
            image = image + gate[:, None] * block.attn2.to_out[0](alone)
            image = after_attention(block, image, torch.zeros_like(image), mods[:4])
        else:
            image = after_attention(block, image, mixed, mods)
        if not block.context_pre_only:
            texts = [
                after_attention(block, t, block.attn.to_add_out(o[:, tokens:]), c[1:], "_context")
                for t, o, c in zip(texts, outs, contexts, strict=True)
            ]
    return model.proj_out(model.norm_out(image, embeds[0]))


def _context_norm(block: Any, text: Tensor, embed: Tensor) -> tuple[Tensor, ...]:
    if block.context_pre_only:
        return (block.norm1_context(text, embed),)
    return block.norm1_context(text, emb=embed)
