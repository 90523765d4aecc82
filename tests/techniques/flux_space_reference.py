"""FluxSpace in plain calls: three attentions a block, one text each, for one row of a batch."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.techniques.nag_runs import encoded


def away_from(edit: Tensor, null: Tensor) -> Tensor:
    """Each token without its part along the same token of ``null``."""
    made = torch.empty_like(edit)
    for row in range(len(edit)):
        for token in range(edit.shape[1]):
            e, n = edit[row, token], null[row, token]
            made[row, token] = e - (e @ n) / (n @ n + 1e-10) * n
    return made


def mask_of(attn: Any, image: Tensor, text: Tensor, column: int, tau: float) -> Tensor:
    """The self-supervised mask from a whole softmax map, ``(1, N, 1)``."""

    def heads(values: Tensor, norm: Any) -> Tensor:
        split = values.unflatten(-1, (attn.heads, -1))
        return split if norm is None else norm(split)

    query = heads(attn.to_q(image), attn.norm_q)
    key = heads(attn.add_k_proj(text), attn.norm_added_k)
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    share = logits.softmax(-1).mean(1)[..., column]
    share = (share - share.min()) / (share.max() - share.min())
    return (torch.sigmoid(10 * (share - 0.5)) >= tau).to(image.dtype).unsqueeze(-1)


@dataclass
class ThreeCalls:
    """The settings, and which row of the batch is edited.

    Attributes:
        row: Place of the edited row.
        period: Calls of the transformer a step; the first of them is conditional.
        since: First step that is edited.
    """

    prompt: str
    row: int = 1
    fine: float = 5.0
    coarse: float = 0.8
    tau: float = 0.5
    column: int = 0
    period: int = 1
    since: int = 0

    @contextmanager
    def inside(self, pipe: Any) -> Generator[None]:
        """Let a pipeline's transformer answer the edited row by plain calls."""
        model = pipe.transformer
        limit = {"max_sequence_length": 16}
        is_flux = "Flux" in type(pipe).__name__
        place = 1 if is_flux else 2
        edit, null = (encoded(pipe, text, **limit) for text in (self.prompt, ""))
        texts, pooled = [edit[0], null[0]], edit[place]
        plain, count = model.forward, 0

        def forward(**inputs: Any) -> Any:
            nonlocal count
            out = plain(**inputs)[0].clone()
            is_conditional = count % self.period == 0 and count // self.period >= self.since
            count += 1
            if is_conditional:
                one = {
                    name: value[self.row : self.row + 1]
                    if isinstance(value, Tensor) and len(value) > self.row and "ids" not in name
                    else value
                    for name, value in inputs.items()
                }
                answer = self._flux if is_flux else self._sd3
                out[self.row] = answer(model, one, texts, pooled)[0]
            return (out,)

        model.forward = forward
        try:
            with torch.no_grad():
                yield
        finally:
            del model.forward

    def turned(self, p: Tensor, edit: Tensor) -> Tensor:
        away = edit - (edit @ p.T) / (p @ p.T + 1e-10) * p
        return (1 - self.coarse) * p + self.coarse * away

    def _flux(self, model: Any, inputs: Any, texts: list[Tensor], pooled: Tensor) -> Tensor:
        image = model.x_embedder(inputs["hidden_states"])
        times = [inputs["timestep"] * 1000]
        if inputs["guidance"] is not None:
            times.append(inputs["guidance"] * 1000)
        own = inputs["pooled_projections"]
        temb = model.time_text_embed(*times, own)
        turned = model.time_text_embed(*times, self.turned(own, pooled))
        rotary = model.pos_embed(torch.cat([inputs["txt_ids"], inputs["img_ids"]]))
        streams = [model.context_embedder(t) for t in (inputs["encoder_hidden_states"], *texts)]
        for block in model.transformer_blocks:
            image, streams = self.block(block, image, streams, temb, turned, rotary)
        text = streams[0]
        for block in model.single_transformer_blocks:
            text, image = block(
                hidden_states=image, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotary
            )
        return model.proj_out(model.norm_out(image, temb))

    def _sd3(self, model: Any, inputs: Any, texts: list[Tensor], pooled: Tensor) -> Tensor:
        image = model.pos_embed(inputs["hidden_states"])
        own = inputs["pooled_projections"]
        temb = model.time_text_embed(inputs["timestep"], own)
        turned = model.time_text_embed(inputs["timestep"], self.turned(own, pooled))
        streams = [model.context_embedder(t) for t in (inputs["encoder_hidden_states"], *texts)]
        for block in model.transformer_blocks:
            image, streams = self.block(block, image, streams, temb, turned, None)
        patches = model.proj_out(model.norm_out(image, temb))
        patches = patches.reshape(1, 8, 8, 2, 2, 4)
        return torch.einsum("nhwpqc->nchpwq", patches).reshape(1, 4, 16, 16)

    def block(
        self,
        block: Any,
        image: Tensor,
        streams: list[Tensor],
        temb: Tensor,
        turned: Tensor,
        rotary: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """One double block: image tokens ``(1, N, C)``, text streams base, edit, null."""
        is_last = getattr(block, "context_pre_only", False)
        is_dual = getattr(block, "use_dual_attention", False)
        image_norm = block.norm1(image, emb=temb)
        normed, gate, shift, scale, gate_mlp = image_norm[:5]
        more = {} if rotary is None else {"image_rotary_emb": rotary}
        answers, texts, gates = [], [], []
        for stream in streams:
            made = (block.norm1_context(stream, turned),) if is_last else block.norm1_context(
                stream, emb=turned
            )  # fmt: skip
            texts.append(made[0])
            gates.append(made[1:])
            answers.append(block.attn(hidden_states=normed, encoder_hidden_states=made[0], **more))
        out = answers[0][0]
        if self.fine:
            mask = 1.0
            if self.tau > 0:
                mask = mask_of(block.attn, normed, texts[1], self.column, self.tau)
            moved = out + self.fine * mask * away_from(answers[1][0], answers[2][0])
            out = moved / moved.norm(dim=-1, keepdim=True) * out.norm(dim=-1, keepdim=True)
        image = image + gate[:, None] * out
        if is_dual:
            image = image + image_norm[6][:, None] * block.attn2(hidden_states=image_norm[5])
        after = block.norm2(image) * (1 + scale[:, None]) + shift[:, None]
        image = image + gate_mlp[:, None] * block.ff(after)
        if is_last:
            return image, streams
        made_streams: list[Tensor] = []
        for stream, answer, one in zip(streams, answers, gates, strict=True):
            stream = stream + one[0][:, None] * answer[1]
            after = block.norm2_context(stream) * (1 + one[2][:, None]) + one[1][:, None]
            made_streams.append(stream + one[3][:, None] * block.ff_context(after))
        return image, made_streams
