"""Sets of vital layers, in files that say where they come from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from attnctl.errors import LayerNotFoundError, RecipeError, UnsupportedModelError
from attnctl.files import write_text
from attnctl.head_layers import STRICT, Structure
from attnctl.recipes import explain
from attnctl.sites import Site
from attnctl.where import Where
from attnctl.yaml_files import Place, read_yaml, write_yaml

USUAL_SHARE = 9 / 57
"""Share of vital layers among those of FLUX.1-dev, in the released code."""

Layer = Annotated[int, Field(ge=0)]


class VitalLayers(BaseModel):
    """Vital layers of a model, and what the search measured.

    ``model`` and ``structure`` are compared with the model that the set is used with; the other
    fields are for people.

    Attributes:
        version: Version of the format.
        model: Bundled name, folder or hub id of the model.
        structure: The model's joint layers and their heads.
        similarity: What compared the pictures.
        steps: Denoising steps in the search.
        guidance: Classifier-free guidance in the search.
        seeds: Seeds of the pictures.
        threshold: Least vitality that was asked for, if it was.
        layers: The vital layers, ascending.
        vitality: Of every layer, ``1 - mean similarity``; empty if the set was not searched.
    """

    model_config = STRICT

    version: Literal[1] = 1
    model: str | None = None
    structure: Structure | None = None
    similarity: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seeds: Annotated[tuple[int, ...], Field(strict=False)] = ()
    threshold: float | None = None
    layers: Annotated[tuple[Layer, ...], Field(strict=False)]
    vitality: Annotated[tuple[float, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _has_no_doubles(self) -> VitalLayers:
        if len(set(self.layers)) != len(self.layers):
            raise PydanticCustomError("layers", "a layer is there twice")
        return self

    @classmethod
    def parse(cls, value: Any) -> VitalLayers:
        """Take a set as it is, or read one: a file, the values of one, numbers, ``"0-1+17"``.

        Raises:
            RecipeError: it is none of these; the message lists everything that is wrong.
        """
        if isinstance(value, VitalLayers):
            return value
        if isinstance(value, Mapping):
            return cls._checked(dict(value), "layers", {})
        if isinstance(value, str) and set(value) <= set("0123456789+- "):
            return cls._checked({"layers": _numbers(value)}, "layers", {})
        if isinstance(value, str | os.PathLike):
            return cls.from_file(value)
        if isinstance(value, int) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, Sequence):
            return cls._checked({"layers": list(value)}, "layers", {})
        raise RecipeError(
            f"layers={value!r:.200} is no set of layers; give numbers such as [0, 1, 17], or the "
            "file that attnctl vital-layers wrote"
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> VitalLayers:
        """Read the YAML file of a set.

        Raises:
            RecipeError: listing everything that is wrong, each with ``file:line:``.
        """
        values, lines = read_yaml(Path(path))
        if not isinstance(values, Mapping):
            raise RecipeError(f"{os.fspath(path)}: no vital layers; it needs `layers: [0, 1, 17]`")
        return cls._checked(dict(values), os.fspath(path), lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set as YAML; :meth:`from_file` reads an equal one."""
        values = self.model_dump(mode="json", exclude_none=True)
        kept = {n: v for n, v in values.items() if v != []}
        return write_text(path, write_yaml({**kept, "layers": list(self.layers)}))

    def check(self, sites: Sequence[Site], model: str = "") -> None:
        """Refuse a model that the set does not fit.

        Args:
            sites: Every joint attention site of the model.
            model: Its name, if it is known.

        Raises:
            UnsupportedModelError: the set was made for another model.
            LayerNotFoundError: a layer is not there.
        """
        here = Structure.of(sites)
        made_for = f"these vital layers were found for {self.model or 'a model'}"
        if self.structure is not None and self.structure != here:
            raise UnsupportedModelError(
                f"{made_for} with {self.structure}; this model has {here}. Find its own with "
                "attnctl vital-layers"
            )
        if self.model and model and Path(self.model).name != Path(model).name:
            raise UnsupportedModelError(
                f"{made_for}, this is {model!r}; find its own with attnctl vital-layers, or delete "
                "`model:` from the file if they are to be used all the same"
            )
        missing = [layer for layer in self.layers if layer >= here.layers]
        if missing:
            raise LayerNotFoundError(
                f"no joint layer {missing[0]}; this model has layers 0 to {here.layers - 1}"
            )

    def where(self) -> Where:
        """Write the selector of exactly these layers."""
        numbers = "+".join(map(str, self.layers))
        return Where(f"joint,layers={numbers}" if numbers else "joint")  # without layers it is off

    @classmethod
    def _checked(cls, values: dict[str, Any], name: str, lines: Mapping[Place, int]) -> VitalLayers:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(explain(error, cls, name, lines)) from None


FLUX = VitalLayers(
    structure=Structure(kind="joint", layers=57, heads=24),
    layers=(0, 1, 17, 18, 25, 28, 53, 54, 56),
)
"""FLUX.1, from the released code of Stable Flow."""


def known_layers(technique: str, sites: Sequence[Site], model: str) -> VitalLayers:
    """Vital layers that are known for a model: FLUX.1's by its structure, others by name.

    Raises:
        UnsupportedModelError: none are known.
    """
    if Structure.of(sites) == FLUX.structure:
        return FLUX
    file = files("attnctl.vital_layers") / "sets" / f"{Path(model).name or 'unnamed'}.yaml"
    if file.is_file():
        return VitalLayers.from_file(Path(str(file)))
    raise UnsupportedModelError(
        f"{technique}: no vital layers are known for {repr(model) if model else 'this model'} with "
        f"{Structure.of(sites)}; find them with `attnctl vital-layers --model ...` and give the "
        "file, or give layers=[...]"
    )


def choose_layers(
    vitality: Sequence[float], top: int | None = None, threshold: float | None = None
) -> tuple[int, ...]:
    """Choose the layers whose absence changes pictures most.

    Args:
        vitality: Of every layer.
        top: So many layers; without ``threshold`` by default the share of FLUX.1, 9 of 57.
        threshold: All layers of at least this vitality.

    Source: arXiv 2411.14430, section 3.1; neither number is in the released code.
    """
    order = sorted(range(len(vitality)), key=lambda layer: (-vitality[layer], layer))
    if threshold is not None:
        order = [layer for layer in order if vitality[layer] >= threshold]
    elif top is None:
        top = math.ceil(USUAL_SHARE * len(vitality))
    return tuple(sorted(order[:top]))


def _numbers(text: str) -> list[Any]:
    found: list[Any] = []
    for part in text.replace(" ", "").split("+"):
        first, is_range, last = part.partition("-")
        if not first.isdigit() or (is_range and not last.isdigit()):
            return [text]
        found += range(int(first), int(last if is_range else first) + 1)
    return found
