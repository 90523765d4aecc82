"""Token merging, agent attention and down-sampling beside other techniques, and mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import attnctl
from attnctl import (
    NAG,
    PAG,
    SEG,
    AgentAttention,
    AttendAndExcite,
    AttentionCall,
    HeatMaps,
    Technique,
    TokenDownsampling,
    TokenMerging,
)
from attnctl.errors import ConflictError, SettingError, UnsupportedModelError
from tests.core.claims import Kernel, Probabilities, Reader, Values
from tests.core.samples import Temperature
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.damaged import steered

ALL: list[Technique] = [TokenMerging(), AgentAttention(steps="always"), TokenDownsampling()]
ids = {"ids": lambda value: getattr(value, "name", None) or str(value)}


@pytest.mark.parametrize("other", [Kernel, Values, Probabilities, Reader], **ids)
@pytest.mark.parametrize("technique", ALL, **ids)
def test_what_cannot_share_a_site_is_refused_before_a_forward(
    technique: Technique, other: type[Technique]
) -> None:
    pipe, forwards = build("sd1"), []
    generate(pipe, steps=1)
    hook = pipe.unet.conv_in.register_forward_hook(lambda *_: forwards.append(1))
    before = fingerprint(pipe)
    for pair in ((technique, other(where="self")), (other(where="self"), technique)):
        with pytest.raises(ConflictError, match=r"where=\) or other steps"):
            steered(pipe, *pair)
    assert forwards == []
    assert differences(before, fingerprint(pipe)) == []
    steered(pipe, technique, other(where="cross"))
    steered(pipe, type(technique)(steps="0-1"), other(where="self", steps="1-"))
    hook.remove()


@pytest.mark.parametrize("second", ALL, **ids)
@pytest.mark.parametrize("first", ALL, **ids)
def test_two_of_them_need_different_sites(first: Technique, second: Technique) -> None:
    pipe = build("sd1")
    with pytest.raises(ConflictError, match="for themselves"):
        steered(pipe, first, type(second)(where="level=0,self", steps="always"))
    elsewhere = type(second)(where="level=1,self", steps="always")
    both = steered(pipe, first, elsewhere)
    assert not torch.equal(both, steered(pipe, first))
    assert not torch.equal(both, steered(pipe, elsewhere))


@pytest.mark.parametrize("technique", ALL, **ids)
def test_levels_count_resolutions_from_the_finest(technique: Technique) -> None:
    pipe, used = build("sd1"), {}
    for levels in (1, 2):
        with attnctl.attach(pipe, type(technique)(levels=levels, steps="always")) as session:
            generate(pipe, steps=1)
        used[levels] = {entry.site for entry in session.report().entries}
    assert {site.split(".")[1:3] == ["down_blocks", "0"] for site in used[1]} == {True, False}
    assert not any("mid_block" in site for site in used[1])
    assert any("mid_block" in site for site in used[2])
    assert used[1] < used[2]


@pytest.mark.parametrize("technique", ALL, **ids)
@pytest.mark.parametrize("guidance", [PAG(where="level=0,self"), SEG(where="level=0,self")], **ids)
def test_guidance_by_added_rows_shares_the_site(guidance: Technique, technique: Technique) -> None:
    pipe = build("sd1")
    both = steered(pipe, technique, guidance)
    assert not torch.allclose(both, steered(pipe, technique), atol=1e-4)
    assert not torch.allclose(both, steered(pipe, guidance), atol=1e-4)


@pytest.mark.parametrize("technique", ALL, **ids)
def test_heat_maps_and_losses_read_other_sites(technique: Technique) -> None:
    pipe = build("sd1")
    alone = steered(pipe, technique)
    with attnctl.attach(pipe, [technique, HeatMaps()]) as session:
        assert torch.equal(generate(pipe), alone)
        assert session.maps.word("frog").max() > 0
    exciting = AttendAndExcite(["cat", "frog"], thresholds={})
    assert not torch.allclose(steered(pipe, technique, exciting), alone, atol=1e-5)


def test_a_negative_prompt_shares_joint_attention() -> None:
    pipe = build("sd3")
    nag = NAG("blurry frog")
    for technique in ALL:
        both = steered(pipe, technique, nag)
        assert not torch.allclose(both, steered(pipe, technique), atol=1e-5)
        assert not torch.allclose(both, steered(pipe, nag), atol=1e-5)


@pytest.mark.parametrize("technique", ALL, **ids)
def test_queries_edited_by_others_are_used(technique: Technique) -> None:
    pipe = build("sd1")
    both = steered(pipe, technique, Temperature(where="self"))
    assert not torch.equal(both, steered(pipe, technique))


@dataclass(frozen=True)
class Forbid(Technique):
    """Forbids every key of a self-attention but the last one in each 2 x 2 cell."""

    name: ClassVar[str] = "forbid"

    def needs(self) -> attnctl.Needs:
        return attnctl.Needs(layout=True)

    def edit_qkv(self, call: AttentionCall) -> None:
        assert call.layout is not None
        bias = torch.full(call.layout.grid[1:], torch.finfo(call.query.dtype).min / 2)
        bias[1::2, 1::2] = 0.0
        call.add_bias(bias.flatten().expand(1, 1, call.query.shape[2], -1))


def test_a_mask_is_sampled_with_its_keys() -> None:
    pipe, forbid = build("sd1"), Forbid(where="level=0,self")
    sampled = steered(pipe, TokenDownsampling())
    assert torch.allclose(steered(pipe, forbid, TokenDownsampling()), sampled, atol=1e-4)
    assert torch.allclose(steered(pipe, forbid), sampled, atol=1e-4)
    corners = steered(pipe, TokenDownsampling(method="nearest"))
    assert not torch.allclose(sampled, corners, atol=1e-3)


@pytest.mark.parametrize("technique", [*ALL[:2], TokenDownsampling(method="average")], **ids)
def test_a_mask_over_keys_that_are_mixed_is_refused(technique: Technique) -> None:
    with pytest.raises(UnsupportedModelError, match=r"mask of .* has no meaning"):
        steered(build("sd1"), technique, Forbid(where="level=0,self"))


@pytest.mark.parametrize("technique", ALL, **ids)
def test_a_ramp_mixes_and_other_heads_stay_dense(technique: Technique) -> None:
    pipe = build("sd1")
    plain = generate(pipe, steps=1)
    none = type(technique)(steps=attnctl.ramp(1e-6, 1e-6))
    assert torch.allclose(steered(pipe, none, steps=1), plain, atol=1e-4)
    one = steered(pipe, type(technique)(where="self,heads=0", steps="always"), steps=1)
    assert not torch.allclose(one, plain, atol=1e-4)
    assert not torch.allclose(one, steered(pipe, technique, steps=1), atol=1e-4)
    every = steered(pipe, type(technique)(where="self,heads=0+1", steps="always"), steps=1)
    assert torch.allclose(every, steered(pipe, technique, steps=1), atol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma"])
@pytest.mark.parametrize("technique", ALL, **ids)
def test_processors_alone_do_the_same(name: str, technique: Technique) -> None:
    pipe = build(name)
    model = getattr(pipe, "unet", None) or pipe.transformer
    plain, own, before = generate(pipe), dict(model.attn_processors), fingerprint(pipe)
    changes: dict[str, Any] = {"destinations": "corner"} if hasattr(technique, "ratio") else {}
    technique = type(technique)(**changes, steps="always")
    sizes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(
            tuple((args[0] if args else kwargs[next(iter(kwargs))]).shape[-2:])
        ),
        with_kwargs=True,
    )
    expected = steered(pipe, technique)
    hook.remove()
    processors = attnctl.attn_processors(model, [technique], latents=sizes[0])
    model.set_attn_processor(processors)
    assert torch.equal(generate(pipe), expected)
    model.set_attn_processor(own)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


def test_processors_know_the_size_that_the_model_was_made_for() -> None:
    pipe = build("sd1")
    own = dict(pipe.unet.attn_processors)
    side = 16 * pipe.vae_scale_factor
    expected = steered(pipe, TokenDownsampling(), height=side, width=side)
    pipe.unet.set_attn_processor(attnctl.attn_processors(pipe.unet, [TokenDownsampling()]))
    assert torch.equal(generate(pipe, height=side, width=side), expected)
    with pytest.raises(SettingError, match=r"latents of 16x16 have 256.*latents=\(height, width"):
        generate(pipe, height=side, width=2 * side)
    pipe.unet.set_attn_processor(own)


def test_processors_say_what_they_cannot_tell() -> None:
    pipe = build("flux")
    with pytest.raises(SettingError, match="latents="):
        attnctl.attn_processors(pipe.transformer, TokenDownsampling())
    with pytest.raises(UnsupportedModelError, match=r"FLUX.*attach"):
        attnctl.attn_processors(pipe.transformer, TokenDownsampling(), latents=(16, 16))
    unet = build("sd1").unet
    with pytest.raises(UnsupportedModelError, match=r"window \(steps=0-40%\)"):
        attnctl.attn_processors(unet, AgentAttention())
    with pytest.raises(UnsupportedModelError, match="cross attention"):
        attnctl.attn_processors(unet, TokenMerging(where="cross"))


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        (TokenMerging, {"ratio": 1.5}, "from 0 to 1"),
        (TokenMerging, {"ratio": float("nan")}, "finite"),
        (TokenMerging, {"cell": 1}, "from 2"),
        (TokenMerging, {"cell": 2.5}, "whole number"),
        (TokenMerging, {"destinations": "middle"}, "corner"),
        (TokenMerging, {"levels": 0}, "from 1"),
        (TokenMerging, {"seed": -1}, "from 0"),
        (AgentAttention, {"agent_ratio": -0.1}, "from 0 to 1"),
        (AgentAttention, {"scale_power": -1}, "from 0"),
        (AgentAttention, {"shortcut": float("inf")}, "finite"),
        (TokenDownsampling, {"factor": 0}, "from 1"),
        (TokenDownsampling, {"factor": True}, "whole number"),
        (TokenDownsampling, {"method": "max"}, "nearest-exact"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(
    kind: type[Technique], settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(SettingError, match=text):
        kind(**settings)


@pytest.mark.parametrize("technique", ALL, **ids)
def test_settings_are_plain_values_that_build_it_again(technique: Technique) -> None:
    assert type(technique).from_settings(technique.settings()) == technique


@pytest.mark.parametrize("kind", [type(technique) for technique in ALL], **ids)
def test_sites_where_it_cannot_act_are_refused(kind: type[Technique], unknown_pipe: Any) -> None:
    for where in ("cross", "mid"):
        with pytest.raises(UnsupportedModelError, match=r"cross attention.*self\|joint"):
            steered(build("sd1"), kind(where=where, steps="always"))
    with pytest.raises(UnsupportedModelError, match="temporal attention"):
        steered(build("animatediff"), kind(where="temporal", steps="always"))
    with pytest.raises(UnsupportedModelError, match="supported: "):
        steered(unknown_pipe, kind(steps="always"))


@pytest.mark.parametrize(
    "technique",
    [TokenMerging(cell=17), AgentAttention(cell=17, steps="always"), TokenDownsampling(17)],
    **ids,
)
def test_too_few_tokens_are_refused_before_a_forward(technique: Technique) -> None:
    pipe, forwards = build("sd1"), []
    pipe.unet.conv_in.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.raises(UnsupportedModelError, match=r"lie \d+x\d+ in this run, it needs 17"):
        steered(pipe, technique)
    assert forwards == []


@pytest.mark.parametrize("name", ["sd35", "flux", "wan", "cogvideox"])
@pytest.mark.parametrize(
    "technique",
    [TokenMerging(), AgentAttention(cell=2, steps="always"), TokenDownsampling(method="average")],
    **ids,
)
def test_means_of_rotated_or_normalised_keys_are_refused(name: str, technique: Technique) -> None:
    pipe = build(name)
    generate(pipe)
    before = fingerprint(pipe)
    with pytest.raises(UnsupportedModelError, match=r"(rotates|normalises).*selects keys"):
        steered(pipe, technique)
    assert differences(before, fingerprint(pipe)) == []
