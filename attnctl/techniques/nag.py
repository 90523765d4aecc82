"""NAG: guidance away from a negative prompt inside attention, with or without guidance by scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AddedRow, AttentionCall, Layout, Needs, OtherPrompt
from attnctl.chosen_heads import on_heads
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.ops.normalised import NORMS, normalised_guidance
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

NEGATIVE = "nag"


@register("nag")
@dataclass(frozen=True)
class NAG(Technique):
    """Normalised attention guidance: a negative prompt that also works in few steps, without CFG.

    Each attention to text is answered twice, for the prompt and for a negative one, and the output
    moves away from the negative answer: ``G = Z+ + scale (Z+ - Z-)``, no token longer than ``tau``
    times its own ``Z+``, then ``(1 - alpha) Z+ + alpha G``. Cross-attention costs one more
    attention a site. Joint attention takes an added row that carries the negative text through
    the network; its image tokens are those of the conditional row. The defaults are those of the
    authors' FLUX code, whose ``nag_scale`` is ``scale + 1``; their paper takes the norm ``l1``.

    Attributes:
        negative_prompt: What should not be there; encoded by the pipeline, once a run.
        scale: Weight of the difference between the two answers, from 0, unitless; 0 is off.
        tau: Longest allowed ratio of the guided output to the plain one, from 1.
        alpha: Share of the guided output, in [0, 1]; 0 is off.
        where: Attention to text where it acts, cross or joint.
        norm: Norm of a token, over all heads: ``l2`` or ``l1``.
        negative_embeds: Instead of ``negative_prompt``: text arguments of the denoiser, such as
            ``{"encoder_hidden_states": (1, tokens, width)}``, for a bare denoiser too.
    """

    reference: ClassVar[str] = "Chen et al. 2025, arXiv 2505.21179"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt, Wan; FLUX.1, SD3 and SD3.5, CogVideoX"

    negative_prompt: str = ""
    scale: float = 4.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: str = "l2"
    where: Where = field(default=Where("cross|joint"), kw_only=True)
    negative_embeds: Mapping[str, Tensor] | None = field(
        default=None, kw_only=True, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "scale", self.scale, at_least=0)
        check_number(self.name, "tau", self.tau, at_least=1)
        check_number(self.name, "alpha", self.alpha, at_least=0, at_most=1)
        if self.norm not in NORMS:
            raise SettingError(f"{self.name}: norm={self.norm!r}; {nearest(str(self.norm), NORMS)}")
        self._check_negative()

    def needs(self) -> Needs:
        prompt = OtherPrompt(self.negative_prompt, self.negative_embeds)
        row = AddedRow(NEGATIVE, prompt=prompt, site_kind="joint")
        return Needs(rows=(row,), other_prompt=prompt, layout=True)

    def settings(self) -> dict[str, Any]:
        """Plain values; of embeddings the shapes alone, which cannot build it again."""
        shapes = {name: str(tuple(t.shape)) for name, t in (self.negative_embeds or {}).items()}
        return super().settings() | {"negative_embeds": shapes or None}

    def strength_at(self, index: int, total: int | None) -> float:
        if self.scale == 0 or self.alpha == 0:
            return 0.0
        return self.steps.strength(index, total)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        for site in sites:
            layout = layouts.get(site)
            if site.kind not in ("cross", "joint") or layout is None or layout.text is None:
                raise UnsupportedModelError(
                    f"{self.name} acts where image tokens attend to text; {site.path} does not, or "
                    "it is not known which of its tokens are text. Select other sites, such as "
                    "where='cross|joint'"
                )
        return sites

    def edit_qkv(self, call: AttentionCall) -> None:
        if call.site.kind != "joint":
            return
        own, shadowed = call.pick(kind=NEGATIVE), call.pick(branch="cond", kind="main")
        if not len(own):
            return
        image = _image_tokens(call)
        call.query = _with_tokens_of(call.query, own, shadowed, image)
        call.key = _with_tokens_of(call.key, own, shadowed, image)
        call.value = _with_tokens_of(call.value, own, shadowed, image)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        if call.site.kind == "cross":
            at, tokens = call.pick(branch="cond"), slice(None)
            if not len(at):
                return out
            return self._guided(call, out, at, tokens, self._cross_negative(call, at))
        own, shadowed = call.pick(kind=NEGATIVE), call.pick(branch="cond", kind="main")
        if not len(own):
            return out
        tokens = _image_tokens(call)
        guided = self._guided(call, out, shadowed, tokens, out[own][:, :, tokens])
        others = _others(call, own, shadowed)
        if not len(others):
            return guided
        # Added rows of other techniques have no negative row: theirs lies as far from them as
        # that of the conditional row lies from it.
        same = _same_item(call, others, shadowed)
        away = (out[shadowed] - out[own])[same][:, :, tokens]
        return self._guided(call, guided, others, tokens, out[others][:, :, tokens] - away)

    def _cross_negative(self, call: AttentionCall, at: Tensor) -> Tensor:
        """Answer of the negative text to the queries of the rows ``at``."""
        key, value, mask = call.other_keys()
        key, value = (t.expand(len(at), -1, -1, -1) for t in (key, value))
        return call.attend(call.query[at], key, value, mask)

    def _guided(
        self, call: AttentionCall, out: Tensor, at: Tensor, tokens: slice, negative: Tensor
    ) -> Tensor:
        """The output with the tokens of the rows ``at`` moved away from the negative answer."""
        edited = out[at]
        positive = out[at][:, :, tokens]  # no view of what is written below
        guided = normalised_guidance(
            positive, negative, self.scale * call.strength, self.tau, self.alpha, self.norm
        )
        edited[:, :, tokens] = on_heads(guided, positive, call.heads, out.shape[1])
        return out.index_copy(0, at, edited)

    def _check_negative(self) -> None:
        if not isinstance(self.negative_prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(
                f"{self.name}: negative_prompt={self.negative_prompt!r} must be one text; it holds "
                "for all prompts of a batch"
            )
        given: Any = self.negative_embeds
        if given is None:
            return
        if not (isinstance(given, Mapping) and given and all(map(_is_tensor, given.values()))):  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            raise SettingError(
                f"{self.name}: negative_embeds must be the denoiser's text arguments, such as "
                "{'encoder_hidden_states': tensor of (1, tokens, width)}"
            )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _image_tokens(call: AttentionCall) -> slice:
    """Everything but the text, which stands at one end; a reference picture is image too."""
    text = None if call.layout is None else call.layout.text
    if text is None:
        raise UnsupportedModelError(f"the text tokens of {call.site.path} are unknown")
    return slice(0, text.start) if text.start else slice(text.stop, None)


def _with_tokens_of(values: Tensor, at: Tensor, other: Tensor, tokens: slice) -> Tensor:
    """Give the batch entries ``at`` the tokens of the entries ``other``: ``(B, H, tokens, D)``."""
    mixed = values[at]
    mixed[:, :, tokens] = values[other][:, :, tokens]
    return values.index_copy(0, at, mixed)


def _same_item(call: AttentionCall, at: Tensor, among: Tensor) -> Tensor:
    """For each of the batch entries ``at``, the place in ``among`` that has the same item."""
    items = [call.rows[i // call.fold].item for i in among.tolist()]
    places = [items.index(call.rows[i // call.fold].item) for i in at.tolist()]
    return torch.tensor(places, device=at.device)


def _others(call: AttentionCall, own: Tensor, shadowed: Tensor) -> Tensor:
    """Conditional entries that are neither the pipeline's nor ours."""
    known = {*own.tolist(), *shadowed.tolist()}
    rest = [i for i in call.pick(branch="cond").tolist() if i not in known]
    return torch.tensor(rest, dtype=torch.long, device=own.device)
