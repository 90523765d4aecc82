"""WordSwap: words of a clip or picture exchanged, in the places that its inversion recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall, Layout, RunStart
from attnctl.chosen_heads import on_heads
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import check_features, for_every_row
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where


@register("word-swap")
@dataclass(frozen=True)
class WordSwap(Technique):
    """Exchange words of the source's prompt: each new word gets the place of the word it replaces.

    Prompt-to-Prompt's replacement without a source in the batch: cross-attention takes over the
    queries and keys that were recorded while the source was inverted with its own prompt, so its
    maps are the source's, and the values are those of the new words. Source and target prompt must
    have the same number of tokens, since words are exchanged by position. The conditional rows
    alone are edited. It goes with ``Flatten`` and ``CrossFrameAttention``.

    Attributes:
        features: Queries and keys of cross-attention, recorded in an inversion of the source with
            ``AttentionRecorder(store, where="cross")``; None: it does nothing.
        inject_until: They are taken over until this step (int) or fraction of the run (float).
        where: Cross-attention.
    """

    reference: ClassVar[str] = "Hertz et al., ICLR 2023, arXiv 2208.01626, eq. 6"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt"
    claims: ClassVar[frozenset[str]] = frozenset({"query", "kv"})

    features: FeatureStore | None = field(default=None, compare=False)
    inject_until: float | int = 0.8
    where: Where = field(default=Where("cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._injection  # noqa: B018 - refuses a bad bound

    @property
    def _injection(self) -> Schedule:
        return until(self.inject_until)

    def settings(self) -> dict[str, Any]:
        """Plain values; of features a description, which cannot build it again."""
        features = None if self.features is None else repr(self.features)
        return super().settings() | {"features": features}

    def strength_at(self, index: int, total: int | None) -> float:
        if self.features is None or not self._injection.strength(index, total):
            return 0.0
        return self.steps.strength(index, total)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where image tokens attend to text alone"
        check_kinds(self.name, sites, ("cross",), does, "cross")
        return sites

    def begin(self, run: RunStart) -> None:
        if self.features is not None:
            check_features(self.name, self.features, run, [site.path for site in run.sites])

    def edit_qkv(self, call: AttentionCall) -> None:
        at = call.pick(branch="cond")
        if self.features is None or not len(at):
            return
        taken: list[Tensor] = []
        for what, own in (("query", call.query), ("key", call.key)):
            rows = own[at]
            kept = self.features.get(call.step.timestep, call.site.path, what, like=own)
            edited = rows.lerp(for_every_row(kept, rows), call.strength)
            edited = on_heads(edited, rows, call.heads, rows.shape[1])
            taken.append(own.index_copy(0, at, edited))
        call.query, call.key = taken
