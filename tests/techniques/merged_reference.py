"""Processors that merge or sample hidden states before they project them, written as loops."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor


class _Written:
    """Self-attention of one picture after the other, written out."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        assert encoder_hidden_states is None
        assert attention_mask is None
        pictures = [self.one(attn, tokens) for tokens in hidden_states]
        return attn.to_out[1](torch.stack(pictures)) / attn.rescale_output_factor

    def one(self, attn: Attention, tokens: Tensor) -> Tensor:
        """Output ``(N, C)`` for the tokens ``(N, C)`` of one picture."""
        raise NotImplementedError


def heads(attn: Attention, layer: Any, tokens: Tensor) -> Tensor:
    return layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(0, 1)  # (H, N, D)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return torch.softmax(query @ key.mT * scale, -1) @ value


def projected(attn: Attention, out: Tensor) -> Tensor:
    return attn.to_out[0](out.transpose(0, 1).flatten(1))


class Sampled(_Written):
    """Keys and values of hidden states sampled at the middles of square cells."""

    def __init__(self, height: int, width: int, factor: int) -> None:
        super().__init__(height, width)
        self.factor = factor

    def one(self, attn: Attention, tokens: Tensor) -> Tensor:
        rows = middles(self.height, self.factor)
        columns = middles(self.width, self.factor)
        sampled = torch.stack([tokens[y * self.width + x] for y in rows for x in columns])
        out = softmax_attention(
            heads(attn, attn.to_q, tokens),
            heads(attn, attn.to_k, sampled),
            heads(attn, attn.to_v, sampled),
            attn.scale,
        )
        return projected(attn, out)


def middles(side: int, factor: int) -> list[int]:
    count = side // factor
    return [int((i + 0.5) * side / count) for i in range(count)]


class Merged(_Written):
    """Attention among merged hidden states; ``agents`` merges as many for agents, if any."""

    def __init__(
        self, height: int, width: int, cell: int, merged: int, agents: int | None = None
    ) -> None:
        super().__init__(height, width)
        self.cell, self.merged, self.agents = cell, merged, agents

    def one(self, attn: Attention, tokens: Tensor) -> Tensor:
        groups = self.groups(tokens, self.merged)
        means = torch.stack([tokens[group].mean(0) for group in groups])
        query, key, value = (heads(attn, m, means) for m in (attn.to_q, attn.to_k, attn.to_v))
        if self.agents is None:
            out = softmax_attention(query, key, value, attn.scale)
        else:
            few = torch.stack([tokens[g].mean(0) for g in self.groups(tokens, self.agents)])
            agents = heads(attn, attn.to_q, few)
            gathered = softmax_attention(agents, key, value, attn.scale)
            out = softmax_attention(query, agents, gathered, attn.scale**0.3) + 0.075 * value
        rows = projected(attn, out)
        whole = torch.empty_like(tokens)
        for group, row in zip(groups, rows, strict=True):
            whole[group] = row
        return whole

    def groups(self, tokens: Tensor, merged: int) -> list[list[int]]:
        """Tokens that become one, by their best destination among the corners of cells."""
        height, width, cell = self.height, self.width, self.cell
        corners = [
            y * width + x
            for y in range(0, height - cell + 1, cell)
            for x in range(0, width - cell + 1, cell)
        ]
        units = tokens / tokens.norm(dim=-1, keepdim=True)
        likeness = units @ units[corners].T
        sources = [i for i in range(len(tokens)) if i not in set(corners)]
        sources.sort(key=lambda i: -float(likeness[i].max()))
        groups = {corner: [corner] for corner in corners}
        for source in sources[:merged]:
            groups[corners[int(likeness[source].argmax())]].append(source)
        return [[source] for source in sources[merged:]] + list(groups.values())
