"""Attention sites: every module with a processor, in the order in which they run."""

from __future__ import annotations

import pytest
import torch

from attnctl import attach
from attnctl.families import find_family
from attnctl.sites import attention_modules, find_sites, is_compiled, unwrapped
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS, family_names
from tests.support.pipelines import build, generate

# Parts of paths where text is alone with itself, or sound or faces come in: meant by no technique.
NO_SITES = {
    "hunyuan_video": ("context_embedder.",),
    "hunyuan_video15": ("context_embedder.",),
    "framepack": ("context_embedder.",),
    "ltx2": ("audio_", "_audio"),
    "wan_animate": ("face_adapter.",),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_every_attention_module_of_a_denoiser_is_a_site(name: str) -> None:
    model = DENOISERS[name].build()
    sites = find_sites("denoiser", model, find_family(model))
    outside = NO_SITES.get(name, ())
    modules = [
        path for path, _ in attention_modules(model) if not any(part in path for part in outside)
    ]

    assert sites.keys() == set(modules)
    assert sites
    assert [site.index for site in sites.values()] == list(range(len(sites)))


# GLIGEN runs its gated layer between the two others, but defines it behind them.
# Sana's self-attention is linear: no technique can stand there.
IN_ORDER = [name for name in family_names() if name not in ("sd1_gligen", "sana")]


@pytest.mark.parametrize("name", IN_ORDER)
def test_sites_of_a_known_family_stand_in_the_order_in_which_they_run(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    watch = Watch()
    with attach(model, watch) as session:
        entry.run(model)
        known = [site.path for site in session.sites]

    seen = [call.site.path for call in watch.seen]
    motion = [path for path in known if "motion_modules" in path]
    if motion:  # temporal and spatial modules of a block take turns
        stages = [call.site.stage for call in watch.seen]
        assert stages == sorted(stages, key=["down", "mid", "up"].index)
        assert sorted(seen) == sorted(known)
    else:
        assert list(dict.fromkeys(seen)) == known  # Mochi makes one call a row


@pytest.mark.parametrize("name", family_names())
def test_heads_of_a_known_family_are_those_of_the_call(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    watch = Watch(where="cross" if name == "sana" else "all")
    with attach(model, watch):
        entry.run(model)

    assert all(call.query.shape[1] == call.site.heads for call in watch.seen)


def test_a_unet_has_cross_attention_where_its_text_comes_in() -> None:
    pipe = build("sd1_deep")
    with attach(pipe, []) as session:
        sites = session.sites

    assert [s.stage for s in sites if s.kind == "cross"] == [
        *["down"] * 3,
        "mid",
        *["up"] * 6,
    ]
    assert [s.level for s in sites if s.kind == "cross"] == [0, 1, 2, 2, 2, 2, 1, 1, 0, 0]
    assert [s.layer for s in sites if s.kind == "self"] == list(range(10))


def test_each_denoiser_of_a_pipeline_has_its_sites() -> None:
    with attach(build("wan22"), []) as session:
        found = {site.denoiser for site in session.sites}

    assert found == {"transformer", "transformer_2"}


def test_sites_of_the_denoiser_that_does_not_run_are_not_called() -> None:
    watch = Watch()
    with attach(build("wan22"), watch) as session:
        generate(session._control.pipe, steps=3)  # pyright: ignore[reportPrivateUsage]

    by_step = {call.step.index: set[str]() for call in watch.seen}
    for call in watch.seen:
        by_step[call.step.index].add(call.site.denoiser)
    assert by_step == {0: {"transformer"}, 1: {"transformer_2"}, 2: {"transformer_2"}} or (
        all(len(names) == 1 for names in by_step.values())
        and set().union(*by_step.values()) == {"transformer", "transformer_2"}
    )


@pytest.mark.compile
def test_a_compiled_model_is_seen_through() -> None:
    model = DENOISERS["sd1"].build()
    compiled = torch.compile(model, backend="eager")

    assert unwrapped(compiled) is model  # pyright: ignore[reportArgumentType]
    assert is_compiled(compiled)  # pyright: ignore[reportArgumentType]
    assert not is_compiled(model)
    assert find_sites("unet", compiled, find_family(compiled)) == find_sites(  # pyright: ignore[reportArgumentType]
        "unet", model, find_family(model)
    )
