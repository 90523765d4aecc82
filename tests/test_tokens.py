"""Words to token positions, on real tokenizers at toy size and on tiny pipelines."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AddedToken, CLIPTokenizer, T5Tokenizer

from attnctl.errors import AttnctlError, WordNotFoundError
from attnctl.tokens import PromptTokens, TextSegment, locate_tokens, text_segments
from tests.support.pipelines import build, generate
from tests.support.pipelines.text import clip_text, clip_tokenizer, t5_tokenizer


class Slow:
    """A tokenizer that knows no offsets, as those without the `tokenizers` library."""

    is_fast = False

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._inner(text, **options)


@pytest.fixture(scope="module")
def clip() -> CLIPTokenizer:
    return clip_tokenizer()


@pytest.fixture(scope="module")
def t5() -> T5Tokenizer:
    return t5_tokenizer()


@pytest.fixture(scope="module")
def pipe(clip: CLIPTokenizer) -> Any:
    return SimpleNamespace(tokenizer=clip, text_encoder=clip_text(clip))


def positions(pipe: Any, prompt: str, word: str) -> list[tuple[int, ...]]:
    return [span.positions for span in locate_tokens(pipe, prompt, word)]


def test_a_word_lies_behind_the_begin_token(pipe: Any) -> None:
    (span,) = locate_tokens(pipe, "a red cat and a frog", "cat")
    assert span.positions == (3,)
    assert (span.encoder, span.text, span.tokens) == ("text_encoder", "cat", ("cat</w>",))
    assert span.occurrence == 1


def test_a_phrase_gives_the_tokens_of_all_its_words(pipe: Any) -> None:
    assert positions(pipe, "a red cat", "red cat") == [(2, 3)]


def test_case_and_blanks_do_not_matter(pipe: Any) -> None:
    (span,) = locate_tokens(pipe, "  A  RED \n Cat", "red cat")
    assert (span.positions, span.text) == ((2, 3), "RED \n Cat")


def test_a_word_that_appears_twice_gives_one_span_each(pipe: Any) -> None:
    spans = locate_tokens(pipe, "a cat and a cat", "cat")
    assert [(s.positions, s.occurrence) for s in spans] == [((2,), 1), ((5,), 2)]


def test_a_number_names_one_occurrence(pipe: Any) -> None:
    (span,) = locate_tokens(pipe, "a cat and a cat", "cat#2")
    assert (span.positions, span.occurrence) == ((5,), 2)
    with pytest.raises(WordNotFoundError, match=r"'cat' occurs 2 time\(s\).*no 'cat#3'"):
        locate_tokens(pipe, "a cat and a cat", "cat#3")


def test_a_word_of_several_tokens_gives_all_of_them(pipe: Any) -> None:
    (span,) = locate_tokens(pipe, "a zebra, red", "zebra")
    assert span.positions == (2, 3, 4, 5, 6)
    assert "".join(span.tokens) == "zebra</w>"


def test_several_words_come_in_the_order_asked(pipe: Any) -> None:
    spans = locate_tokens(pipe, "a red cat", ["cat", "red"])
    assert [span.text for span in spans] == ["cat", "red"]


def test_part_of_a_word_is_not_the_word(pipe: Any) -> None:
    with pytest.raises(WordNotFoundError, match="'cat' is not in the prompt"):
        locate_tokens(pipe, "a catalogue", "cat")


def test_a_missing_word_shows_the_tokens_with_positions(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"'dog' is not.*1 'a</w>', 2 'red</w>', 3 'cat</w>'"):
        locate_tokens(pipe, "a red cat", "dog")


def test_a_word_behind_the_limit_was_truncated(pipe: Any) -> None:
    prompt = "a " * 75 + "cat frog"
    assert positions(pipe, "a " * 74 + "cat frog", "cat") == [(75,)]
    for word in ("cat", "frog", "cat frog", "a cat"):
        with pytest.raises(WordNotFoundError, match="word was truncated at token 77"):
            locate_tokens(pipe, prompt, word)


def test_a_word_cut_in_the_middle_was_truncated(pipe: Any) -> None:
    with pytest.raises(WordNotFoundError, match="truncated at token 77"):
        locate_tokens(pipe, "a " * 73 + "zebra", "zebra")


def test_a_whole_occurrence_is_used_if_another_is_cut_off(pipe: Any) -> None:
    prompt = "cat " + "a " * 80 + "cat"
    assert positions(pipe, prompt, "cat") == [(1,)]
    with pytest.raises(WordNotFoundError, match="truncated at token 77"):
        locate_tokens(pipe, prompt, "cat#2")


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_an_empty_prompt_has_no_words(pipe: Any, prompt: str) -> None:
    with pytest.raises(WordNotFoundError, match="the prompt has no words"):
        locate_tokens(pipe, prompt, "cat")


@pytest.mark.parametrize("word", ["", "  "])
def test_an_empty_word_is_refused(pipe: Any, word: str) -> None:
    with pytest.raises(WordNotFoundError, match="empty"):
        locate_tokens(pipe, "a cat", word)


@pytest.mark.parametrize("special", ["<|startoftext|>", "<|endoftext|>"])
def test_special_tokens_are_never_matched(pipe: Any, special: str) -> None:
    with pytest.raises(WordNotFoundError, match="not in the prompt"):
        locate_tokens(pipe, "a cat", special)
    with pytest.raises(WordNotFoundError, match="not in the prompt"):
        locate_tokens(pipe, f"a {special} cat", special)
    assert positions(pipe, f"a {special} cat", "cat") == [(3,)]


@pytest.mark.parametrize("word", ["🐸", "שלום", "é", "猫"])
def test_signs_and_other_scripts_have_positions(pipe: Any, word: str) -> None:
    (span,) = locate_tokens(pipe, f"a {word} cat", word)
    assert span.positions == tuple(range(2, 2 + len(word.encode())))
    assert positions(pipe, f"a {word} cat", "cat") == [(2 + len(word.encode()),)]


def test_control_characters_do_no_harm(pipe: Any) -> None:
    assert positions(pipe, "a\0cat", "cat") == [(3,)]


def test_half_a_character_is_refused_by_name(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"character 2 .*U\+D800"):
        locate_tokens(pipe, "a \ud800 cat", "cat")


def test_a_very_long_prompt_is_read_and_its_error_stays_short(pipe: Any) -> None:
    prompt = "cat " + "frog " * 20_000
    assert len(positions(pipe, prompt, "frog")) == 74
    with pytest.raises(WordNotFoundError) as caught:
        locate_tokens(pipe, prompt, "dog")
    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("prompt", [None, ["a cat"], 3])
def test_a_prompt_that_is_no_string_is_refused(pipe: Any, prompt: Any) -> None:
    with pytest.raises(TypeError, match="prompt_embeds"):
        locate_tokens(pipe, prompt, "cat")


def test_sentence_piece_tokens_have_no_begin_token(t5: T5Tokenizer) -> None:
    segment = TextSegment("text_encoder", t5, 0, 16)
    (span,) = locate_tokens(None, "a red cat", "cat", segments=[segment])
    assert (span.positions, span.tokens) == ((2,), ("▁cat",))
    (span,) = locate_tokens(None, "a Zebra", "zebra", segments=[segment])
    assert "".join(span.tokens) == "▁Zebra"
    with pytest.raises(WordNotFoundError, match="truncated at token 16"):
        locate_tokens(None, "a " * 15 + "cat", "cat", segments=[segment])
    assert locate_tokens(None, "a " * 14 + "cat", "cat", segments=[segment])[0].positions == (14,)


def test_an_offset_moves_the_positions(t5: T5Tokenizer) -> None:
    segment = TextSegment("text_encoder_3", t5, 77, 16)
    (span,) = locate_tokens(None, "a red cat", "cat", segments=[segment])
    assert (span.encoder, span.positions) == ("text_encoder_3", (79,))


def test_an_encoder_that_cut_the_word_off_is_left_out(clip: Any, t5: T5Tokenizer) -> None:
    segments = [TextSegment("clip", clip, 0, 77), TextSegment("t5", t5, 77, 16)]
    spans = locate_tokens(None, "a " * 20 + "cat", "cat", segments=segments)
    assert [(span.encoder, span.positions) for span in spans] == [("clip", (21,))]


@pytest.mark.parametrize("prompt", ["a red cat's zebra, 2024 🐸é", "A  photo of the CAT ."])
@pytest.mark.parametrize("word", ["red", "cat's", "zebra", "2024", "🐸é", "cat", "photo of the"])
def test_without_offsets_words_are_found_at_the_same_positions(
    clip: Any, prompt: str, word: str
) -> None:
    outcomes: list[Any] = []
    for tokenizer in (clip, Slow(clip)):
        segment = TextSegment("text_encoder", tokenizer, 0, 77)
        try:
            spans = locate_tokens(None, prompt, word, segments=[segment])
            outcomes.append([span.positions for span in spans])
        except WordNotFoundError:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


def test_ids_give_back_words_and_real_positions(clip: Any) -> None:
    prompt = "a red zebra, cat"
    ids = clip(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    tokens = PromptTokens.from_ids(clip, ids)
    assert len(tokens.ids) == len(tokens.tokens) == len(tokens.pieces) == 77
    assert tokens.word_positions == tuple(range(1, 10))
    assert tokens.pieces[:3] == ("", "a ", "red ")
    for word in ("red", "zebra", "red zebra, cat"):
        (span,) = tokens.find(word)
        expected = PromptTokens.from_text(clip, prompt, length=77).find(word)[0]
        assert span.positions == expected.positions
    with pytest.raises(WordNotFoundError, match=r"1 'a</w>', 2 'red</w>'"):
        tokens.find("dog")


def test_ids_with_an_offset_and_of_sentence_piece(t5: T5Tokenizer) -> None:
    ids = t5("a red zebra", padding="max_length", max_length=16).input_ids
    tokens = PromptTokens.from_ids(t5, ids, "text_encoder_3", 77)
    assert tokens.find("red")[0].positions == (78,)
    assert tokens.word_positions[0] == 77
    assert tokens.find("zebra")[0].positions == tokens.word_positions[2:]


def test_padding_with_a_real_sign_keeps_the_sign_in_the_prompt(clip: Any) -> None:
    sign = clip.convert_tokens_to_ids("!</w>")
    end = clip.eos_token_id
    ids = [clip.bos_token_id, clip.convert_tokens_to_ids("cat</w>"), sign, end, sign, sign]
    padded = SimpleNamespace(
        bos_token_id=clip.bos_token_id,
        eos_token_id=end,
        pad_token_id=sign,
        convert_ids_to_tokens=clip.convert_ids_to_tokens,
    )
    tokens = PromptTokens.from_ids(padded, ids)
    assert tokens.word_positions == (1, 2)
    assert tokens.find("cat!")[0].positions == (1, 2)


def test_an_added_token_of_textual_inversion_is_a_word() -> None:
    tokenizer = clip_tokenizer()
    tokenizer.add_tokens([AddedToken("<my-cat>", single_word=False)])
    pipe = SimpleNamespace(tokenizer=tokenizer, text_encoder=None)
    assert positions(pipe, "a <my-cat> on", "<my-cat>") == [(2,)]


def test_a_pipeline_without_a_tokenizer_says_so() -> None:
    with pytest.raises(AttnctlError, match="has no tokenizer"):
        locate_tokens(SimpleNamespace(), "a cat", "cat")


def test_an_unknown_mix_of_encoders_asks_for_segments(clip: Any, t5: T5Tokenizer) -> None:
    pipe = SimpleNamespace(tokenizer=t5, tokenizer_2=clip)
    with pytest.raises(AttnctlError, match="pass segments="):
        text_segments(pipe)


CLIP_AXIS = [("text_encoder", 0, 77)]
AXES = {
    "sd1": CLIP_AXIS,
    "sdxl": [("text_encoder", 0, 77), ("text_encoder_2", 0, 77)],
    "sd3": [("text_encoder", 0, 77), ("text_encoder_2", 0, 77), ("text_encoder_3", 77, 256)],
    "flux": [("text_encoder_2", 0, 512)],
    "pixart_alpha": [("text_encoder", 0, 120)],
    "pixart_sigma": [("text_encoder", 0, 300)],
    "animatediff": CLIP_AXIS,
    "cogvideox": [("text_encoder", 0, 226)],
    "wan": [("text_encoder", 0, 512)],
}


@pytest.mark.parametrize("name", AXES)
def test_each_family_has_its_text_axis(name: str) -> None:
    segments = text_segments(build(name))
    assert [(s.encoder, s.offset, s.length) for s in segments] == AXES[name]


@pytest.mark.parametrize("name", AXES)
def test_located_tokens_are_those_that_the_encoder_is_given(name: str) -> None:
    pipe: Any = build(name)
    prompt = "A photo of the Red zebra"
    seen: dict[str, Any] = {}

    def watch(encoder: str) -> Any:
        def keep(module: Any, args: Any, kwargs: Any) -> None:
            ids = args[0] if args else kwargs["input_ids"]
            seen.setdefault(encoder, ids[0])

        return keep

    segments = text_segments(pipe)
    for segment in segments:
        encoder = getattr(pipe, segment.encoder)
        encoder.register_forward_pre_hook(watch(segment.encoder), with_kwargs=True)
    generate(pipe, prompt, steps=2)
    by_encoder = {segment.encoder: segment for segment in segments}
    for word in ("red", "zebra"):
        spans = locate_tokens(pipe, prompt, word)
        assert len(spans) == len(segments)
        for span in spans:
            segment = by_encoder[span.encoder]
            ids = [int(seen[span.encoder][p - segment.offset]) for p in span.positions]
            assert tuple(segment.tokenizer.convert_ids_to_tokens(ids)) == span.tokens
            read = PromptTokens.from_ids(
                segment.tokenizer, seen[span.encoder], span.encoder, segment.offset
            )
            assert read.find(word)[0].positions == span.positions


def test_a_language_model_as_text_encoder_asks_for_segments(unknown_pipe: Any) -> None:
    with pytest.raises(AttnctlError, match="not known where Lumina2Pipeline puts"):
        text_segments(unknown_pipe)


def test_an_encoder_that_is_not_loaded_fills_no_positions() -> None:
    pipe: Any = build("sd3")
    pipe.text_encoder_3 = None
    assert [s.encoder for s in text_segments(pipe)] == ["text_encoder", "text_encoder_2"]
    pipe.text_encoder = pipe.text_encoder_2 = None
    assert [s.offset for s in text_segments(pipe)] == [0, 0, 77]
