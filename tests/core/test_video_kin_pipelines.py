"""Kin of Wan, HunyuanVideo and LTX-Video: their families in real pipelines at toy size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from torch import Tensor

from attnctl import APG, NAG, HeatMaps, SparseAttention, Technique, attach, locate_tokens
from attnctl.calls import PredictionCall, Rows
from attnctl.engine.apart import items_apart
from attnctl.errors import AttnctlError, UnsupportedModelError
from tests.core.extra_row import Extra
from tests.core.samples import Climb, Identity, Shift, Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.parts import picture, seeded
from tests.support.pipelines.video_kin import VIDEO_KIN, build_kin, llama_template

WIDE = {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 16}
# The sites of these are given 512 tokens of text, behind those of a picture.
PICTURED = {"image": picture(), "height": 32, "width": 48}
TRUE_GUIDANCE = {"true_cfg_scale": 3.0, "negative_prompt": "a dog"}
ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "wan_vace": lambda: WIDE,
    "skyreels": lambda: WIDE,
    "skyreels_forcing": lambda: WIDE,
    "hunyuan15": lambda: {"height": 16, "width": 24, "num_frames": 5},
    "hunyuan15_image": lambda: {"image": picture(), "num_frames": 5},
    "ltx2": lambda: {**WIDE, "width": 64, "spatio_temporal_guidance_blocks": [1]},
    "chronoedit": lambda: {**PICTURED, "num_frames": 5},
    "wan_animate": lambda: {
        **PICTURED,
        "pose_video": [picture(k) for k in range(9)],
        "face_video": [picture(k) for k in range(9, 18)],
        "segment_frame_length": 9,
        "guidance_scale": 3.0,
    },
    "anyflow": lambda: {**WIDE, "guidance_scale": 3.0},
    "helios": lambda: {**WIDE, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]},
    "hunyuan_video": lambda: {**WIDE, **TRUE_GUIDANCE, "prompt_template": llama_template()},
    "framepack": lambda: {
        **WIDE,
        **TRUE_GUIDANCE,
        "prompt_template": llama_template(),
        "image": picture(),
        "num_frames": 5,
        "latent_window_size": 2,
    },
    "motif_video": lambda: WIDE,
}
GRIDS = {
    "wan_vace": (3, 2, 3),
    "skyreels": (3, 2, 3),
    "skyreels_forcing": (3, 2, 3),
    "hunyuan15": (2, 4, 6),
    "hunyuan15_image": (2, 16, 16),
    "ltx2": (3, 4, 8),
    "chronoedit": (2, 2, 3),
    "wan_animate": (4, 2, 3),
    "anyflow": (3, 2, 3),
    "helios": (3, 2, 3),
    "hunyuan_video": (3, 2, 3),
    "framepack": (2, 2, 3),
    "motif_video": (3, 2, 3),
}
UNGUIDED: dict[str, dict[str, Any]] = {
    "ltx2": {
        "guidance_scale": 1.0,
        "audio_guidance_scale": 1.0,
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
    },
    "hunyuan_video": {"negative_prompt": None},
    "framepack": {"negative_prompt": None},
}
# Both branches in one batch, and for LTX-2 further calls behind them.
CALLS = {
    "ltx2": {(("uncond", 0), ("cond", 0)), (("cond", 0),)},
    "anyflow": {(("uncond", 0), ("cond", 0))},
}
COND, UNCOND = (("cond", 0),), (("uncond", 0),)


def run(pipe: Any, name: str, steps: int = 2, **changes: Any) -> Any:
    """The pipeline's output, latents in place of frames."""
    arguments = {
        "prompt": PROMPT,
        "num_inference_steps": steps,
        "generator": seeded(0),
        "output_type": "latent",
        **ARGUMENTS[name](),
        **changes,
    }
    return pipe(**arguments)


