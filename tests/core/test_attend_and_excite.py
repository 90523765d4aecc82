"""Attend-and-Excite in the loop: parity with its port, refinement, words, and when it is off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import AttendAndExcite, attach, until
from attnctl.errors import GradientError, WordNotFoundError
from tests.core.exciting import SUBJECTS, excite, small
from tests.core.samples import Climb
from tests.support.pipelines import PROMPT, build, generate
from tests.support.pipelines.unets import DEEP, stable_diffusion


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "thresholds", [{}, {0: 0.02, 2: 0.03}, {0: 0.9}], ids=["no threshold", "reached", "not reached"]
)
def test_latents_equal_those_of_the_port_in_diffusers(thresholds: dict[int, float]) -> None:
    from diffusers import StableDiffusionAttendAndExcitePipeline

    torch.manual_seed(0)
    pipe = stable_diffusion(**DEEP, sample_size=16)
    pipe.set_progress_bar_config(disable=True)
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    port = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    port.set_progress_bar_config(disable=True)
    processors = pipe.unet.attn_processors
    options: dict[str, Any] = {"num_inference_steps": 6, "output_type": "latent"}
    expected = port(
        PROMPT,
        SUBJECTS,
        attn_res=(16, 16),
        thresholds=thresholds,
        max_iter_to_alter=4,
        generator=torch.Generator().manual_seed(1),
        **options,
    ).images
    pipe.unet.set_attn_processor(dict(processors))
    technique = AttendAndExcite(SUBJECTS, steps=until(4), thresholds=thresholds, resolution=16)
    with attach(pipe, technique):
        ours = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **options).images
    plain = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **options).images

    assert (ours - expected).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    "off",
    [
        AttendAndExcite([]),
        AttendAndExcite([[]]),
        AttendAndExcite(["cat"], scale_factor=0),
        AttendAndExcite(["cat"], steps=until(0), thresholds={}),
        AttendAndExcite(["cat"], steps=until(0.0), thresholds={}),
    ],
    ids=["no subjects", "no subjects in a list", "no scale", "no steps", "no fraction"],
)
def test_without_anything_to_do_there_is_no_extra_forward_and_no_changed_bit(
    off: AttendAndExcite,
) -> None:
    pipe = build("sd1")
    calls: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *call: calls.append(1))
    plain = generate(pipe, steps=3)
    count = len(calls)
    ours, report = excite(pipe, off, steps=3)
    handle.remove()

    assert torch.equal(plain, ours)
    assert len(calls) == 2 * count
    assert report.losses == []


@pytest.mark.parametrize(("until_step", "extra"), [(1, 1), (2, 2), (9, 3)])
def test_one_extra_forward_is_spent_where_latents_move_and_none_elsewhere(
    until_step: int, extra: int
) -> None:
    pipe = build("sd1")
    calls: list[int] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *call: calls.append(call[2].shape[0]))
    excite(pipe, small(steps=until(until_step)), steps=3)
    handle.remove()

    assert calls.count(2) == 3  # the pipeline's own, two rows
    assert calls.count(1) == extra  # ours, the conditional row alone


def test_a_gradient_forward_stops_at_the_last_map_that_the_loss_reads() -> None:
    pipe = build("sd1")
    ran: list[str] = []
    for name in ("conv_in", "conv_out"):
        getattr(pipe.unet, name).register_forward_hook(lambda *call, n=name: ran.append(n))
    excite(pipe, small(where="down:cross"), steps=1)

    assert ran == ["conv_in", "conv_in", "conv_out"]


def test_a_gradient_step_lowers_the_loss() -> None:
    pipe = build("sd1")
    losses: list[Tensor] = []
    with attach(pipe, Climb(size=20.0, evaluations=6)) as session:
        generate(pipe, steps=1)
        losses = session._control.runs.result_of("climb")["losses"]  # pyright: ignore[reportPrivateUsage]

    values = [float(loss) for loss in losses]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_refinement_lowers_the_loss_of_the_most_neglected_subject() -> None:
    pipe = build("sd1")
    _, report = excite(
        pipe, small(thresholds={0: 0.9}, max_refinement_steps=8, scale_factor=50), steps=1
    )
    _, single = excite(pipe, small(scale_factor=50), steps=1)

    assert report.losses[0].losses[0] < single.losses[0].losses[0]


@pytest.mark.parametrize("most", [1, 3, 7])
def test_refinement_is_bounded_and_reported(most: int) -> None:
    _, report = excite(build("sd1"), small(thresholds={0: 1.0}, max_refinement_steps=most), steps=2)

    assert [entry.evaluations for entry in report.losses] == [most + 1, 1]
    assert len(report.warnings) == 1
    assert f"stopped after {most} refinements" in report.warnings[0]


@pytest.mark.parametrize("when", [0.5, "50%", 2])
def test_a_threshold_counts_in_fractions_or_in_steps(when: Any) -> None:
    technique = small(thresholds={when: 1.0}, max_refinement_steps=2, steps=until(1))
    _, report = excite(build("sd1"), technique, steps=4)

    assert [(entry.step, entry.evaluations) for entry in report.losses] == [(0, 1), (2, 2)]


def test_a_threshold_behind_the_last_guided_step_refines_without_a_final_step() -> None:
    pipe = build("sd1")
    plain = generate(pipe, steps=3)
    reached = small(steps=until(0), thresholds={2: 0.0})
    ours, report = excite(pipe, reached, steps=3)

    assert torch.equal(plain, ours)
    assert [entry.step for entry in report.losses] == [2]


def test_words_and_their_positions_are_the_same_subjects() -> None:
    pipe = build("sd1")
    by_word, _ = excite(pipe, small(["cat", "frog"]))
    by_position, _ = excite(pipe, small([2, 5]))
    other, _ = excite(pipe, small(["cat"]))

    assert torch.equal(by_word, by_position)
    assert not torch.equal(by_word, other)


def test_the_order_of_subjects_does_not_matter() -> None:
    pipe = build("sd1")

    assert torch.equal(
        excite(pipe, small(["cat", "frog"]))[0], excite(pipe, small(["frog", "cat"]))[0]
    )


def test_a_missing_word_is_an_error_that_shows_the_prompt_before_the_first_forward() -> None:
    pipe = build("sd1")
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *call: calls.append(1))
    with pytest.raises(WordNotFoundError, match=r"'whale'.*frog"):
        excite(pipe, small(["whale"]))

    assert calls == []


def test_inference_mode_is_refused_with_an_explanation() -> None:
    pipe = build("sd1")
    with torch.inference_mode(), pytest.raises(GradientError, match=r"torch\.no_grad"):
        excite(pipe, small())


def test_embeddings_instead_of_a_prompt_need_positions() -> None:
    pipe = build("sd1")
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)

    def from_embeddings(technique: AttendAndExcite) -> Tensor:
        with attach(pipe, technique):
            return pipe(
                prompt_embeds=embeds,
                negative_prompt_embeds=negative,
                height=32,
                width=32,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images

    with pytest.raises(WordNotFoundError, match=r"prompt_embeds.*positions"):
        from_embeddings(small(["cat"]))
    assert torch.equal(from_embeddings(small([2, 5])), excite(pipe, small([2, 5]))[0])


def test_parameters_and_grad_mode_are_as_before() -> None:
    pipe = build("sd1")
    for place, parameter in enumerate(pipe.unet.parameters()):
        parameter.requires_grad_(place % 2 == 0)
    before = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    excite(pipe, small())

    assert [parameter.requires_grad for parameter in pipe.unet.parameters()] == before
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_the_users_generators_are_not_touched() -> None:
    pipe = build("sd1")
    generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    excite(pipe, small(), generator=generator)
    after = generator.get_state()
    generator.manual_seed(5)
    generate(pipe, generator=generator)

    assert torch.equal(after, generator.get_state())
    assert torch.equal(state, torch.get_rng_state())
