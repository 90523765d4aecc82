"""Token down-sampling: image tokens attend to fewer keys, sampled on a coarser grid."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall, Layout
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.image_attention import ImageAttention
from attnctl.ops.downsampling import METHODS, SELECTING, downsample_mask, downsample_tokens
from attnctl.registry import register
from attnctl.settings import check_whole


@register("token-downsampling")
@dataclass(frozen=True)
class TokenDownsampling(ImageAttention):
    """Let every token attend to the image on a coarser grid: ``factor**2`` times fewer keys.

    All queries stay, and text keys of joint attention too. Good for pictures of more pixels than
    the model was made for: 2 at twice its side, 3 at three times, 4 at four times. Attach it again
    for a second resolution: ``TokenDownsampling(2, where="level=1,self")``.

    Attributes:
        factor: How much coarser the grid of keys is, a whole number; 1 is off.
        method: ``nearest-exact`` and ``nearest`` select keys; ``bilinear`` and ``average`` mix
            them, not on models that rotate or normalise keys, and not under a mask.
    """

    reference: ClassVar[str] = "Smith et al., IJCAI 2024, arXiv 2402.13573"
    families: ClassVar[str] = "every family in the table"
    # Keys and values stay as they are for everybody else at the site, so it owns the kernel too.
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    factor: int = 2
    method: str = "nearest-exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.name, "factor", self.factor, at_least=1)
        if self.method not in METHODS:
            raise SettingError(
                f"{self.name}: method={self.method!r}; {nearest(str(self.method), METHODS)}"
            )

    @property
    def smallest_side(self) -> int:
        """One key a side."""
        return self.factor

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self.factor > 1 else 0.0

    def attend_image(self, call: AttentionCall, layout: Layout) -> Tensor:
        """Attention to the sampled keys."""
        if self.method not in SELECTING:
            remedy = f"use method={SELECTING[0]!r}, which selects keys"
            self.refuse_positions(call, f"mixes keys with method={self.method!r}", remedy)
            if call.mask is not None:
                raise UnsupportedModelError(
                    f"{self.name} mixes keys with method={self.method!r}, so the attention mask of "
                    f"{call.site.path} has no meaning for them; {remedy}"
                )
        _, height, width = layout.grid
        how = (layout.image, height, width, self.factor, self.method)
        mask = None if call.mask is None else downsample_mask(call.mask, *how)
        key, value = (downsample_tokens(t, *how) for t in (call.key, call.value))
        return call.attend(call.query, key, value, mask)
