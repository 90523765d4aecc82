import numpy as np
import pytest
from PIL import Image

from attnctl.sheets import (
    CELL_PX,
    Cell,
    Row,
    colour_heat,
    draw_grid,
    draw_sheet,
    enlarge,
    overlay_heat,
)


def solid(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def test_small_pictures_are_enlarged_by_a_whole_factor_without_smoothing():
    dots = Image.fromarray(np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255)
    shown = enlarge(dots)
    assert shown.size == (192, 192)
    assert set(np.unique(np.asarray(shown))) == {0, 255}


def test_large_pictures_stay_as_they_are_when_enlarging():
    big = solid("red", (512, 512))
    assert enlarge(big) is big


def test_a_sheet_shows_every_picture_of_every_row():
    rows = [
        Row("plain", [Cell(solid("red")), Cell(solid("lime"))]),
        Row("steered", [Cell(solid("blue"))]),
    ]
    pixels = np.asarray(draw_sheet(rows, title="two rows")).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (pixels == colour).all(axis=1).sum() == CELL_PX * CELL_PX


def test_captions_are_written_in_green_and_red():
    cells = [
        Cell(solid("white"), "both objects", good=True),
        Cell(solid("white"), "no square", good=False),
    ]
    pixels = np.asarray(draw_sheet([Row("", cells)])).astype(int)
    greenish = (pixels[..., 1] - pixels[..., 0] > 60).any()
    reddish = (pixels[..., 0] - pixels[..., 1] > 60).any()
    assert greenish
    assert reddish


def test_a_very_long_caption_does_not_widen_the_sheet():
    short = draw_sheet([Row("", [Cell(solid("red"), "ok ok")])])
    long = draw_sheet([Row("", [Cell(solid("red"), "word " * 300 + "x" * 500)])])
    assert long.width == short.width


def test_a_grid_is_about_square():
    sheet = draw_grid([Cell(solid("red"))] * 9)
    assert sheet.width == pytest.approx(sheet.height, rel=0.1)


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        draw_sheet([Row("plain", [])])
    with pytest.raises(ValueError, match="at least one picture"):
        draw_grid([])


def test_heat_colours_follow_the_inferno_map():
    matplotlib = pytest.importorskip("matplotlib")
    ramp = np.linspace(0, 1, 256)[None]
    ours = np.asarray(colour_heat(ramp)).astype(int)
    theirs = (matplotlib.colormaps["inferno"](ramp)[..., :3] * 255).round().astype(int)
    assert abs(ours - theirs).max() <= 12


def test_heat_outside_the_range_is_clipped_and_nan_is_cold():
    image = colour_heat(np.array([[-1.0, 2.0, np.nan]]))
    assert [image.getpixel((x, 0)) for x in range(3)] == [(0, 0, 4), (252, 255, 164), (0, 0, 4)]


def test_a_heat_map_needs_two_axes():
    with pytest.raises(ValueError, match=r"two axes .* \(1, 2, 2\)"):
        colour_heat(np.zeros((1, 2, 2)))


def test_an_overlay_is_brightest_where_the_heat_is():
    heat = np.zeros((4, 4))
    heat[1, 2] = 1.0
    shown = np.asarray(overlay_heat(solid("grey"), heat)).sum(-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row // 16, column // 16) == (1, 2)
