import pytest

from attnctl.cli.technique_text import read_technique
from attnctl.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pag", {"pag": {}}),
        ("pag:", {"pag": {}}),
        ("soft-pag:scale=2.0,strength=1e-1", {"soft-pag": {"scale": 2.0, "strength": 0.1}}),
        ("a:n=3", {"a": {"n": 3}}),
        ("a:n=true,m=null", {"a": {"n": True, "m": None}}),
        (
            "attend-and-excite:subjects=circle+square,steps=0-50%",
            {"attend-and-excite": {"subjects": ["circle", "square"], "steps": "0-50%"}},
        ),
        ("a:subjects=2+5", {"a": {"subjects": [2, 5]}}),
        ("a:subjects=[red cat, frog]", {"a": {"subjects": ["red cat", "frog"]}}),
        ("a:thresholds={0: 0.05, 10: 0.5},n=1", {"a": {"thresholds": {0: 0.05, 10: 0.5}, "n": 1}}),
        ("a:steps=3,7,11,n=1", {"a": {"steps": "3,7,11", "n": 1}}),
        ("a:steps=every 5", {"a": {"steps": "every 5"}}),
        (
            "a:where=layers=3,heads=0+5,scale=2",
            {"a": {"where": "layers=3,heads=0+5", "scale": 2}},
        ),
        ("a:where=mid:self", {"a": {"where": "mid:self"}}),
        ('a:word="C++, really"', {"a": {"word": "C++, really"}}),
        ("a:x=1e+3", {"a": {"x": 1000.0}}),
    ],
)
def test_the_short_form_is_read(text, expected):
    assert read_technique(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":scale=2", "has no technique name"),
        ("pag:2.0", r"cannot read '2.0' .* write NAME:key=value"),
        ("pag:scale=1,scale=2", "gives 'scale' twice"),
    ],
)
def test_a_malformed_text_is_explained(text, message):
    with pytest.raises(RecipeError, match=message):
        read_technique(text)
