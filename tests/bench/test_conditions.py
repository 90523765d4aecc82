"""What -t and --recipe become, and which words become subjects."""

import pytest

from attnctl.bench.conditions import (
    PLAIN,
    Condition,
    boxes_of,
    groups_of,
    read_conditions,
    subjects_of,
)
from attnctl.errors import SettingError
from attnctl.shapes import ObjectKind, prompts

TWO = [ObjectKind("red", "circle"), ObjectKind("blue", "circle")]


def test_subjects_are_nouns_colours_or_both():
    kinds = [ObjectKind("red", "circle"), ObjectKind("blue", "square")]
    assert subjects_of(kinds) == ["circle", "square"]
    assert subjects_of(kinds, "colour") == ["red", "blue"]
    assert subjects_of(kinds, "both") == ["red", "circle", "blue", "square"]


def test_a_noun_that_occurs_twice_is_numbered():
    assert subjects_of(TWO) == ["circle", "circle#2"]
    assert subjects_of(TWO, "both") == ["red", "circle", "blue", "circle#2"]


def test_plain_comes_first_and_every_value_is_a_condition():
    given = ["attend-and-excite:scale_factor=20", "attend-and-excite:scale_factor=100"]
    assert [c.name for c in read_conditions(given, [])] == [PLAIN, *given]


def test_each_prompt_gets_its_own_subjects():
    [_, condition] = read_conditions(["attend-and-excite:subject=colour,scale_factor=3"], [])
    asked = prompts("tuning", 2, 3)
    [entry] = condition.entries(asked)
    parameters = entry["attend-and-excite"]
    assert parameters["scale_factor"] == 3
    assert parameters["subjects"] == [[kind.colour for kind in p.objects] for p in asked]


def test_each_prompt_gets_its_own_groups():
    [_, condition] = read_conditions(["attention-modulation:mask=false"], [])
    asked = prompts("tuning", 2, 3)
    [entry] = condition.entries(asked)
    listed = [[f"{kind.colour} {kind.shape}" for kind in p.objects] for p in asked]
    assert entry["attention-modulation"] == {"mask": False, "groups": listed}
    assert groups_of([TWO[0], TWO[0]]) == ["red circle", "red circle#2"]
    given = Condition("one", (("attention-modulation", {"groups": ["red circle"]}),))
    assert given.entries(asked)[0]["attention-modulation"] == {"groups": ["red circle"]}


def test_each_object_gets_a_region_of_its_own_where_a_technique_confines_words():
    [_, condition] = read_conditions(["region-words:steps=0-50%"], [])
    asked = prompts("tuning", 3, 2)
    filled = condition.entries(asked)[0]["region-words"]
    assert filled["words"] == [[str(kind) for kind in p.objects] for p in asked]
    assert filled["regions"] == boxes_of(3)
    assert filled["steps"] == "0-50%"
    given = Condition("one", (("region-words", {"words": ["red"], "region": [0, 0, 1, 1]}),))
    assert given.entries(asked) == [{"region-words": {"words": ["red"], "region": [0, 0, 1, 1]}}]


def test_each_object_gets_a_box_of_its_own_where_a_technique_takes_boxes():
    [_, condition] = read_conditions(["bounded-attention:clusters=2"], [])
    asked = prompts("tuning", 3, 2)
    filled = condition.entries(asked)[0]["bounded-attention"]
    assert filled["subjects"] == [[str(kind) for kind in p.objects] for p in asked]
    for boxes in filled["boxes"]:
        edges = [edge for left, _, right, _ in boxes for edge in (left, right)]
        assert edges == sorted(edges)
        assert edges[0] > 0
        assert edges[-1] < 1


def test_given_subjects_are_kept():
    [_, condition] = read_conditions(["attend-and-excite:subjects=[3]"], [])
    [entry] = condition.entries(prompts("tuning", 2, 3))
    assert entry["attend-and-excite"]["subjects"] == [3]


def test_a_technique_without_subjects_gets_none():
    [_, condition] = read_conditions(["heat-maps"], [])
    assert condition.entries(prompts("tuning", 1, 2)) == [{"heat-maps": {}}]


def test_a_recipe_is_a_condition_with_all_its_techniques(tmp_path):
    recipe = tmp_path / "two.yaml"
    recipe.write_text("prompt: x\ntechniques:\n  - attend-and-excite\n  - heat-maps\n")
    [_, condition] = read_conditions([], [recipe])
    assert condition.name == "two"
    assert [name for name, _ in condition.techniques] == ["attend-and-excite", "heat-maps"]
    assert condition.to_plain()["subject"] == "noun"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["attend-and-excit"], "did you mean 'attend-and-excite'"),
        (["attend-and-excite:scale=3"], "or 'scale_factor'"),
        (["attend-and-excite:subject=verb"], "allowed: 'both', 'colour', 'noun'"),
        (["heat-maps:subject=noun"], "no parameter 'subject'"),
        (["heat-maps", "heat-maps"], "two conditions are called 'heat-maps'"),
        (["attend-and-excite:scale_factor=-1"], "scale_factor"),
    ],
)
def test_a_wrong_condition_is_refused_before_anything_is_loaded(texts, message):
    with pytest.raises(SettingError, match=message):
        read_conditions(texts, [])


def test_a_recipe_without_techniques_is_refused(tmp_path):
    recipe = tmp_path / "none.yaml"
    recipe.write_text("prompt: x\n")
    with pytest.raises(SettingError, match="has no techniques"):
        read_conditions([], [recipe])


def test_names_make_file_names():
    assert (
        Condition("attend-and-excite:scale_factor=20").slug == "attend-and-excite-scale-factor-20"
    )