def latents_of(pipe: Any, name: str, steps: int = 2, **changes: Any) -> Tensor:
    frames = run(pipe, name, steps, **changes).frames
    if name == "framepack":
        return frames[-1][:, :, 1:]  # the picture that the clip begins with is no latent
    if name == "wan_animate":  # this pipeline alone gives latents as the decoder wants them
        frames = frames / torch.tensor(pipe.vae.config.latents_std).view(1, -1, 1, 1, 1)
    return torch.as_tensor(frames)


def without_guidance(pipe: Any, name: str) -> dict[str, Any]:
    """What turns guidance off."""
    if hasattr(pipe, "guider"):
        pipe.guider.guidance_scale = 1.0
        return {}
    return UNGUIDED.get(name, {"guidance_scale": 1.0})


@pytest.mark.parametrize("name", VIDEO_KIN)
def test_watching_changes_nothing_and_leaves_nothing_behind(name: str) -> None:
    pipe = build_kin(name)
    plain = latents_of(pipe, name)
    before, watch = fingerprint(pipe), Watch(needs_layout=True)
    with attach(pipe, watch):
        assert torch.equal(latents_of(pipe, name), plain)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(latents_of(pipe, name), plain)
    for call in watch.seen:
        assert call.layout is not None
        assert call.layout.grid == GRIDS[name]
        assert call.layout.image.stop <= call.query.shape[2]
        assert call.layout.text is None or call.layout.text.stop <= call.key.shape[2]


@pytest.mark.parametrize("name", VIDEO_KIN)
def test_rows_of_guided_and_unguided_calls(name: str) -> None:
    pipe, guided, alone = build_kin(name), Watch(), Watch()
    with attach(pipe, guided):
        latents_of(pipe, name)
    changes = without_guidance(pipe, name)
    with attach(pipe, alone):
        latents_of(pipe, name, **changes)
    expected = CALLS.get(name, {COND, UNCOND})
    assert guided.rows_by_step == {0: expected, 1: expected}
    assert alone.rows_by_step == {0: {COND}, 1: {COND}}


@pytest.mark.parametrize("name", VIDEO_KIN)
def test_maps_of_words_are_those_of_their_tokens(name: str) -> None:
    pipe, keys = build_kin(name), dict[str, Tensor]()
    place = 0
    for word in ("frog", "cat"):
        watch = Watch(needs_layout=True, where="block:cross|joint")
        prompt = f"a dog and a {word}"
        with attach(pipe, [watch, HeatMaps(words=[word])]) as session:
            latents_of(pipe, name, prompt=prompt)
            (place,) = session.maps.positions(word)
            assert session.maps.tokens()[place].strip("▁Ġ") == word
        if name == "motif_video":  # padding in front: it depends on the call
            with pytest.raises(AttnctlError, match="max_sequence_length"):
                locate_tokens(pipe, prompt, word)
        else:
            (span,) = locate_tokens(pipe, prompt, word)
            assert span.positions == (place,)
        first = watch.seen[0]
        assert first.layout is not None
        assert first.layout.text is not None
        at = first.pick(branch="cond")
        keys[word] = first.key[at][0, :, first.layout.text]
    difference = (keys["frog"] - keys["cat"]).norm(dim=(0, 2))
    assert int(difference.argmax()) == place
    with attach(pipe, HeatMaps()) as session:
        latents_of(pipe, name)
        maps = session.maps
    size = GRIDS[name][1:]
    assert maps.word("cat").shape[-2:] == size
    total = torch.as_tensor(maps.word("cat")) - torch.as_tensor(maps.word("frog"))
    assert total.abs().max() > 0


