"""Bounded Attention on tiny UNets: parity with a loop of its own, masks, guidance, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AttendAndExcite, BoundedAttention, HeatMaps, SoftPAG, ramp
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.report import Report
from tests.core.samples import Watch
from tests.support.pipelines import PROMPT, build, generate
from tests.techniques.bounded_reference import Settings, box_cells, reference

BOXES = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.75)]
OVERLAPPING = [(0.0, 0.0, 0.75, 1.0), (0.5, 0.25, 1.0, 0.75)]
SUBJECTS = ["cat", "frog"]  # tokens 2 and 5 of PROMPT
WHOLE = [(0.0, 0.0, 1.0, 1.0)]
TWO = ["a cat and a frog", "a red dog on the blue photo"]
STRONG = {"init_step_size": 400.0, "final_step_size": 100.0}  # tiny models have small gradients


def bounded(boxes: Any = BOXES, subjects: Any = SUBJECTS, **settings: Any) -> BoundedAttention:
    given = {"guidance_steps": 2, "iterations": 2, "loss_where": "mid", **settings}
    return BoundedAttention(boxes, subjects, **given)


def run(pipe: Any, *techniques: Any, **changes: Any) -> tuple[Tensor, Report, Any]:
    """Latents, report and the state of Bounded Attention at the last step."""
    states: list[Any] = []
    with attnctl.attach(pipe, techniques) as session:
        control = session._control.runs  # pyright: ignore[reportPrivateUsage]

        def keep(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
            states.append(control.result_of("bounded-attention"))
            return {}

        latents = generate(pipe, **{"callback_on_step_end": keep, **changes})
        return latents, session.report(), states[-2] if len(states) > 1 else None


@pytest.fixture(scope="module")
def sd1() -> Any:
    return build("sd1")


@pytest.fixture(scope="module")
def deep() -> Any:
    return build("sd1_deep")


@pytest.mark.parametrize("stop_loss", [0.0, 0.28], ids=["all iterations", "early stop"])
def test_a_run_equals_a_loop_with_masks_written_out(deep: Any, stop_loss: float) -> None:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    settings = Settings(
        boxes=OVERLAPPING, subjects=[[2], [5]], filtered=[1, 3, 4], eos=6,
        first=400.0, last=100.0, guidance_steps=2, iterations=3, stop_loss=stop_loss, refresh=2,
        loss_layers=lambda path: path.startswith(("mid_block", "up_blocks.1")),
        map_layers=lambda path: path.startswith("up_blocks.1"),
        map_side=8,
    )  # fmt: skip
    expected, counts, masks = reference(deep, PROMPT, latents.clone(), 6, 7.5, settings)
    technique = bounded(
        OVERLAPPING,
        iterations=3,
        stop_loss=stop_loss,
        refresh=2,
        loss_where="mid|up:level=1",
        **STRONG,
    )
    ours, report, state = run(deep, technique, steps=6, latents=latents, guidance_scale=7.5)
    plain = generate(deep, steps=6, latents=latents, guidance_scale=7.5)

    assert [entry.evaluations for entry in report.losses] == counts
    assert (counts == [3, 3]) == (stop_loss == 0)
    assert len(masks) == 2
    found = [set(one.nonzero().flatten().tolist()) for one in state.masks.refined[0]]
    assert found == masks[-1]
    assert found != box_cells(OVERLAPPING, 8)
    assert (ours - expected).abs().max() < 2e-4
    assert (ours - plain).abs().max() > 0.1


@pytest.mark.parametrize(
    "off",
    [
        BoundedAttention(),
        bounded([[]], [[]]),
        bounded(steps="0-0"),
        bounded(steps="9-"),
        bounded(steps=ramp(0.0, 0.0)),
    ],
    ids=["no boxes", "no boxes in a list", "empty window", "window behind the run", "strength 0"],
)
def test_off_is_the_plain_picture_bit_for_bit_without_another_forward(sd1: Any, off: Any) -> None:
    calls: list[int] = []
    handle = sd1.unet.conv_in.register_forward_hook(lambda *call: calls.append(1))
    plain = generate(sd1, steps=3)
    count = len(calls)
    ours, report, _ = run(sd1, off, steps=3)
    handle.remove()
    assert torch.equal(plain, ours)
    assert len(calls) == 2 * count
    assert report.active_steps("bounded-attention") == ()


def test_one_subject_everywhere_without_guidance_is_the_plain_picture(sd1: Any) -> None:
    plain = generate(sd1, steps=3)
    alone = bounded(WHOLE, ["cat"], filter_words=[], iterations=0, clusters=0)
    assert torch.equal(run(sd1, alone, steps=3)[0], plain)
    read = bounded(WHOLE, ["cat"], filter_words=[], iterations=0, guidance_steps=9)
    assert torch.allclose(run(sd1, read, steps=3)[0], plain, atol=1e-4)


def test_gradient_forwards_are_spent_in_the_guided_steps_alone(sd1: Any) -> None:
    calls: list[int] = []
    handle = sd1.unet.conv_in.register_forward_hook(lambda *call: calls.append(call[2].shape[0]))
    _, report, _ = run(sd1, bounded(stop_loss=0.0), steps=4)
    handle.remove()
    assert calls.count(2) == 4  # the pipeline's own, two rows
    assert calls.count(1) == 4  # two iterations in two steps, the conditional row alone
    assert [(e.step, e.evaluations) for e in report.losses] == [(0, 2), (1, 2)]


@pytest.mark.parametrize(("given", "expected"), [(0.5, 2), ("50%", 2), (3, 3), (0.3, 2), (9, 4)])
def test_guidance_counts_in_steps_or_in_fractions_of_the_run(
    sd1: Any, given: Any, expected: int
) -> None:
    technique = bounded(guidance_steps=given, iterations=1, clusters=0)
    _, report, _ = run(sd1, technique, steps=4)
    assert [entry.step for entry in report.losses] == list(range(expected))


def test_gradient_steps_lower_the_loss(sd1: Any) -> None:
    settings = {"guidance_steps": 1, "clusters": 0, "stop_loss": 0.0, **STRONG}
    losses = [
        run(sd1, bounded(iterations=n, **settings), steps=1)[1].losses[0].losses[0] for n in (1, 6)
    ]
    assert losses[1] < losses[0]


def test_a_loss_below_the_bound_ends_the_iteration_after_one_step(sd1: Any) -> None:
    plain = generate(sd1, steps=1)
    technique = bounded(iterations=5, stop_loss=100.0, clusters=0, **STRONG)
    ours, report, _ = run(sd1, technique, steps=1)
    masked, _, _ = run(sd1, bounded(iterations=0, clusters=0), steps=1)
    assert [entry.evaluations for entry in report.losses] == [1]
    assert not torch.equal(ours, masked)
    assert not torch.equal(masked, plain)


def test_mean_maps_are_of_the_pipelines_own_forwards_alone(sd1: Any) -> None:
    """Gradient forwards change neither their number nor, without a move, their values."""
    resting = {"init_step_size": 1e-30, "final_step_size": 0.0, "guidance_steps": 9}
    _, _, guided = run(sd1, bounded(iterations=4, stop_loss=0.0, **resting), steps=3)
    _, _, plain = run(sd1, bounded(iterations=0, guidance_steps=9), steps=3)
    for name in ("_word_maps", "_image_maps"):
        (ours,), (theirs,) = getattr(guided.masks, name), getattr(plain.masks, name)
        assert ours.count == theirs.count == 3  # one middle block, three steps
        assert torch.allclose(ours.total, theirs.total, atol=1e-5)


def test_words_lie_in_their_boxes_and_no_pixel_of_another_sees_them(sd1: Any) -> None:
    technique = bounded(iterations=0, clusters=0)
    with attnctl.attach(sd1, [technique, HeatMaps(where="up:cross,level=0")]) as session:
        generate(sd1)
        heat = {word: session.maps.raw(word).flatten() for word in ("cat", "and")}
        plain = session.maps.token(0, absolute=True).flatten()
    cat, frog = box_cells(BOXES, 16)
    assert (heat["cat"][sorted(cat)] > 0).all()
    outside = sorted(set(range(256)) - cat)
    assert (heat["cat"][outside] == 0).all()
    assert (heat["and"] == 0).all()  # a filtered word
    assert (plain[sorted(frog)] > 0).all()


def test_masks_act_in_both_branches_of_self_attention_and_in_one_of_cross(sd1: Any) -> None:
    watch = Watch()
    run(sd1, bounded(iterations=0, clusters=0), watch, steps=1)
    low = torch.finfo(torch.float32).min / 2
    for call in watch.seen:
        mask = call.mask
        assert mask is not None
        assert [row.branch for row in call.rows] == ["uncond", "cond"]
        if call.site.kind == "self":
            assert mask.shape[0] == 1  # for all rows
            assert (mask == low).any()
        else:
            assert not mask[0].any()
            assert (mask[1] == low).any()


def test_a_weak_mask_lets_some_attention_through(sd1: Any) -> None:
    seen: list[Tensor] = []
    for steps in ("always", ramp(0.5, 0.5)):
        technique = bounded(iterations=0, clusters=0, steps=steps)
        with attnctl.attach(sd1, [technique, HeatMaps(where="up:cross,level=0")]) as session:
            generate(sd1, steps=1)
            seen.append(session.maps.raw("cat").flatten())
    frog = sorted(box_cells(BOXES, 16)[1])
    assert (seen[0][frog] == 0).all()
    assert (seen[1][frog] > 0).all()


def test_heads_that_are_not_selected_stay_open(sd1: Any) -> None:
    watch = Watch(where="mid")
    run(sd1, bounded(iterations=0, clusters=0, where="mid,heads=1"), watch, steps=1)
    for call in watch.seen:
        assert call.mask is not None
        assert not call.mask[:, 0].any()
        assert call.mask[:, 1].any()


def test_a_batch_with_boxes_for_each_prompt_equals_single_runs(sd1: Any) -> None:
    boxes = [BOXES, [(0.25, 0.25, 0.9, 0.8)]]
    subjects = [["cat", "frog"], [["red", "dog"]]]
    settings = {"guidance_steps": 1, "stop_loss": 0.0, **STRONG}
    both, _, _ = run(sd1, bounded(boxes, subjects, **settings), prompt=TWO, steps=3)
    singles = [
        run(sd1, bounded(boxes[i], subjects[i], **settings), prompt=TWO[i], seed=i, steps=3)[0]
        for i in range(2)
    ]
    assert torch.allclose(both, torch.cat(singles), atol=2e-3)
    assert not torch.allclose(both, generate(sd1, TWO, steps=3), atol=1e-2)


def test_a_picture_without_boxes_is_left_as_it_is(sd1: Any) -> None:
    technique = bounded([BOXES, []], [SUBJECTS, []], **STRONG)
    ours, _, _ = run(sd1, technique, prompt=TWO, steps=3)
    plain = generate(sd1, TWO, steps=3)
    assert (ours[0] - plain[0]).abs().max() > 1e-2
    assert torch.allclose(ours[1], plain[1], atol=1e-4)


def test_pictures_of_one_prompt_share_their_boxes(sd1: Any) -> None:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    technique = bounded(guidance_steps=1, **STRONG)
    many, _, _ = run(sd1, technique, num_images_per_prompt=2, latents=noise, steps=3)
    singles = [run(sd1, technique, latents=noise[i : i + 1], steps=3)[0] for i in range(2)]
    assert torch.allclose(many, torch.cat(singles), atol=2e-3)


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_pictures_that_are_not_square_work(sd1: Any, size: tuple[int, int]) -> None:
    height, width = size
    watch = Watch(where="mid:cross")
    technique = bounded(guidance_steps=1, clusters=0)
    ours, _, _ = run(sd1, technique, watch, height=height, width=width)
    mask = watch.seen[-1].mask
    assert ours.isfinite().all()
    assert mask is not None
    seen = (mask[1, 0, :, 2] == 0).unflatten(0, (height // 4, width // 4))
    assert seen[:, : width // 8].all()  # the left half is the cat's
    assert not seen[:, width // 8 :].any()


def test_words_phrases_and_positions_name_the_same_subjects(sd1: Any) -> None:
    prompt = "a red cat and a blue frog"
    forms = (["red cat", "blue frog"], [["red", "cat"], [6, "frog"]], [[2, 3], [6, 7]])
    found = [run(sd1, bounded(subjects=f), prompt=prompt, steps=3)[0] for f in forms]
    other = run(sd1, bounded(subjects=["cat", "frog"]), prompt=prompt, steps=3)[0]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], other)


def test_clusters_are_made_when_guidance_ends_and_then_at_every_refresh(
    sd1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnctl.editing.subject_masks import SubjectMasks

    made: list[int] = []
    refine = SubjectMasks.refine

    def counted(self: SubjectMasks, *args: Any) -> None:
        made.append(self._word_maps[0].count)  # pyright: ignore[reportPrivateUsage]
        refine(self, *args)

    monkeypatch.setattr(SubjectMasks, "refine", counted)
    _, _, state = run(sd1, bounded(iterations=0, guidance_steps=3, refresh=2), steps=8)
    assert made == [3, 5, 7]  # steps behind, one middle block each
    assert state.masks.refined[0].any(dim=1).all()
    run(sd1, bounded(iterations=0, guidance_steps=0, refresh=5), steps=3)
    assert made[3:] == [1]  # there is nothing to cluster before the first step


def test_sdxl_and_schedulers_that_scale_their_input_work() -> None:
    pipe = build("sdxl")
    plain = generate(pipe, steps=4)
    ours, report, _ = run(pipe, bounded(guidance_steps=1, **STRONG), steps=4)
    assert ours.isfinite().all()
    assert (ours - plain).abs().max() > 1e-2
    assert [entry.step for entry in report.losses] == [0]


def test_half_precision_stays_finite() -> None:
    pipe = build("sd1").to(torch.bfloat16)
    ours, _, _ = run(pipe, bounded(guidance_steps=1), steps=3)
    assert ours.isfinite().all()


def test_losses_of_two_techniques_are_summed_and_each_stops_when_it_is_done(sd1: Any) -> None:
    exciting = AttendAndExcite(
        SUBJECTS, steps="0-3", thresholds={}, resolution=8, scale_factor=40.0
    )
    calls: list[int] = []
    handle = sd1.unet.conv_in.register_forward_hook(lambda *call: calls.append(call[2].shape[0]))
    both, report, _ = run(sd1, bounded(stop_loss=0.0, **STRONG), exciting, steps=4)
    handle.remove()
    steps = {name: [e.step for e in report.losses if e.technique == name] for name in
             ("bounded-attention", "attend-and-excite")}  # fmt: skip
    assert steps == {"bounded-attention": [0, 1], "attend-and-excite": [0, 1, 2]}
    assert calls.count(1) == 5  # two iterations in two steps, and one of the other alone
    alone, _, _ = run(sd1, bounded(stop_loss=0.0, **STRONG), steps=4)
    assert not torch.allclose(both, alone, atol=1e-3)


def test_added_rows_are_masked_like_the_row_that_they_shadow(sd1: Any) -> None:
    watch = Watch(where="mid:self")
    technique = bounded(iterations=0, clusters=0)
    run(sd1, technique, SoftPAG(where="mid:self"), watch, steps=1)
    perturbed = [c for c in watch.seen if any(row.kind == "perturbed" for row in c.rows)]
    assert perturbed
    assert all(call.mask is not None and call.mask.any() for call in perturbed)


def test_keys_of_another_technique_that_do_not_fit_are_refused(sd1: Any) -> None:
    class MoreKeys(Watch):
        def edit_qkv(self, call: Any) -> None:
            call.key, call.value = (torch.cat([x, x], dim=2) for x in (call.key, call.value))

    more = MoreKeys(where="mid:self")
    with pytest.raises(ConflictError, match="shows 128 keys to 64 image tokens"):
        run(sd1, more, bounded(), steps=1)


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart_alpha", "animatediff"])
def test_other_models_are_refused_when_it_is_attached(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="masks self- and cross-attention of picture"):
        attnctl.attach(build(name), [bounded()])


@pytest.mark.parametrize(
    ("technique", "changes", "error", "text"),
    [
        (bounded(subjects=["whale", "frog"]), {}, WordNotFoundError, r"subjects: 'whale'.*frog"),
        (bounded(subjects=[99, 5]), {}, SettingError, "no token 99; the text has 77"),
        (bounded([BOXES] * 3, [SUBJECTS] * 3), {"prompt": TWO}, SettingError, "3 lists for 2"),
        (bounded(loss_where="mid:self"), {}, NoSiteError, "cross-attention at no site"),
        (bounded(loss_where="mid:res=7", clusters=0), {}, NoSiteError, "self-attention at no site"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_the_first_step(
    sd1: Any, technique: Any, changes: dict[str, Any], error: type[AttnctlError], text: str
) -> None:
    entered: list[int] = []
    hook = sd1.unet.conv_in.register_forward_hook(lambda *_: entered.append(1))
    with pytest.raises(error, match=text):
        run(sd1, technique, **changes)
    hook.remove()
    assert not entered


def test_embeddings_instead_of_a_prompt_are_refused(sd1: Any) -> None:
    embeds, negative = sd1.encode_prompt(PROMPT, "cpu", 1, True)
    refused = pytest.raises(WordNotFoundError, match=r"prompt_embeds; call it with prompt=")
    with attnctl.attach(sd1, [bounded()]), refused:
        sd1(prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"boxes": [(0.5, 0, 0.2, 1), BOXES[1]]}, "0 <= x0 < x1 <= 1"),
        ({"boxes": [(0, 0, 1)] * 2}, "boxes="),
        ({"boxes": BOXES[:1]}, "2 subjects for 1 boxes"),
        ({"boxes": [BOXES, BOXES], "subjects": [SUBJECTS]}, "subjects has 1 lists"),
        ({"boxes": [BOXES], "subjects": SUBJECTS}, "a list for each prompt"),
        ({"subjects": ["cat", 0]}, "position from 1"),
        ({"subjects": ["cat", []]}, "for each box a word"),
        ({"subjects": None}, "for each box a word"),
        ({"filter_words": [True]}, "filter_words="),
        ({"guidance_steps": 1.5}, "fraction of the run"),
        ({"guidance_steps": -1}, "fraction of the run"),
        ({"guidance_steps": True}, "fraction of the run"),
        ({"guidance_steps": "many"}, "fraction of the run"),
        ({"iterations": 1.5}, "whole number"),
        ({"refresh": 0}, "from 1"),
        ({"clusters": -1}, "from 0"),
        ({"self_threshold": 2}, "from 0 to 1"),
        ({"init_step_size": -1}, "from 0"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        bounded(**settings)


def test_settings_survive_a_recipe() -> None:
    technique = bounded(
        [BOXES, BOXES], [["cat", ["red", "dog"]], [2, "frog"]], guidance_steps="30%",
        filter_words=["a"],
    )  # fmt: skip
    assert BoundedAttention.from_settings(technique.settings()) == technique
    assert technique.guidance_steps == 0.3
