"""Controls come from parameter records: their ranges are true, and their values survive."""

from __future__ import annotations

from typing import Any

import pytest

from attnctl import registry
from attnctl.errors import AttnctlError
from attnctl.ui.controls import controls_of, read_parameters, show_parameters

TECHNIQUES = [record.name for record in registry.list_techniques()]


def is_built(name: str, parameters: dict[str, Any]) -> bool:
    try:
        registry.build(name, parameters)
    except (AttnctlError, TypeError):
        return False
    return True


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if is_built(name, {})])
def test_the_ranges_that_controls_show_are_those_of_the_technique(name: str) -> None:
    for control in controls_of(name):
        if control.kind != "number":
            continue
        for bound, outside in ((control.low, -1), (control.high, 1)):
            if bound is None:
                continue
            as_given = int(bound) if control.whole else bound
            assert not is_built(name, {control.name: as_given + outside}), control
            is_open = f"{bound:g})" in control.help  # such as [0, 1)
            assert is_built(name, {control.name: as_given}) or is_open, control


def test_choices_are_read_from_the_text_and_accepted() -> None:
    controls = {control.name: control for control in controls_of("soft-pag")}
    assert controls["target"].choices == ("identity", "uniform", "query-mean")
    assert controls["scale"].low == 0
    assert (controls["strength"].low, controls["strength"].high) == (0, 1)
    assert controls["steps"].kind == "steps"
    assert controls["heads"].reads_files
    assert controls_of("attend-and-excite")[0].name == "subjects"


@pytest.mark.parametrize("name", [name for name in TECHNIQUES if is_built(name, {})])
def test_defaults_shown_in_controls_are_those_of_the_technique(name: str) -> None:
    controls = controls_of(name)
    read = read_parameters(name, {control.name: control.default for control in controls})
    assert registry.build(name, read).settings() == registry.build(name, {}).settings()
    assert all(control.help for control in controls)


def test_values_survive_a_round_through_the_controls() -> None:
    given: dict[str, Any] = {
        "subjects": ["circle", "square#2"],
        "steps": "0-50% ramp 1..0 cosine",
        "thresholds": {0: 0.05, "40%": 0.5},
        "resolution": [16, 24],
        "smoothing": False,
        "scale_factor": 4,
    }
    shown = show_parameters("attend-and-excite", given)
    assert read_parameters("attend-and-excite", shown) == given


@pytest.mark.parametrize(
    "wrong", [{"scale": "3"}, {"scale": True}, {"where": 3}, {"steps": None, "heads": 3}]
)
def test_a_control_takes_only_what_it_can_hold(wrong: dict[str, Any]) -> None:
    with pytest.raises(AttnctlError, match="soft-pag: "):
        read_parameters("soft-pag", wrong)
