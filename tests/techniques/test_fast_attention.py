"""Token merging, agent attention and down-sampling in pipelines: against models written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AgentAttention, AttentionCall, Technique, TokenDownsampling, TokenMerging
from attnctl.calls import Layout
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.damaged import assert_same_effect
from tests.techniques.merged_reference import Merged, Sampled

ALL: list[Technique] = [
    TokenMerging(),
    AgentAttention(steps="always"),
    TokenDownsampling(),
]
LINEAR = ["sd1", "sdxl", "pixart_sigma", "sd3", "animatediff"]
EVERY = [(name, t) for name in LINEAR for t in ALL] + [
    (name, TokenDownsampling()) for name in ("sd35", "flux", "wan", "cogvideox")
]
# The finest self-attention of each model, and its tokens at the usual size of the test pictures.
FINEST = {
    "sd1": ("down_blocks.0", "up_blocks.1"),
    "sdxl": ("down_blocks.1", "mid_block", "up_blocks.0"),
    "pixart_sigma": ("transformer_blocks",),
}


def with_technique(pipe: Any, *techniques: Technique, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **changes)


def with_processor(
    pipe: Any, name: str, make: Callable[[int, int], Any], sides: tuple[int, int], **changes: Any
) -> Tensor:
    """Run a pipeline whose finest self-attention has another processor."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    own = dict(model.attn_processors)
    chosen = {
        path: make(*sides) if "attn1" in path and path.startswith(FINEST[name]) else processor
        for path, processor in own.items()
    }
    assert len(set(map(type, chosen.values()))) > 1
    model.set_attn_processor(chosen)
    try:
        return generate(pipe, **changes)
    finally:
        model.set_attn_processor(own)


def tokens_of(name: str, pipe: Any, **changes: Any) -> tuple[int, int]:
    """Height and width of the image tokens at the finest self-attention."""
    seen: list[Layout | None] = []
    with attnctl.attach(pipe, Seen(layouts=seen, where=f"path={FINEST[name][0]}*attn1")):
        generate(pipe, steps=1, **changes)
    assert seen[0] is not None
    return seen[0].grid[1:]


@dataclass(frozen=True)
class Seen(Technique):
    """Keeps the layouts and calls of its sites, with their outputs."""

    name: ClassVar[str] = "seen"
    layouts: list[Layout | None] = field(default_factory=list[Layout | None])
    calls: list[tuple[AttentionCall, Tensor]] = field(
        default_factory=list[tuple[AttentionCall, Tensor]]
    )

    def needs(self) -> attnctl.Needs:
        return attnctl.Needs(layout=True)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        self.layouts.append(call.layout)
        self.calls.append((call, out))
        return out


@pytest.mark.parametrize("size", [{}, {"height": 48, "width": 80}])
@pytest.mark.parametrize("name", FINEST)
def test_merging_equals_a_model_that_merges_before_it_projects(
    name: str, size: dict[str, int]
) -> None:
    pipe = build(name)
    sides = tokens_of(name, pipe, **size)
    count = int(0.5 * sides[0] * sides[1])
    expected = with_processor(pipe, name, lambda h, w: Merged(h, w, 2, count), sides, **size)
    ours = with_technique(pipe, TokenMerging(destinations="corner"), **size)
    assert_same_effect(ours, expected, generate(pipe, **size))


@pytest.mark.parametrize("ratio", [0.0, 0.4])
@pytest.mark.parametrize("name", FINEST)
def test_agents_equal_a_model_with_two_small_attentions(name: str, ratio: float) -> None:
    pipe = build(name)
    sides = tokens_of(name, pipe)
    tokens = sides[0] * sides[1]
    cell = 2 if min(sides) < 8 else 4
    agents = tokens - tokens // cell**2
    expected = with_processor(
        pipe, name, lambda h, w: Merged(h, w, cell, int(ratio * tokens), agents), sides
    )
    technique = AgentAttention(ratio, cell, destinations="corner", steps="always")
    assert_same_effect(with_technique(pipe, technique), expected, generate(pipe))


@pytest.mark.parametrize("size", [{}, {"height": 48, "width": 80}])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", FINEST)
def test_sampling_equals_a_model_that_samples_before_it_projects(
    name: str, factor: int, size: dict[str, int]
) -> None:
    pipe = build(name)
    sides = tokens_of(name, pipe, **size)
    expected = with_processor(pipe, name, lambda h, w: Sampled(h, w, factor), sides, **size)
    ours = with_technique(pipe, TokenDownsampling(factor), **size)
    assert_same_effect(ours, expected, generate(pipe, **size))


