"""Re-ttention in pipelines: schedules, caches that never cross runs, other techniques beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler

import attnctl
from attnctl.techniques.rettention import Rettention
from tests.support.pipelines import build, generate
from tests.techniques.sparse_runs import SITES, SMALL, run_with_report, steered

PUBLISHED = {
    "pixart": (20, range(5), (5, 10, 15)),
    "hunyuan-dit": (50, range(10), range(10, 50, 5)),
    "cogvideox": (50, range(15), range(15, 50, 5)),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_published_schedules(model: str) -> None:
    total, first, refreshes = PUBLISHED[model]
    technique = Rettention.as_published(model, **SMALL)
    _, report = run_with_report(build("sd1"), [technique], steps=total)
    seen = {e.step: e.kernel for e in report.entries}
    assert set(range(total)) - set(seen) == set(first)
    assert [s for s, kernel in seen.items() if "sdpa-lse" in kernel] == list(refreshes)


def test_heun_counts_solver_steps() -> None:
    pipe = build("sd1")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    technique = Rettention(steps="always", refresh=3, **SMALL)
    _, report = run_with_report(pipe, [technique], steps=7)
    kinds = {(e.step, "sdpa-lse" in e.kernel) for e in report.entries}
    assert kinds == {(s, s % 3 == 0) for s in range(7)}


@pytest.mark.parametrize("name", SITES)
def test_every_family_runs_and_frozen_masks_change_the_picture(name: str) -> None:
    pipe = build(name)
    technique = Rettention(steps="always", refresh=2, where=SITES[name], **SMALL)
    out, report = run_with_report(pipe, [technique], steps=3)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, generate(pipe, steps=3))
    assert report.caches["re-ttention"].hits > 0


CHANGES: dict[str, dict[str, Any]] = {
    "resolution": {"height": 48, "width": 32},
    "batch": {"prompt": ["a cat", "a frog"]},
    "prompt": {"prompt": "a dog"},
    "guidance": {"guidance_scale": 1.0},
    "steps": {"steps": 5},
    "seed": {"seed": 4},
}


@pytest.mark.parametrize("change", [*CHANGES, "dtype"])
def test_no_run_meets_statistics_of_another(change: str) -> None:
    pipe = build("sd1")
    technique = Rettention(steps="always", **SMALL)
    with attnctl.attach(pipe, [technique]):
        first = generate(pipe, steps=4)
        if change == "dtype":
            pipe.to(torch.bfloat16)
        changed = generate(pipe, **{"steps": 4, **CHANGES.get(change, {})})
        pipe.to(torch.float32)
    fresh = build("sd1")
    if change == "dtype":
        fresh.to(torch.bfloat16)
    expected = steered(fresh, [technique], **{"steps": 4, **CHANGES.get(change, {})})
    assert torch.equal(changed, expected)
    assert first.shape != changed.shape or not torch.equal(first, changed)


def test_guidance_that_is_switched_off_in_a_run_misses() -> None:
    pipe = build("sd1")

    def stop_guiding(pipe: Any, index: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            pipe._guidance_scale = 1.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[1]
        return kwargs

    options = {
        "callback_on_step_end": stop_guiding,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    _, report = run_with_report(pipe, [Rettention(steps="always", **SMALL)], steps=5, **options)
    refreshes = sorted({e.step for e in report.entries if "sdpa-lse" in e.kernel})
    assert refreshes == [0, 2]


def test_statistics_on_the_cpu_serve_as_well() -> None:
    pipe = build("sd1")
    outs = [
        steered(pipe, [Rettention(steps="always", offload=offload, **SMALL)], steps=4)
        for offload in (False, True)
    ]
    assert torch.equal(*outs)


def test_added_rows_have_statistics_of_their_own() -> None:
    pipe = build("sd1")
    sparse = Rettention(steps="always", **SMALL)
    guided = attnctl.SoftPAG(scale=2.0, where="mid:self")
    out, report = run_with_report(pipe, [guided, sparse], steps=4)
    assert torch.isfinite(out).all()
    assert not torch.equal(out, steered(pipe, [sparse], steps=4))
    assert {e.step for e in report.entries if "sdpa-lse" in e.kernel} == {0}
    identity = attnctl.SoftPAG(scale=2.0, where="mid:self", strength=1e-9)
    close = steered(pipe, [identity, sparse], steps=4)
    assert torch.allclose(close, steered(pipe, [sparse], steps=4), atol=1e-3)


def test_it_serves_self_attention_beside_attend_and_excite_and_soft_pag() -> None:
    pipe = build("sd1")
    team = [
        attnctl.AttendAndExcite(["cat", "frog"], steps="0-2", where="cross", thresholds={}),
        attnctl.SoftPAG(scale=2.0, where="mid:self"),
        Rettention(steps="always", refresh=4, **SMALL),
    ]
    out, report = run_with_report(pipe, team, steps=4)
    assert torch.isfinite(out).all()
    main = [e for e in report.entries if e.pass_kind == "main"]
    served = {e.site: e.kernel for e in main if e.step == 2 and "re-ttention" in e.techniques}
    assert served
    assert all(site.endswith("attn1") for site in served)
    assert set(served.values()) <= {"cpu-gather", "masked-sdpa"}
    inside = {e.kernel for e in report.entries if e.pass_kind == "gradient" and "attn1" in e.site}
    assert inside == {"sdpa"}
    assert report.active_steps("attend-and-excite") == (0, 1)
    assert report.active_steps("soft-pag") == (0, 1, 2, 3)


def test_losses_may_read_where_it_acts_on_joint_attention() -> None:
    pipe = build("sd3")
    exciting = attnctl.AttendAndExcite([[1]], where="joint", steps="0-1", thresholds={})
    technique = Rettention(steps="always", where="joint", **SMALL)
    out, report = run_with_report(pipe, [exciting, technique], steps=3)
    assert torch.isfinite(out).all()
    assert report.losses


def test_heat_maps_read_its_map_on_joint_attention() -> None:
    pipe = build("sd3")
    team = [Rettention(steps="always", where="joint", growth=0.0, **SMALL), attnctl.HeatMaps()]
    with attnctl.attach(pipe, team) as session:
        generate(pipe, steps=3)
        assert session.maps is not None


def test_euler_gives_the_same_twice() -> None:
    pipe = build("sd1")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    technique = Rettention(steps="always", **SMALL)
    assert torch.equal(*(steered(pipe, [technique], steps=4) for _ in range(2)))
