"""Agent attention: image tokens attend through a few agents, tokens that stand for many."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout
from attnctl.image_attention import MatchedAttention
from attnctl.kernels import agent_attention, attention
from attnctl.kernels.masks import repeat_heads
from attnctl.ops.merging import merge_map, merge_tokens, spread_tokens
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number


@register("agent-attention")
@dataclass(frozen=True)
class AgentAttention(MatchedAttention):
    """Let image tokens attend through a few agents: two small attentions instead of a large one.

    Tokens that are alike are merged; merging many more of them gives the agents, which gather from
    all keys, and from which all queries then read, with a scale ``s`` and a shortcut ``c``:
    ``softmax(s^power Q A^T) softmax(s A K^T) V + c V``. Text tokens of joint attention serve as
    keys of the agents and attend as always. Where agents are no fewer than half of the tokens, the
    merged tokens attend directly. The published recipe adds
    ``TokenMerging(ratio=0.4, steps="40%-")`` for the other steps.

    Attributes:
        agent_ratio: Share of the image tokens that is merged away to get the agents, in [0, 1]; at
            most ``1 - 1 / cell**2`` of them are, so cells of 4 give one agent to 16 tokens.
        scale_power: Exponent of the scale on the second scores; below 1 sharpens them.
        shortcut: Weight c of the token's own value.
    """

    reference: ClassVar[str] = "Han et al., ECCV 2024, arXiv 2312.08874"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt; SD3 (not SD3.5)"

    ratio: float = 0.4
    cell: int = 4
    agent_ratio: float = 0.95
    scale_power: float = 0.3
    shortcut: float = 0.075
    steps: Schedule = field(default=until(0.4), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "agent_ratio", self.agent_ratio, at_least=0, at_most=1)
        check_number(self.name, "scale_power", self.scale_power, at_least=0)
        check_number(self.name, "shortcut", self.shortcut)

    def strength_at(self, index: int, total: int | None) -> float:
        is_off = self.ratio == 0 and self.agent_ratio == 0
        return 0.0 if is_off else self.steps.strength(index, total)

    def attend_image(self, call: AttentionCall, layout: Layout) -> Tensor:
        """Attention through agents among the merged tokens, given to each token that was merged."""
        ranking, image = self.rank(call, layout), layout.image
        tokens, sources = image.stop - image.start, ranking.sources.shape[1]
        merged = min(int(tokens * self.ratio), sources)
        into_agents = min(int(tokens * self.agent_ratio), sources)
        query, key, value = call.query, call.key, repeat_heads(call.value, call.query.shape[1])
        chosen = merge_map(ranking, merged) if merged else None
        if chosen is not None:
            query, key, value = (merge_tokens(t, image, chosen) for t in (query, key, value))
        if 2 * (tokens - into_agents) < tokens - merged:
            image_queries = call.query[:, :, image]
            gathering = merge_map(ranking, into_agents)
            agents = merge_tokens(image_queries, slice(0, tokens), gathering)
            rows = slice(image.start, image.stop - merged)
            out = self._through_agents(call, (query, key, value), agents, rows)
        else:
            out = call.attend(query, key, value)
        return out if chosen is None else spread_tokens(out, image, chosen)

    def _through_agents(
        self,
        call: AttentionCall,
        tensors: tuple[Tensor, Tensor, Tensor],
        agents: Tensor,
        image: slice,
    ) -> Tensor:
        """Image tokens attend through the agents, text tokens as always."""
        query, key, value = tensors
        second_scale = call.scale**self.scale_power
        if image.stop - image.start == query.shape[2]:
            return agent_attention(
                query,
                agents,
                repeat_heads(key, query.shape[1]),
                value,
                scale=call.scale,
                second_scale=second_scale,
                shortcut=self.shortcut,
            )
        key = repeat_heads(key, query.shape[1])
        gathered = call.attend(agents, key, value)
        seen, _ = attention(query[:, :, image], agents, gathered, scale=second_scale)
        seen = seen + self.shortcut * value[:, :, image]
        others = torch.cat([query[:, :, : image.start], query[:, :, image.stop :]], dim=2)
        before, after = call.attend(others, key, value).split(
            [image.start, query.shape[2] - image.stop], dim=2
        )
        return torch.cat([before, seen, after], dim=2)
