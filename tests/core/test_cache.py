"""The run cache: what fits, what misses, what is dropped and when, and what the report says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnctl
from attnctl.calls import AttentionCall, Layout, Pass, Row, Step
from attnctl.engine.cache import SiteCache
from attnctl.report import Report
from attnctl.sites import Site
from attnctl.techniques import rettention
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.sparse_runs import SMALL, run_with_report

ROWS = (Row("uncond", 0), Row("cond", 0))


def made_call(
    *, rows: tuple[Row, ...] = ROWS, tokens: int = 4, path: str = "a", owner: str = "x",
    kind: str = "main", dtype: torch.dtype = torch.float32, index: int = 0,
) -> AttentionCall:  # fmt: skip
    tensor = torch.zeros(len(rows), 1, tokens, 2, dtype=dtype)
    return AttentionCall(
        Site("unet", path, "self"),
        Layout((1, 1, tokens), slice(0, tokens)),
        Step(index, 10),
        Pass(kind, 0, rows),  # type: ignore[arg-type]
        tensor,
        tensor,
        tensor,
        None,
        1.0,
        owner=owner,
    )


def kept(cache: SiteCache, call: AttentionCall) -> torch.Tensor:
    tensor = torch.full((len(call.rows), 1, call.query.shape[2]), 7.0)
    cache.put(call, {"mass": tensor})
    return tensor


def test_an_entry_comes_back_at_its_site_rows_and_technique() -> None:
    cache = SiteCache(Report())
    tensor = kept(cache, made_call())
    entry = cache.get(made_call(index=3))
    assert entry is not None
    assert torch.equal(entry.tensors["mass"], tensor)


@pytest.mark.parametrize(
    "other",
    [
        {"path": "b"},
        {"owner": "y"},
        {"kind": "extra"},
        {"rows": (Row("cond", 0),)},
        {"rows": (Row("cond", 0), Row("uncond", 0))},
        {"rows": (*ROWS, Row("cond", 0, "perturbed", "soft-pag"))},
        {"rows": (Row("uncond", 1), Row("cond", 1))},
    ],
)
def test_other_sites_rows_and_techniques_miss_and_leave_the_entry(other: dict[str, Any]) -> None:
    cache = SiteCache(Report())
    kept(cache, made_call())
    assert cache.get(made_call(**other)) is None
    assert cache.get(made_call()) is not None


@pytest.mark.parametrize("other", [{"tokens": 5}, {"dtype": torch.bfloat16}])
def test_another_form_misses_and_drops_the_entry(other: dict[str, Any]) -> None:
    cache = SiteCache(Report())
    kept(cache, made_call())
    assert cache.get(made_call(**other)) is None
    assert cache.get(made_call()) is None


def test_an_entry_replaces_those_that_share_a_row_with_it() -> None:
    report = Report()
    cache = SiteCache(report)
    kept(cache, made_call())
    kept(cache, made_call(rows=(Row("cond", 0),)))
    assert cache.get(made_call()) is None
    kept(cache, made_call(rows=(Row("uncond", 0),)))
    assert cache.get(made_call(rows=(Row("cond", 0),))) is not None
    assert report.caches["x"].peak_entries == 2


def test_tensors_are_kept_without_their_graph() -> None:
    cache = SiteCache(Report())
    entry = cache.put(made_call(), {"mass": torch.ones(2, requires_grad=True) * 2})
    assert not entry.tensors["mass"].requires_grad


def test_second_evaluations_of_a_step_are_not_counted() -> None:
    entry = SiteCache(Report()).put(made_call(index=5), {})
    assert [entry.steps_before(i) for i in (6, 6, 7, 7, 9)] == [0, 0, 1, 1, 2]


def test_the_report_tells_memory_hits_and_misses() -> None:
    report = Report()
    cache = SiteCache(report)
    cache.get(made_call())
    kept(cache, made_call(tokens=1024))
    kept(cache, made_call(tokens=1024, path="b"))
    cache.get(made_call(tokens=1024))
    use = report.caches["x"]
    assert (use.peak_entries, use.peak_bytes, use.hits, use.misses) == (2, 2 * 2 * 1024 * 4, 1, 1)
    assert "cache of x: at most 2 entries, 0.02 MiB on cpu; 1 hits, 1 misses" in str(report)
    assert report.to_dict()["caches"]["x"]["peak_bytes"] == use.peak_bytes


def test_out_of_memory_names_the_technique_and_offload_and_frees_the_cache() -> None:
    cache = SiteCache(Report())
    kept(cache, made_call())
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"re-ttention.*offload=True"),
        cache.explained_memory("re-ttention"),
    ):
        raise torch.OutOfMemoryError("tried to allocate 4 GiB")
    assert cache.get(made_call()) is None


def test_a_run_that_is_out_of_memory_leaves_the_pipeline_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("sd1")
    plain, before = generate(pipe, steps=3), fingerprint(pipe)

    def fail(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 4 GiB")

    technique = attnctl.Rettention(steps="always", **SMALL)
    with attnctl.attach(pipe, [technique]) as session:
        expected = generate(pipe, steps=3)
        with monkeypatch.context() as patch:
            patch.setattr(rettention, "sparse_refresh", fail)
            with pytest.raises(torch.OutOfMemoryError, match="offload=True"):
                generate(pipe, steps=3)
        assert torch.equal(generate(pipe, steps=3), expected)
        assert session.report().caches["re-ttention"].misses > 0
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe, steps=3), plain)


@pytest.mark.parametrize(("steps", "is_left"), [("0-2", False), ("always", True)])
def test_entries_are_dropped_when_the_window_ends(steps: str, is_left: bool) -> None:
    pipe = build("sd1")
    seen: list[int] = []

    def count(_pipe: Any, index: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        run = session._control.runs._run
        seen.append(0 if run is None else len(run.cache._entries))
        return kwargs

    with attnctl.attach(pipe, [attnctl.Rettention(steps=steps, **SMALL)]) as session:
        generate(pipe, steps=4, callback_on_step_end=count)
    assert seen[0] > 0
    assert (seen[2] > 0) == is_left


def test_no_entry_outlives_its_run() -> None:
    pipe = build("sd1")
    caches: list[SiteCache] = []

    class Spy(attnctl.Rettention):
        def attend_sparsely(self, call: AttentionCall, cache: SiteCache) -> torch.Tensor:
            caches.append(cache)
            return super().attend_sparsely(call, cache)

    _, report = run_with_report(pipe, [Spy(steps="always", **SMALL)], steps=3)
    assert report.caches["re-ttention"].peak_entries > 0
    assert caches[-1].labels() == set()