@pytest.mark.parametrize("name", VIDEO_KIN)
def test_a_perturbed_row_guides_the_conditional_branch_exactly(name: str) -> None:
    pipe, off = build_kin(name), {"guidance_rescale": 0.0} if name == "ltx2" else {}
    plain = latents_of(pipe, name, 1, **off)
    extra = Extra(where="block:self|joint", scale=2.0)
    with attach(pipe, extra):
        made = latents_of(pipe, name, 1, **off)
    (call,) = extra.seen
    added = 2.0 * extra.difference(call)
    if name == "ltx2":  # latents are packed
        added = added.unflatten(1, GRIDS[name]).movedim(-1, 1)
    if name == "anyflow":  # frames come before channels
        added = added.transpose(1, 2)
    step = (made - plain).flatten() @ added.flatten() / added.square().sum()
    assert added.abs().max() > 1e-3
    assert abs(step) > 0.01
    torch.testing.assert_close(made - plain, step * added, rtol=1e-3, atol=1e-4)
    assert [row.kind for row in call.rows][-1] == "perturbed"


@pytest.mark.parametrize("name", VIDEO_KIN)
def test_an_added_row_is_given_all_that_its_own_row_is_given(name: str) -> None:
    pipe, extra = build_kin(name), Extra(is_perturbed=False)
    with attach(pipe, extra):
        latents_of(pipe, name)
    assert len(extra.seen) == 2
    for call in extra.seen:
        largest = call.get("cond").abs().max()
        assert extra.difference(call).abs().max() <= 1e-4 * largest


@pytest.mark.parametrize("name", [n for n in VIDEO_KIN if n != "skyreels_forcing"])
def test_latents_climb_on_the_gradient_of_a_words_map(name: str) -> None:
    pipe = build_kin(name)
    with attach(pipe, Climb(where="block:cross|joint", size=50.0, evaluations=2)) as session:
        made = latents_of(pipe, name)
        losses = session._control.runs.result_of("climb")["losses"]  # pyright: ignore[reportPrivateUsage]
    assert torch.isfinite(made).all()
    assert len(losses) == 4
    assert losses[1] < losses[0]
    assert losses[3] < losses[2]


@pytest.mark.parametrize("name", ["wan_vace", "hunyuan15", "hunyuan15_image", "ltx2"])
def test_sparse_attention_that_keeps_all_is_dense(name: str) -> None:
    pipe = build_kin(name)
    plain = latents_of(pipe, name)
    sparse = SparseAttention(sparsity=1e-4, mask="predicted", least_tokens=1, steps="0%-")
    with attach(pipe, sparse) as session:
        made = latents_of(pipe, name)
    assert "sparse" in str(session.report())
    torch.testing.assert_close(made, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["skyreels", "hunyuan15"])
def test_two_prompts_are_two_items_and_each_equals_a_run_alone(name: str) -> None:
    pipe, prompts = build_kin(name), ["a cat and a frog", "a dog and a red cat"]
    alone = [latents_of(pipe, name, prompt=p, generator=seeded(k)) for k, p in enumerate(prompts)]
    watch, extra = Watch(), Extra(where="self|joint")
    with attach(pipe, [watch, extra]):
        both = latents_of(pipe, name, prompt=prompts, generator=[seeded(0), seeded(1)])
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-3, atol=1e-4)
    rows: Rows = watch.seen[0].rows
    assert [(row.branch, row.item, row.kind) for row in rows][:2] == [
        ("cond", 0, "main"),
        ("cond", 1, "main"),
    ]


@dataclass(frozen=True)
class OnlyConditional(Technique):
    """Replaces the guidance formula by the conditional prediction."""

    name: ClassVar[str] = "only-conditional"
    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})

    def edit_prediction(self, call: PredictionCall) -> None:
        call.own(call.get("cond"))


@pytest.mark.parametrize("name", ["wan_vace", "skyreels", "hunyuan15", "original"])
def test_a_formula_of_ones_own_takes_the_place_of_the_pipelines(name: str) -> None:
    pipe = build_kin("hunyuan15" if name == "original" else name)
    if name == "original":
        pipe.guider = ClassifierFreeGuidance(3.0, use_original_formulation=True)
        name = "hunyuan15"
    with attach(pipe, OnlyConditional()):
        made = latents_of(pipe, name)
    if name == "hunyuan15":
        pipe.guider = ClassifierFreeGuidance(1.0)
    plain = latents_of(pipe, name, **without_guidance(pipe, name))
    torch.testing.assert_close(made, plain, rtol=1e-3, atol=1e-4)


