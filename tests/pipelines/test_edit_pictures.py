"""Sizes at which models see pictures, and masks that follow them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from attnctl.errors import SettingError
from attnctl.pipelines.edit_pictures import (
    check_size,
    fit_mask,
    fit_picture,
    fitted_size,
    own_side,
    side_factor,
)
from tests.support.pipelines import build


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "pixart_alpha"])
@pytest.mark.parametrize("size", [(32, 32), (31, 33), (640, 480), (17, 1000), (4000, 2999)])
def test_a_fitted_size_suits_the_model_and_keeps_proportions(
    name: str, size: tuple[int, int]
) -> None:
    pipe = build(name)
    width, height = fitted_size(pipe, size)
    factor = side_factor(pipe)

    check_size(pipe, (width, height))
    assert width >= factor
    assert height >= factor
    if min(width, height) > 3 * factor:  # rounding to multiples matters less then
        assert width / height == pytest.approx(size[0] / size[1], rel=0.35)
        assert width * height <= 1.8 * own_side(pipe) ** 2


def test_positions_limit_the_longest_side() -> None:
    pipe = build("sd3")  # 16 patches of 2 cells of 2 pixels
    assert max(fitted_size(pipe, (4000, 100))) <= 16 * 2 * 2


def test_a_picture_of_the_models_size_is_not_touched() -> None:
    image = Image.new("RGB", (32, 32), "red")
    assert fitted_size(build("sd1"), image.size) == image.size
    assert fit_picture(image, image.size) is image


def test_picture_and_mask_are_cut_alike() -> None:
    values = np.zeros((60, 100), np.uint8)
    values[:, 50:] = 255
    picture, mask = Image.fromarray(values).convert("RGB"), Image.fromarray(values)
    size = (32, 32)
    shown = np.asarray(fit_picture(picture, size))[..., 0] >= 128
    white = np.asarray(fit_mask(mask, picture, size))

    assert set(np.unique(white)) == {0, 255}
    assert np.array_equal(shown, white == 255)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(SettingError, match="8 x 8 pixels and the picture 32 x 32"):
        fit_mask(Image.new("L", (8, 8)), Image.new("RGB", (32, 32)), (32, 32))


def test_a_size_that_the_model_does_not_take_names_the_nearest() -> None:
    with pytest.raises(SettingError, match="nearest: 32x40"):
        check_size(build("sd1"), (33, 41))
