"""Perturbed-attention guidance equals the pipelines of diffusers that have it built in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPAGPipeline,
)

from attnctl import PAG
from tests.support.pipelines import build, generate
from tests.support.pipelines.calls import ARGUMENTS, square
from tests.support.pipelines.parts import edges
from tests.techniques.guided_pipelines import assert_close, steered


def sdxl_controlnet() -> StableDiffusionXLControlNetPipeline:
    parts = build("sdxl").components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(
            parts["unet"], conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
        ).eval()
        for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            block.weight.data.normal_(std=0.1)
        control.controlnet_cond_embedding.conv_out.weight.data.normal_(std=0.1)
    return StableDiffusionXLControlNetPipeline(**parts, controlnet=control, add_watermarker=False)


PEERS: dict[str, tuple[Callable[[], Any], type, tuple[float, ...]]] = {
    "sd1": (lambda: build("sd1"), StableDiffusionPAGPipeline, (0.0, 0.7)),
    "sdxl": (lambda: build("sdxl"), StableDiffusionXLPAGPipeline, (0.0, 0.7)),
    "sd1_controlnet": (
        lambda: build("sd1_controlnet"),
        StableDiffusionControlNetPAGPipeline,
        (0.0,),
    ),
    "sdxl_controlnet": (sdxl_controlnet, StableDiffusionXLControlNetPAGPipeline, (0.0,)),
}


@pytest.fixture(autouse=True)
def _peers_are_called_like_their_kin(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, peer, _ in PEERS.values():
        monkeypatch.setitem(ARGUMENTS, peer.__name__, square)
    control = StableDiffusionXLControlNetPipeline.__name__
    monkeypatch.setitem(ARGUMENTS, control, lambda: square(image=edges()))


def peer_of(case: str, pipe: Any) -> Any:
    peer = PEERS[case][1]
    wanted = peer.__init__.__code__.co_varnames  # type: ignore[misc]
    parts = {name: part for name, part in pipe.components.items() if name in wanted}
    extra = {} if "sdxl" in case else {"requires_safety_checker": False}
    made = peer(**parts, **extra, pag_applied_layers=["mid"])
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("case", "rescale"), [(case, one) for case in PEERS for one in PEERS[case][2]]
)
def test_pag_equals_the_pipeline_of_diffusers(case: str, rescale: float) -> None:
    pipe = PEERS[case][0]()
    options = {"steps": 3, **({"guidance_rescale": rescale} if rescale else {})}
    plain = generate(pipe, **options)
    ours = steered(pipe, PAG(scale=3.0), **options)
    image = {"image": edges()} if "controlnet" in case else {}
    theirs = generate(peer_of(case, pipe), pag_scale=3.0, **image, **options)
    assert_close(ours, theirs, plain)


@pytest.mark.parametrize("case", ["sd1", "sdxl"])
def test_a_rescale_of_our_own_equals_the_pipelines(case: str) -> None:
    pipe = build(case)
    theirs = generate(peer_of(case, pipe), pag_scale=3.0, guidance_rescale=0.7)
    ours = steered(pipe, PAG(scale=3.0, rescale=0.7))
    assert_close(ours, theirs, steered(pipe, PAG(scale=3.0)))
    larger = steered(pipe, PAG(scale=3.0, rescale=0.7), guidance_rescale=0.3)
    assert_close(larger, theirs, steered(pipe, PAG(scale=3.0), guidance_rescale=0.3))
