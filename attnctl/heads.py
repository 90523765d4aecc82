"""Head sets: which heads a technique acts on, in a file that says where they come from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from attnctl.errors import RecipeError, SettingError, nearest
from attnctl.files import write_text
from attnctl.head_layers import STRICT, Structure, check_heads, check_model, numbered_kind
from attnctl.recipes import explain
from attnctl.sites import Site
from attnctl.where import Where
from attnctl.yaml_files import Place, read_yaml, write_yaml


class ChosenHead(BaseModel):
    """One attention head.

    Attributes:
        layer: Number of its layer; :mod:`attnctl.head_layers` says what is counted.
        path: Path of the attention module; with ``layer``, both must name the same one.
        head: Number of the head in its layer, from 0.
        strength: How far this head is pulled, in [0, 1]; ``None``: as far as the technique says.
        score: What the search measured when it chose the head.
    """

    model_config = STRICT

    layer: Annotated[int, Field(ge=0)] | None = None
    path: Annotated[str, Field(min_length=1)] | None = None
    head: Annotated[int, Field(ge=0)]
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    score: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: object) -> object:
        """Accept ``(layer, head)`` and ``(layer, head, strength)``; a layer may be a path."""
        if isinstance(value, list | tuple):
            items: list[Any] = list(value)
            if len(items) not in (2, 3):
                raise PydanticCustomError("head", "a head is (layer, head) or (layer, head, u)")
            place, head, *rest = items
            read: dict[str, Any] = {"path" if isinstance(place, str) else "layer": place}
            return {**read, "head": head, "strength": rest[0] if rest else None}
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    found = {"key": repr(key), "hint": nearest(str(key), cls.model_fields)}
                    raise PydanticCustomError("head", "unknown key {key}; {hint}", found)
        return value

    @model_validator(mode="after")
    def _has_layer(self) -> ChosenHead:
        if self.layer is None and self.path is None:
            raise PydanticCustomError("head", "a head needs the number or the path of its layer")
        return self

    def is_at(self, site: Site, numbered: str) -> bool:
        """Whether this head belongs to a site; ``numbered`` is the kind that numbers count."""
        if self.path is not None:
            return site.path == self.path
        return site.kind == numbered and site.layer == self.layer

    def __str__(self) -> str:
        names = [f"layer {self.layer}"] if self.layer is not None else []
        names += [f"({self.path})" if names else str(self.path)] if self.path else []
        return f"{' '.join(names)} head {self.head}"


def _without_repeats(value: object) -> object:
    """Keep the first of heads that are written the same way."""
    if not isinstance(value, list | tuple):
        return value
    kept: list[Any] = []
    for one in value:
        if one not in kept:
            kept.append(one)
    return tuple(kept)


class HeadSet(BaseModel):
    """Attention heads in the order in which they were chosen; a beginning is a smaller set.

    Everything but ``heads`` tells where the set comes from. ``model`` and ``structure`` are
    compared with the model that the set is used with; the other fields are for people.

    Attributes:
        version: Version of the format.
        model: Bundled name, folder or hub id of the model.
        structure: The model's numbered layers and their heads.
        objective: What the search scored.
        scale: Guidance weight in the search.
        strength: How far heads were pulled in the search, in [0, 1].
        target: Map that they were pulled to.
        form: Form of joint attention.
        steps: Denoising steps in the search.
        guidance: Classifier-free guidance in the search.
        seeds: Seeds of the pictures that were scored.
        heads: The heads, best first.
    """

    model_config = STRICT

    version: Literal[1] = 1
    model: str | None = None
    structure: Structure | None = None
    objective: str | None = None
    scale: float | None = None
    strength: Annotated[float, Field(ge=0, le=1)] | None = None
    target: str | None = None
    form: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seeds: Annotated[tuple[int, ...], Field(strict=False)] = ()
    heads: Annotated[tuple[ChosenHead, ...], Field(strict=False), BeforeValidator(_without_repeats)]

    @classmethod
    def parse(cls, value: Any) -> HeadSet:
        """Take a head set as it is, or read one.

        Args:
            value: A head set; the path of its file; the values of such a file; a mapping from
                layers to heads, ``{7: [3, 5]}`` or ``{7: {3: 0.5}}`` with strengths; or a sequence
                of ``(layer, head)`` and ``(layer, head, strength)``.

        Raises:
            RecipeError: it is none of these; the message lists everything that is wrong.
        """
        if isinstance(value, HeadSet):
            return value
        if isinstance(value, str | os.PathLike):
            return cls.from_file(value)
        if isinstance(value, Mapping):
            return cls.from_dict(value if "heads" in value else {"heads": _listed(value)})
        if isinstance(value, Sequence):
            return cls.from_dict({"heads": value})
        raise RecipeError(
            f"heads={value!r:.200} is no head set; give a file, {{layer: [head, ...]}} or "
            "[(layer, head), ...]"
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, name: str = "heads") -> HeadSet:
        """Check the values of a file.

        Raises:
            RecipeError: listing everything that is wrong, one a line.
        """
        return cls._checked(dict(values), name, {})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> HeadSet:
        """Read the YAML file of a head set.

        Raises:
            RecipeError: listing everything that is wrong, each with ``file:line:``.
        """
        values, lines = read_yaml(Path(path))
        if not isinstance(values, Mapping):
            raise RecipeError(
                f"{os.fspath(path)}: no head set; it needs at least `heads: [[7, 3]]`"
            )
        return cls._checked(dict(values), os.fspath(path), lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set as YAML; :meth:`from_file` reads an equal one."""
        return write_text(path, write_yaml(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values of everything that is set."""
        values = self.model_dump(mode="json", exclude_none=True)
        return {name: value for name, value in values.items() if name != "seeds" or value}

    def first(self, count: int) -> HeadSet:
        """Make the set of the ``count`` heads that were chosen first.

        Raises:
            SettingError: the set has fewer heads.
        """
        if not 0 <= count <= len(self.heads):
            raise SettingError(f"first({count}): the set has {len(self.heads)} heads")
        return self.model_copy(update={"heads": self.heads[:count]})

    def check(self, sites: Sequence[Site], model: str = "") -> None:
        """Refuse a model that the set does not fit.

        Args:
            sites: Every attention site of the model.
            model: Its name, if it is known.

        Raises:
            UnsupportedModelError: the set was made for another model.
            LayerNotFoundError: a layer is not there.
            WhereError: a head is not there, or is given two strengths.
        """
        check_model(self, sites, model)
        check_heads(self.heads, sites)

    def strengths(self, sites: Sequence[Site], default: float) -> dict[Site, dict[int, float]]:
        """How far each head is pulled, by site and head; heads at 0 are left out.

        Args:
            sites: Sites that :meth:`check` has accepted, or those of them that hold these heads.
            default: Strength of heads without one of their own.
        """
        numbered = numbered_kind(sites)
        found: dict[Site, dict[int, float]] = {}
        for one in self.heads:
            strength = default if one.strength is None else one.strength
            for site in sites:
                if strength and one.is_at(site, numbered):
                    found.setdefault(site, {})[one.head] = strength
        return found

    def acts(self, default: float) -> bool:
        """Whether any head is pulled at all."""
        return any(default if one.strength is None else one.strength for one in self.heads)

    def where(self, sites: Sequence[Site], default: float) -> Where:
        """Write the selector of exactly these heads; arguments as for :meth:`strengths`."""
        terms = [
            f"denoiser={site.denoiser},path={site.path},heads={'+'.join(map(str, sorted(heads)))}"
            for site, heads in self.strengths(sites, default).items()
        ]
        return Where("|".join(terms) or "self|joint")  # without heads the technique is off

    def __repr__(self) -> str:
        origin = f" of {self.model}" if self.model else ""
        return f"<HeadSet: {', '.join(map(str, self.heads)) or 'no heads'}{origin}>"

    __str__ = __repr__

    def __len__(self) -> int:
        return len(self.heads)

    @classmethod
    def _checked(cls, values: dict[str, Any], name: str, lines: Mapping[Place, int]) -> HeadSet:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(explain(error, cls, name, lines)) from None


def _listed(layers: Mapping[Any, Any]) -> list[Any]:
    """Turn ``{7: [3, 5], 9: {0: 0.5}, 11: 2}`` into a list of heads."""
    listed: list[Any] = []
    for layer, heads in layers.items():
        if isinstance(heads, Mapping):
            listed += [(layer, head, strength) for head, strength in heads.items()]
        else:
            listed += [
                (layer, head) for head in (heads if isinstance(heads, list | tuple) else [heads])
            ]
    return listed
