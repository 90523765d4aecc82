"""Words in text: whole words only, any script, and text spelled from tokens."""

import pytest

from attnctl.ops.words import find_words, join_pieces, split_occurrence, token_bytes


def found(text: str, word: str, loose: bool = False) -> list[str]:
    return [text[start:end] for start, end in find_words(text, word, loose=loose)]


def test_a_word_is_found_whole_and_in_any_case() -> None:
    assert found("A Cat, a catalogue, a tomcat and CAT's", "cat") == ["Cat", "CAT"]


def test_a_phrase_allows_any_run_of_blanks() -> None:
    assert found("a red \n cat, a redcat", " red  cat ") == ["red \n cat"]


def test_punctuation_and_patterns_are_taken_literally() -> None:
    assert found("a c++ cat (.*)", "c++") == ["c++"]
    assert found("a c++ cat (.*)", "(.*)") == ["(.*)"]
    assert found("abc", ".") == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("一只猫和狗", "猫"),
        ("קיץ חתול שחור", "חתול"),
        ("a 🐸 on", "🐸"),
        ("แมวดำ", "แมว"),
        ("a\0cat", "cat"),
    ],
)
def test_other_scripts_signs_and_control_characters_are_found(text: str, word: str) -> None:
    assert found(text, word) == [word]


def test_composed_and_decomposed_letters_are_the_same_word() -> None:
    assert found("un cafe\u0301 noir", "caf\u00e9") == ["cafe\u0301"]
    assert found("un caf\u00e9 noir", "cafe\u0301") == ["caf\u00e9"]
    assert found("un cafe\u0301 noir", "cafe") == []


def test_loose_search_bridges_the_blanks_of_tokenizers() -> None:
    assert found("the cat ' s red , 2 0 2 4 hat ", "cat's", loose=True) == ["cat ' s"]
    assert found("the cat ' s red , 2 0 2 4 hat ", "red, 2024", loose=True) == ["red , 2 0 2 4"]
    assert found("re d", "red", loose=True) == []


def test_nothing_is_found_for_a_blank_word() -> None:
    assert found("a cat", "  ") == []


def test_an_occurrence_is_named_by_its_number() -> None:
    assert split_occurrence("cat#2", "a cat") == ("cat", 2)
    assert split_occurrence("red cat #12", "a cat") == ("red cat", 12)
    assert split_occurrence("cat", "a cat") == ("cat", None)
    assert split_occurrence("cat#0", "a cat") == ("cat#0", None)
    assert split_occurrence("#2", "a cat") == ("#2", None)
    assert split_occurrence("F#2", "the note F#2") == ("F#2", None)


def test_every_vocabulary_is_spelled() -> None:
    def spell(*tokens: str, word_pieces: bool = False) -> str:
        return join_pieces(token_bytes(tokens, word_pieces=word_pieces))[0]

    assert spell("a</w>", "ca", "t</w>", ",</w>") == "a cat , "
    assert spell("A", "Ġca", "t") == "A cat"
    assert spell("▁a", "▁ca", "t", "<0xC3>", "<0xA9>") == " a cat\u00e9"
    assert spell("a", "ca", "##t", word_pieces=True) == " a cat"


def test_a_character_in_several_tokens_belongs_to_each_of_them() -> None:
    frog = "🐸".encode()
    text, ranges = join_pieces([b"a ", frog[:1], frog[1:], b"", b"!"])
    assert text == "a 🐸!"
    assert ranges == [(0, 2), (2, 3), (2, 3), (3, 3), (3, 4)]


def test_half_a_character_is_kept_apart() -> None:
    text, ranges = join_pieces([b"a", "🐸".encode()[:2]])
    assert len(text) == 3
    assert ranges == [(0, 1), (1, 3)]
