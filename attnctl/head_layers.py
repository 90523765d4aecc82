"""Layers of a model as head sets name them, and whether a head set fits a model.

A layer is named by its path, or by its number: the one that ``layers=`` of a selector counts, among
the joint layers of a model that has any, else among its self-attention layers. In FLUX.1 numbers
0 to 18 are the double and 19 to 56 the single blocks. ``attnctl inspect MODEL`` shows both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from attnctl.errors import LayerNotFoundError, UnsupportedModelError, WhereError, nearest
from attnctl.sites import Site

if TYPE_CHECKING:
    from attnctl.heads import ChosenHead, HeadSet

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def numbered_kind(sites: Sequence[Site]) -> Literal["joint", "self"]:
    """Kind of the layers that numbers count."""
    return "joint" if any(site.kind == "joint" for site in sites) else "self"


def numbered_layers(sites: Sequence[Site]) -> list[Site]:
    """The layers that numbers count, in their order; for the sites of one denoiser."""
    kind = numbered_kind(sites)
    return sorted((site for site in sites if site.kind == kind), key=lambda site: site.layer)


class Structure(BaseModel):
    """The numbered layers of a model: what tells whether a head set can be meant for it.

    Attributes:
        kind: ``joint`` or ``self``.
        layers: How many there are.
        heads: Heads of each of them; one number if all have the same.
    """

    model_config = STRICT

    kind: Literal["joint", "self"]
    layers: Annotated[int, Field(ge=0)]
    heads: int | Annotated[tuple[int, ...], Field(strict=False)]

    @classmethod
    def of(cls, sites: Sequence[Site]) -> Structure:
        """Structure of one denoiser."""
        layers = numbered_layers(sites)
        heads = tuple(site.heads for site in layers)
        return cls(
            kind=numbered_kind(sites),
            layers=len(layers),
            heads=heads[0] if len(set(heads)) == 1 else heads,
        )

    def __str__(self) -> str:
        heads = self.heads if isinstance(self.heads, int) else "+".join(map(str, self.heads))
        return f"{self.layers} {self.kind} layers of {heads} heads"


def check_model(chosen: HeadSet, sites: Sequence[Site], model: str) -> None:
    """Refuse a model that a head set was not made for.

    Raises:
        UnsupportedModelError: its structure or its name is another.
    """
    here = [
        Structure.of([site for site in sites if site.denoiser == name])
        for name in dict.fromkeys(site.denoiser for site in sites)
    ]
    made_for = "the head set was made for " + (repr(chosen.model) if chosen.model else "a model")
    if chosen.structure is not None and chosen.structure not in here:
        raise UnsupportedModelError(
            f"{made_for} with {chosen.structure}; this model has {' and '.join(map(str, here))}"
        )
    if chosen.model and model and Path(chosen.model).name != Path(model).name:
        raise UnsupportedModelError(
            f"{made_for}, this is {model!r}, and heads mean something else in another model; if "
            "they are to be used all the same, delete `model:` from the head set"
        )


def check_heads(heads: Sequence[ChosenHead], sites: Sequence[Site]) -> None:
    """Refuse heads that a model does not have.

    Raises:
        LayerNotFoundError: a layer is not there.
        UnsupportedModelError: a layer attends from image to text.
        WhereError: a head is not there, or is given two strengths.
    """
    numbered = numbered_kind(sites)
    strengths: dict[tuple[Site, int], float | None] = {}
    for one in heads:
        found = [site for site in sites if one.is_at(site, numbered)]
        if not found:
            raise LayerNotFoundError(_explain_no_layer(one, sites))
        for site in found:
            _check_head(one, site, numbered)
            if strengths.setdefault((site, one.head), one.strength) != one.strength:
                raise WhereError(f"heads: {one} is there twice, with different strengths; keep one")


def _check_head(one: ChosenHead, site: Site, numbered: str) -> None:
    if site.kind == "cross":
        raise UnsupportedModelError(
            f"heads: {site.path} attends from image to text; name layers that attend to themselves"
        )
    if one.layer is not None and (site.kind, site.layer) != (numbered, one.layer):
        raise LayerNotFoundError(
            f"heads: {site.path} is {site.kind} layer {site.layer} of this model, not {numbered} "
            f"layer {one.layer}; the head set was made for another model"
        )
    if one.head >= site.heads:
        heads = f"heads 0 to {site.heads - 1}" if site.heads else "an unknown number of heads"
        raise WhereError(
            f"heads: no head {one.head} in layer {site.layer} ({site.path}); it has {heads}"
        )


def _explain_no_layer(one: ChosenHead, sites: Sequence[Site]) -> str:
    if one.path is not None:
        known = [site.path for site in sites if site.kind != "cross"]
        return f'heads: no attention layer "{one.path}"; {nearest(one.path, known)}'
    kind = numbered_kind(sites)
    last = max((site.layer for site in sites if site.kind == kind), default=-1)
    return f"heads: no layer {one.layer}; this model has {kind} layers 0 to {last}"
