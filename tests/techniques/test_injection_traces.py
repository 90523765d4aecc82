"""Prompt-to-Prompt, MasaCtrl and Stable Flow leave no trace, also after an error in a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnctl
from attnctl import IRDiffusion, MasaCtrl, PromptToPrompt, StableFlow
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build
from tests.techniques.paired_runs import both

CASES = [
    ("sd1", PromptToPrompt("replace", blend_words=[["cat"], ["dog"]])),
    ("sd1", MasaCtrl(start_layer=1, steps="0-", mask_words=[["cat"], ["dog"]])),
    ("sd1", IRDiffusion([[0, 0, 0.5, 1]], [[0.5, 0, 1, 1]], portraits=0, target=1)),
    ("flux", StableFlow([0, 3])),
    ("sd3", StableFlow([0, 2])),
]


@pytest.mark.parametrize(("name", "technique"), CASES, ids=lambda x: getattr(x, "name", x))
def test_nothing_is_left_behind(name: str, technique: Any) -> None:
    pipe = build(name)
    plain, before = both(pipe, steps=2), fingerprint(pipe)
    first = both(pipe, technique, steps=2)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(both(pipe, steps=2), plain)
    assert torch.equal(both(pipe, technique, steps=2), first)


@pytest.mark.parametrize(("name", "technique"), CASES, ids=lambda x: getattr(x, "name", x))
def test_an_error_in_the_second_step_restores_everything(name: str, technique: Any) -> None:
    pipe = build(name)
    both(pipe, steps=2)
    before, steps = fingerprint(pipe), list[int]()

    def fail(*_: Any) -> Any:
        steps.append(1)
        if len(steps) == 2:
            raise RuntimeError("out of memory, say")

    def failing(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        fail()
        return values

    with pytest.raises(RuntimeError, match="out of memory"):
        both(pipe, technique, steps=3, callback_on_step_end=failing)
    assert differences(before, fingerprint(pipe)) == []


def test_reports_tell_where_and_when_they_acted() -> None:
    pipe = build("sd1")
    with attnctl.attach(pipe, [PromptToPrompt("replace", steps="1-")]) as session:
        pipe(["a cat", "a dog"], num_inference_steps=3, height=32, width=32, output_type="latent")
        report = session.report()
    assert report.active_steps("prompt-to-prompt") == (1, 2)
    assert any("attn2" in site for site in report.matched["prompt-to-prompt"])
