"""DiTCtrl: one clip of the batch reads the keys and values of another in its late layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, Pass, Read, RunStart
from attnctl.editing.items import check_items, item_numbers
from attnctl.editing.paired_rows import Pair, joined_pairs, paired_rows, with_target_output
from attnctl.editing.prompt_edits import as_tuples
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.families.cogvideox import COGVIDEOX
from attnctl.families.unet_motion import UNET_MOTION
from attnctl.families.wan import WAN
from attnctl.named_words import Words, find_tokens, spread
from attnctl.ops.ditctrl import foreground, masked_shared_attention
from attnctl.ops.mutual_attention import shared_rows
from attnctl.registry import register
from attnctl.schedule import Schedule, between
from attnctl.settings import check_number
from attnctl.sites import Site, check_kinds
from attnctl.subjects import check_subjects, lists_of
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole

SHARED = "self|joint"
MAPS = Where("cross|joint")


@dataclass(slots=True)
class _State:
    """One run: where is shared, positions of words by item, maps of a forward, masks of a step."""

    shared: frozenset[str]
    words: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    forward: Pass | None = None
    sums: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    layers: int = 0
    masks: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict[tuple[str, int, int], tuple[Tensor, Tensor]]
    )


@register("ditctrl")
@dataclass(frozen=True)
class DiTCtrl(Technique):
    """Let one clip go on with the looks of another: it reads that one's keys and values.

    Source and target are items of one batch. In late layers and early steps the target asks with
    its own queries in the source, text tokens included where attention is joint, in each guidance
    branch; the source is never touched. With prompts that differ in a word and equal latents this
    swaps the word; ``attnctl.pipelines.long_video`` and ``attnctl video --then`` join a long clip
    of several prompts by it, and set ``source`` and ``target`` themselves.

    Attributes:
        source: Item, or items, whose keys and values are read.
        target: Item, or items, that read them: as many, each its own, or several of one source.
        last_layers: So many of the selected layers share, the last ones: a share of them in (0, 1]
            (float) or their number (int). The authors share 5 of 30.
        mask_words: Words, or token positions, that name the subject in every prompt, or a list for
            each item; the target's subject then sees the source's, and background background. A
            word must be in both prompts. Empty: no masks, as in the authors' default.
        mask_threshold: Least attention that belongs to the subject, with each frame scaled to
            [0, 1].
        steps: When it acts; the default is steps 2 to 24 of 50, as the authors have it.
        where: Self- or joint attention. On AnimateDiff that is attention inside each frame, and
            ``temporal`` attention can be selected too.
    """

    reference: ClassVar[str] = (
        "Cai et al., CVPR 2025, arXiv 2412.18597, and its code; the share of layers and steps in "
        "other models than CogVideoX-2B is ours"
    )
    families: ClassVar[str] = "CogVideoX, Wan; without masks AnimateDiff"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    source: Any = 0
    target: Any = 1
    last_layers: float | int = 1 / 6
    mask_words: Any = ()
    mask_threshold: float = 0.3
    steps: Schedule = field(default=between(0.04, 0.5), kw_only=True)
    where: Where = field(default=Where(SHARED), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("source", "target", "mask_words"):
            object.__setattr__(self, name, as_tuples(getattr(self, name)))
        self.pairs  # noqa: B018 - refuses items that make no pairs
        is_count = is_whole(self.last_layers)
        top = float("inf") if is_count else 1.0
        check_number(self.name, "last_layers", self.last_layers, at_least=0, at_most=top)
        if not self.last_layers:
            raise SettingError(
                f"{self.name}: last_layers={self.last_layers!r} must be a number of layers from 1, "
                "or a share of them up to 1.0"
            )
        check_number(self.name, "mask_threshold", self.mask_threshold, at_most=1)
        if self.mask_words:
            words = _read_words(self.name, self.mask_words)
            object.__setattr__(self, "mask_words", words)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Source and target of each pair."""
        sources = item_numbers(self.name, "source", _listed(self.source))
        targets = item_numbers(self.name, "target", _listed(self.target))
        if len(sources) == 1:
            sources *= len(targets)
        if len(sources) != len(targets) or set(sources) & set(targets):
            raise SettingError(
                f"{self.name}: source={self.source!r} and target={self.target!r} must be different "
                "clips of the batch, a source for each target or one for all, such as source=0, "
                "target=1"
            )
        return tuple(zip(sources, targets, strict=True))

    def overrides(self, method: str) -> bool:
        if method == "edit_qkv":
            return not self.mask_words
        if method in ("edit_output", "read"):
            return bool(self.mask_words)
        return super().overrides(method)

    def needs(self) -> Needs:
        reads = (Read("columns", where=MAPS),) if self.mask_words else ()
        return Needs(
            reads=reads,
            couples=True,
            layout=True,
            prompts=bool(self.mask_words),
            families=(COGVIDEOX.name, WAN.name, UNET_MOTION.name),
        )

    def select(self, sites: Sequence[Site], model: str) -> Where:
        does = "shares keys and values of image tokens"
        kinds = ("self", "joint", "temporal")
        check_kinds(self.name, self.where.sites(sites), kinds, does, SHARED)
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        shared = self._shared(sites)
        if not self.mask_words:
            return shared
        folded = [x for site in shared if (x := layouts[site]) is not None and x.fold != "rows"]
        if folded:
            raise UnsupportedModelError(
                f"{self.name}: mask_words= needs attention over all frames at once, and "
                f"{shared[0].path} attends inside a frame; leave it out, or use CogVideoX or Wan"
            )
        maps = MAPS.sites(sites)
        return tuple(site for site in sites if site in shared or site in maps)

    def _shared(self, sites: Sequence[Site]) -> tuple[Site, ...]:
        """The last of the selected layers, of each denoiser and kind."""
        groups: dict[tuple[str, str], list[Site]] = {}
        for site in self.where.sites(sites):
            groups.setdefault((site.denoiser, site.kind), []).append(site)
        kept: set[Site] = set()
        for group in groups.values():
            exact = is_whole(self.last_layers)
            count = self.last_layers if exact else round(self.last_layers * len(group))
            kept.update(group[-max(1, int(count)) :])
        return tuple(site for site in sites if site in kept)

    def begin(self, run: RunStart) -> _State:
        sources, targets = zip(*self.pairs, strict=True)
        check_items(self.name, run.items, source=sources, target=targets)
        state = _State(frozenset(site.path for site in self._shared(run.sites)))
        if not self.mask_words:
            return state
        length = next((x.text for x in run.layouts.values() if x is not None and x.text), None)
        tokens = None if length is None else length.stop - length.start
        lists = spread(self.name, "mask_words", lists_of(self.mask_words), run.items)
        for item in {*sources, *targets}:
            prompt = None if run.prompts is None else run.prompts[item][0]
            found = find_tokens(self.name, "mask_words", lists[item], prompt, tokens)
            state.words[item] = sorted({at for positions in found for at in positions})
        return state

    def edit_qkv(self, call: AttentionCall) -> None:
        pairs = self._pairs_of(call)
        if not pairs:
            return
        source, target = joined_pairs([pair for _, pair in pairs])
        strength, heads = call.strength, call.heads
        call.key = shared_rows(call.key, source, target, strength=strength, heads=heads)
        call.value = shared_rows(call.value, source, target, strength=strength, heads=heads)

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        state: _State = call.state
        if call.pass_ is not state.forward:
            state.forward, state.sums, state.layers = call.pass_, {}, 0
        state.layers += 1
        items = [r.item for r in call.rows if r.branch == what.branch and r.kind == "main"]
        for item, columns in zip(items, value, strict=True):
            if item in state.words:
                seen = columns[..., state.words[item]].sum(-1).mean(0)
                state.sums[item] = seen + state.sums[item] if item in state.sums else seen

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        state: _State = call.state
        if call.site.path not in state.shared or call.layout is None:
            return out
        for items, (source, target) in self._pairs_of(call):
            query, key, value = call.query[target], call.key[source], call.value[source]
            masks = _masks(call, call.layout, items, self.mask_threshold)
            if masks is None:
                edited = call.attend(query, key, value)
            else:
                edited = masked_shared_attention(
                    query, key, value, call.layout.image, *masks, call.attend
                )
            out = with_target_output(out, target, edited, call.strength, call.heads)
        return out

    def _pairs_of(self, call: AttentionCall) -> list[tuple[tuple[int, int], Pair]]:
        """Items of each pair, and their batch indices in a call."""
        return [
            (items, rows) for items in self.pairs for rows in paired_rows(call, items[0], items[1:])
        ]


def _masks(
    call: AttentionCall, layout: Layout, items: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor] | None:
    """Foreground of source and target, ``(N,)``; ``None`` before any map.

    The unconditional branch has no maps of its own: a call of it alone takes those of this layer
    from the conditional call before it.
    """
    state: _State = call.state
    place = (call.site.path, *items)
    if any(row.branch == "cond" for row in call.rows):
        state.masks.pop(place, None)
        if state.forward is call.pass_ and items[0] in state.sums and items[1] in state.sums:
            means = (state.sums[item].unflatten(0, layout.grid) / state.layers for item in items)
            of_source, of_target = (foreground(mean, threshold) for mean in means)
            state.masks[place] = (of_source, of_target)
    return state.masks.get(place)


def _listed(value: Any) -> Any:
    return value if isinstance(value, str | list | tuple) else (value,)


def _read_words(technique: str, value: Any) -> tuple[Words, ...] | Words:
    """Read words or token positions, in one list or a list for each item.

    Raises:
        SettingError: it is neither.
    """
    try:
        return check_subjects(technique, value)
    except SettingError:
        raise SettingError(
            f"{technique}: mask_words={value!r} must be words or token positions, such as ['cat'], "
            "or a list of them for each clip of the batch"
        ) from None
