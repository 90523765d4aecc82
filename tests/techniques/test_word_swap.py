"""WordSwap: the source's maps with the target's values, for conditional rows, until a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import Flatten, WordSwap
from attnctl.editing.features import FeatureStore
from attnctl.errors import FeatureError, UnsupportedModelError
from attnctl.techniques.recorders import AttentionRecorder
from tests.support.pipelines import build
from tests.techniques.clip_runs import FRAMES, Keep, clip, random_flow, video

SOURCE, TARGET = ["a cat"] * FRAMES, ["a frog"] * FRAMES


def recorded(pipe: Any, **changes: Any) -> tuple[FeatureStore, Tensor]:
    """Queries and keys of the source's cross-attention, and its latents."""
    store = FeatureStore()
    recorder = AttentionRecorder(store, where="cross")
    return store, clip(pipe, recorder, prompt=SOURCE, guidance_scale=1.0, **changes)


def test_features_of_the_same_prompt_change_no_bit() -> None:
    pipe = build("sd1")
    store, plain = recorded(pipe)
    swap = WordSwap(store, inject_until=1.0)
    assert torch.equal(clip(pipe, swap, prompt=SOURCE, guidance_scale=1.0), plain)
    assert not torch.equal(clip(pipe, swap, prompt=TARGET, guidance_scale=1.0), plain)


def test_conditional_rows_have_the_sources_map_and_the_targets_values() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe)
    kept, plain = Keep(where="cross"), Keep(where="cross")
    clip(pipe, WordSwap(store, inject_until=1), kept, prompt=TARGET)
    clip(pipe, plain, prompt=TARGET, steps=2)
    first = [pair for pair in kept.calls if pair[0].step.index == 0]
    assert first
    for call, out in first:
        query, key = (
            store.get(call.step.timestep, call.site.path, what) for what in ("query", "key")
        )
        probs = (query @ key.mT * call.scale).softmax(-1)
        assert torch.allclose(out[FRAMES:], probs @ call.value[FRAMES:], atol=1e-5)
    (call, out), (_, own) = first[0], plain.calls[0]
    assert torch.allclose(out[:FRAMES], own[:FRAMES], atol=1e-6)  # unconditional rows
    later = [call for call, _ in kept.calls if call.step.index == 1]
    assert not any(
        torch.equal(call.query[FRAMES:], store.get(call.step.timestep, call.site.path, "query"))
        for call in later
    )


def test_single_heads_alone_take_the_map_over() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe)
    where = "cross,layers=0"
    plain, kept = Keep(where=where), Keep(where=where)
    clip(pipe, plain, prompt=TARGET, steps=1, num_inference_steps=2)
    clip(pipe, WordSwap(store, where=f"{where},heads=1"), kept, prompt=TARGET)
    (_, own), (_, made) = plain.calls[0], kept.calls[0]
    assert torch.allclose(made[:, 0], own[:, 0], atol=1e-6)
    assert not torch.allclose(made[FRAMES:, 1], own[FRAMES:, 1], atol=1e-4)


def test_it_goes_with_flatten_and_off_changes_no_bit() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe)
    alone = clip(pipe, WordSwap(store), prompt=TARGET)
    both = clip(pipe, WordSwap(store), Flatten(random_flow()), prompt=TARGET)
    assert not torch.equal(both, alone)
    plain = clip(pipe, prompt=TARGET)
    for off in (WordSwap(), WordSwap(store, inject_until=0), WordSwap(store, steps="0-0")):
        assert torch.equal(clip(pipe, off, prompt=TARGET), plain)


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe)
    with pytest.raises(FeatureError, match="those of 3 frames, the run has 2"):
        clip(pipe, WordSwap(store), frames=2)
    with pytest.raises(UnsupportedModelError, match="self attention"):
        clip(pipe, WordSwap(store, where="self"))
    partial = FeatureStore()
    clip(pipe, AttentionRecorder(partial, where="cross,layers=0"))
    with pytest.raises(FeatureError, match=r"word-swap: the features lack"):
        clip(pipe, WordSwap(partial))


def test_animate_diff_exchanges_words_too() -> None:
    pipe, store = build("animatediff"), FeatureStore()
    recorder = AttentionRecorder(store, where="cross")
    plain = video(pipe, recorder, prompt="a cat", guidance_scale=1.0)
    swap = WordSwap(store, inject_until=1.0)
    assert torch.equal(video(pipe, swap, prompt="a cat", guidance_scale=1.0), plain)
    assert not torch.equal(video(pipe, swap, prompt="a frog", guidance_scale=1.0), plain)
