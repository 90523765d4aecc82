"""HeadRouter and FluxSpace with several pictures, beside other techniques, and wrongly used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnctl
from attnctl import FluxSpace, HeadRouter, SoftPAG
from attnctl.errors import ConflictError, NoSiteError, SettingError, UnsupportedModelError
from attnctl.registry import list_techniques
from tests.core.claims import Kernel
from tests.support.pipelines import build
from tests.techniques.pair_runs import PAIR, PAIRED, Outputs, pair_run, same_noise

FIRST_JOINT = "joint,layers=0"
THREE = (*PAIR, "a photo of a frog")
EDITS = [HeadRouter(gamma=1.0), FluxSpace("dog", steps="0-")]
KINDS = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.name)


# --- several pictures --------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("name", ["flux", "sd35"])
def test_a_picture_that_is_neither_is_untouched(name: str, edit: Any) -> None:
    pipe = build(name)
    ours, plain = pair_run(pipe, edit, prompts=THREE), pair_run(pipe, prompts=THREE)
    changes = (ours - plain).flatten(1).abs().amax(1)
    assert changes[0] < 1e-5
    assert changes[1] > 1e-3
    assert changes[2] < 1e-5
    if isinstance(edit, HeadRouter):
        assert torch.equal(ours[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize("name", ["flux", "sd35"])
@pytest.mark.parametrize(
    ("several", "one"),
    [
        (HeadRouter(target=(1, 2)), HeadRouter()),
        (FluxSpace("dog", target=(1, 2), steps="0-"), FluxSpace("dog", steps="0-")),
    ],
    ids=["head-router", "flux-space"],
)
def test_several_targets_of_one_source_equal_runs_of_each(
    name: str, several: Any, one: Any
) -> None:
    pipe = build(name)
    together = pair_run(pipe, several, prompts=THREE)
    for place in (1, 2):
        alone = pair_run(pipe, one, prompts=(THREE[0], THREE[place]))
        assert torch.allclose(together[[0, place]], alone, atol=1e-5)


def test_targets_are_read_from_a_text() -> None:
    assert HeadRouter(target="1+2").targets == (1, 2)
    assert FluxSpace("dog", target=[3, 1]).targets == (3, 1)


@KINDS
def test_different_starts_are_warned_of_where_source_and_target_are_compared(edit: Any) -> None:
    pipe = build("flux")
    noise = same_noise(pipe)
    noise[1] += 0.1
    with attnctl.attach(pipe, [edit]) as session:
        pair_run(pipe, latents=noise, steps=1)
        warned = any("different noise" in text for text in session.report().warnings)
        assert warned == isinstance(edit, HeadRouter)
        pair_run(pipe, steps=1)
        assert not session.report().warnings


# --- beside other techniques -------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("name", ["flux", "sd35"])
def test_rows_that_shadow_the_target_are_edited_like_it(name: str, edit: Any) -> None:
    """The difference of equal rows guides nowhere, so the edit comes out as it does alone."""
    pipe = build(name)
    barely = SoftPAG(scale=1.0, strength=1e-7, where=FIRST_JOINT)
    alone, both = pair_run(pipe, edit), pair_run(pipe, edit, barely)
    plain = pair_run(pipe)
    assert (alone[1] - plain[1]).abs().max() > 1e-3
    assert (both - alone).abs().max() < 1e-4


@pytest.mark.parametrize("name", PAIRED)
def test_it_composes_with_soft_pag_and_re_ttention(name: str) -> None:
    pipe = build(name)
    pag = SoftPAG(scale=2.0, where=FIRST_JOINT)
    sparse = attnctl.Rettention(
        sparsity=0.5, block=8, least_tokens=16, steps="1-", refresh=2, where="joint,layers=1"
    )
    router = HeadRouter(gamma=1.0)
    runs = [pair_run(pipe, *some) for some in ((pag, sparse), (router, sparse), (router, pag))]
    with attnctl.attach(pipe, [sparse, router, pag]) as session:
        all_three = pair_run(pipe)
        report = session.report()
    assert all(not torch.allclose(all_three[1], run[1], atol=1e-4) for run in runs)
    assert torch.allclose(all_three[0], runs[0][0], atol=1e-5)  # the router leaves the source alone
    assert report.active_steps("head-router") == (0, 1, 2)
    assert report.active_steps("soft-pag") == (0, 1, 2)
    assert report.active_steps("re-ttention") == (1, 2)
    together = {e.site: e.techniques for e in report.entries if e.step == 1}
    assert together["transformer.transformer_blocks.1.attn"] == ("re-ttention", "head-router")
    assert together["transformer.transformer_blocks.0.attn"] == ("head-router", "soft-pag")


def test_both_edits_go_together_and_their_order_is_that_of_the_chain() -> None:
    pipe = build("flux")
    one, other = EDITS
    both = pair_run(pipe, one, other)
    assert not torch.allclose(both[1], pair_run(pipe, one)[1], atol=1e-4)
    assert not torch.allclose(both[1], pair_run(pipe, other)[1], atol=1e-4)
    assert torch.allclose(both[0], pair_run(pipe)[0], atol=1e-5)


def test_a_map_beside_a_kernel_that_hides_it_is_refused_at_attach() -> None:
    pipe, hidden = build("flux"), Kernel(where="single:joint")
    with pytest.raises(ConflictError, match=r"'head-router' reads.*'kernel-owner' does not show"):
        attnctl.attach(pipe, [HeadRouter(form="map"), hidden])
    attnctl.attach(pipe, [HeadRouter(), hidden]).detach()


@KINDS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(edit: Any, dtype: torch.dtype) -> None:
    pipe = build("flux").to(dtype)
    out = pair_run(pipe, edit, steps=2)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    assert torch.equal(out[0], pair_run(pipe, steps=2)[0])


def test_weights_are_not_rounded_to_half_precision_before_they_act() -> None:
    pipe = build("flux").to(torch.bfloat16)
    before, after = Outputs(place="before"), Outputs(place="after")
    pair_run(pipe, before, HeadRouter(text_blend=0.0, upsilon=0.0), after, steps=1)
    key = (0, "transformer_blocks.0.attn")
    plain, ours = before.by_site[key][1].double(), after.by_site[key][1].double()
    means = (ours / plain).nanmean((-1, -2))
    smallest, largest = 1 + 0.2 * 0.37754, 1 + 0.2 * 0.62246
    assert float(means.min()) == pytest.approx(smallest, abs=1e-3)
    assert float(means.max()) == pytest.approx(largest, abs=1e-3)


# --- wrongly used ------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_single_picture_is_refused_before_the_first_step(name: str, edit: Any) -> None:
    pipe = build(name)
    steps: list[int] = []

    def count(pipe: Any, step: int, timestep: Any, kept: Any) -> dict[str, Any]:
        steps.append(step)
        return {}

    with pytest.raises(SettingError, match=r"target=1 is not in this run.*prompt=\[source, target"):
        pair_run(pipe, edit, prompts=PAIR[:1], callback_on_step_end=count)
    assert not steps
    assert pair_run(pipe, prompts=PAIR[:1]).isfinite().all()


def test_a_source_beyond_the_batch_is_refused_before_the_first_step() -> None:
    with pytest.raises(SettingError, match=r"source=5 is not in this run.*2 pictures"):
        pair_run(build("flux"), HeadRouter(source=5))


@KINDS
@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma", "aura_flow", "cogvideox", "wan"])
def test_another_family_is_refused_at_attach(name: str, edit: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"FLUX\.1, SD3 and SD3\.5"):
        attnctl.attach(build(name), [edit])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source": 1}, "source"),
        ({"source": -1}, "from 0"),
        ({"target": (1, 1)}, "different"),
        ({"target": "one"}, "number of a picture"),
        ({"target": True}, "number of a picture"),
        ({"target": ()}, "different"),
        ({"gamma": -0.1}, "from 0"),
        ({"gamma": float("nan")}, "finite"),
        ({"router": "source", "gamma": 1.5}, "from 0 to 1"),
        ({"router": "power", "delta": 0.0}, "above 0"),
        ({"router": "sigmiod"}, "sigmoid"),
        ({"form": "maps"}, "map"),
        ({"text_blend": 1.1}, "from 0 to 1"),
        ({"alpha": "much"}, "finite number"),
    ],
)
def test_a_bad_setting_of_the_router_is_refused_at_construction(
    settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(SettingError, match=text):
        HeadRouter(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prompt": None}, "must be a text"),
        ({"prompt": "dog", "coarse": 1.5}, "from -1 to 1"),
        ({"prompt": "dog", "tau": -0.1}, "from 0 to 1"),
        ({"prompt": "dog", "fine": float("inf")}, "finite"),
        ({"prompt": "dog", "target": -1}, "from 0"),
        ({"prompt": "dog", "mask_pool": "sum"}, "mean"),
        ({"prompt": "dog", "mask_tokens": ()}, "positions"),
        ({"prompt": "dog", "mask_tokens": "dog"}, "positions"),
    ],
)
def test_a_bad_setting_of_the_slider_is_refused_at_construction(
    settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(SettingError, match=text):
        FluxSpace(**settings)


def test_sites_that_do_not_fit_are_refused_at_attach() -> None:
    pipe = build("flux")
    with pytest.raises(NoSiteError):
        attnctl.attach(pipe, [HeadRouter(where="joint,layers=9")])
    with pytest.raises(SettingError, match="selects heads"):
        attnctl.attach(pipe, [FluxSpace("dog", where="joint,heads=1")])
    with pytest.raises(SettingError, match="double block"):
        attnctl.attach(pipe, [FluxSpace("dog", where="single:joint")])


def test_image_refinement_that_was_asked_for_must_have_a_place() -> None:
    pipe = build("sd3")
    with pytest.raises(NoSiteError):
        pair_run(pipe, HeadRouter(image_where="joint,layers=7"))
    with attnctl.attach(pipe, [HeadRouter()]) as session:
        pair_run(pipe, steps=1)
        assert "no image tokens are refined" in " ".join(session.report().notes)
    chosen = HeadRouter(gamma=0.0, text_blend=0.0, image_where="joint,layers=1")
    assert not torch.equal(pair_run(pipe, chosen)[1], pair_run(pipe)[1])


def test_a_mask_beyond_the_text_is_refused() -> None:
    with pytest.raises(SettingError, match="has 16 positions"):
        pair_run(build("flux"), FluxSpace("dog", mask_tokens=16, steps="0-"))


def test_what_is_reconstructed_says_so() -> None:
    record = next(r for r in list_techniques() if r.name == "head-router")
    assert "reconstructed from incomplete sources" in record.reference
    assert "Reconstructed from incomplete sources" in (HeadRouter.__doc__ or "")
