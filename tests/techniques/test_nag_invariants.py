"""NAG: what holds on every family that it declares, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import NAG
from tests.support.pipelines import PROMPT, build, generate
from tests.techniques.nag_runs import CROSS, JOINT, NEGATIVE, assert_close, model_end, steered


@pytest.mark.parametrize("name", [*CROSS, *JOINT])
def test_the_prompt_as_its_own_negative_changes_nothing(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    same, other = steered(pipe, NAG(PROMPT)), steered(pipe, NAG(NEGATIVE))
    assert_close(same, plain, other)


@pytest.mark.parametrize("name", ["sd1", "wan", "flux", "sd3"])
@pytest.mark.parametrize(
    "technique",
    [
        NAG(NEGATIVE, scale=0),
        NAG(NEGATIVE, alpha=0),
        NAG(NEGATIVE, steps=attnctl.between(0.0, 0.0)),
        NAG(NEGATIVE, steps=attnctl.after(7)),
    ],
    ids=["scale 0", "alpha 0", "empty window", "window behind the run"],
)
def test_off_is_identical_and_costs_nothing(name: str, technique: NAG) -> None:
    pipe = build(name)
    plain, usual = counted(pipe)
    with attnctl.attach(pipe, [technique]):
        off, calls = counted(pipe)
    assert torch.equal(off, plain)
    assert calls == usual


def counted(pipe: Any) -> tuple[Tensor, dict[str, int]]:
    """Latents of a run, and the rows that went into each model."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    parts = {"text": pipe.text_encoder, "entry": next(model.children()), "end": model_end(model)}
    rows = dict.fromkeys(parts, 0)

    def counter(name: str) -> Any:
        def count(module: Any, args: Any, output: Any) -> None:
            rows[name] += 1 if name == "text" else len(output)

        return count

    hooks = [part.register_forward_hook(counter(name)) for name, part in parts.items()]
    latents = generate(pipe)
    for hook in hooks:
        hook.remove()
    return latents, rows


def test_cross_attention_costs_one_encoding_and_the_start_of_one_forward_a_run() -> None:
    pipe = build("sd1")
    _, usual = counted(pipe)
    with attnctl.attach(pipe, [NAG(NEGATIVE)]):
        _, calls = counted(pipe)
    assert calls == {"text": usual["text"] + 1, "entry": usual["entry"] + 1, "end": usual["end"]}


def test_joint_attention_costs_one_row_for_each_item() -> None:
    pipe = build("flux")
    _, usual = counted(pipe)
    with attnctl.attach(pipe, [NAG(NEGATIVE)]):
        _, calls = counted(pipe)
    assert calls["text"] == usual["text"] + 1
    assert calls["end"] == 2 * usual["end"]


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma", "sd3", "cogvideox"])
def test_with_guidance_only_conditional_rows_change(name: str) -> None:
    pipe = build(name)
    model = getattr(pipe, "unet", None) or pipe.transformer
    seen: list[Tensor] = []
    end = model_end(model)
    hook = end.register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    generate(pipe, steps=1)
    steered(pipe, steps=1)
    hook.remove()
    plain, guided = seen
    assert len(plain) == 2
    assert torch.allclose(guided[0], plain[0], atol=1e-5)
    assert not torch.allclose(guided[1], plain[1], atol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_steps_outside_the_window_are_bit_identical(name: str) -> None:
    pipe = build(name)
    plain, late = trajectory(pipe), []
    with attnctl.attach(pipe, [NAG(NEGATIVE, steps=attnctl.after(2))]) as session:
        late = trajectory(pipe)
        assert session.report().active_steps("nag") == (2, 3)
    same = [torch.equal(a, b) for a, b in zip(plain, late, strict=True)]
    assert same == [True, True, False, False]


def trajectory(pipe: Any) -> list[Tensor]:
    """Latents after each of four steps."""
    kept: list[Tensor] = []

    def keep(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.append(values["latents"].clone())
        return values

    generate(pipe, steps=4, callback_on_step_end=keep)
    return kept


def test_a_ramp_scales_the_difference() -> None:
    pipe = build("sd1")
    half = steered(pipe, NAG(NEGATIVE, scale=4.0, steps=attnctl.ramp(0.5, 0.5)))
    assert torch.allclose(half, steered(pipe, NAG(NEGATIVE, scale=2.0)), atol=1e-6)


def test_heads_that_are_not_selected_stay_as_they_are() -> None:
    pipe = build("sd1")
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0]
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].clone()))
    generate(pipe, steps=1)
    steered(pipe, NAG(NEGATIVE, where="mid:cross,heads=0"), steps=1)
    hook.remove()
    plain, guided = seen
    width = plain.shape[-1] // 2
    assert not torch.equal(guided[1, ..., :width], plain[1, ..., :width])
    assert torch.equal(guided[..., width:], plain[..., width:])
