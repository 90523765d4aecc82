"""Re-ttention where guidance is two calls of the denoiser: each branch keeps its own statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl.calls import AttentionCall
from attnctl.engine.cache import Entry, SiteCache
from tests.support.pipelines import build, generate
from tests.techniques.sparse_runs import SITES, SMALL

GUIDED: dict[str, dict[str, Any]] = {
    "wan": {"guidance_scale": 4.0, "negative_prompt": "a blue dog"},
    "flux": {"true_cfg_scale": 4.0, "negative_prompt": "a blue dog"},
}
STEPS = 5
REFRESH = 3


def watched(pipe: Any, name: str, **changes: Any) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Run it and note where every statistic that a sparse step used was measured.

    Returns:
        Final latents, and for every use the branch and step of the use and those of the measure.
    """
    measured: dict[int, tuple[str, int]] = {}
    uses: list[tuple[Any, ...]] = []

    class Spy(attnctl.Rettention):
        def _refresh(self, call: AttentionCall, cache: SiteCache) -> Tensor:
            out = super()._refresh(call, cache)
            entry = cache.get(call)
            assert entry is not None
            measured[id(entry)] = (call.rows[0].branch, call.step.index)
            return out

        def _reuse(self, call: AttentionCall, entry: Entry) -> Tensor:
            uses.append((call.rows[0].branch, call.step.index, *measured[id(entry)]))
            return super()._reuse(call, entry)

    spy = Spy(steps="always", refresh=REFRESH, where=SITES[name], **SMALL)
    with attnctl.attach(pipe, [spy]):
        return generate(pipe, steps=STEPS, **changes), uses


@pytest.mark.parametrize("name", GUIDED)
def test_separate_calls_never_mix_their_statistics(name: str) -> None:
    _, uses = watched(build(name), name, **GUIDED[name])
    assert {use[0] for use in uses} == {"cond", "uncond"}
    for branch, step, own_branch, own_step in uses:
        assert branch == own_branch
        assert own_step == step - step % REFRESH < step
    both = [{use[1] for use in uses if use[0] == branch} for branch in ("cond", "uncond")]
    assert both[0] == both[1] == {1, 2, 4}


@pytest.mark.parametrize("name", GUIDED)
def test_each_branch_equals_a_run_that_has_no_other(name: str) -> None:
    """Two equal prompts guide nothing, whatever the weight: the run without guidance."""
    pipe, prompt = build(name), "a cat and a frog"
    guided, uses = watched(pipe, name, prompt=prompt, **GUIDED[name] | {"negative_prompt": prompt})
    assert {use[0] for use in uses} == {"cond", "uncond"}
    off = "true_cfg_scale" if name == "flux" else "guidance_scale"
    alone, uses = watched(pipe, name, prompt=prompt, **{off: 1.0})
    assert {use[0] for use in uses} == {"cond"}
    assert torch.allclose(guided, alone, atol=1e-4)


@pytest.mark.parametrize("name", GUIDED)
def test_the_weight_of_guidance_and_the_other_prompt_may_change_between_runs(name: str) -> None:
    pipe = build(name)
    technique = attnctl.Rettention(steps="always", refresh=REFRESH, where=SITES[name], **SMALL)
    run: Callable[..., Tensor] = lambda one, **more: generate(one, steps=4, **more)  # noqa: E731
    off = "true_cfg_scale" if name == "flux" else "guidance_scale"
    other = GUIDED[name] | {"negative_prompt": "a photo"}
    changes = [GUIDED[name], other, {off: 1.0}, GUIDED[name]]
    with attnctl.attach(pipe, [technique]):
        together = [run(pipe, **change) for change in changes]
    for out, change in zip(together, changes, strict=True):
        fresh = build(name)
        with attnctl.attach(fresh, [technique]):
            assert torch.equal(out, run(fresh, **change))
    assert not torch.equal(together[0], together[1])
