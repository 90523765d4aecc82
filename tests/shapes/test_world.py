"""The renderer: repeatable, in range, objects inside their boxes."""

import pytest
import torch

from attnctl.shapes import (
    LARGE_VOCABULARY,
    SMALL_VOCABULARY,
    SceneBatch,
    Vocabulary,
    WorldSettings,
    draw_scenes,
    render,
)
from attnctl.shapes.distances import DISTANCES, signed_distance


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_same_seed_gives_the_same_pictures() -> None:
    first, second = render(draw_scenes(20, seeded(1))), render(draw_scenes(20, seeded(1)))
    assert torch.equal(first, second)
    assert not torch.equal(first, render(draw_scenes(20, seeded(2))))


def test_batch_equals_singles() -> None:
    scenes = draw_scenes(12, seeded(3), WorldSettings(vocabulary=LARGE_VOCABULARY))
    whole = render(scenes)
    singles = torch.cat([render(scenes.select(torch.tensor([row]))) for row in range(12)])
    assert torch.equal(whole, singles)


def test_pictures_are_rgb_in_the_unit_range() -> None:
    pictures = render(draw_scenes(50, seeded(4)))
    assert pictures.shape == (50, 3, 64, 64)
    assert pictures.dtype == torch.float32
    assert pictures.min() >= 0
    assert pictures.max() <= 1


@pytest.mark.parametrize("size", [32, 64, 128])
def test_boxes_stay_inside_the_picture_and_apart(size: int) -> None:
    scenes = draw_scenes(200, seeded(5), WorldSettings(size_px=size))
    for row in range(200):
        boxes = [thing.box for thing in scenes.scene(row).objects]
        for box in boxes:
            assert 0 <= box[0] < box[2] <= size
            assert 0 <= box[1] < box[3] <= size
        for number, a in enumerate(boxes):
            for b in boxes[number + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_colour_stays_inside_the_boxes() -> None:
    scenes = draw_scenes(30, seeded(6), WorldSettings(vocabulary=LARGE_VOCABULARY))
    pictures = render(scenes)
    chroma = pictures.amax(1) - pictures.amin(1)
    for row in range(30):
        for thing in scenes.scene(row).objects:
            left, top, right, bottom = (round(edge) for edge in thing.box)
            assert chroma[row, top:bottom, left:right].max() > 0.3
            chroma[row, max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = 0
    # One pixel of anti-aliasing may reach over a box that ends inside it.
    assert chroma.max() < 0.1


def test_objects_of_one_scene_are_all_different() -> None:
    scenes = draw_scenes(200, seeded(7))
    for row in range(200):
        names = [thing.name for thing in scenes.scene(row).objects]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("shape", list(DISTANCES))
def test_shapes_fill_their_unit_box_and_no_more(shape: str) -> None:
    grid = torch.linspace(-1.3, 1.3, 261)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    inside = signed_distance(shape, x, y) < 0
    assert inside.any()
    assert max(x[inside].abs().max(), y[inside].abs().max()) <= 1.001
    assert max(x[inside].abs().max(), y[inside].abs().max()) > 0.85


def test_joined_batches_render_like_their_parts() -> None:
    first, second = draw_scenes(3, seeded(8)), draw_scenes(4, seeded(9))
    joined = SceneBatch.join([first, second])
    assert len(joined) == 7
    assert torch.equal(render(joined), torch.cat([render(first), render(second)]))


def test_turned_objects_change_the_picture() -> None:
    scenes = draw_scenes(
        4,
        seeded(10),
        WorldSettings(vocabulary=Vocabulary(("red",), ("square", "cross", "triangle"))),
    )
    before = render(scenes)
    scenes.angle.fill_(0.5)
    assert not torch.allclose(before, render(scenes))


def test_unknown_words_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="beige"):
        Vocabulary(("beige",), SMALL_VOCABULARY.shapes)
    with pytest.raises(ValueError, match="hexagon"):
        signed_distance("hexagon", torch.zeros(1), torch.zeros(1))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="16 pixels"):
        WorldSettings(size_px=8)
    with pytest.raises(ValueError, match="radius_ranges"):
        WorldSettings(radius_ranges=((0.2, 0.1),) * 3)
    with pytest.raises(ValueError, match="at least one"):
        draw_scenes(0, seeded(1))
