"""Attention modulation: the objects of a prompt stay apart, without gradients or boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.chosen_heads import of_heads, on_heads
from attnctl.editing.word_groups import WordGroup, lists_of, locate_groups, read_groups
from attnctl.errors import ScheduleError, SettingError, UnsupportedModelError
from attnctl.named_words import spread
from attnctl.ops.attention_modulation import (
    Weights,
    foreign_words,
    object_scores,
    phase_weights,
    temper_queries,
    word_bias,
)
from attnctl.ops.token_bias import bias_of, memberships
from attnctl.registry import register
from attnctl.schedule import after, until
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

CENTRES: Mapping[float, Weights] = {0.15: (1.3, 1.0), 0.5: (1.1, 1.3), 0.85: (1.0, 1.1)}
"""Weights of nouns and attributes in the middle of the first 30, the next 40, the last 30 percent
of the run."""

LEAST = 1e-6  # of temperatures and weights

_NEUTRAL = (1.0, 1.0)

Groups = tuple[WordGroup, ...]
Part = tuple[Tensor, Groups]  # batch entries, and the groups of their prompt


@register("attention-modulation")
@dataclass(frozen=True)
class AttentionModulation(Technique):
    """Keep the objects of a prompt apart, by temperature, a mask and weights in attention.

    Early on, self-attention has a lower temperature in all rows, so that patches of different
    objects mix less. In cross-attention of the conditional rows each pixel sees the words of its
    likeliest object alone, and nouns count more at first, attributes later. Each part can be
    switched off. The authors' code is not public: numbers, and what decides about a pixel, are
    choices made here. A strength in ``steps`` is an exponent of temperature and weights; the odds
    of masked words are multiplied by one minus it.

    Attributes:
        groups: Objects of the prompt, such as "red circle" (a phrase of the prompt; its last word
            is the noun) or {noun: circle, attributes: [red]} in words or token positions (BOS is
            0); for several prompts a list for each. Without them the temperature acts alone.
        temperature: What logits of self-attention are divided by, above 0; 1 is off.
        temperature_until: Fraction of the run in which it acts, in [0, 1].
        mask: Hide the words of other objects from each pixel; needs two groups.
        mask_from: Fraction of the run from which the mask acts, in [0, 1].
        phases: Weights of nouns and attributes, above 0, over the run: True takes those of the
            three phases, False none; or a mapping such as {0.15: [1.3, 1.0], 0.5: [1.1, 1.3]} from
            fractions of the run, between which they change linearly.
        where: Self-attention for the temperature, cross-attention for mask and weights.
    """

    reference: ClassVar[str] = "Wu et al. 2024, arXiv 2404.13899, reconstructed from the paper"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt, Wan: self- and cross-attention apart"

    groups: Any = ()
    temperature: float = 0.8
    temperature_until: float = 0.2
    mask: bool = True
    mask_from: float = 0.1
    phases: bool | Mapping[float, Weights] = True
    where: Where = field(default=Where("self|cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "groups", read_groups(self.name, self.groups))
        object.__setattr__(self, "phases", _read_phases(self.name, self.phases))
        check_number(self.name, "temperature", self.temperature, at_least=LEAST)
        for name in ("temperature_until", "mask_from"):
            check_number(self.name, name, getattr(self, name), at_least=0, at_most=1)
        if not isinstance(self.mask, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(f"{self.name}: mask={self.mask!r} must be True or False")

    def needs(self) -> Needs:
        return Needs(layout=self.uses_groups, prompts=self.uses_groups)

    @property
    def uses_groups(self) -> bool:
        """Whether anything is done in cross-attention."""
        return any(lists_of(self.groups)) and bool(self.mask or self.phases)

    def strength_at(self, index: int, total: int | None) -> float:
        if total is None:
            raise ScheduleError(
                f"{self.name}: temperature_until, mask_from and phases count in fractions of a "
                "run, but a bare denoiser has no run; attach to the pipeline"
            )
        acts = self._tempers(index, total)
        if self.uses_groups:
            has_rivals = any(len(one) > 1 for one in lists_of(self.groups))
            acts = acts or (has_rivals and self._masks(index, total))
            acts = acts or self._weights(index / total) != _NEUTRAL
        return self.steps.strength(index, total) if acts else 0.0

    def select(self, sites: Sequence[Site], model: str) -> Where:
        joint = [site for site in sites if site.kind == "joint"]
        foreign = joint or [s for s in self.where.sites(sites) if s.kind == "temporal"]
        if foreign:
            raise UnsupportedModelError(
                f"{self.name} acts where image tokens attend to each other, and to the text, "
                f"apart; {foreign[0].path} is {foreign[0].kind} attention. It supports "
                f"{self.families}; select where='self|cross' there"
            )
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        for site in sites:
            layout = layouts.get(site)
            is_unknown = layout is None or layout.text is None
            if self.uses_groups and site.kind == "cross" and is_unknown:
                raise UnsupportedModelError(
                    f"{self.name}: it is not known which tokens of {site.path} are text; without "
                    "groups= the temperature acts alone"
                )
        return sites

    def begin(self, run: RunStart) -> tuple[Groups, ...]:
        cross = [site for site in run.sites if site.kind == "cross"]
        if not self.uses_groups:
            return ()
        if not cross:
            run.warn(f"{self.name}: where= selects no cross-attention, so groups do nothing")
            return ()
        layout = run.layouts[cross[0].path]
        assert layout is not None  # looked at in narrow
        assert layout.text is not None
        lists = spread(self.name, "groups", lists_of(self.groups), run.items)
        return tuple(
            locate_groups(
                self.name,
                lists[item],
                run.prompts[item][0] if run.prompts else None,
                layout.text.stop - layout.text.start,
            )
            for item in range(run.items)
        )

    def edit_qkv(self, call: AttentionCall) -> None:
        index, total = call.step.index, call.step.total or 1
        if call.site.kind == "self":
            if self._tempers(index, total):
                sharper = temper_queries(call.query, self.temperature**call.strength)
                call.query = on_heads(sharper, call.query, call.heads, call.query.shape[1])
            return
        picked = [(call.pick(branch="cond", item=i), one) for i, one in enumerate(call.state)]
        parts = [(at, groups) for at, groups in picked if len(at) and groups]
        weights = self._weights(call.step.fraction)
        if parts and weights != _NEUTRAL:
            self._weigh(call, parts, weights)
        rivals = [(at, groups) for at, groups in parts if len(groups) > 1]
        if rivals and self._masks(index, total):
            self._hide(call, rivals)

    def _weigh(self, call: AttentionCall, parts: Sequence[Part], weights: Weights) -> None:
        biases: list[Tensor] = []
        for at, groups in parts:
            nouns = _members(call, [[p for group in groups for p in group.noun]])[0]
            others = _members(call, [[p for group in groups for p in group.attributes]])[0]
            biases.append(word_bias(nouns, others, weights).expand(len(at), 1, 1, -1))
        self._add(call, parts, call.strength * torch.cat(biases))

    def _hide(self, call: AttentionCall, parts: Sequence[Part]) -> None:
        with torch.no_grad():
            foreign = torch.cat([_foreign(call, at, groups) for at, groups in parts])
        self._add(call, parts, bias_of(foreign[:, None], call.strength, call.query.dtype))

    def _add(self, call: AttentionCall, parts: Sequence[Part], bias: Tensor) -> None:
        """Add a bias ``(n, 1, Q | 1, K)`` to the logits of the selected heads."""
        chosen = on_heads(bias, 0.0, call.heads, call.query.shape[1])
        call.add_bias(chosen, torch.cat([part[0] for part in parts]))

    def _tempers(self, index: int, total: int) -> bool:
        window = until(float(self.temperature_until))
        return self.temperature != 1 and window.strength(index, total) != 0

    def _masks(self, index: int, total: int) -> bool:
        return self.mask and after(float(self.mask_from)).strength(index, total) != 0

    def _weights(self, fraction: float) -> Weights:
        if not self.phases:
            return _NEUTRAL
        return phase_weights(CENTRES if self.phases is True else self.phases, fraction)


def _foreign(call: AttentionCall, at: Tensor, groups: Groups) -> Tensor:
    """Keys that the pixels of the batch entries ``at`` must not see, bool ``(at, Q, K)``."""
    assert call.layout is not None  # declared in needs
    masses = call.masses(_members(call, [group.noun for group in groups]).mT, at)
    scores = object_scores(of_heads(masses, call.heads), *call.layout.size)
    return foreign_words(scores, _members(call, [group.positions for group in groups]))


def _members(call: AttentionCall, groups: Sequence[Sequence[int]]) -> Tensor:
    """Keys of groups of words, bool ``(groups, K)``."""
    assert call.layout is not None  # declared in needs
    assert call.layout.text is not None  # looked at in narrow
    start = call.layout.text.start
    shifted = [[start + position for position in group] for group in groups]
    return memberships(shifted, call.key.shape[2]).to(call.query.device)


def _read_phases(technique: str, value: Any) -> bool | dict[float, Weights]:
    """Read True, False, or a mapping from fractions of the run to two weights."""
    if isinstance(value, bool):
        return value
    phases: dict[float, Weights] = {}
    try:
        for key, (noun, attribute) in dict(value).items():
            as_percent = isinstance(key, str) and key.endswith("%")
            place = float(key[:-1]) / 100 if as_percent else float(key)
            phases[place] = (float(noun), float(attribute))
    except (TypeError, ValueError):
        phases = {-1.0: _NEUTRAL}
    for place, weights in phases.items():
        if not 0 <= place <= 1:
            raise SettingError(
                f"{technique}: phases={value!r} must be True, False, or map fractions of the run "
                "to the weights of nouns and attributes, such as {0.15: [1.3, 1.0]}"
            )
        for weight in weights:
            check_number(technique, f"phases[{place:g}]", weight, at_least=LEAST)
    return phases
