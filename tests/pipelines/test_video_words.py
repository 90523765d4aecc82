"""A clip edited by exchanging words: what is recorded while it is inverted, and what is refused."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from attnctl import Flatten, WordSwap
from attnctl.errors import SettingError
from attnctl.pipelines.video_edit import VideoEditSettings, edit_video
from attnctl.video import Video
from tests.support.pipelines import build
from tests.support.pipelines.parts import PIXELS


def clip() -> Video:
    values = torch.rand(3, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    return Video.of_tensor(values, Fraction(8))


def settings(**changes: object) -> VideoEditSettings:
    known = {"source": "a cat", "target": "a frog", "steps": 2, "guidance": 3.0, "flow": "none"}
    return VideoEditSettings(**{**known, "inject": 1.0, **changes})  # type: ignore[arg-type]


def test_words_are_exchanged_alone_and_beside_flatten() -> None:
    pipe = build("sd1")
    plain = edit_video(pipe, clip(), settings()).small[1]
    words = edit_video(pipe, clip(), settings(), [WordSwap()])
    both = edit_video(pipe, clip(), settings(), [WordSwap(), Flatten()])
    assert words.report.active_steps("word-swap") == (0, 1)
    assert not np.array_equal(words.small[1], plain)
    assert not np.array_equal(both.small[1], words.small[1])
    off = edit_video(pipe, clip(), settings(inject=0.0), [WordSwap()])
    assert np.array_equal(off.small[1], plain)


def test_prompts_of_different_lengths_are_refused_before_the_inversion() -> None:
    pipe = build("sd1")
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(SettingError, match=r"'a cat' has 4 tokens.*'a red frog' has 5"):
        edit_video(pipe, clip(), settings(target="a red frog"), [WordSwap()])
    hook.remove()
    assert calls == []
