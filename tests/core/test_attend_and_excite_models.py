"""Attend-and-Excite with batches, sizes, schedulers, dtypes, model families and company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from attnctl import HeatMaps, attach, until
from attnctl.errors import SettingError, UnsupportedModelError
from tests.core.exciting import TWO, excite, small
from tests.core.samples import Climb, Temperature
from tests.support.pipelines import PROMPT, build, generate


def test_a_batch_with_a_list_for_each_prompt_equals_single_runs() -> None:
    pipe = build("sd1")
    lists = [["cat", "frog"], ["dog"]]
    settings = {"thresholds": {0: 0.03}, "scale_factor": 40}
    both, _ = excite(pipe, small(lists, **settings), TWO)
    singles = [
        excite(pipe, small(lists[i], **settings), TWO[i], seed=i)[0] for i in range(len(TWO))
    ]

    assert torch.allclose(both, torch.cat(singles), atol=2e-4)
    assert not torch.allclose(both, generate(pipe, TWO), atol=1e-2)


def test_an_item_without_subjects_is_left_as_it_is() -> None:
    pipe = build("sd1")
    plain = generate(pipe, TWO)
    ours, _ = excite(pipe, small([["cat"], []]), TWO)

    assert (ours[0] - plain[0]).abs().max() > 1e-3
    assert torch.allclose(ours[1], plain[1], atol=1e-5)


def test_pictures_of_one_prompt_share_its_list() -> None:
    pipe = build("sd1")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    many, _ = excite(pipe, small(), num_images_per_prompt=2, latents=noise)
    singles = [excite(pipe, small(), latents=noise[i : i + 1])[0] for i in range(2)]

    assert torch.allclose(many, torch.cat(singles), atol=2e-4)


def test_lists_that_do_not_fit_the_pictures_are_refused() -> None:
    with pytest.raises(SettingError, match="3 lists for 2 pictures"):
        excite(build("sd1"), small([["cat"], ["frog"], ["dog"]]), TWO)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32), (24, 40)])
def test_non_square_pictures_work_and_keep_rows_and_columns_apart(height: int, width: int) -> None:
    pipe = build("sd1")
    technique = small(resolution=(height // 4, width // 4))
    ours, report = excite(pipe, technique, height=height, width=width)
    default, _ = excite(pipe, small(resolution=None), height=height, width=width)

    assert ours.shape[-2:] == (height // 2, width // 2)
    assert [entry.step for entry in report.losses] == [0, 1]
    assert ours.isfinite().all()
    assert default.isfinite().all()


def own_euler_loop(pipe: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Gradient of the attention mass on token 1 with respect to unscaled latents, by hand."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    embeds = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    z = (latents * scheduler.init_noise_sigma).requires_grad_(True)
    probs: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        hidden, text = args[0], kwargs["encoder_hidden_states"]
        q, k = (
            layer(x).unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for layer, x in ((module.to_q, hidden), (module.to_k, text))
        )
        map_ = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        probs.append(map_[..., 1].flatten(1).mean(1))

    handles = [
        module.register_forward_hook(keep, with_kwargs=True)
        for path, module in pipe.unet.named_modules()
        if path.endswith("attn2")
    ]
    time = scheduler.timesteps[0]
    pipe.unet(scheduler.scale_model_input(z, time), time, encoder_hidden_states=embeds)
    for handle in handles:
        handle.remove()
    (gradient,) = torch.autograd.grad(torch.stack(probs).sum(), z)
    return z.detach(), gradient


def test_the_gradient_goes_through_the_scaling_of_the_euler_scheduler() -> None:
    pipe = build("sd1")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    start, gradient = own_euler_loop(pipe, steps=2)
    expected = start - 1e5 * gradient
    given: list[Tensor] = []
    with attach(pipe, Climb(size=1e5, steps=until(1))):
        handle = pipe.unet.conv_in.register_forward_pre_hook(lambda m, args: given.append(args[0]))
        generate(pipe, steps=2)
        handle.remove()
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(2)

    assert (expected - start).abs().max() > 0.1
    scaled = scheduler.scale_model_input(expected, scheduler.timesteps[0])
    assert torch.allclose(given[1], torch.cat([scaled, scaled]), atol=1e-4)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_schedulers_that_scale_or_correct_work(scheduler: Any) -> None:
    pipe = build("sd1")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = generate(pipe, steps=3)
    ours, report = excite(pipe, small(scale_factor=500), steps=3)

    assert [entry.step for entry in report.losses] == [0, 1]
    assert (ours - plain).abs().max() > 1e-3


def test_bfloat16_gives_the_gradient_of_float32_up_to_its_precision() -> None:
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = build("sd1").to(dtype)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        results = [
            generate(pipe, steps=1, latents=latents),
            excite(pipe, small(scale_factor=500), steps=1, latents=latents)[0],
        ]
        moved.append((results[1].float() - results[0].float()).flatten())
    cosine = torch.nn.functional.cosine_similarity(moved[0], moved[1], dim=0)

    assert cosine > 0.9
    assert 0.8 < moved[1].norm() / moved[0].norm() < 1.25


@pytest.mark.parametrize("name", ["sdxl", "sd3", "sd35", "flux", "flux_dev", "pixart_alpha"])
def test_other_picture_families_run(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    ours, report = excite(pipe, small(resolution=None))

    assert [entry.step for entry in report.losses] == [0, 1]
    assert ours.isfinite().all()
    assert not torch.equal(plain, ours)


@pytest.mark.parametrize("name", ["animatediff", "cogvideox", "wan"])
def test_videos_are_refused_with_what_is_supported(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"attend-and-excite.*UNets and PixArt"):
        excite(build(name), small(resolution=None))


def test_other_edits_are_active_in_the_gradient_forward() -> None:
    pipe = build("sd1")
    _, cold = excite(pipe, small())
    with attach(pipe, [Temperature(factor=20.0), small()]) as session:
        generate(pipe)

    assert session.report().losses[0].losses != cold.losses[0].losses


def test_two_losses_are_summed_into_one_move() -> None:
    pipe = build("sd1")
    start = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    moves = []
    for techniques in ([Climb(size=1.0)], [small()], [Climb(size=1.0), small()]):
        kept: list[Tensor] = []
        with attach(pipe, [*techniques, HeatMaps()]):
            handle = pipe.unet.conv_in.register_forward_pre_hook(
                lambda m, a, k=kept: k.append(a[0])
            )
            generate(pipe, steps=1, latents=start)
            handle.remove()
        moves.append(kept[-1][1:] - start)

    assert torch.allclose(moves[2], moves[0] + moves[1], atol=1e-5)
    assert moves[0].abs().max() > 0
