"""The motion adapter: it starts as nothing, learns alone, and comes back from its folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0

from attnctl.loading import load_pipeline
from attnctl.shapes import WorldSettings, model_folder, prompts
from attnctl.shapes.attention import TwoProducts
from attnctl.shapes.clips import ClipSettings
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.shapes.evaluate_clips import (
    draw_clip_sheet,
    draw_clips,
    judge,
    rendered_clips,
    summarise_clips,
)
from attnctl.shapes.export import export
from attnctl.shapes.loop import LoopSettings
from attnctl.shapes.model import build_pipeline, build_unet, build_vae
from attnctl.shapes.motion import (
    ADAPTER,
    build_motion_adapter,
    build_motion_pipeline,
    load_motion_pipeline,
    save_motion,
)
from attnctl.shapes.text import build_text_encoder, build_tokenizer
from attnctl.shapes.train import main
from attnctl.shapes.train_motion import (
    MotionSettings,
    adapter_of,
    encode_clips,
    motion_loop,
)

CLIPS = ClipSettings(frames=4, world=WorldSettings(count_weights=(1.0, 0.0, 0.0)))


@pytest.fixture(scope="module")
def base() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(tokenizer)
    made = build_pipeline(build_vae(), build_unet((16, 32, 32)), encoder, tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


def frames_of(pipe: Any, frames: int = 3) -> torch.Tensor:
    latents = torch.randn(1, 4, frames, 16, 16, generator=torch.Generator().manual_seed(3))
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red circle", num_frames=frames, latents=latents, **call).frames


def test_an_untrained_adapter_gives_the_pictures_of_its_base(base: StableDiffusionPipeline) -> None:
    moving = build_motion_pipeline(base, build_motion_adapter(base.unet))
    clip = frames_of(moving)[0].transpose(0, 1)
    latents = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    stills = base(
        ["a red circle"] * 3,
        latents=latents[0].transpose(0, 1),
        num_inference_steps=2,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    assert torch.allclose(clip, stills, atol=1e-4)


def test_training_moves_the_adapter_and_nothing_of_its_base(
    base: StableDiffusionPipeline, tmp_path: Path
) -> None:
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    cache = encode_clips(base.vae, CLIPS, 3, torch.Generator().manual_seed(1))
    assert cache.mean.shape == (3, 4, 4, 16, 16)
    schedule = LoopSettings(minutes=None, steps=3, warmup_steps=1)
    loop = motion_loop(base, cache, MotionSettings(batch=2), schedule, tmp_path)
    loop.run()
    state = torch.load(tmp_path / "latest.pt", weights_only=True)["average"]
    adapter = adapter_of(base, state)
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
    assert any(p.abs().sum() > 0 for n, p in adapter.named_parameters() if "proj_out" in n)
    moved = frames_of(build_motion_pipeline(base, adapter))
    still = frames_of(build_motion_pipeline(base, build_motion_adapter(base.unet)))
    assert not torch.equal(moved, still)


def test_attention_for_training_is_the_stock_attention(base: StableDiffusionPipeline) -> None:
    block: Any = base.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    image, text = torch.randn(2, 64, block.attn1.query_dim), torch.randn(2, 5, 128)
    text = text[..., : block.attn2.cross_attention_dim]
    for layer, seen in ((block.attn1, None), (block.attn2, text)):
        found = TwoProducts()(layer, image, encoder_hidden_states=seen)
        torch.testing.assert_close(found, AttnProcessor2_0()(layer, image, seen))


def test_a_saved_adapter_comes_back(base: StableDiffusionPipeline, tmp_path: Path) -> None:
    adapter = build_motion_adapter(base.unet)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    adapter = adapter.half().float()
    made = frames_of(build_motion_pipeline(base, adapter))
    save_motion(base, adapter, tmp_path)
    again = load_motion_pipeline(base, tmp_path)
    assert type(again) is AnimateDiffPipeline
    assert again.config._name_or_path == str(tmp_path)
    assert torch.equal(frames_of(again), made)
    without_us = MotionAdapter.from_pretrained(tmp_path, subfolder=ADAPTER)
    assert without_us.config.motion_max_seq_length == 32


def test_the_training_command_makes_a_model_folder(tmp_path: Path) -> None:
    words = ["shapes-motion", "--out", str(tmp_path), "--workers", "1", "--batch", "1"]
    assert main([*words, "--scenes", "2", "--minutes", "0.001"]) == 0
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert (tmp_path / "model" / ADAPTER / "config.json").is_file()
    export("shapes-motion", tmp_path, tmp_path / "again", None, (64, 128, 128))
    trained = load_pipeline(tmp_path / "model")
    assert type(trained) is AnimateDiffPipeline
    assert trained.config._name_or_path == str(tmp_path / "model")
    assert main([*words, "--scenes", "2", "--minutes", "0.001", "--start", "shapes-motion"]) == 0
    begun, bundled = (
        MotionAdapter.from_pretrained(folder, subfolder=ADAPTER).state_dict()
        for folder in (tmp_path / "model", model_folder("shapes-motion"))
    )
    assert all(torch.allclose(v, bundled[k], atol=1e-3) for k, v in begun.items())
    with pytest.raises(SystemExit, match="its stages: denoiser, export"):
        main([*words, "--stage", "vae"])


def test_rendered_clips_are_right_in_every_frame_and_move_evenly(tmp_path: Path) -> None:
    rows = [(judge(prompt, frames), frames) for prompt, frames in rendered_clips(4, 1)]
    summary = summarise_clips([verdict for verdict, _ in rows])
    assert summary["clips_right_percent"] == 100.0
    assert 0.3 < summary["speed_px"] < 1.7
    assert summary["shake_px"] < 0.5
    draw_clip_sheet(rows, tmp_path / "sheet.png", "rendered")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_wrong_frame_is_counted() -> None:
    prompt, frames = next(rendered_clips(1, 1))
    broken = frames.copy()
    broken[3] = 0.5
    verdict = judge(prompt, broken)
    assert verdict.frames_right == len(frames) - 1
    assert not verdict.all_right
    assert len(verdict.speeds()) == len(frames) - 3


def test_clips_are_drawn_from_their_own_seeds(base: StableDiffusionPipeline) -> None:
    moving = build_motion_pipeline(base, build_motion_adapter(base.unet))
    moving.set_progress_bar_config(disable=True)
    asked = prompts("smoke", 1, 2)
    settings = SamplingSettings(steps=1)
    both = [frames for _, frames in draw_clips(moving, asked, settings, frames=2)]
    (_, alone), *_ = draw_clips(moving, asked[1:], settings, frames=2)
    assert both[1].shape == (2, 64, 64, 3)
    assert np.array_equal(both[1], alone)
