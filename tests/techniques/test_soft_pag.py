"""SoftPAG and PAG against diffusers' pipelines, their invariants, and replay against one batch."""

from typing import Any

import pytest
import torch
from diffusers import (
    PixArtSigmaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)
from torch import Tensor

import attnctl
from attnctl.engine.planner import Planner
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError, WhereError
from attnctl.techniques.soft_pag import PAG, SoftPAG
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.support.pipelines.calls import ARGUMENTS

EXACT = 2e-5  # of the effect: rows that share a forward differ by the rounding of its batch

PEERS = {
    "sd1 mid": ("sd1", StableDiffusionPAGPipeline, ["mid"], "mid:self", "joint"),
    "sdxl mid": ("sdxl", StableDiffusionXLPAGPipeline, ["mid"], "mid:self", "joint"),
    "sdxl down": ("sdxl", StableDiffusionXLPAGPipeline, ["down_blocks.1"], "down:self", "joint"),
    "sdxl up": ("sdxl", StableDiffusionXLPAGPipeline, ["up_blocks.0"], "up:self", "joint"),
    "pixart": ("pixart_sigma", PixArtSigmaPAGPipeline, ["blocks.1"], "layers=1,self", "joint"),
    "sd3": ("sd3", StableDiffusion3PAGPipeline, ["blocks.1"], "layers=1,joint", "image-block"),
}

# Where the rows are perturbed late, so that there is something to replay.
LATE = {
    "sd1": "up:self",
    "sd1_inpaint9": "mid:self",
    "sd1_pix2pix": "mid:self",
    "sd1_controlnet": "up:self",
    "sdxl": "up:self",
    "sd3": "layers=1,joint",
    "sd35": "layers=1,joint",
    "flux": "single:joint",
    "pixart_sigma": "layers=1,self",
    "animatediff": "up:self",
    "cogvideox": "layers=1,joint",
    "wan": "layers=1,self",
}


def steered(pipe: Any, technique: SoftPAG, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, [technique]):
        return generate(pipe, **changes)


@pytest.mark.parametrize(
    ("case", "adaptive"),
    [(case, 0.0) for case in PEERS]
    # diffusers compares a vector with a number in PixArt's adaptive scale, and raises.
    + [(case, 0.004) for case in PEERS if case != "pixart"],
)
def test_pag_equals_the_pipeline_of_diffusers(case: str, adaptive: float) -> None:
    name, peer_class, layers, where, form = PEERS[case]
    pipe = build(name)
    parts = {k: v for k, v in pipe.components.items() if k in _parameters(peer_class)}
    plain = generate(pipe)
    ours = steered(pipe, PAG(scale=3.0, where=where, form=form, adaptive_scale=adaptive))
    extra = {"requires_safety_checker": False} if name == "sd1" else {}
    peer = peer_class(**parts, **extra, pag_applied_layers=layers)
    arguments = ARGUMENTS[type(pipe).__name__]()
    theirs = generate(peer, pag_scale=3.0, pag_adaptive_scale=adaptive, **arguments)
    effect = (theirs - plain).abs().max()
    assert effect > 0.01
    assert (ours - theirs).abs().max() < EXACT * max(1.0, float(effect))


def _parameters(cls: type) -> tuple[str, ...]:
    return cls.__init__.__code__.co_varnames  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _peers_are_called_like_their_kin(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, peer_class, *_ in PEERS.values():
        monkeypatch.setitem(ARGUMENTS, peer_class.__name__, dict)


@pytest.mark.parametrize("name", LATE)
def test_replay_equals_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build(name)
    technique = SoftPAG(scale=2.0, strength=0.7, where=LATE[name])
    plain, replayed = generate(pipe), steered(pipe, technique)
    monkeypatch.setattr(Planner, "added_sites", lambda *_: None)  # nothing may be replayed
    batched = steered(pipe, technique)
    effect = float((batched - plain).abs().max())
    assert effect > 0
    assert (replayed - batched).abs().max() < 1e-4 * max(1.0, effect)


@pytest.mark.parametrize("name", LATE)
def test_replay_leaves_no_trace(name: str) -> None:
    pipe = build(name)
    plain, before = generate(pipe), fingerprint(pipe)
    steered(pipe, SoftPAG(where=LATE[name]))
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("name", ["sd1", "animatediff"])
def test_added_rows_are_spared_the_blocks_before_the_first_perturbed_one(name: str) -> None:
    pipe = build(name)
    rows: dict[str, list[int]] = {"down": [], "up": []}
    hooks = [
        getattr(pipe.unet, f"{place}_blocks")[0]
        .resnets[0]
        .register_forward_hook(
            lambda module, args, output, place=place: rows[place].append(len(output))
        )
        for place in rows
    ]
    steered(pipe, PAG(where="mid:self"), steps=3)
    for hook in hooks:
        hook.remove()
    fold = 3 if name == "animatediff" else 1
    assert rows == {"down": [2 * fold] * 3, "up": [3 * fold] * 3}


def _counter(calls: dict[str, int], name: str) -> Any:
    def count(*_: Any) -> None:
        calls[name] += 1

    return count


@pytest.mark.parametrize(
    "technique",
    [
        SoftPAG(scale=0),
        SoftPAG(strength=0),
        SoftPAG(steps=attnctl.between(0.0, 0.0)),
        SoftPAG(steps=attnctl.after(7)),
    ],
    ids=["scale 0", "strength 0", "empty window", "window behind the run"],
)
def test_off_is_identical_and_costs_no_forward(technique: SoftPAG) -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    calls = {"unet": 0}
    hook = pipe.unet.conv_in.register_forward_hook(_counter(calls, "unet"))
    assert torch.equal(steered(pipe, technique), plain)
    hook.remove()
    assert calls == {"unet": 2}


def test_the_pipelines_own_rows_do_not_notice_the_added_ones() -> None:
    pipe = build("sd1")
    seen: list[Tensor] = []
    hook = pipe.unet.register_forward_hook(lambda *a: seen.append(a[-1][0].clone()))
    steered(pipe, SoftPAG(scale=1e-9, where="down:self"), steps=1)
    generate(pipe, steps=1)
    hook.remove()
    assert [len(one) for one in seen] == [3, 2]  # our hook runs after this one
    assert torch.allclose(seen[0][:2], seen[1], atol=1e-5)


def test_strength_is_linear_in_the_attention_output() -> None:
    pipe = build("sd1")
    outs = {u: _perturbed_attention(pipe, u) for u in (0.25, 0.5, 1.0)}
    quarter = outs[1.0] + 0.75 / 0.5 * (outs[0.5] - outs[1.0])
    assert torch.allclose(outs[0.25], quarter, atol=1e-5)


def _perturbed_attention(pipe: Any, strength: float, where: str = "mid:self") -> Tensor:
    """What goes into the output projection of the mid block's perturbed row."""
    seen: list[Tensor] = []
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].clone()))
    steered(pipe, SoftPAG(strength=strength, where=where), steps=1)
    hook.remove()
    return seen[-1]


