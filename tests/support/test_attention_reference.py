"""The plain loops agree with torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.support.attention_reference import (
    attention_loop,
    log_sum_exp_loop,
    loop_error,
    probability_loop,
    score_loop,
)

MASKS = {
    "no mask": None,
    "bool": torch.arange(7) != torch.arange(5)[:, None],
    "bias": torch.linspace(-3.0, 3.0, 35).reshape(5, 7),
    "per head": torch.arange(2 * 2 * 5 * 7).reshape(2, 2, 5, 7) % 3 != 0,
}


def tokens() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    sizes = ((5, 4), (7, 4), (7, 3))
    query, key, value = (torch.randn(2, 2, *size, generator=generator) for size in sizes)
    return query, key, value


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_loops_agree_with_torch_in_float64(name: str, scale: float | None) -> None:
    query, key, value = tokens()
    mask = MASKS[name]
    wide = mask if mask is None or mask.dtype == torch.bool else mask.double()
    doubles = (part.double() for part in (query, key, value))
    expected = scaled_dot_product_attention(*doubles, attn_mask=wide, scale=scale)

    torch.testing.assert_close(attention_loop(query, key, value, mask, scale), expected)
    scores = score_loop(query, key, mask, scale)
    torch.testing.assert_close(log_sum_exp_loop(query, key, mask, scale), scores.logsumexp(-1))
    torch.testing.assert_close(probability_loop(query, key, mask, scale), scores.softmax(-1))


def test_a_query_without_an_allowed_key_gives_zero() -> None:
    query, key, value = tokens()
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[2] = False

    assert not attention_loop(query, key, value, mask)[:, :, 2].any()
    assert log_sum_exp_loop(query, key, mask)[:, :, 2].isneginf().all()
    assert loop_error(query, key, value, mask) < 1e-6


def test_loop_error_is_that_of_the_inputs_own_type() -> None:
    query, key, value = tokens()

    assert 0.0 < loop_error(query, key, value) < 1e-6
    assert loop_error(query.bfloat16(), key.bfloat16(), value.bfloat16()) > 1e-4
