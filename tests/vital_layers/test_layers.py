"""Sets of vital layers: files, the choice among layers, models that they do not fit."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from attnctl.errors import RecipeError, UnsupportedModelError
from attnctl.head_layers import Structure
from attnctl.sites import Site
from attnctl.vital_layers import VitalLayers, choose_layers, known_layers


def sites(count: int) -> list[Site]:
    return [Site("transformer", f"b.{i}.attn", "joint", layer=i, heads=2) for i in range(count)]


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    made = VitalLayers(
        model="some/model",
        structure=Structure(kind="joint", layers=4, heads=2),
        similarity="shapes",
        steps=15,
        seeds=(0, 1),
        layers=(1, 3),
        vitality=(0.1, 0.5, 0.0, 0.25),
    )
    path = made.save(tmp_path / "layers.yaml")
    assert VitalLayers.from_file(path) == made
    assert VitalLayers.parse(str(path)) == made
    assert path.read_text().startswith("version: 1\n")


def test_every_bundled_set_can_be_read_and_names_its_model() -> None:
    bundled = list((files("attnctl.vital_layers") / "sets").iterdir())
    assert bundled
    for file in bundled:
        found = VitalLayers.from_file(Path(str(file)))
        assert found.model == Path(file.name).stem
        assert found.structure is not None
        assert len(found.vitality) == found.structure.layers


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("layers: [0, 0]\n", "a layer is there twice"),
        ("version: 2\nlayers: [0]\n", "version"),
        ("layers: [0]\nlayer: 3\n", "layers.yaml:2:"),
        ("layers: [-1]\n", "greater than or equal to 0"),
        ("- 1\n", "no vital layers"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "layers.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=problem):
        VitalLayers.from_file(path)


def test_the_layers_that_matter_most_are_chosen() -> None:
    vitality = (0.1, 0.5, 0.0, 0.25)
    assert choose_layers(vitality, top=2) == (1, 3)
    assert choose_layers(vitality, threshold=0.1) == (0, 1, 3)
    assert choose_layers(vitality, threshold=0.9) == ()
    assert len(choose_layers(tuple(range(57)))) == 9


def test_a_set_of_another_model_is_refused() -> None:
    made = VitalLayers(
        model="a/one", structure=Structure(kind="joint", layers=4, heads=2), layers=(0,)
    )
    made.check(sites(4), "a/one")
    with pytest.raises(UnsupportedModelError, match="this model has 5 joint layers"):
        made.check(sites(5))
    with pytest.raises(UnsupportedModelError, match="this is 'b/two'"):
        made.check(sites(4), "b/two")
    with pytest.raises(UnsupportedModelError, match="no vital layers are known for 'b/two'"):
        known_layers("stable-flow", sites(4), "b/two")


def test_selectors_name_exactly_the_layers() -> None:
    chosen = VitalLayers(layers=(0, 2)).where().sites(sites(4))
    assert [site.layer for site in chosen] == [0, 2]
