"""Selectors find exactly the sites that they name, and say what there is when they find none."""

from __future__ import annotations

import pytest

from attnctl import Where
from attnctl.errors import LayerNotFoundError, NoSiteError, WhereError
from attnctl.sites import Site

SITES = [
    Site("unet", "down_blocks.1.attn1", "self", "down", 0, 0, 0, 2),
    Site("unet", "down_blocks.1.attn2", "cross", "down", 1, 0, 0, 2),
    Site("unet", "down_blocks.10.attn1", "self", "down", 2, 1, 1, 4),
    Site("unet", "mid_block.attn1", "self", "mid", 3, 2, 1, 4),
    Site("unet", "mid_block.attn2", "cross", "mid", 4, 1, 1, 4),
    Site("unet", "up_blocks.0.attn1", "self", "up", 5, 3, 0, 2),
    Site("unet", "motion_modules.0.attn1", "temporal", "up", 6, 0, 0, 2),
    Site("transformer_2", "blocks.0.attn", "joint", "double", 0, 0, 0, 3),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", range(8)),
        ("self", (0, 2, 3, 5)),
        ("cross", (1, 4)),
        ("joint", (7,)),
        ("temporal", (6,)),
        ("mid:self", (3,)),
        ("mid , self", (3,)),
        ("down:cross|up:self", (1, 5)),
        ("layers=1", (2, 4)),
        ("self:layers=1-2", (2, 3)),
        ("index=0+6", (0, 6, 7)),
        ("level=1", (2, 3, 4)),
        ("down_blocks.1.attn1", (0,)),
        ("path=down_blocks.1.*", (0, 1)),
        ("path=*attn2", (1, 4)),
        ("denoiser=transformer_2", (7,)),
        ("self:heads=3|cross", (1, 4)),
    ],
)
def test_a_selector_matches_exactly_the_sites_it_names(text: str, expected: range) -> None:
    if "heads" in text:
        with pytest.raises(WhereError, match=r"head 3 of down_blocks\.1\.attn1.*2 heads \(0-1\)"):
            Where(text).sites(SITES)
        return
    assert Where(text).sites(SITES) == tuple(SITES[index] for index in expected)


def test_a_path_matches_exactly_and_not_by_its_beginning() -> None:
    with pytest.raises(LayerNotFoundError, match=r'"down_blocks\.1\.attn".*did you mean'):
        Where("path=down_blocks.1.attn").sites(SITES)
    assert [site.path for site in Where("path=down_blocks.1.*").sites(SITES)] == [
        "down_blocks.1.attn1",
        "down_blocks.1.attn2",
    ]


def test_a_missing_layer_gets_at_most_five_nearest_names() -> None:
    with pytest.raises(LayerNotFoundError) as caught:
        Where("down_blocks.2.attn1").sites(SITES)

    assert 1 <= str(caught.value).count("attn1'") + str(caught.value).count("attn2'") <= 5


def test_a_selector_without_a_match_shows_what_there_is() -> None:
    with pytest.raises(NoSiteError, match=r"2 cross \(layers 0-1\).*mid:self"):
        Where("mid:temporal").sites(SITES)


def test_heads_are_those_of_the_matching_alternative() -> None:
    where = Where("mid:heads=0+3|down:self|cross:heads=1")

    assert where.heads(SITES[3]) == (0, 3)
    assert where.heads(SITES[0]) is None
    assert where.heads(SITES[1]) == (1,)
    assert where.heads(SITES[4]) == (0, 1, 3)


def test_a_resolution_is_decided_when_the_grid_is_known() -> None:
    where = Where("self:res=16+8x12|mid")

    assert where.needs_grid
    assert where.allows_grid(SITES[0], 16, 16)
    assert where.allows_grid(SITES[0], 8, 12)
    assert not where.allows_grid(SITES[0], 12, 8)
    assert where.allows_grid(SITES[3], 5, 7)
    assert not Where("self").needs_grid


@pytest.mark.parametrize(
    "text",
    [
        "slef",
        "layers=a",
        "layers=",
        "res=big",
        "res=16x",
        "heads=-",
        "foo=3",
        "mid:sel",
        "level=1.5",
    ],
)
def test_a_malformed_selector_is_refused_when_it_is_made(text: str) -> None:
    with pytest.raises(WhereError, match=r"where=.*(did you mean|allowed|use)|unknown term"):
        Where(text)


@pytest.mark.parametrize("value", [None, 3, ["self"]])
def test_a_selector_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(WhereError, match="no selector"):
        Where(value)  # pyright: ignore[reportArgumentType]


def test_a_typo_gets_the_nearest_term() -> None:
    with pytest.raises(WhereError, match="did you mean 'cross'"):
        Where("down:crss")