def test_a_guider_of_another_kind_has_no_scale_that_a_formula_could_use() -> None:
    pipe = build_kin("hunyuan15")
    pipe.guider = AdaptiveProjectedGuidance(guidance_scale=3.0)
    with attach(pipe, OnlyConditional()), pytest.raises(UnsupportedModelError, match="scale"):
        latents_of(pipe, "hunyuan15")


@pytest.mark.parametrize("name", ["wan_vace", "skyreels", "hunyuan15", "hunyuan15_image"])
def test_another_prompt_is_encoded_as_the_pipeline_encodes(name: str) -> None:
    pipe = build_kin(name)
    plain = latents_of(pipe, name)
    with attach(pipe, NAG(PROMPT, where="block:cross|joint")):  # away from itself: nowhere
        same = latents_of(pipe, name)
    with attach(pipe, NAG("a red dog", where="block:cross|joint")):
        other = latents_of(pipe, name)
    torch.testing.assert_close(same, plain, rtol=1e-3, atol=1e-3)
    assert (other - plain).abs().max() > 1e-3


def test_words_of_hunyuan_video_15_are_found_beside_glyphs() -> None:
    pipe, keys = build_kin("hunyuan15"), dict[str, Tensor]()
    for word in ("frog", "cat"):
        watch = Watch(needs_layout=True, where="layers=0")
        with attach(pipe, [watch, HeatMaps()]) as session:
            latents_of(pipe, "hunyuan15", prompt=f'a {word} "hi"')
            (place,) = session.maps.positions(word)
        call = watch.seen[0]
        assert call.layout is not None
        assert call.layout.text is not None
        assert call.layout.text.start == 48 + len('Text "hi". ') + 1  # bytes, and the end
        keys[word] = call.key[0, :, call.layout.text]
    assert int((keys["frog"] - keys["cat"]).norm(dim=(0, 2)).argmax()) == place == 1


def test_pictures_of_reference_are_frames_of_wan_vace() -> None:
    pipe, watch = build_kin("wan_vace"), Watch(needs_layout=True)
    pictures = {"reference_images": [picture(), picture(1)]}
    with attach(pipe, watch):
        latents_of(pipe, "wan_vace", **pictures)
    for call in watch.seen:
        assert call.layout is not None
        assert call.layout.grid == (5, 2, 3)
        assert call.query.shape[2] == 30


def test_guidance_branches_have_layouts_of_their_own() -> None:
    pipe, watch = build_kin("framepack"), Watch(needs_layout=True, where="layers=0:joint")
    with attach(pipe, watch):
        latents_of(pipe, "framepack", 1)
    lengths = {}
    for call in watch.seen:
        assert call.layout is not None
        assert call.layout.text is not None
        assert call.layout.text.stop == call.key.shape[2]
        lengths[call.rows[0].branch] = call.layout.text.stop - call.layout.text.start
    assert lengths["cond"] > lengths["uncond"]


def test_a_clip_whose_frames_are_dropped_in_the_middle_of_a_run_is_refused() -> None:
    pipe, dropping = build_kin("chronoedit"), {"enable_temporal_reasoning": True, "num_frames": 9}
    dropping["num_temporal_reasoning_steps"] = 1
    with attach(pipe, Watch()):  # it needs no layout
        latents_of(pipe, "chronoedit", **dropping)
    with (
        attach(pipe, Watch(needs_layout=True)),
        pytest.raises(UnsupportedModelError, match="in the middle of a run"),
    ):
        latents_of(pipe, "chronoedit", **dropping)


