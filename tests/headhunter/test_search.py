"""The greedy search finds a known head, goes on where it stopped, and checks before it starts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import attnctl
from attnctl.errors import NoSiteError, RecipeError, SettingError, UnsupportedModelError, WhereError
from attnctl.headhunter import HeadHunt, HuntSettings, read_prompts, search
from attnctl.headhunter.objectives import ClipScore, find_objective, score_shapes
from tests.headhunter import toy
from tests.support.pipelines import build

PROMPTS = ["a red circle", "a blue square"]


def settings(**changes):
    chosen = {"model": "tiny", "per_round": 1, "layers": "3-4", "steps": 2, "scale": 8.0}
    return HuntSettings(**{**chosen, **changes})


def pictures(pipe, heads, **changes):
    """What the search draws with these heads, by prompt."""
    hunt = settings(**changes)
    found = {}
    for seed, prompt in enumerate(PROMPTS):
        with attnctl.attach(pipe, [attnctl.SoftPAG(heads=heads, scale=hunt.scale)]):
            found[prompt] = pipe(
                prompt,
                num_inference_steps=hunt.steps,
                guidance_scale=1.0,
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]
    return found


def named(heads):
    return [(one.layer, one.head) for one in heads.heads]


@pytest.mark.parametrize("wanted", [(3, 1), (4, 0)])
def test_the_search_finds_the_head_that_the_objective_is_about(pipe, tmp_path, wanted):
    found = search(pipe, toy.Resembles(pictures(pipe, [wanted])), PROMPTS, tmp_path, settings())
    assert named(found.heads) == [wanted]
    assert found.heads.heads[0].score == 0
    others = [s for c, all_ in found.rounds[0].items() if (c.layer, c.head) != wanted for s in all_]
    assert max(others) < 0


def test_later_rounds_build_on_earlier_ones(pipe, tmp_path):
    objective = toy.Resembles(pictures(pipe, [(3, 0), (4, 1)]))
    found = search(pipe, objective, PROMPTS, tmp_path / "two", settings(rounds=3))
    one = search(pipe, objective, PROMPTS, tmp_path / "one", settings(rounds=1))
    assert found.heads.first(1) == one.heads
    assert len(set(named(found.heads))) == 3
    assert [len(scores) for scores in found.rounds] == [4, 3, 2]
    # What a round scores is the whole set so far.
    pair = pictures(pipe, named(found.heads.first(2)))
    expected = [objective([image], [prompt])[0] for prompt, image in pair.items()]
    assert found.heads.heads[1].score == np.mean(expected)


def test_several_heads_a_round_are_the_best_ones(pipe, tmp_path):
    found = search(pipe, toy.redness, PROMPTS, tmp_path, settings(per_round=3))
    means = {(c.layer, c.head): np.mean(all_) for c, all_ in found.rounds[0].items()}
    assert named(found.heads) == sorted(means, key=lambda head: -means[head])[:3]


def test_the_files_say_what_was_searched(pipe, tmp_path):
    found = search(pipe, toy.redness, PROMPTS, tmp_path, settings(), plot=True)
    heads = attnctl.HeadSet.from_file(found.files["heads"])
    assert heads == found.heads
    assert (heads.model, heads.objective) == ("tiny", "tests.headhunter.toy:redness")
    assert (heads.scale, heads.strength, heads.form, heads.seeds) == (8.0, 1.0, "joint", (0, 1))
    assert heads.structure.layers == 10
    assert heads.heads[0].path.endswith("attn1")
    record = json.loads(found.files["scores"].read_text())
    assert len(record["rounds"][0]) == 4
    assert record["rounds"][0][0]["scores"] == next(iter(found.rounds[0].values()))
    assert Image.open(found.files["plot"]).size[0] > 200


def test_a_found_set_steers_the_model_that_it_was_found_on(pipe, tmp_path):
    found = search(pipe, toy.redness, PROMPTS[:1], tmp_path, settings(), plot=False)
    again = pictures(pipe, found.files["heads"])
    assert toy.redness(list(again.values()), PROMPTS)[0] == found.heads.heads[0].score


def test_a_batch_is_scored_picture_by_picture(pipe, tmp_path):
    found = search(pipe, toy.redness, PROMPTS, tmp_path / "batch", settings(batch_size=2))
    single = search(pipe, toy.redness, PROMPTS, tmp_path / "single", settings())
    for candidate, scores in single.rounds[0].items():
        assert found.rounds[0][candidate] == pytest.approx(scores, abs=0.5)


def test_finished_scores_are_not_made_again(pipe, tmp_path):
    first = search(pipe, toy.redness, PROMPTS, tmp_path, settings())
    toy.calls.clear()
    again = search(pipe, toy.redness, PROMPTS, tmp_path, settings(), resume=True)
    assert toy.calls == []
    assert again.heads == first.heads


@pytest.mark.parametrize("cut", [1, 25])
def test_a_journal_that_was_cut_off_loses_its_last_line_alone(pipe, tmp_path, cut):
    first = search(pipe, toy.redness, PROMPTS, tmp_path, settings(rounds=2))
    journal = tmp_path / "scores-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    toy.calls.clear()
    again = search(pipe, toy.redness, PROMPTS, tmp_path, settings(rounds=2), resume=True)
    assert len(toy.calls) == 1
    assert again.heads == first.heads
    assert again.rounds == first.rounds


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scale": 4.0}, r"settings.scale 8.0 then, 4.0 now"),
        ({"steps": 3, "strength": 0.5}, r"settings.strength 1.0 then, 0.5 now; settings.steps 2"),
        ({"prompts": [*PROMPTS, "a green cross and a red circle"]}, "other prompts"),
        ({"objective": toy.too_few}, "objective 'tests.headhunter.toy:redness' then"),
    ],
)
def test_a_changed_setting_is_refused_with_what_differs(pipe, tmp_path, changes, text):
    search(pipe, toy.redness, PROMPTS, tmp_path, settings())
    changes = {"prompts": PROMPTS, "objective": toy.redness, **changes}
    prompts, objective = changes.pop("prompts"), changes.pop("objective")
    before = sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir())
    with pytest.raises(SettingError, match=text):
        search(pipe, objective, prompts, tmp_path, settings(**changes), resume=True)
    assert sorted((p.name, p.read_bytes()) for p in tmp_path.iterdir()) == before


def test_other_weights_are_another_search(pipe, tmp_path):
    search(pipe, toy.redness, PROMPTS, tmp_path, settings())
    with torch.no_grad():
        pipe.unet.conv_in.bias += 1
    try:
        with pytest.raises(SettingError, match=r"model\.weights"):
            search(pipe, toy.redness, PROMPTS, tmp_path, settings(), resume=True)
    finally:
        with torch.no_grad():
            pipe.unet.conv_in.bias -= 1


@pytest.mark.parametrize(
    ("objective", "text"),
    [(toy.too_few, "1 scores for 2 pictures"), (toy.not_a_number, "gave nan for a picture of")],
)
def test_what_an_objective_gives_is_checked(pipe, tmp_path, objective, text):
    with pytest.raises(SettingError, match=text):
        search(pipe, objective, PROMPTS, tmp_path, settings(batch_size=2))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"layers": "30"}, NoSiteError, "no layer 30; there are 0 to 9"),
        ({"layers": "x"}, WhereError, "layers='x'"),
        ({"rounds": 3, "per_round": 2}, SettingError, "more than the 4 heads"),
        ({"rounds": 0}, SettingError, "--rounds 0"),
        ({"scale": 0}, SettingError, "scale=0"),
        ({"strength": 1.5}, SettingError, "strength=1.5"),
        ({"target": "identiti"}, SettingError, "identity"),
        ({"steps": 0}, RecipeError, "steps"),
        ({"size": "65x64"}, SettingError, "multiples of"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    pipe, tmp_path, changes, error, text
):
    with pytest.raises(error, match=text):
        HeadHunt(pipe, toy.redness, PROMPTS, tmp_path / "out", settings(**changes))
    assert not (tmp_path / "out").exists()


def test_pipelines_of_videos_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="makes videos"):
        HeadHunt(build("animatediff"), toy.redness, PROMPTS, tmp_path, settings(layers=""))


def test_joint_attention_is_searched_too(tmp_path):
    pipe = build("sd3")
    hunt = HeadHunt(pipe, toy.redness, ["a cat"], tmp_path, settings(layers="1"), plot=False)
    found = hunt.run()
    assert hunt.settings.guidance == 1.0
    assert found.heads.structure.kind == "joint"
    assert named(found.heads)[0][0] == 1


# --- objectives -----------------------------------------------------------------------------------


def test_the_shapes_objective_counts_what_is_named_and_shown():
    blank = Image.new("RGB", (64, 64), "white")
    red = blank.copy()
    red.paste((220, 40, 40), (16, 16, 48, 48))  # a square
    captions = ["a red square", "a red square and a blue circle", "a blue circle", "a red square"]
    assert score_shapes([red, red, red, blank], captions) == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shape", "did you mean 'shapes'"),
        ("tests.headhunter.toy:rednes", "did you mean 'redness'"),
        ("tests.headhunter.toy:no_function", "no such function"),
        ("tests.headhunter.nowhere:f", "nowhere"),
        ("clip:/no/such/folder", "cannot load a CLIP model"),
    ],
)
def test_an_objective_that_is_not_there_is_refused(name, text):
    with pytest.raises(SettingError, match=text):
        find_objective(name)


def test_the_shapes_objective_refuses_prompts_that_are_no_captions():
    with pytest.raises(SettingError, match="captions of shapes"):
        find_objective("shapes", ["a cat"])


def test_the_clip_objective_is_the_cosine_of_the_two_vectors(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from attnctl.shapes.text import build_tokenizer

    tokenizer = build_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config={**small, "vocab_size": len(tokenizer), "max_position_embeddings": 77, **ids},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=square, crop_size=square)
    processor.save_pretrained(tmp_path)
    images = [Image.new("RGB", (40, 48), colour) for colour in ("red", "blue")]
    scores = ClipScore(str(tmp_path))(images, PROMPTS)
    with torch.no_grad():
        out = model(
            **processor(images=images, return_tensors="pt"),
            **tokenizer(PROMPTS, padding=True, return_tensors="pt"),
        )
    cosine = out.logits_per_image.diag() / model.logit_scale.exp()
    assert scores == pytest.approx((100 * cosine).tolist(), abs=1e-4)
    assert scores[0] != scores[1]


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_have_their_place_as_seed_unless_they_say_another(tmp_path):
    lines, listed = tmp_path / "p.txt", tmp_path / "p.yaml"
    lines.write_text("a red circle\r\n\n  a blue square\n")
    listed.write_text("- a red circle\n- {prompt: a blue square, seed: 7}\n")
    assert [(p.text, p.seed) for p in read_prompts(lines)] == [
        ("a red circle", 0),
        ("a blue square", 1),
    ]
    assert [(p.text, p.seed) for p in read_prompts(listed)][1] == ("a blue square", 7)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "\n\n", "give a list of 1 to"),
        ("p.yaml", "prompt: a cat\n", "not a list"),
        (
            "p.yaml",
            "- 7\n- {prompt: a, sed: 1}\n- {prompt: a, seed: -1}\n",
            "p.yaml:1: 7 is no text",
        ),
        ("p.yaml", "- a\n- {prompt: b, seed: true}\n", "p.yaml:2: seed True"),
        ("p.yaml", "- {prompt: a, seed: 1}\n- {prompt: a, seed: 1}\n", "p.yaml:2: .*twice"),
        ("p.csv", None, "there is no file"),
    ],
)
def test_a_bad_prompt_file_is_explained_with_its_lines(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_prompts(tmp_path / name)
