"""Attention maps: what goes in comes out at its place, by word, item, step, layer and head."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from attnctl.errors import LayerNotFoundError, SettingError, WordNotFoundError
from attnctl.maps import AttentionMaps
from attnctl.tokens import PromptTokens
from tests.support.pipelines.text import clip_tokenizer, t5_tokenizer

UP, DOWN = "up_blocks.1.attn2", "down_blocks.0.attn2"
TOKENS = 77


def prompt(text: str) -> PromptTokens:
    tokenizer = clip_tokenizer()
    ids = tokenizer(text, padding="max_length", max_length=TOKENS).input_ids
    return PromptTokens.from_ids(tokenizer, ids)


CAT = prompt("a red cat and a cat")  # a 1, red 2, cat 3, and 4, a 5, cat 6


def random_columns(heads: int, cells: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(heads, cells, TOKENS, generator=generator).softmax(-1)


def filled(**kept: bool) -> AttentionMaps:
    """Two layers of different size and head count, three steps, one item."""
    maps = AttentionMaps([CAT], **kept)
    for step in range(3):
        maps.add(0, DOWN, step, (4, 6), random_columns(3, 24, step))
        maps.add(0, UP, step, (2, 3), random_columns(5, 6, 10 + step))
    return maps


def test_a_word_map_has_the_largest_grid_and_runs_from_zero_to_one() -> None:
    heat = filled().word("red")
    assert heat.shape == (4, 6)
    assert heat.dtype == torch.float32
    assert (heat.min(), heat.max()) == (0, 1)


def test_the_mean_over_layers_counts_heads() -> None:
    got = filled().raw("red")
    down = torch.stack([random_columns(3, 24, s) for s in range(3)]).double()[..., 2]
    up = torch.stack([random_columns(5, 6, 10 + s) for s in range(3)]).double()[..., 2]
    small = up.mean(dim=(0, 1)).reshape(1, 1, 2, 3)
    large = torch.nn.functional.interpolate(small, (4, 6), mode="bicubic", align_corners=False)
    expected = (3 * down.mean(dim=(0, 1)).reshape(4, 6) + 5 * large[0, 0].clamp_min(0)) / 8
    assert (got - expected).abs().max() < 1e-6


def test_all_tokens_sum_to_one_in_each_cell() -> None:
    maps = filled()
    total = sum(maps.token(p, layers=DOWN, absolute=True) for p in range(TOKENS))
    assert (torch.as_tensor(total) - 1).abs().max() < 1e-5


def test_uniform_attention_gives_zero_everywhere() -> None:
    maps = AttentionMaps([CAT])
    maps.add(0, DOWN, 0, (4, 6), torch.full((2, 24, TOKENS), 1 / TOKENS))
    maps.add(0, UP, 0, (3, 3), torch.full((2, 9, TOKENS), 1 / TOKENS))
    assert (maps.word("cat") == 0).all()
    assert (maps.word("cat", absolute=True) - 1 / TOKENS).abs().max() < 1e-6


def test_a_single_peak_stays_at_its_place() -> None:
    maps = AttentionMaps([CAT])
    columns = torch.zeros(2, 6, TOKENS)
    columns[:, 4, 2] = 1.0  # row 1, column 1 of (2, 3)
    maps.add(0, UP, 0, (2, 3), columns)
    maps.add(0, DOWN, 0, (16, 24), torch.zeros(1, 384, TOKENS))
    heat = maps.word("red")
    row, column = divmod(int(heat.argmax()), 24)
    assert (row // 8, column // 8) == (1, 1)


def test_a_word_is_the_mean_of_its_tokens_and_occurrences() -> None:
    maps = filled()
    both = (maps.raw("cat#1") + maps.raw("cat#2")) / 2
    assert (maps.raw("cat") - both).abs().max() < 1e-7
    phrase = (maps.raw("red") + maps.raw("cat#1")) / 2
    assert (maps.raw("red cat") - phrase).abs().max() < 1e-7


def test_another_run_of_the_same_prompt_adds_up() -> None:
    once, twice = filled(), filled()
    twice.begin([CAT])
    for step in range(3):
        twice.add(0, DOWN, step, (4, 6), random_columns(3, 24, step))
        twice.add(0, UP, step, (2, 3), random_columns(5, 6, 10 + step))
    assert (twice.raw("cat") - once.raw("cat")).abs().max() < 1e-6
    sums = [maps.raw("cat", per_call=False) for maps in (once, twice)]
    assert (sums[1] - 2 * sums[0]).abs().max() < 1e-5
    assert (once.calls, twice.calls) == (6, 12)


def test_another_prompt_clears() -> None:
    maps = filled()
    maps.begin([prompt("a frog")])
    assert maps.calls == 0
    with pytest.raises(SettingError, match="no maps yet"):
        maps.word("frog")


def test_items_are_kept_apart() -> None:
    maps = AttentionMaps([CAT, prompt("a frog")])
    maps.add(0, DOWN, 0, (2, 2), random_columns(2, 4, 0))
    maps.add(1, DOWN, 0, (2, 2), random_columns(2, 4, 1))
    expected = random_columns(2, 4, 1).mean(0)[:, 2].reshape(2, 2)
    assert torch.equal(maps.raw("frog", item=1), expected)
    assert maps.tokens(1)[1:3] == ["a</w>", "frog</w>"]
    with pytest.raises(WordNotFoundError, match=r"'frog' is not in the prompt.*'cat</w>'"):
        maps.word("frog", item=0)
    with pytest.raises(SettingError, match="item 2 does not exist; this run has items 0 to 1"):
        maps.word("frog", item=2)


def test_layers_are_chosen_by_name_or_glob() -> None:
    maps = filled()
    down = maps.raw("red", layers=DOWN)
    assert torch.equal(maps.raw("red", layers="down_blocks.*"), down)
    assert torch.equal(maps.raw("red", layers=[DOWN]), down)
    assert maps.raw("red", layers=UP).shape == (4, 6)
    assert maps.layers == [DOWN, UP]
    with pytest.raises(LayerNotFoundError, match=r"no layer 'down_blocks'.*down_blocks.0.attn2"):
        maps.word("red", layers="down_blocks")


def test_steps_are_chosen_by_a_window_without_its_end() -> None:
    maps = filled(keep_steps=True)
    expected = torch.stack([random_columns(3, 24, s) for s in (1, 2)]).mean(dim=(0, 1))[:, 2]
    got = maps.raw("red", layers=DOWN, steps=(1, 3)).flatten()
    assert (got - expected).abs().max() < 1e-7
    with pytest.raises(SettingError, match=r"no step in \(3, 9\).*steps 0 to 2"):
        maps.word("red", steps=(3, 9))


def test_heads_are_chosen_by_number() -> None:
    maps = filled(keep_heads=True)
    stacked = torch.stack([random_columns(3, 24, s) for s in range(3)]).mean(0)[..., 2]
    got = maps.raw("red", layers=DOWN, heads=[0, 2]).flatten()
    assert (got - stacked[[0, 2]].mean(0)).abs().max() < 1e-7
    assert (maps.raw("red") - filled().raw("red")).abs().max() < 1e-7
    with pytest.raises(SettingError, match=r"heads \[3\]: 'down_blocks.0.attn2' has heads 0 to 2"):
        maps.word("red", heads=3)


def test_what_was_not_kept_names_its_option() -> None:
    with pytest.raises(SettingError, match="keep_steps=True"):
        filled().word("red", steps=(0, 1))
    with pytest.raises(SettingError, match="keep_heads=True"):
        filled().word("red", heads=0)


def test_normalised_words_compete_in_each_cell() -> None:
    maps = filled()
    words = ["a#1", "red", "cat#1", "and", "a#2", "cat#2"]
    total = sum(maps.word(word, normalize=True, absolute=True) for word in words)
    assert (torch.as_tensor(total) - 1).abs().max() < 1e-3


def test_frames_of_a_video_are_averaged_or_chosen() -> None:
    maps = AttentionMaps([CAT])
    columns = random_columns(2, 3 * 4, 0)
    maps.add(0, DOWN, 0, (3, 2, 2), columns)
    cells = columns.mean(0)[:, 2].reshape(3, 2, 2)
    assert (maps.raw("red", frame=1) - cells[1]).abs().max() < 1e-7
    assert (maps.raw("red") - cells.mean(0)).abs().max() < 1e-7
    with pytest.raises(SettingError, match="frames 0 to 2"):
        maps.word("red", frame=3)


def test_a_position_offset_is_taken_off() -> None:
    tokenizer = t5_tokenizer()
    tokens = PromptTokens.from_text(tokenizer, "a red cat", "text_encoder_3", 77, 16)
    maps = AttentionMaps([tokens])
    columns = torch.rand(1, 4, 16)
    maps.add(0, "joint", 0, (2, 2), columns)
    assert torch.equal(maps.raw("red"), columns[0, :, 1].reshape(2, 2))
    assert torch.equal(maps.token(78, absolute=True), columns[0, :, 1].reshape(2, 2))
    with pytest.raises(SettingError, match=r"position 3 has no map.*77 to 92"):
        maps.token(3)


def test_columns_added_later_do_not_change_what_was_given() -> None:
    columns = random_columns(1, 4)
    kept = columns.clone()
    maps = AttentionMaps([CAT], keep_heads=True, keep_steps=True)
    for step in range(3):
        maps.add(0, DOWN, step, (2, 2), columns)
    assert torch.equal(columns, kept)
    assert (maps.raw("red", steps=(0, 1)) - maps.raw("red")).abs().max() < 1e-7


def test_half_precision_is_summed_in_float32_without_gradients() -> None:
    columns = random_columns(2, 4).half().requires_grad_()
    maps = AttentionMaps([CAT])
    for step in range(500):
        maps.add(0, DOWN, step, (2, 2), columns)
    expected = columns.detach().double().mean(0)[:, 2].reshape(2, 2)
    heat = maps.raw("red")
    assert not heat.requires_grad
    assert ((heat - expected).abs() / expected).max() < 1e-4


def test_wrong_columns_are_refused() -> None:
    maps = AttentionMaps([CAT])
    with pytest.raises(SettingError, match=r"24 cells of \(4, 6\)"):
        maps.add(0, DOWN, 0, (4, 6), random_columns(2, 23))
    maps.add(0, DOWN, 0, (2, 2), random_columns(2, 4))
    with pytest.raises(SettingError, match="2 heads and 77 tokens before, now 3 and 77"):
        maps.add(0, DOWN, 1, (2, 2), random_columns(3, 4))


def test_without_a_prompt_only_positions_can_be_asked_for() -> None:
    maps = AttentionMaps([None])
    maps.add(0, DOWN, 0, (2, 2), random_columns(2, 4))
    assert maps.token(2).shape == (2, 2)
    with pytest.raises(WordNotFoundError, match=r"use token\(position\)"):
        maps.word("cat")


def test_an_overlay_has_the_size_of_the_picture() -> None:
    picture: Any = Image.new("RGB", (40, 30), (200, 100, 50))
    shown = filled().overlay(picture, "cat", alpha=0.5)
    assert (shown.size, shown.mode) == ((40, 30), "RGB")
    assert shown.tobytes() != picture.tobytes()
    assert repr(filled()) == "AttentionMaps(1 items, 2 layers, 6 calls)"
