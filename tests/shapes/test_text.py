"""Tokenizer and text encoder: each word one token, each noun knows its colour, nothing else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from attnctl.shapes import LARGE_VOCABULARY, model_folder
from attnctl.shapes.text import (
    ADJECTIVES,
    TOKENS,
    WORDS,
    build_text_encoder,
    build_tokenizer,
)

LONGEST = "a red circle, a blue square and a green cross on a dark background"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module", params=["as built", "as shipped"])
def encoder(request: pytest.FixtureRequest, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    if request.param == "as built":
        torch.manual_seed(0)
        made = build_text_encoder(tokenizer)
    else:
        made = CLIPTextModel.from_pretrained(
            model_folder("shapes") / "text_encoder", dtype=torch.float32
        )
    made.set_attn_implementation("eager")
    return made.eval()


def numbers(tokenizer: CLIPTokenizer, text: str) -> Tensor:
    return tokenizer(text, padding="max_length", return_tensors="pt").input_ids


@torch.no_grad()
def states(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, text: str) -> Tensor:
    return encoder(numbers(tokenizer, text)).last_hidden_state[0]


def test_every_word_of_the_world_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in WORDS:
        assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
        assert len(tokenizer(f"a {word} a", add_special_tokens=False)["input_ids"]) == 3, word


@pytest.mark.parametrize("text", [LONGEST, "a Pink heart", "an unknown wörd 42!", ""])
def test_text_survives_the_tokenizer(tokenizer: CLIPTokenizer, text: str) -> None:
    encoded = tokenizer(text)["input_ids"]
    assert encoded[0] == tokenizer.bos_token_id
    assert encoded[-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(encoded, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_tokenizer_survives_saving_and_loading(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer) > 512
    assert loaded.model_max_length == TOKENS
    assert torch.equal(numbers(loaded, LONGEST), numbers(tokenizer, LONGEST))


def test_each_token_looks_at_its_adjective_or_at_the_begin_token(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    ids = numbers(tokenizer, LONGEST)
    with torch.no_grad():
        probs = encoder(ids, output_attentions=True).attentions[0][0]  # (heads, 77, 77)
    adjectives = {tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in ADJECTIVES}
    wanted = [
        place - 1 if place and int(ids[0, place - 1]) in adjectives else 0
        for place in range(TOKENS)
    ]
    assert sum(place > 0 for place in wanted) == 4
    on_wanted = probs[:, torch.arange(TOKENS), torch.tensor(wanted)]
    assert on_wanted.min() > 0.95


def test_nouns_of_every_colour_find_it_at_every_place(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    for colour in LARGE_VOCABULARY.colours:
        ids = numbers(tokenizer, " ".join([f"a {colour} circle"] * 20))
        with torch.no_grad():
            probs = encoder(ids, output_attentions=True).attentions[0][0]
        nouns = torch.arange(3, 61, 3)
        assert probs[:, nouns, nouns - 1].min() > 0.95


def test_padding_is_blind(encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    first = states(encoder, tokenizer, "a red circle and a blue square")
    second = states(encoder, tokenizer, "a green cross and a yellow triangle")
    assert torch.allclose(first[8:], second[8:], atol=1e-3)


def test_a_noun_knows_its_own_colour_and_not_the_other_object(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    before = states(encoder, tokenizer, "a red circle and a blue square")
    other = states(encoder, tokenizer, "a green cross and a blue square")
    recoloured = states(encoder, tokenizer, "a red circle and a yellow square")
    noun = 7
    assert torch.allclose(before[noun], other[noun], atol=1e-3)
    assert (before[noun] - recoloured[noun]).abs().max() > 0.1
    assert torch.allclose(before[3], recoloured[3], atol=1e-3)
