"""SoftPAG and PAG: guidance away from a copy of the model whose attention is weakened."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AddedRow, AttentionCall, Needs, PredictionCall, RunStart
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.heads import HeadSet
from attnctl.ops.perturbation import (
    identity_output,
    image_block_output,
    mean_query_output,
    pull,
    uniform_output,
)
from attnctl.perturbed import PERTURBED
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

TARGETS = ("identity", "uniform", "query-mean")
Strengths = dict[Site, dict[int, float]]
FORMS = ("joint", "image-rows", "image-block")


@register("soft-pag")
@dataclass(frozen=True)
class SoftPAG(Technique):
    """Guide away from a weaker copy of the model: its attention is pulled to a trivial map.

    An added row repeats the conditional one with selected heads pulled towards the identity map;
    the prediction moves away from it: ``e + scale (cond - perturbed)``. With ``strength=1`` and
    all heads it is PAG.

    Attributes:
        scale: Weight of the guidance, from 0, unitless; 0 is off.
        strength: How far the map is pulled, in [0, 1]; 0 is off.
        where: Self- or joint attention to weaken; a model without a middle needs its own choice,
            such as ``joint,layers=7-9``.
        target: Map that it is pulled to: ``identity``, ``uniform`` or ``query-mean``.
        form: On joint attention: ``joint`` pulls all tokens, ``image-rows`` the image tokens only,
            ``image-block`` lets image tokens see themselves and the text (as diffusers does) and
            takes the identity as its target.
        adaptive_scale: Lowers the scale by this much for each of the 1000 training steps that lie
            behind, down to 0, as diffusers does; ``scale / 1000`` reaches 0 at the end, 0 keeps it.
        rescale: How far the standard deviation of the guided prediction is pulled back to that of
            the conditional one, in [0, 1]; the larger of this and the pipeline's own counts.
        heads: Heads to pull instead of ``where``, each with a strength of its own if it has one: a
            head set or its file, ``{layer: [head, ...]}`` or ``[(layer, head, strength), ...]``.
    """

    reference: ClassVar[str] = "Ahn et al., NeurIPS 2025, arXiv 2506.10978"
    edits_rows: ClassVar[str | None] = PERTURBED
    can_repeat: ClassVar[bool] = True

    scale: float = 3.0
    strength: float = 1.0
    where: Where = field(default=Where("mid:self"), kw_only=True)
    target: str = "identity"
    form: str = "joint"
    adaptive_scale: float = 0.0
    rescale: float = 0.0
    heads: HeadSet | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "scale", self.scale, at_least=0)
        check_number(self.name, "strength", self.strength, at_least=0, at_most=1)
        check_number(self.name, "adaptive_scale", self.adaptive_scale, at_least=0)
        check_number(self.name, "rescale", self.rescale, at_least=0, at_most=1)
        for name, allowed in (("target", TARGETS), ("form", FORMS)):
            value = getattr(self, name)
            if value not in allowed:
                raise SettingError(f"{self.name}: {name}={value!r}; {nearest(str(value), allowed)}")
        if self.form == "image-block" and self.target != "identity":
            raise SettingError(
                f"{self.name}: form='image-block' is a form of the identity map and has none for "
                f"target={self.target!r}; use form='joint' or 'image-rows', or target='identity'"
            )

        if self.heads is not None:
            object.__setattr__(self, "heads", HeadSet.parse(self.heads))
            if self.where != type(self).where:
                raise SettingError(
                    f"{self.name}: heads= names layers and heads; leave out where={self.where!s}"
                )

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "heads": None, **self.inlined()}

    def inlined(self) -> dict[str, Any]:
        return {} if self.heads is None else {"heads": self.heads.to_dict()}

    def select(self, sites: Sequence[Site], model: str) -> Where:
        if self.heads is None:
            self._refuse_cross(self.where.sites(sites))
            return self.where
        self.heads.check(sites, model)
        return self.heads.where(sites, self.strength)

    def _refuse_cross(self, chosen: Sequence[Site]) -> None:
        crossing = [site for site in chosen if site.kind == "cross"]
        if crossing:
            raise UnsupportedModelError(
                f"{self.name} weakens attention of tokens to themselves; {crossing[0].path} "
                "attends from image to text. Select other sites, such as where='mid:self'"
            )

    def begin(self, run: RunStart) -> Strengths | None:
        return None if self.heads is None else self.heads.strengths(run.sites, self.strength)

    def needs(self) -> Needs:
        return Needs(
            rows=(AddedRow(PERTURBED),), layout=self.form != "joint", guidance=self.rescale > 0
        )

    def strength_at(self, index: int, total: int | None) -> float:
        pulls = self.strength > 0 if self.heads is None else self.heads.acts(self.strength)
        if self.scale == 0 or not pulls:
            return 0.0
        return self.steps.strength(index, total)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        at = call.pick(kind=PERTURBED)
        if not len(at):
            return out
        weaker = out[at]
        rows = slice(None)
        if self.form != "joint" and call.layout is not None and call.layout.text is not None:
            rows = call.layout.image
        weaker[:, :, rows] = pull(
            weaker[:, :, rows], self._weak(call, at, rows), self._weights(call)
        )
        return out.index_copy(0, at, weaker)

    def edit_prediction(self, call: PredictionCall) -> None:
        if not call.has("cond", PERTURBED):
            return
        scale = max(0.0, self.scale - self.adaptive_scale * (1000 - call.step.timestep))
        away = call.get("cond").float() - call.get("cond", PERTURBED).float()
        call.add(call.strength * scale * away)
        call.rescale = max(call.rescale, self.rescale)

    def _weak(self, call: AttentionCall, at: Tensor, rows: slice) -> Tensor:
        """Output of the target map for the tokens ``rows`` of the added rows."""
        groups = call.query.shape[1] // call.key.shape[1]
        query = call.query[at]
        key, value = (t[at].repeat_interleave(groups, dim=1) for t in (call.key, call.value))
        mask = call.mask_of(at)
        layout = call.layout
        if self.form == "image-block" and layout is not None and layout.text is not None:
            return image_block_output(
                query, key, value, layout.image, layout.text, call.scale, mask
            )
        if self.target == "uniform":
            whole = uniform_output(value, mask)
        elif self.target == "query-mean":
            whole = mean_query_output(query[:, :, rows], key, value, mask, call.scale)
        else:
            whole = identity_output(value, mask)
        return whole if whole.shape[2] == 1 else whole[:, :, rows]

    def _weights(self, call: AttentionCall) -> Tensor | float:
        """Strength of each head; a number if all heads are selected."""
        if call.heads is None:
            return self.strength
        weights = torch.zeros(call.query.shape[1], device=call.query.device)
        weights[list(call.heads)] = self.strength
        for head, strength in (call.state or {}).get(call.site, {}).items():
            weights[head] = strength
        return weights


@register("pag")
@dataclass(frozen=True)
class PAG(SoftPAG):
    """Perturbed-attention guidance: SoftPAG at full strength, with the identity map.

    Attributes:
        strength: 1 is PAG; a smaller one is SoftPAG.
    """

    reference: ClassVar[str] = "Ahn et al., ECCV 2024, arXiv 2403.17377"
