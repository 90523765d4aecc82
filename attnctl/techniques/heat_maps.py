"""Heat maps: where each word of the prompt looked. Read only; the picture does not change."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall, Needs, Read, RunStart
from attnctl.chosen_heads import of_heads
from attnctl.errors import SettingError, WordNotFoundError
from attnctl.maps import AttentionMaps
from attnctl.registry import register
from attnctl.technique import Technique
from attnctl.where import Where


@register("heat-maps")
@dataclass(frozen=True)
class HeatMaps(Technique):
    """Show where each word of the prompt looked: sums of attention over steps, layers and heads.

    Exact probability columns are computed beside the pipeline's own attention, so pictures stay
    bit-identical and no map of a long sequence is ever whole. Ask ``session.maps``.

    Attributes:
        words: Words that must be in every prompt; a missing one is an error before the first
            step. Any word of the prompt can be asked for afterwards.
        keep_heads: Keep heads apart, so that ``maps.word(..., heads=)`` can be asked for.
        keep_steps: Keep steps apart, so that ``maps.word(..., steps=)`` can be asked for.
    """

    reference: ClassVar[str] = "Tang et al., ACL 2023, arXiv 2210.04885 (DAAM)"
    families: ClassVar[str] = "every family with known text tokens"

    words: Sequence[str] = ()
    where: Where = field(default=Where("down:cross|up:cross|block:cross|joint"), kw_only=True)
    keep_heads: bool = False
    keep_steps: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        words = [self.words] if isinstance(self.words, str) else self.words
        if not all(isinstance(word, str) and word.strip() for word in words):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(f"{self.name}: words={self.words!r} must be words of the prompt")
        object.__setattr__(self, "words", tuple(words))

    def needs(self) -> Needs:
        return Needs(reads=(Read("columns"),), layout=True, prompts=True)

    def begin(self, run: RunStart) -> AttentionMaps:
        if run.prompts is None and self.words:
            raise WordNotFoundError(
                f"{self.name}: the pipeline was given prompt_embeds, so {self.words[0]!r} cannot "
                "be found; leave words= out and ask maps.token(position)"
            )
        if run.prompts is None:
            return AttentionMaps([None] * run.items, self.keep_heads, self.keep_steps)
        maps = AttentionMaps(run.prompts, self.keep_heads, self.keep_steps)
        for item in range(run.items):
            for word in self.words:
                maps.positions(word, item=item)
        return maps

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        layout = call.layout
        if layout is None:
            return
        chosen = of_heads(value, call.heads)
        items = [r.item for r in call.rows if r.branch == what.branch and r.kind == "main"]
        frames = chosen.unflatten(0, (len(items), -1))  # (items, 1 or folded frames, H, Q, T)
        whole = frames.transpose(1, 2).flatten(2, 3)  # (items, H, cells of all frames, T)
        for item, columns in zip(items, whole, strict=True):
            call.state.add(item, call.site.path, call.step.index, layout.grid, columns)

    def end(self, state: AttentionMaps) -> AttentionMaps:
        return state
