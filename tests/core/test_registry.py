"""Techniques by name: ours, a user's, and those of other packages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

import attnctl
from attnctl import Technique
from attnctl.errors import (
    UnknownParameterError,
    UnknownTechniqueError,
    WhereError,
)
from attnctl.registry import build as build_technique
from attnctl.registry import find_technique, register, techniques


def test_a_registered_technique_is_built_from_plain_values() -> None:
    @register("test-blend")
    @dataclass(frozen=True)
    class Blend(Technique):
        """Blend maps.

        Attributes:
            amount: How much.
        """

        amount: float = 0.5

    try:
        made = build_technique("test-blend", {"amount": 0.25, "steps": "0-50%", "where": "mid"})
        assert made == Blend(amount=0.25, steps=attnctl.until(0.5), where=attnctl.Where("mid"))
        assert made.settings() == {"steps": "0-50%", "where": "mid", "amount": 0.25}
        assert type(made).from_settings(made.settings()) == made
        with pytest.raises(UnknownParameterError, match="did you mean 'amount'"):
            build_technique("test-blend", {"amout": 1})
        with pytest.raises(UnknownTechniqueError, match="did you mean 'test-blend'"):
            find_technique("test-blnd")
        with pytest.raises(WhereError):
            build_technique("test-blend", {"where": "middle"})
    finally:
        from attnctl import registry

        registry._registered.pop("test-blend")


class Point:
    """An entry point of another package."""

    name = "others-technique"

    def load(self) -> type[Technique]:
        class Others(Technique):
            """Another package's technique."""

        return Others


def test_a_technique_of_another_package_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from attnctl import registry

    def points(*, group: str) -> Sequence[Point]:
        return [Point()] if group == "attnctl.techniques" else []

    monkeypatch.setattr(registry, "entry_points", points)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    found = techniques()["others-technique"]

    assert found.name == "others-technique"
    assert find_technique("others-technique") is found
    assert "others-technique" in [record.name for record in attnctl.list_techniques()]


@pytest.mark.parametrize("name", techniques())
def test_settings_of_every_technique_build_it_again(name: str) -> None:
    technique = find_technique(name)()

    assert type(technique).from_settings(technique.settings()) == technique
    assert technique.name == name
