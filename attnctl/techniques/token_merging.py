"""Token merging: attention among fewer image tokens, those alike merged into one."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall, Layout
from attnctl.image_attention import MatchedAttention
from attnctl.ops.merging import merge_map, merge_tokens, spread_tokens
from attnctl.registry import register


@register("token-merging")
@dataclass(frozen=True)
class TokenMerging(MatchedAttention):
    """Merge image tokens that are alike before self-attention, and share the result afterwards.

    Tokens are compared by the input of the attention module. Query, key and value of merged tokens
    are averaged, which equals projecting the average; text tokens of joint attention stay.
    """

    reference: ClassVar[str] = "Bolya and Hoffman, CVPR workshops 2023, arXiv 2303.17604"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt; SD3 (not SD3.5)"

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self.ratio > 0 else 0.0

    def attend_image(self, call: AttentionCall, layout: Layout) -> Tensor:
        """Attention among the merged tokens, given to each token that was merged."""
        ranking, image = self.rank(call, layout), layout.image
        tokens, sources = image.stop - image.start, ranking.sources.shape[1]
        chosen = merge_map(ranking, min(int(tokens * self.ratio), sources))
        query, key, value = (
            merge_tokens(t, image, chosen) for t in (call.query, call.key, call.value)
        )
        return spread_tokens(call.attend(query, key, value), image, chosen)
