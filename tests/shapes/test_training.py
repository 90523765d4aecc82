"""Training at toy size: it runs, learns, is averaged over workers, and resumes where it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from attnctl.shapes import WorldSettings, draw_scenes, render
from attnctl.shapes.latents import encode_scenes, standardise_latents
from attnctl.shapes.loop import LoopSettings
from attnctl.shapes.model import build_scheduler, build_unet, build_vae
from attnctl.shapes.text import build_text_encoder, build_tokenizer
from attnctl.shapes.train_unet import UnetSettings, signal_weights, unet_loop
from attnctl.shapes.train_vae import VaeSettings, vae_loop
from tests.shapes.toy_training import tiny_loop, train_in_team


def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(tmp_path: Path) -> None:
    whole = tiny_loop(tmp_path / "whole", 40)
    whole.run()
    stopped = tiny_loop(tmp_path / "stopped", 40)
    take_step = stopped._take_step

    def fail_at_25() -> dict[str, float]:
        if stopped.step == 25:
            raise KeyboardInterrupt
        return take_step()

    stopped._take_step = fail_at_25
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = tiny_loop(tmp_path / "stopped", 40)
    assert resumed.resume()
    assert resumed.step == 20
    resumed.run()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name])
        assert torch.equal(whole.average[name], resumed.average[name])


def test_a_loop_learns_and_writes_its_curve(tmp_path: Path) -> None:
    loop = tiny_loop(tmp_path, 200)
    loop.run()
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 200
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"]
    assert not loop.resume() or loop.progress == 1.0


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_weights(tmp_path: Path) -> None:
    loop = tiny_loop(tmp_path, 40)
    learn = loop.loss

    def fail_at_15(progress: float, generator: torch.Generator) -> Any:
        value, numbers = learn(progress, generator)
        return value * (float("nan") if loop.step == 15 else 1.0), numbers

    loop.loss = fail_at_15
    with pytest.raises(FloatingPointError, match="step 15: loss nan"):
        loop.run()
    assert all(value.isfinite().all() for value in loop.module.state_dict().values())
    resumed = tiny_loop(tmp_path, 40)
    assert resumed.resume()
    resumed.run()
    assert resumed.step == 40


def test_two_workers_end_with_the_same_weights(tmp_path: Path) -> None:
    multiprocessing.spawn(train_in_team, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "1" / "latest.pt").exists()


def test_budget_is_minutes_or_steps_and_not_both() -> None:
    with pytest.raises(ValueError, match="minutes or steps"):
        LoopSettings(minutes=1.0, steps=1)


def test_vae_and_unet_train_a_few_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    world = WorldSettings()
    schedule = LoopSettings(minutes=None, steps=4, warmup_steps=2)
    vae = build_vae()
    before = vae.decoder.conv_out.weight.detach().clone()
    vae_loop(vae, world, VaeSettings(batch=2), schedule, tmp_path / "vae").run()
    assert not torch.equal(before, vae.decoder.conv_out.weight)
    cache = encode_scenes(vae, world, 8, torch.Generator().manual_seed(1))
    tokenizer = build_tokenizer()
    unet, text_encoder = build_unet((16, 32, 32)), build_text_encoder(tokenizer)
    frozen = text_encoder.encoder.layers[0].self_attn.q_proj.weight.clone()
    loop = unet_loop(
        unet,
        text_encoder,
        tokenizer,
        build_scheduler(),
        cache,
        UnetSettings(batch=4),
        schedule,
        tmp_path / "unet",
    )
    loop.run()
    assert (tmp_path / "unet" / "latest.pt").exists()
    assert torch.equal(frozen, text_encoder.encoder.layers[0].self_attn.q_proj.weight)


def test_standardised_latents_are_standard_and_give_the_same_pictures() -> None:
    torch.manual_seed(0)
    vae = build_vae().eval()
    world, generator = WorldSettings(), torch.Generator().manual_seed(1)
    pictures = render(draw_scenes(4, generator, world)) * 2 - 1
    with torch.no_grad():
        before = vae(pictures).sample
        standardise_latents(vae, encode_scenes(vae, world, 100, generator))
        after = vae(pictures).sample
    assert torch.allclose(before, after, atol=1e-4)
    cache = encode_scenes(vae, world, 100, generator)
    sampled = cache.mean.float() + cache.std.float() * torch.randn(cache.mean.shape)
    assert sampled.mean((0, 2, 3)).abs().max() < 0.2
    assert (sampled.std((0, 2, 3)) - 1).abs().max() < 0.2
    assert vae.config.scaling_factor == 1.0


def test_signal_weights_fall_to_one_where_noise_rules() -> None:
    weights = signal_weights(build_scheduler(), 5.0)
    assert weights.shape == (1000,)
    assert weights[-1] == 1.0
    assert weights[0] < 0.01
