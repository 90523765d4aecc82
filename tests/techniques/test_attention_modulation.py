"""Attention modulation: against attention written out, each part alone, groups, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnctl
from attnctl import AttendAndExcite, AttentionModulation, SoftPAG
from attnctl.errors import (
    AttnctlError,
    ScheduleError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from tests.core.samples import Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.support.projections import projected
from tests.techniques.damaged import assert_same_effect, steered

PROMPT = "a red cat and a blue frog"
GROUPS = ["red cat", "blue frog"]
RED, CAT, BLUE, FROG = 2, 3, 6, 7  # tokens of PROMPT; BOS is 0
OTHER = "the blue dog on a red photo"
OFF: dict[str, Any] = {"temperature": 1.0, "mask": False, "phases": False}
TEMPERATURE = {**OFF, "temperature": 0.5, "temperature_until": 1.0}
MASK = {**OFF, "mask": True, "mask_from": 0.0}
PHASES = {**OFF, "phases": {0.0: (3.0, 2.0)}}
STEPS = 4


def run(pipe: Any, *techniques: Any, **changes: Any) -> Tensor:
    return steered(pipe, *techniques, **{"prompt": PROMPT, "steps": STEPS, **changes})


class WrittenOut:
    """Attention of a UNet with all three parts, pixel by pixel; batches of one picture."""

    def __init__(self, technique: AttentionModulation, clock: list[int]) -> None:
        self.technique, self.clock = technique, clock

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        logits = query @ key.mT * attn.scale
        fraction = len(self.clock) / STEPS
        if encoder_hidden_states is None:
            if fraction < self.technique.temperature_until:
                logits = logits / self.technique.temperature
        else:
            logits[1] = self.modulated(logits[1], fraction)
        out = logits.softmax(-1) @ value
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def modulated(self, logits: Tensor, fraction: float) -> Tensor:
        """Logits of the conditional row, ``(H, Q, T)``."""
        logits = logits.clone()
        if self.technique.phases:
            centres = [0.15, 0.5, 0.85]
            logits[..., [CAT, FROG]] += np.log(np.interp(fraction, centres, [1.3, 1.1, 1.0]))
            logits[..., [RED, BLUE]] += np.log(np.interp(fraction, centres, [1.0, 1.3, 1.1]))
        if not self.technique.mask or fraction < self.technique.mask_from:
            return logits
        side = round(logits.shape[1] ** 0.5)
        line = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / 0.5) ** 2)
        kernel = line[:, None] * line / line.sum() ** 2
        maps = logits.softmax(-1).mean(0)[:, [CAT, FROG]].T.reshape(2, 1, side, side)
        cat, frog = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="reflect"), kernel[None, None])
        best = torch.maximum(cat, frog).flatten()
        for pixel in range(side * side):
            if best[pixel] >= best.mean():
                is_cat = cat.flatten()[pixel] >= frog.flatten()[pixel]
                logits[:, pixel, [BLUE, FROG] if is_cat else [RED, CAT]] = -torch.inf
        return logits


@pytest.mark.parametrize("parts", [{}, TEMPERATURE, MASK, {**OFF, "phases": True}])
def test_a_whole_run_equals_attention_written_out(parts: dict[str, Any]) -> None:
    pipe, technique = build("sd1"), AttentionModulation(GROUPS, **parts)
    plain, ours = run(pipe), run(pipe, technique)
    clock: list[int] = []

    def tick(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        clock.append(step)
        return values

    pipe.unet.set_attn_processor(WrittenOut(technique, clock))
    theirs = run(pipe, callback_on_step_end=tick)
    assert_same_effect(ours, theirs, plain, exact=1e-3)


@pytest.mark.parametrize(
    "technique",
    [
        AttentionModulation(GROUPS, **OFF),
        AttentionModulation(temperature=1.0),
        AttentionModulation([[]], temperature=1.0),
        AttentionModulation(GROUPS, **{**OFF, "phases": {0.3: (1.0, 1.0)}}),
        AttentionModulation(GROUPS, **{**MASK, "mask_from": 1.0}),
        AttentionModulation(["red cat"], **MASK),
        AttentionModulation(**{**TEMPERATURE, "temperature_until": 0.0}),
        AttentionModulation(GROUPS, steps=attnctl.until(0)),
        AttentionModulation(GROUPS, steps="0-100% ramp 0..0"),
    ],
    ids=["neutral", "no groups", "no group in a list", "weights of 1", "mask from the end",
         "one object", "no window", "no steps", "no strength"],
)  # fmt: skip
def test_off_changes_no_bit(technique: AttentionModulation) -> None:
    pipe = build("sd1")
    plain = run(pipe)
    with attnctl.attach(pipe, technique) as session:
        assert torch.equal(generate(pipe, PROMPT, STEPS), plain)
        assert session.report().active_steps("attention-modulation") == ()


@pytest.mark.parametrize(
    ("technique", "steps"),
    [
        (AttentionModulation(temperature_until=0.5), (0, 1)),
        (AttentionModulation(GROUPS, **{**MASK, "mask_from": 0.3}), (2, 3)),
        (AttentionModulation(GROUPS, **{**OFF, "phases": {0.5: (1, 1), 0.6: (2, 1)}}), (3,)),
        (AttentionModulation(GROUPS, steps="1-3"), (1, 2)),
    ],
)
def test_each_part_has_its_window(technique: AttentionModulation, steps: tuple[int, ...]) -> None:
    pipe = build("sd1")
    with attnctl.attach(pipe, technique) as session:
        generate(pipe, PROMPT, STEPS)
        assert session.report().active_steps("attention-modulation") == steps


def test_no_map_is_made_and_fast_kernels_stay() -> None:
    pipe = build("sd1")
    with attnctl.attach(pipe, AttentionModulation(GROUPS)) as session:
        generate(pipe, PROMPT, STEPS)
        assert {entry.kernel for entry in session.report().entries} == {"sdpa"}


@pytest.mark.parametrize("parts", [MASK, PHASES])
def test_cross_edits_leave_the_unconditional_half_alone(parts: dict[str, Any]) -> None:
    pipe = build("sd1")
    outputs: list[Tensor] = []
    hook = pipe.unet.register_forward_hook(lambda _, args, out: outputs.append(out[0].clone()))
    run(pipe, steps=1)
    run(pipe, AttentionModulation(GROUPS, **parts), steps=1)
    hook.remove()
    plain, ours = outputs
    assert torch.allclose(ours[0], plain[0], atol=1e-5)
    assert not torch.allclose(ours[1], plain[1], atol=1e-3)


def test_the_temperature_scales_queries_of_both_halves_and_of_chosen_heads() -> None:
    def query(*techniques: AttentionModulation) -> Tensor:
        watch = Watch(where="self,layers=0")
        run(build("sd1"), *techniques, watch, steps=1)
        return watch.seen[0].query

    plain = query()
    assert torch.allclose(query(AttentionModulation(temperature=0.5)), plain / 0.5)
    one = query(AttentionModulation(temperature=0.5, where="self,heads=1"))
    assert torch.equal(one[:, 0], plain[:, 0])
    assert torch.allclose(one[:, 1], plain[:, 1] / 0.5)
    weak = query(AttentionModulation(temperature=0.5, steps="always ramp 0.5..0.5"))
    assert torch.allclose(weak, plain / 0.5**0.5)


def test_mask_and_weights_of_chosen_heads_leave_the_others() -> None:
    watch = Watch(where="cross,layers=0")
    where = "cross,heads=1"
    both = AttentionModulation(GROUPS, **{**MASK, "phases": PHASES["phases"]}, where=where)
    run(build("sd1"), both, watch, steps=1)
    mask = watch.seen[0].mask
    assert mask is not None
    assert not mask[0].any()
    assert not mask[1, 0].any()
    hidden = mask[1, 1, :, [RED, CAT, BLUE, FROG]] < -1e30
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert torch.equal(hidden[:, 2], hidden[:, 3])
    assert not (hidden[:, 0] & hidden[:, 2]).any()
    assert hidden.any()
    seen = ~hidden[:, 0]
    assert mask[1, 1, seen, CAT].exp().tolist() == pytest.approx([3.0] * int(seen.sum()))
    assert mask[1, 1, seen, RED].exp().tolist() == pytest.approx([2.0] * int(seen.sum()))


def test_pictures_of_a_batch_are_independent() -> None:
    pipe = build("sd1")
    lists = [GROUPS, ["blue dog", "red photo"]]
    both = run(pipe, AttentionModulation(lists), prompt=[PROMPT, OTHER])
    plain = run(pipe, prompt=[PROMPT, OTHER])
    for place, prompt in enumerate((PROMPT, OTHER)):
        alone = run(pipe, AttentionModulation(lists[place]), prompt=prompt, seed=place)
        assert_same_effect(both[place : place + 1], alone, plain[place : place + 1], exact=1e-3)
    none = run(pipe, AttentionModulation([[], lists[1]], **MASK), prompt=[PROMPT, OTHER])
    assert torch.allclose(none[0], plain[0], atol=1e-4)
    assert not torch.allclose(none[1], plain[1], atol=1e-3)


@pytest.mark.parametrize(
    "groups",
    [
        GROUPS[::-1],
        [{"noun": CAT, "attributes": RED}, {"noun": [FROG], "attributes": [BLUE]}],
        [{"noun": "cat", "attributes": ["red"]}, "blue  FROG"],
        [GROUPS],
    ],
    ids=["other order", "positions", "words", "a list for the prompt"],
)
def test_the_ways_to_write_groups_agree(groups: list[Any]) -> None:
    pipe = build("sd1")
    expected = run(pipe, AttentionModulation(GROUPS))
    technique = AttentionModulation(groups)
    assert torch.equal(run(pipe, technique), expected)
    assert AttentionModulation.from_settings(technique.settings()) == technique


def test_two_objects_with_one_noun_are_two_groups() -> None:
    pipe, prompt = build("sd1"), "a red cat and a blue cat"
    phrases = run(pipe, AttentionModulation(["red cat", "blue cat"]), prompt=prompt)
    words = [
        {"noun": "cat", "attributes": "red"},
        {"noun": "cat#2", "attributes": "blue"},
    ]
    assert torch.equal(run(pipe, AttentionModulation(words), prompt=prompt), phrases)
    same = AttentionModulation(["red cat", {"noun": "cat", "attributes": "blue"}])
    with pytest.raises(SettingError, match=r"share token 3.*circle#2"):
        run(pipe, same, prompt=prompt)


@pytest.mark.parametrize("name", ["sdxl", "pixart_sigma", "animatediff", "wan"])
def test_other_families_leave_no_trace_and_are_steered_by_each_part(name: str) -> None:
    pipe = build(name)
    plain, before = generate(pipe, PROMPT), fingerprint(pipe)
    for parts in (TEMPERATURE, MASK, PHASES):
        ours = steered(pipe, AttentionModulation(GROUPS, **parts), prompt=PROMPT)
        assert ours.isfinite().all()
        assert not torch.allclose(ours, plain, atol=1e-4)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe, PROMPT), plain)


def test_added_rows_are_modulated_like_the_row_that_they_shadow() -> None:
    pipe, technique = build("sd1"), AttentionModulation(GROUPS)
    alone = run(pipe, technique)
    assert torch.allclose(run(pipe, technique, SoftPAG(scale=1e-9)), alone, atol=1e-4)
    assert not torch.allclose(run(pipe, technique, SoftPAG()), alone, atol=1e-3)


def test_attend_and_excite_reads_the_modulated_maps() -> None:
    def losses(*techniques: Any) -> tuple[float, ...]:
        pipe = build("sd1")
        exciting = AttendAndExcite(["cat", "frog"], thresholds={}, steps="0-1", resolution=8)
        with attnctl.attach(pipe, [*techniques, exciting]) as session:
            assert generate(pipe, PROMPT, 1).isfinite().all()
            return session.report().losses[0].losses

    lifted = AttentionModulation(GROUPS, **{**OFF, "phases": {0.0: (20.0, 1.0)}})
    assert losses(lifted)[0] < losses()[0] - 1e-3
    assert losses(AttentionModulation(GROUPS, **MASK)) != losses()


def test_token_positions_serve_where_only_embeddings_are_given() -> None:
    pipe = build("sd1")
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)

    def drawn(groups: list[Any], **text: Any) -> Tensor:
        with attnctl.attach(pipe, AttentionModulation(groups)):
            return pipe(
                num_inference_steps=2, output_type="latent", height=32, width=32,
                generator=torch.Generator().manual_seed(0), **text,
            ).images  # fmt: skip

    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    positions = [{"noun": CAT, "attributes": RED}, {"noun": FROG, "attributes": BLUE}]
    assert torch.allclose(drawn(positions, **given), drawn(GROUPS, prompt=PROMPT), atol=1e-5)
    with pytest.raises(WordNotFoundError, match="token positions"):
        drawn(GROUPS, **given)


def test_groups_without_cross_attention_are_reported() -> None:
    pipe = build("sd1")
    with attnctl.attach(pipe, AttentionModulation(GROUPS, where="self")) as session:
        generate(pipe, PROMPT, 1)
    assert any("selects no cross-attention" in line for line in session.report().warnings)


@pytest.mark.parametrize("name", ["sd3", "sd35", "flux", "cogvideox"])
def test_joint_attention_is_refused_with_what_is_supported(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"joint attention.*UNet.*PixArt"):
        attnctl.attach(build(name), AttentionModulation(GROUPS))


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: attnctl.attach(build("animatediff"), AttentionModulation(where="temporal")),
         UnsupportedModelError, "temporal attention.*where='self|cross'"),
        (lambda: attnctl.attach(build("sd1").unet, AttentionModulation()),
         ScheduleError, "fractions of a run"),
        (lambda: run(build("sd1"), AttentionModulation(["red dog"])),
         WordNotFoundError, "groups: 'red dog' is not in the prompt"),
        (lambda: run(build("sd1"), AttentionModulation([{"noun": 99}])),
         SettingError, "no token 99.*0 to 76"),
        (lambda: run(build("sd1"), AttentionModulation([GROUPS, GROUPS])),
         SettingError, "2 lists for 1 pictures"),
    ],
    ids=["temporal", "bare denoiser", "no such phrase", "no such token", "too many lists"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    attempt: Callable[[], Any], error: type[AttnctlError], message: str
) -> None:
    with pytest.raises(error, match=message):
        attempt()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature_until": 1.5}, "from 0 to 1"),
        ({"mask_from": -0.1}, "from 0 to 1"),
        ({"mask": 1}, "True or False"),
        ({"phases": "early"}, "fractions of the run"),
        ({"phases": {2: (1, 1)}}, "fractions of the run"),
        ({"phases": {0.5: 1.0}}, "fractions of the run"),
        ({"phases": {0.5: (0, 1)}}, r"phases\[0.5\]=0"),
        ({"groups": 3}, "list of objects"),
        ({"groups": [3]}, "3 is no object"),
        ({"groups": [" "]}, "is no object"),
        ({"groups": ["red cat", ["blue frog"]]}, "list for each"),
        ({"groups": [{"noun": "cat", "attribute": "red"}]}, "did you mean 'attributes'"),
        ({"groups": [{"attributes": "red"}]}, "noun"),
        ({"groups": [{"noun": -1}]}, "token positions from 0"),
        ({"groups": [{"noun": True}]}, "token positions from 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AttentionModulation(**settings)


def test_percentages_may_stand_for_fractions() -> None:
    assert AttentionModulation(phases={"15%": [1.3, 1]}).phases == {0.15: (1.3, 1.0)}
    assert AttentionModulation("red cat") == AttentionModulation(["red cat"])