@pytest.mark.parametrize("name", ["sd3", "flux", "cogvideox"])
def test_sampled_joint_attention_keeps_every_text_key(name: str) -> None:
    pipe, seen = build(name), Seen(where="layers=0,joint")
    with_technique(pipe, TokenDownsampling(), seen, steps=1)
    call, out = seen.calls[0]
    layout = call.layout
    assert layout is not None
    assert layout.text is not None
    frames, height, width = layout.grid
    kept = [
        layout.image.start + (f * height + 2 * y + 1) * width + 2 * x + 1
        for f in range(frames)
        for y in range(height // 2)
        for x in range(width // 2)
    ]
    kept += range(layout.text.start, layout.text.stop)
    scores = call.query.double() @ call.key[:, :, kept].double().mT * call.scale
    expected = torch.softmax(scores, -1) @ call.value[:, :, kept].double()
    assert torch.allclose(out.double(), expected, atol=1e-5)


def test_agents_of_joint_attention_are_image_tokens() -> None:
    pipe, seen = build("sd3"), Seen(where="layers=0,joint")
    technique = AgentAttention(0, 2, 1.0, destinations="corner", steps="always")
    with_technique(pipe, technique, seen, steps=1)
    call, out = seen.calls[0]
    layout = call.layout
    assert layout is not None
    assert layout.text is not None
    assert call.hidden is not None
    _, height, width = layout.grid
    query, key, value = (t.double() for t in (call.query, call.key, call.value))
    for row in range(len(query)):
        merging = Merged(height, width, 2, 0)
        groups = merging.groups(call.hidden[row], height * width - height * width // 4)
        agents = torch.stack([query[row][:, g].mean(1) for g in groups], dim=1)
        gathered = torch.softmax(agents @ key[row].mT * call.scale, -1) @ value[row]
        image = query[row][:, layout.image]
        seen_image = torch.softmax(image @ agents.mT * call.scale**0.3, -1) @ gathered
        seen_image = seen_image + 0.075 * value[row][:, layout.image]
        text = query[row][:, layout.text]
        seen_text = torch.softmax(text @ key[row].mT * call.scale, -1) @ value[row]
        assert torch.allclose(out[row][:, layout.image].double(), seen_image, atol=1e-5)
        assert torch.allclose(out[row][:, layout.text].double(), seen_text, atol=1e-5)


def test_merged_joint_attention_keeps_every_text_token() -> None:
    pipe, seen = build("sd3"), Seen(where="layers=0,joint")
    with_technique(pipe, TokenMerging(0.5, destinations="corner"), seen, steps=1)
    call, out = seen.calls[0]
    layout = call.layout
    assert layout is not None
    assert layout.text is not None
    assert call.hidden is not None
    _, height, width = layout.grid
    for row in range(len(out)):
        groups = Merged(height, width, 2, 0).groups(call.hidden[row], height * width // 2)
        groups = [[layout.image.start + i for i in group] for group in groups]
        groups += [[i] for i in range(layout.text.start, layout.text.stop)]
        query, key, value = (
            torch.stack([t[row][:, g].double().mean(1) for g in groups], dim=1)
            for t in (call.query, call.key, call.value)
        )
        merged = torch.softmax(query @ key.mT * call.scale, -1) @ value
        for place, group in enumerate(groups):
            same = merged[:, place, None].expand(-1, len(group), -1)
            assert torch.allclose(out[row][:, group].double(), same, atol=1e-5)


def test_agents_that_are_no_fewer_than_half_leave_plain_merging() -> None:
    pipe = build("sd1")
    as_agents = AgentAttention(0.4, 2, 0.5, steps="always")
    assert torch.equal(with_technique(pipe, as_agents), with_technique(pipe, TokenMerging(0.4)))


def test_a_second_phase_of_merging_follows_the_agents() -> None:
    pipe = build("sd1")
    with attnctl.attach(pipe, [AgentAttention(), TokenMerging(0.4, steps="40%-")]) as session:
        generate(pipe, steps=5)
    report = session.report()
    assert report.active_steps("agent-attention") == (0, 1)
    assert report.active_steps("token-merging") == (2, 3, 4)


@pytest.mark.parametrize(("name", "technique"), EVERY, ids=str)
def test_it_leaves_no_trace(name: str, technique: Technique) -> None:
    pipe = build(name)
    plain, before = generate(pipe), fingerprint(pipe)
    steered = with_technique(pipe, technique)
    assert not torch.allclose(steered, plain, atol=1e-3)
    assert torch.equal(with_technique(pipe, technique), steered)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize(
    "technique",
    [
        TokenMerging(0),
        AgentAttention(0, agent_ratio=0),
        TokenDownsampling(1),
        *(type(t)(steps="0-0%") for t in ALL),
        *(type(t)(steps="7-") for t in ALL),
    ],
    ids=lambda t: f"{t.name} {t.steps}",
)
def test_off_is_identical(technique: Technique) -> None:
    pipe = build("sd1")
    assert torch.equal(with_technique(pipe, technique), generate(pipe))


@pytest.mark.parametrize("kind", [TokenMerging, AgentAttention, TokenDownsampling])
def test_steps_outside_the_window_are_bit_identical(kind: type[Technique]) -> None:
    pipe, kept = build("sd1"), []

    def keep(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.append(values["latents"].clone())
        return values

    generate(pipe, steps=4, callback_on_step_end=keep)
    with_technique(pipe, kind(steps="2-"), steps=4, callback_on_step_end=keep)
    same = [torch.equal(a, b) for a, b in zip(kept[:4], kept[4:], strict=True)]
    assert same == [True, True, False, False]


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["sd1", "pixart_sigma", "sd3"])
def test_batch_equals_singles(name: str, technique: Technique) -> None:
    pipe = build(name)
    prompts = ["a cat and a frog", "a blue photo", "a red frog"]
    whole = with_technique(pipe, technique, prompt=prompts)
    for place, prompt in enumerate(prompts):
        one = with_technique(pipe, technique, prompt=prompt, seed=place)
        assert torch.allclose(whole[place], one[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_what_it_is(dtype: torch.dtype, technique: Technique) -> None:
    pipe = build("sd1").to(dtype)
    out = with_technique(pipe, technique)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.name)
def test_all_rows_choose_the_same_destinations_whatever_the_seed(technique: Technique) -> None:
    pipe = build("sd1")
    state = torch.get_rng_state()
    first = with_technique(pipe, technique)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(with_technique(pipe, technique), first)


def test_another_seed_or_corners_choose_other_destinations() -> None:
    pipe = build("sd1")
    made = [TokenMerging(), TokenMerging(seed=1), TokenMerging(destinations="corner")]
    first, second, corner = (with_technique(pipe, technique) for technique in made)
    assert not torch.equal(first, second)
    assert not torch.equal(first, corner)