@pytest.mark.parametrize("name", ["framepack", "helios", "wan_animate"])
def test_sections_of_a_clip_are_runs_of_their_own(name: str) -> None:
    pipe, watch = build_kin(name), Watch(needs_layout=True, where="layers=0:self|layers=0:joint")
    longer: dict[str, Any] = {"num_frames": 18}
    if name == "framepack":
        longer = {"num_frames": 10}
    if name == "wan_animate":
        longer = {kind: [picture(k) for k in range(17)] for kind in ("pose_video", "face_video")}
    with attach(pipe, watch) as session:
        latents_of(pipe, name, **longer)
        assert session.report().active_steps("watch") == (0, 1)
    assert [call.step.index for call in watch.seen] == [0, 0, 1, 1] * 2
    assert all(call.layout is not None for call in watch.seen)


# --- LTX-2 ------------------------------------------------------------------------------------


def test_calls_that_weaken_ltx_2_are_edited_but_not_read() -> None:
    pipe, watch = build_kin("ltx2"), Watch(where="layers=0:cross")
    with attach(pipe, [watch, HeatMaps(where="layers=0:cross")]) as session:
        latents_of(pipe, "ltx2", 1)
        reads = session.maps.calls
    kinds = [tuple(row.kind for row in call.rows) for call in watch.seen]
    assert kinds == [("main", "main"), ("weaker",), ("weaker",)]
    assert set(reads.values() if isinstance(reads, dict) else [reads]) == {1}


def test_guidance_that_ltx_2_rescales_has_a_warning_and_formulas_are_refused() -> None:
    pipe = build_kin("ltx2")
    with attach(pipe, Extra(where="self", scale=1.0)) as session:
        latents_of(pipe, "ltx2", 1)
        assert any("renormalises" in text for text in session.report().warnings)
    with attach(pipe, APG()), pytest.raises(UnsupportedModelError, match="renormalises"):
        latents_of(pipe, "ltx2", 1)


def test_items_of_ltx_2_that_run_apart_keep_their_sound() -> None:
    pipe, prompts = build_kin("ltx2"), ["a cat and a frog", "a dog and a red cat"]
    plain = run(pipe, "ltx2", 1, prompt=prompts)
    with attach(pipe, Identity()), items_apart(pipe, [[1], [0]]):
        apart = run(pipe, "ltx2", 1, prompt=prompts)
    torch.testing.assert_close(apart.frames, plain.frames, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apart.audio, plain.audio, rtol=1e-4, atol=1e-4)


def test_sound_of_the_first_step_is_the_pipelines_own() -> None:
    pipe = build_kin("ltx2")
    plain = run(pipe, "ltx2", 1).audio
    with attach(pipe, Extra(where="self", scale=1.0)):
        made = run(pipe, "ltx2", 1).audio
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)


# --- SkyReels V2 with diffusion forcing -------------------------------------------------------


def test_parts_of_a_long_clip_are_runs_of_their_own() -> None:
    pipe, watch = build_kin("skyreels_forcing"), Watch(where="layers=0:self")
    long = {"num_frames": 17, "base_num_frames": 9, "overlap_history": 5}
    plain = latents_of(pipe, "skyreels_forcing", **long)
    with attach(pipe, watch):
        assert torch.equal(latents_of(pipe, "skyreels_forcing", **long), plain)
    assert [call.step.index for call in watch.seen] == [0, 0, 1, 1] * 3
    assert {call.step.total for call in watch.seen} == {2}


def test_frames_at_different_steps_and_moved_latents_are_refused() -> None:
    pipe, name = build_kin("skyreels_forcing"), "skyreels_forcing"
    with attach(pipe, Watch()), pytest.raises(UnsupportedModelError, match="ar_step=0"):
        latents_of(pipe, name, ar_step=1, causal_block_size=1)
    for mover in (Shift(), Climb(where="cross")):
        with attach(pipe, mover), pytest.raises(UnsupportedModelError, match="of its own"):
            latents_of(pipe, name)
