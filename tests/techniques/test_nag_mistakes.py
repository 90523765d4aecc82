"""NAG leaves no trace, and refuses what it cannot do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload

import attnctl
from attnctl import NAG
from attnctl.errors import SettingError, UnsupportedModelError
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate
from tests.techniques.nag_runs import NEGATIVE, encoded, model_end, steered


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma", "wan", "flux", "sd3"])
def test_it_leaves_no_trace(name: str) -> None:
    pipe = build(name)
    plain, before = generate(pipe), fingerprint(pipe)
    steered(pipe)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("name", ["sd1", "flux"])
@pytest.mark.parametrize("place", ["text encoder", "first forward", "second step"])
def test_an_exception_restores_everything(name: str, place: str) -> None:
    pipe = build(name)
    model = getattr(pipe, "unet", None) or pipe.transformer
    plain, before = generate(pipe), fingerprint(pipe)
    calls = {"text": 0, "end": 0}

    def fail_at(kind: str, call: int) -> Any:
        def fail(*_: Any) -> None:
            calls[kind] += 1
            if calls[kind] == call:
                raise RuntimeError("out of memory, say")

        return fail

    with attnctl.attach(pipe, [NAG(NEGATIVE)]):
        usual = 2 if name == "sd1" else 1
        part, kind, number = {
            "text encoder": (pipe.text_encoder, "text", usual + 1),
            "first forward": (model_end(model), "end", 1),
            "second step": (model_end(model), "end", 2),
        }[place]
        hook = part.register_forward_pre_hook(fail_at(kind, number))
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(pipe)
        hook.remove()
        again = generate(pipe)
    assert torch.equal(again, steered(pipe))
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


def test_offloading_layer_by_layer_changes_nothing() -> None:
    for name in ("sd1", "flux"):
        expected = steered(build(name))
        pipe = build(name)
        model = getattr(pipe, "unet", None) or pipe.transformer
        cpu_offload(model, torch.device("cpu"), offload_buffers=True)
        assert torch.equal(steered(pipe), expected)


def test_settings_are_plain_values_that_build_it_again() -> None:
    technique = NAG("blurry", scale=2.0, norm="l1", steps="0-50%")
    assert NAG.from_settings(technique.settings()) == technique
    embeds = {"encoder_hidden_states": torch.zeros(1, 2, 3)}
    assert NAG(negative_embeds=embeds).settings()["negative_embeds"] == {
        "encoder_hidden_states": "(1, 2, 3)"
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -1.0}, "scale=-1.0"),
        ({"scale": float("nan")}, "finite"),
        ({"tau": 0.5}, "from 1"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"norm": "l3"}, "l2"),
        ({"negative_prompt": ["a", "b"]}, "one text"),
        ({"negative_embeds": {}}, "text arguments"),
        ({"negative_embeds": {"encoder_hidden_states": "(1, 2, 3)"}}, "text arguments"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        NAG(**settings)


@pytest.mark.parametrize(("name", "where"), [("sd1", "mid"), ("sd35", "layers=0")])
def test_attention_without_text_is_refused_before_the_first_step(name: str, where: str) -> None:
    with pytest.raises(UnsupportedModelError, match="attend to text"):
        steered(build(name), NAG(NEGATIVE, where=where))


def test_a_model_of_no_known_family_is_refused_at_attach(unknown_pipe: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="supported: "):
        attnctl.attach(unknown_pipe, [NAG(NEGATIVE, where="all")])


@pytest.mark.parametrize(
    ("name", "embeds", "text"),
    [
        ("flux", {"encoder_hidden_states": (1, 9, 32), "pooled_projections": (1, 32)}, "tokens"),
        ("sd1", {"encoder_hidden_states": (1, 9, 31)}, "shape"),
        ("sd1", {"encoder_hidden_states": (2, 9, 32)}, "one row"),
        ("sd1", {"text": (1, 9, 32)}, "lack encoder_hidden_states"),
        ("sd1", {"encoder_hidden_states": (1, 9, 32), "text": (1, 9)}, "is not given 'text'"),
        ("pixart_sigma", {"encoder_hidden_states": (1, 9, 32)}, "encoder_attention_mask"),
        ("sd3", {"encoder_hidden_states": (1, 9, 32)}, "pooled_projections"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_before_the_first_forward(
    name: str, embeds: dict[str, tuple[int, ...]], text: str
) -> None:
    given = {key: torch.zeros(shape) for key, shape in embeds.items()}
    pipe = build(name)
    ends: list[Any] = []
    model = getattr(pipe, "unet", None) or pipe.transformer
    hook = model_end(model).register_forward_hook(lambda *call: ends.append(call))
    with pytest.raises(SettingError, match=text):
        steered(pipe, NAG(negative_embeds=given))
    hook.remove()
    assert ends == []


def test_a_pipeline_without_text_encoders_is_refused() -> None:
    pipe = build("sd1")
    embeds = encoded(pipe, PROMPT)[0]
    pipe.text_encoder = None
    with (
        attnctl.attach(pipe, [NAG(NEGATIVE)]),
        pytest.raises(UnsupportedModelError, match="negative_embeds"),
    ):
        pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=1)


def test_processors_alone_cannot_hold_it() -> None:
    with pytest.raises(UnsupportedModelError, match="nag"):
        attnctl.attn_processors(build("sd1").unet, NAG(NEGATIVE))
