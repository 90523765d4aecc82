"""DiTCtrl on tiny video pipelines: shared keys and values, masks, windows, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import CrossFrameAttention, DiTCtrl, Flatten
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from tests.support.fingerprint import fingerprint
from tests.support.pipelines import build, generate
from tests.techniques import ditctrl_reference as reference
from tests.techniques.clip_runs import Keep

SOURCE, TARGET = "a cat and a frog", "a dog and a frog"
NAMES = ("cogvideox", "wan", "animatediff")
SHAPES = {"cogvideox": (1, 3, 4, 8, 8), "wan": (1, 16, 3, 8, 8), "animatediff": (1, 4, 3, 16, 16)}


def sharing(**settings: Any) -> DiTCtrl:
    return DiTCtrl(**({"steps": "0-"} | settings))


def both(
    pipe: Any, *techniques: Any, prompts: tuple[str, ...] = (SOURCE, TARGET), **changes: Any
) -> Tensor:
    """Latents of the clips of some prompts, from one noise."""
    name = next(n for n in NAMES if type(pipe).__name__.lower().startswith(n))
    noise = torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(5))
    latents = noise.repeat(len(prompts), 1, 1, 1, 1)
    with attnctl.attach(pipe, techniques):
        return generate(pipe, list(prompts), latents=latents, **{"steps": 4, **changes})


@pytest.fixture(scope="module", params=NAMES)
def pipe(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def cogvideox() -> Any:
    return build("cogvideox")


@pytest.mark.parametrize(
    "settings", [{}, {"last_layers": 1.0}, {"steps": "0-100% ramp 1..0.5"}], ids=str
)
def test_the_target_changes_and_the_source_does_not_notice(
    pipe: Any, settings: dict[str, Any]
) -> None:
    alone, edited = both(pipe), both(pipe, sharing(**settings))
    assert torch.equal(edited[0], alone[0])
    assert torch.isfinite(edited).all()
    assert (edited[1] - alone[1]).abs().max() > 1e-5


@pytest.mark.parametrize(
    "technique",
    [sharing(steps="9-"), sharing(steps="0-0"), sharing(steps=attnctl.ramp(0.0, 0.0))],
    ids=["window behind the run", "empty window", "strength 0"],
)
def test_off_is_two_plain_rows_bit_for_bit(pipe: Any, technique: Any) -> None:
    assert torch.equal(both(pipe, technique), both(pipe))


def test_equal_prompts_and_latents_leave_nothing_to_share(pipe: Any) -> None:
    edited = both(pipe, sharing(last_layers=1.0), prompts=(SOURCE, SOURCE))
    plain = both(pipe, prompts=(SOURCE, SOURCE))
    # Rows of one batch may be rounded differently already in the plain run.
    rounding = max(float((plain[1] - plain[0]).abs().max()), 1e-6)
    assert (edited - plain).abs().max() <= 4 * rounding
    assert (edited[1] - edited[0]).abs().max() <= 4 * rounding


def test_a_layer_equals_attention_in_float64_in_every_branch(pipe: Any) -> None:
    after = Keep("after")
    both(pipe, sharing(last_layers=1.0), after, steps=1, guidance_scale=3.0)
    branches: set[str] = set()
    for call, out in after.calls:
        if call.site.kind not in ("self", "joint"):
            continue
        frames = range(call.fold)
        place = {(row.branch, row.item): at for at, row in enumerate(call.rows)}
        for (branch, item), row in place.items():
            branches.add(branch)
            for frame in frames:
                own, source = row * call.fold + frame, place[(branch, 0)] * call.fold + frame
                wanted = reference.attention(call.query[own], call.key[source], call.value[source])
                assert (out[own] - wanted).abs().max() < 5e-6, (call.site.path, branch, item)
    assert branches == {"cond", "uncond"}


def test_early_layers_and_steps_outside_of_the_window_stay_plain(cogvideox: Any) -> None:
    plain, edited = Keep("plain"), Keep("edited")
    both(cogvideox, plain)
    both(cogvideox, sharing(steps="1-2"), edited)
    same = {
        (call.step.index, call.site.layer): torch.equal(a, b)
        for (call, a), (_, b) in zip(plain.calls, edited.calls, strict=True)
    }
    assert [same[0, 0], same[0, 1], same[1, 0], same[1, 1]] == [True, True, True, False]


@pytest.mark.parametrize(
    ("settings", "steps", "layers"),
    [
        ({}, range(2, 25), {"transformer_blocks.1.attn1"}),
        ({"last_layers": 2}, range(2, 25), {f"transformer_blocks.{i}.attn1" for i in (0, 1)}),
        ({"last_layers": 9, "steps": "0-3"}, range(3), None),
        ({"last_layers": 1.0, "where": "joint,layers=0"}, range(2, 25),
         {"transformer_blocks.0.attn1"}),
    ],
)  # fmt: skip
def test_it_acts_in_late_layers_and_early_steps(
    cogvideox: Any, settings: dict[str, Any], steps: range, layers: set[str] | None
) -> None:
    with attnctl.attach(cogvideox, DiTCtrl(**settings)) as session:
        generate(cogvideox, [SOURCE, TARGET], steps=50)
        assert session.report().active_steps("ditctrl") == tuple(steps)
        acted = {path.removeprefix("transformer.") for path in session.report().matched["ditctrl"]}
    assert layers is None or acted == layers


def test_each_pair_is_apart(cogvideox: Any) -> None:
    texts = (SOURCE, TARGET, "a red cat", "a blue dog")
    whole = both(cogvideox, sharing(source=(0, 2), target=(1, 3)), prompts=texts)
    first = both(cogvideox, sharing(), prompts=texts[:2])
    second = both(cogvideox, sharing(), prompts=texts[2:])
    assert torch.allclose(whole, torch.cat([first, second]), atol=1e-5)
    one = both(cogvideox, sharing(source=0, target=(1, 2)), prompts=texts[:3])
    other = both(cogvideox, sharing(), prompts=(texts[0], texts[2]))
    assert torch.allclose(one[[0, 2]], other, atol=1e-5)


# --- masks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
def test_a_threshold_of_zero_is_plain_sharing(name: str) -> None:
    pipe = build(name)
    masked = both(pipe, sharing(mask_words=["frog"], mask_threshold=0.0))
    assert torch.allclose(masked, both(pipe, sharing()), atol=1e-5)


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
def test_masks_change_the_target_alone(name: str) -> None:
    pipe = build(name)
    alone = both(pipe)
    masked = both(pipe, sharing(mask_words=["frog"], mask_threshold=0.6))
    assert torch.equal(masked[0], alone[0])
    assert (masked[1] - both(pipe, sharing())[1]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
@pytest.mark.parametrize("words", [["frog"], [["cat", "frog"], ["dog"]], [1, 4]])
def test_masked_layers_equal_the_reference(name: str, words: Any) -> None:
    """Maps, masks and both parts of attention from the queries and keys of one forward."""
    pipe = build(name)
    before, after = Keep("before"), Keep("after")
    technique = sharing(mask_words=words, mask_threshold=0.5, last_layers=1.0)
    both(pipe, before, technique, after, steps=2, guidance_scale=3.0)
    lists = _positions(pipe, words)
    maps: dict[int, list[Tensor]] = {0: [], 1: []}
    kept: dict[str, tuple[Tensor, Tensor] | None] = {}
    checked, forward = 0, None
    for (call, _), (_, out) in zip(before.calls, after.calls, strict=True):
        place = {(row.branch, row.item): at for at, row in enumerate(call.rows)}
        if call.pass_ is not forward:  # maps are those of one forward
            forward, maps = call.pass_, {0: [], 1: []}
        if call.site.kind != "self" and ("cond", 0) in place:
            for item, rows in maps.items():
                at = place[("cond", item)]
                probs = reference.probabilities(call.query[at], call.key[at])
                rows.append(probs[:, call.layout.image, call.layout.text])
        if call.site.kind == "cross":
            continue
        if ("cond", 0) in place:
            kept[call.site.path] = (
                tuple(
                    reference.foreground(
                        reference.word_map(maps[item], lists[item], call.layout.grid), 0.5
                    )
                    for item in (0, 1)
                )
                if maps[0]
                else None
            )
        masks = kept[call.site.path]
        for branch in {row.branch for row in call.rows}:
            own, source = place[(branch, 1)], place[(branch, 0)]
            query, key, value = call.query[own], call.key[source], call.value[source]
            if masks is None:
                wanted = reference.attention(query, key, value)
            else:
                wanted = reference.masked(query, key, value, call.layout.image, *masks)
            assert (out[own] - wanted).abs().max() < 5e-6, (call.site.path, branch)
            checked += 1
    assert checked == 8  # two steps, layers and branches


def _positions(pipe: Any, words: Any) -> list[list[int]]:
    """Token positions for source and target; the tiny tokenizer has a token a word."""
    lists = words if isinstance(words[0], list) else [words, words]
    spans = [
        [
            [word]
            if isinstance(word, int)
            else attnctl.locate_tokens(pipe, text, word)[0].positions
            for word in one
        ]
        for one, text in zip(lists, (SOURCE, TARGET), strict=True)
    ]
    return [[at for positions in one for at in positions] for one in spans]


def test_nothing_of_a_run_is_left_for_the_next(cogvideox: Any) -> None:
    technique = sharing(mask_words=["frog"], mask_threshold=0.6)
    twice = [both(cogvideox, technique) for _ in range(2)]
    assert torch.equal(twice[0], twice[1])


# --- what it is attached with ---------------------------------------------------------------


def test_nothing_is_left_behind_also_after_an_error(pipe: Any) -> None:
    denoiser = pipe.components.get("unet") or pipe.transformer
    before, alone = fingerprint(denoiser), both(pipe)

    def fail(*_: Any) -> Any:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        both(pipe, sharing(), callback_on_step_end=fail)
    assert fingerprint(denoiser) == before
    assert torch.equal(both(pipe), alone)


def test_other_keys_and_values_at_the_same_layers_are_refused() -> None:
    with pytest.raises(ConflictError, match="ditctrl"):
        both(build("animatediff"), sharing(), CrossFrameAttention(where="self"))
    with pytest.raises(ConflictError, match="ditctrl"):
        both(build("animatediff"), sharing(), Flatten())


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "latte"])
def test_other_models_are_refused_when_it_is_attached(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"ditctrl works on CogVideoX, Wan 2\.x, UNet"):
        attnctl.attach(build(name), DiTCtrl())


@pytest.mark.parametrize(
    ("technique", "prompts", "error", "text"),
    [
        (sharing(), (SOURCE,), SettingError, "target=1 is not in this run"),
        (sharing(mask_words=["bird"]), (SOURCE, TARGET), WordNotFoundError, "mask_words: 'bird'"),
        (sharing(mask_words=[99]), (SOURCE, TARGET), SettingError, "no token 99"),
        (sharing(where="temporal"), (SOURCE, TARGET), AttnctlError, "temporal"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_the_first_step(
    cogvideox: Any, technique: Any, prompts: tuple[str, ...], error: type[AttnctlError], text: str
) -> None:
    entered: list[int] = []
    hook = cogvideox.transformer.proj_out.register_forward_hook(lambda *_: entered.append(1))
    with pytest.raises(error, match=text):
        both(cogvideox, technique, prompts=prompts)
    hook.remove()
    assert not entered


def test_masks_are_refused_where_frames_attend_apart() -> None:
    with pytest.raises(UnsupportedModelError, match="attends inside a frame; leave it out"):
        both(build("animatediff"), sharing(mask_words=["frog"]))


def test_temporal_attention_can_share_too() -> None:
    pipe = build("animatediff")
    edited = both(pipe, sharing(where="temporal"))
    assert torch.equal(edited[0], both(pipe)[0])
    assert not torch.equal(edited[1], both(pipe)[1])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"target": 0}, "must be different clips"),
        ({"source": (0, 1), "target": (2, 3, 4)}, "a source for each target"),
        ({"source": (0, 1), "target": (1, 2)}, "must be different clips"),
        ({"last_layers": 0}, "a number of layers from 1"),
        ({"last_layers": 1.5}, "from 0 to 1"),
        ({"last_layers": True}, "last_layers=True"),
        ({"mask_words": [3.5]}, "must be words or token positions"),
        ({"mask_threshold": 2}, "to 1"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        DiTCtrl(**settings)
