"""FocusOnInstruction on a tiny InstructPix2Pix: a loop of its own, invariants, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import FocusOnInstruction, SoftPAG, ramp
from attnctl.errors import (
    AttnctlError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.ops.focus_on_instruction import instruction_mask
from tests.support.guidance_reference import generate_by
from tests.support.pipelines import build, generate, picture
from tests.support.pipelines.calls import LEFT_OUT
from tests.support.projections import projected
from tests.techniques.clip_runs import Keep

SCALES = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
BRANCHES = ("cond", "image", "uncond")
INSTRUCTIONS = [["cat"], "frog"]  # tokens 2 and 5 of the prompt
TOP = torch.zeros(16, 16, dtype=torch.bool)
TOP[:6] = True
LEFT = TOP.T
FULL = torch.ones(16, 16, dtype=torch.bool)
NEUTRAL = {"masks": [FULL], "gamma": 0.0}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build("sd1_pix2pix")


def edit(pipe: Any, *techniques: Any, **changes: Any) -> Tensor:
    options = {"steps": 4, **SCALES, **changes}
    if not techniques:
        return generate(pipe, **options)
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **options)


class Reference:
    """The method by loops: attention processors and a guidance formula that share their masks."""

    def __init__(self, tokens: list[int], collect: int, weights: list[float], gamma: float) -> None:
        self.tokens, self.collect, self.weights, self.gamma = tokens, collect, weights, gamma
        self.maps = [torch.zeros(16, 16) for _ in tokens]
        self.masks: list[Tensor] = []
        self.step = 0

    def attend(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        side = round(query.shape[2] ** 0.5)
        scores = query @ key.mT * attn.scale
        if self.masks:
            self._modulate(scores, side)
        probs = scores.softmax(-1)
        out = (probs @ value).clone()
        for place in range(side * side):
            y, x = (16 // side * place_of for place_of in divmod(place, side))
            if self.masks and not any(mask[y, x] for mask in self.masks):
                out[0, :, place] = out[1, :, place]
        if not self.masks and side == 16:
            for word_map, token in zip(self.maps, self.tokens, strict=True):
                word_map += probs[0, :, :, token].mean(0).view(16, 16)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))

    def _modulate(self, scores: Tensor, side: int) -> None:
        for mask, token in zip(self.masks, self.tokens, strict=True):
            for place in range(side * side):
                y, x = (16 // side * place_of for place_of in divmod(place, side))
                if mask[y, x]:
                    scores[0, :, place, token] += self.gamma * (1 - self.step / 4)
                else:
                    scores[0, :, place, token] = -1e9

    def formula(self, step: int, got: Any) -> Tensor:
        if step + 1 == self.collect:
            self.masks = [instruction_mask(one, (16, 16), 0.3) for one in self.maps]
        self.step = step + 1
        edit = got["cond"] - got["image"]
        scaled = torch.ones(16, 16)
        if self.masks:
            scaled = torch.zeros(16, 16)
            for mask, weight in zip(self.masks, self.weights, strict=True):
                scaled = torch.maximum(scaled, weight * mask)
        guided = got["uncond"] + 1.5 * (got["image"] - got["uncond"])
        return guided + 7.5 * scaled * edit


def by_reference(pipe: Any, reference: Reference) -> Tensor:
    own = dict(pipe.unet.attn_processors)

    def processor(attn: Any, hidden_states: Tensor, **more: Any) -> Tensor:
        return reference.attend(attn, hidden_states, more["encoder_hidden_states"])

    pipe.unet.set_attn_processor(
        {path: processor if "attn2" in path else one for path, one in own.items()}
    )
    try:
        return generate_by(pipe, reference.formula, BRANCHES, steps=4, **SCALES)
    finally:
        pipe.unet.set_attn_processor(own)


def test_a_run_equals_the_method_written_out(pipe: Any) -> None:
    reference = Reference([2, 5], 2, [1.0, 0.5], 2.0)
    expected = by_reference(pipe, reference)
    technique = FocusOnInstruction(INSTRUCTIONS, weights=(1.0, 0.5), gamma=2.0, collect=2)
    ours, plain = edit(pipe, technique), edit(pipe)

    assert all(20 < int(mask.sum()) < 236 for mask in reference.masks)
    assert not torch.equal(*reference.masks)
    assert (ours - expected).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 0.1


@pytest.mark.parametrize("swap", [True, False])
def test_full_masks_without_gain_change_no_bit(pipe: Any, swap: bool) -> None:
    plain = edit(pipe)
    assert torch.equal(edit(pipe, FocusOnInstruction(swap=swap, **NEUTRAL)), plain)
    everywhere = FocusOnInstruction(INSTRUCTIONS, threshold=0.0, gamma=0.0, collect=1, swap=swap)
    assert torch.equal(edit(pipe, everywhere), plain)
    raised = FocusOnInstruction(**{**NEUTRAL, "gamma": 2.0}, swap=swap)
    assert not torch.equal(edit(pipe, raised), plain)


def test_empty_masks_give_the_picture_guidance_whatever_the_text(pipe: Any) -> None:
    expected = generate_by(
        pipe,
        lambda _, got: got["uncond"] + 1.5 * (got["image"] - got["uncond"]),
        BRANCHES,
        steps=4,
        **SCALES,
    )
    for prompt in ("a cat and a frog", "a red dog on the blue photo"):
        ours = edit(pipe, FocusOnInstruction(masks=~FULL), prompt=prompt)
        assert torch.allclose(ours, expected, atol=1e-5)
    assert (edit(pipe) - expected).abs().max() > 0.1


def test_outside_the_masks_cross_attention_is_that_of_the_picture(pipe: Any) -> None:
    keep = Keep(where="cross")
    edit(pipe, FocusOnInstruction(INSTRUCTIONS, masks=[TOP, LEFT]), keep, steps=2)
    inside = {16: (TOP | LEFT).flatten(), 8: (TOP | LEFT)[::2, ::2].flatten()}
    for call, out in keep.calls:
        assert call.layout is not None
        cells = inside[call.layout.grid[1]]
        assert torch.equal(out[0][:, ~cells], out[1][:, ~cells])
        assert not torch.equal(out[0][:, cells], out[1][:, cells])
    free = Keep(where="cross")
    edit(pipe, FocusOnInstruction(INSTRUCTIONS, masks=[TOP, LEFT], swap=False), free, steps=1)
    call, out = free.calls[0]
    assert not torch.equal(out[0][:, ~inside[16]], out[1][:, ~inside[16]])


def test_the_words_of_an_instruction_are_seen_in_its_mask_alone(pipe: Any) -> None:
    keep = Keep(where="cross,res=16")
    edit(pipe, FocusOnInstruction(INSTRUCTIONS, masks=[TOP, LEFT]), keep, steps=1)
    for call, _ in keep.calls:
        seen = call.columns([2, 5])
        for place, mask in enumerate((TOP, LEFT)):
            cells = mask.flatten()
            assert (seen[0, :, ~cells, place] == 0).all()
            assert (seen[0][:, cells, place] > 0).all()
            assert (seen[1:, :, :, place] > 0).all()


def test_the_order_of_instructions_does_not_matter(pipe: Any) -> None:
    first = edit(pipe, FocusOnInstruction(["cat", "frog"], weights=[1, 2], collect=1))
    second = edit(pipe, FocusOnInstruction(["frog", "cat"], weights=[2, 1], collect=1))
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.equal(first, edit(pipe, FocusOnInstruction(["cat", "frog"], collect=1)))


def test_the_whole_prompt_is_one_instruction_if_none_is_given(pipe: Any) -> None:
    whole = edit(pipe, FocusOnInstruction(collect=1))
    assert torch.equal(whole, edit(pipe, FocusOnInstruction([[1, 2, 3, 4, 5]], collect=1)))
    assert not torch.equal(whole, edit(pipe, FocusOnInstruction([[2]], collect=1)))


def test_a_batch_with_instructions_of_its_own_equals_single_runs(pipe: Any) -> None:
    prompts = ["a cat and a frog", "a red dog on the blue photo"]
    lists: list[Any] = [[["cat"]], [["dog"], ["photo"]]]
    whole = edit(pipe, FocusOnInstruction(lists, collect=1), prompt=prompts)
    for item, prompt in enumerate(prompts):
        own = FocusOnInstruction(lists[item], collect=1)
        alone = edit(pipe, own, prompt=prompt, seed=item)
        assert torch.allclose(whole[item], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    "off",
    [
        FocusOnInstruction(steps="0-0"),
        FocusOnInstruction(steps="9-"),
        FocusOnInstruction(INSTRUCTIONS, steps=ramp(0.0, 0.0)),
    ],
    ids=["empty window", "window behind the run", "strength 0"],
)
def test_off_is_the_plain_edit_bit_for_bit(pipe: Any, off: Any) -> None:
    plain = edit(pipe)
    with attnctl.attach(pipe, off) as session:
        assert torch.equal(generate(pipe, steps=4, **SCALES), plain)
    assert session.report().active_steps("focus-on-instruction") == ()


def test_collecting_alone_changes_nothing_and_is_told(pipe: Any) -> None:
    plain = edit(pipe)
    with attnctl.attach(pipe, FocusOnInstruction(collect=9)) as session:
        assert torch.equal(generate(pipe, steps=4, **SCALES), plain)
    assert any("takes 9 steps, but it acts in 4" in one for one in session.report().warnings)


def test_the_report_tells_how_much_is_covered(pipe: Any) -> None:
    with attnctl.attach(pipe, FocusOnInstruction(INSTRUCTIONS, threshold=0.0)) as session:
        generate(pipe, steps=2, **SCALES)
    assert any("masks of picture 0 cover 100%, 100%" in one for one in session.report().notes)


def test_the_strength_of_a_step_lies_between_plain_and_whole(pipe: Any) -> None:
    plain, whole, half = (
        edit(pipe, *chosen, steps=1)
        for chosen in (
            (),
            (FocusOnInstruction(masks=TOP),),
            (FocusOnInstruction(masks=TOP, steps="always ramp 0.5..0.5"),),
        )
    )
    distance = (whole - plain).abs().mean()
    for end in (plain, whole):
        assert 0.2 * distance < (half - end).abs().mean() < 0.9 * distance


def test_single_heads_leave_the_others_alone(pipe: Any) -> None:
    outs: dict[str, Tensor] = {}
    for name, more in {"plain": (), "one": ("heads=1",), "all": ("heads=0+1",)}.items():
        keep = Keep(where="cross,layers=0")
        where = ",".join(("cross", "layers=0", *more))
        chosen = (FocusOnInstruction(["cat"], masks=TOP, where=where),) if more else ()
        edit(pipe, *chosen, keep, steps=1)
        outs[name] = keep.calls[0][1]
    assert torch.allclose(outs["one"][:, 0], outs["plain"][:, 0], atol=1e-6)
    assert torch.allclose(outs["one"][:, 1], outs["all"][:, 1], atol=1e-6)
    assert not torch.allclose(outs["one"][0, 1], outs["plain"][0, 1], atol=1e-3)


def test_guidance_by_added_rows_works_beside_it(pipe: Any) -> None:
    guided = SoftPAG(scale=2.0, where="mid:self")
    alone = edit(pipe, guided)
    both = edit(pipe, guided, FocusOnInstruction(**NEUTRAL))
    assert torch.allclose(both, alone, atol=1e-5 * float(alone.abs().max()))
    keep = Keep(where="up:cross,res=16")
    edit(pipe, guided, FocusOnInstruction(masks=TOP), keep, steps=1)
    outside = ~TOP.flatten()
    for call, out in keep.calls:
        (added,) = [place for place, row in enumerate(call.rows) if row.kind != "main"]
        assert torch.allclose(out[added][:, outside], out[1][:, outside], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instructions": [3.5]}, "instructions=.*words or token positions"),
        ({"instructions": [[["cat"]], ["frog"]]}, "a list of instructions for each"),
        ({"instructions": [" "]}, "words or token positions"),
        ({"instructions": INSTRUCTIONS, "weights": (1.0,)}, "weights has 1 entries.*2 instr"),
        ({"weights": (-1.0,)}, "weights=-1.0"),
        ({"masks": [TOP, LEFT]}, "masks has 2 entries.*1 instructions"),
        ({"masks": [torch.ones(2, 2, 2)]}, "masks= must be a picture or an array"),
        ({"threshold": 1.5}, "threshold=1.5.*from 0 to 1"),
        ({"gamma": -0.1}, "gamma=-0.1"),
        ({"least_peak": 0.5}, "least_peak=0.5.*from 1"),
        ({"collect": -1}, "collect=-1"),
        ({"collect": 1.5}, "collect=1.5"),
        ({"swap": 1}, "swap=1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        FocusOnInstruction(**settings)


@pytest.mark.parametrize(
    ("technique", "changes", "error", "message"),
    [
        (FocusOnInstruction(["dog"]), {}, WordNotFoundError, "instructions: 'dog' is not in"),
        (FocusOnInstruction([77]), {}, SettingError, "there is no token 77; the text has 77"),
        (FocusOnInstruction(), {"prompt": ""}, SettingError, "the prompt has no words"),
        (FocusOnInstruction([[["cat"]], [[1]]]), {}, SettingError, "2 lists for 1 pictures"),
        (FocusOnInstruction(mask_grid=5), {}, NoSiteError, "no maps are 5 cells high"),
        (FocusOnInstruction(), {"guidance_scale": 1.0}, UnsupportedModelError, "above 1"),
        (FocusOnInstruction(), {"image_guidance_scale": 0.5}, UnsupportedModelError, "from 1 on"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    pipe: Any, technique: Any, changes: Any, error: type[AttnctlError], message: str
) -> None:
    with pytest.raises(error, match=message):
        edit(pipe, technique, **changes)


def test_words_cannot_be_found_in_embeddings(pipe: Any) -> None:
    states = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"prompt": None, "prompt_embeds": states}
    given |= {"negative_prompt_embeds": 0 * states, "generator": torch.Generator().manual_seed(0)}
    for technique in (FocusOnInstruction(["cat"]), FocusOnInstruction()):
        with (
            pytest.raises(WordNotFoundError, match="give token positions"),
            attnctl.attach(pipe, technique),
        ):
            pipe(image=picture(), num_inference_steps=2, output_type="latent", **given)  # fmt: skip


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_models_without_instructions_are_refused(name: str) -> None:
    other = build(name)
    message = "InstructPix2Pix: StableDiffusionInstructPix2PixPipeline"
    with pytest.raises(UnsupportedModelError, match=message):
        edit(other, FocusOnInstruction(), image_guidance_scale=LEFT_OUT)


def test_sites_other_than_cross_attention_are_refused(pipe: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"is self attention\. Select where='cross'"):
        attnctl.attach(pipe, FocusOnInstruction(where="mid"))


def test_plain_settings_build_it_again(tmp_path: Any) -> None:
    from PIL import Image

    file = str(tmp_path / "mask.png")
    Image.fromarray((255 * TOP.to(torch.uint8)).numpy()).save(file)
    made: Callable[..., Any] = FocusOnInstruction.from_settings
    one = FocusOnInstruction(["cat", ["red", 3]], weights=[1, 2], masks=[file, file], collect="25%")
    again = made(one.settings())
    assert again == one
    assert again.settings() == one.settings()
    assert one.settings()["masks"] == [file, file]
    assert one.settings()["collect"] == 0.25
