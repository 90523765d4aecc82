"""Lumina 2: the image begins where the text of its row ends."""

from __future__ import annotations

import pytest
import torch

from attnctl import HeatMaps, SoftPAG, attach, locate_tokens
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS
from tests.support.pipelines import PROMPT, build, generate


def test_each_branch_has_its_own_place_of_the_image() -> None:
    pipe, watch = build("lumina2"), Watch(needs_layout=True)
    plain = generate(pipe)
    with attach(pipe, watch):
        assert torch.equal(generate(pipe), plain)
    joint = [call for call in watch.seen if call.site.kind == "joint"]
    starts = {call.rows[0].branch: call.layout.image.start for call in joint if call.layout}
    assert starts["uncond"] == 1 < starts["cond"]
    for call in joint:
        assert call.layout is not None
        assert call.layout.image.stop == call.query.shape[2]


def test_rows_of_texts_of_different_lengths_have_no_common_layout() -> None:
    inputs = DENOISERS["lumina2"].inputs()
    inputs["encoder_attention_mask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    model, watch = DENOISERS["lumina2"].build(), Watch(needs_layout=True)
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    kinds = {call.site.kind: call.layout for call in watch.seen}
    assert kinds["joint"] is None
    assert kinds["self"] is not None


def test_words_are_counted_from_the_system_prompt_on() -> None:
    pipe = build("lumina2")
    pipe.system_prompt = "a"  # as short as that of the call
    (cat,) = locate_tokens(pipe, PROMPT, "cat")
    ids = pipe.tokenizer(f"a <Prompt Start> {PROMPT}").input_ids
    assert (
        tuple(pipe.tokenizer.convert_ids_to_tokens([ids[p] for p in cat.positions])) == cat.tokens
    )
    with attach(pipe, HeatMaps(["cat"])) as session:
        generate(pipe)
        assert session.maps.positions("cat") == list(cat.positions)
        assert session.maps.word("cat").shape == (8, 8)


@pytest.mark.parametrize("where", ["self", "joint,layers=1"])
def test_perturbed_guidance_changes_the_picture(where: str) -> None:
    pipe = build("lumina2")
    plain = generate(pipe)
    with attach(pipe, SoftPAG(scale=2.0, where=where)):
        assert (generate(pipe) - plain).abs().max() > 1e-4
    assert torch.equal(generate(pipe), plain)