def test_heads_that_are_not_selected_stay_bit_identical() -> None:
    pipe = build("sd1")
    little = _perturbed_attention(pipe, 0.5, "mid:self,heads=0")
    much = _perturbed_attention(pipe, 0.9, "mid:self,heads=0")
    width = much.shape[-1] // 2
    assert not torch.equal(little[..., :width], much[..., :width])
    assert torch.equal(little[..., width:], much[..., width:])


@pytest.mark.parametrize("target", ["uniform", "query-mean"])
@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "pixart_sigma"])
def test_other_targets_steer_too(name: str, target: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    out = steered(pipe, SoftPAG(target=target, where=LATE[name]))
    assert torch.isfinite(out).all()
    assert not torch.equal(out, plain)


def test_soft_pag_and_attend_and_excite_run_together() -> None:
    pipe = build("sd1")
    exciting = attnctl.AttendAndExcite(["cat", "frog"], thresholds={})
    alone = steered(pipe, SoftPAG())
    with attnctl.attach(pipe, [exciting, SoftPAG()]) as session:
        both = generate(pipe)
        report = session.report()
    assert report.active_steps("soft-pag") == report.active_steps("attend-and-excite") == (0, 1)
    assert not torch.equal(both, alone)


def test_an_exception_with_added_rows_restores_everything() -> None:
    pipe = build("sd1")
    generate(pipe)
    before = fingerprint(pipe)

    def fail_for_three_rows(module: Any, args: Any) -> None:
        if args[0].shape[0] == 3:
            raise RuntimeError("out of memory, say")

    hook = pipe.unet.up_blocks[0].resnets[0].register_forward_pre_hook(fail_for_three_rows)
    with pytest.raises(RuntimeError, match="out of memory"):
        steered(pipe, PAG())
    hook.remove()
    assert differences(before, fingerprint(pipe)) == []


def test_batch_equals_singles() -> None:
    pipe = build("sd1")
    prompts = ["a cat and a frog", "a red dog"]
    both = steered(pipe, SoftPAG(), prompt=prompts)
    for place, prompt in enumerate(prompts):
        one = steered(pipe, SoftPAG(), prompt=prompt, seed=place)
        assert torch.allclose(both[place], one[0], atol=2e-4)


def test_without_guidance_the_conditional_row_alone_is_steered() -> None:
    pipe = build("sd1")
    plain = generate(pipe, guidance_scale=1.0)
    assert not torch.equal(steered(pipe, PAG(), guidance_scale=1.0), plain)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"scale": -1.0}, SettingError, "scale=-1.0"),
        ({"scale": float("nan")}, SettingError, "finite"),
        ({"strength": 1.5}, SettingError, "from 0 to 1"),
        ({"form": "joined"}, SettingError, "joint"),
        ({"target": "identiti"}, SettingError, "identity"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(
    settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        SoftPAG(**settings)


@pytest.mark.parametrize(
    ("where", "error"),
    [("mid:temporal", NoSiteError), ("mid:self,heads=9", WhereError)],
)
def test_a_selector_that_does_not_fit_is_refused_at_attach(
    where: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        attnctl.attach(build("sd1"), [SoftPAG(where=where)])


def test_cross_attention_is_refused_when_it_is_attached() -> None:
    pipe = build("sd1")
    with pytest.raises(UnsupportedModelError, match="from image to text"):
        attnctl.attach(pipe, [SoftPAG(where="mid:cross")])
