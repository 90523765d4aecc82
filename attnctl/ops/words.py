"""Words in text, and the text that tokens stand for: string functions without any model."""

import re
import unicodedata
from collections.abc import Sequence

Range = tuple[int, int]

_SELECTOR = re.compile(r"^(?P<word>.*\S)\s*#(?P<number>[1-9]\d{0,5})$", re.DOTALL)
_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


def split_occurrence(word: str, text: str) -> tuple[str, int | None]:
    """Take ``"cat#2"`` apart into the word and the number of its occurrence.

    Args:
        word: What a user asks for. Without ``#n`` every occurrence is meant.
        text: The text that is searched. If ``word`` stands in it as written, ``#n`` is part of
            the word.

    Returns:
        ``(word, n)``, n counted from 1, or ``(word, None)``.
    """
    match = _SELECTOR.match(word.strip())
    if match is None or find_words(text, word):
        return word.strip(), None
    return match["word"], int(match["number"])


def find_words(text: str, word: str, *, loose: bool = False) -> list[Range]:
    """Find a word or phrase in a text, upper and lower case alike.

    A match must not cut a word in two: ``cat`` is not in ``catalogue``. In scripts that are
    written without spaces any match counts. Blanks in the phrase match any run of blanks.

    Args:
        text: Any string.
        word: Word or phrase; blanks around it are ignored.
        loose: Allow blanks next to punctuation and between digits, where tokenizers put them.

    Returns:
        Character ranges ``(start, end)``, in order, without overlap.
    """
    forms = dict.fromkeys(
        unicodedata.normalize(form, word.strip()) if form else word.strip()
        for form in ("", "NFC", "NFD")
    )
    if not word.strip():
        return []
    pattern = "|".join(_pattern(form, loose) for form in forms)
    found = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
    return [span for span in found if _stands_alone(text, *span)]


def check_text(text: str) -> str:
    """Return a text that tokenizers can read, as it is.

    Raises:
        ValueError: It holds half a character (a lone surrogate), as broken file names do.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is the lone surrogate "
            f"U+{ord(text[error.start]):04X}, which is no character; remove it"
        ) from None
    return text


def join_pieces(pieces: Sequence[bytes]) -> tuple[str, list[Range]]:
    """Join the bytes of tokens to a text, and tell which characters each token touches.

    Args:
        pieces: UTF-8 bytes of each token; a character may be spread over several.

    Returns:
        The text (bytes that are no UTF-8 become one lone surrogate each) and for each piece its
        ``(start, end)`` in characters; empty pieces have ``start == end``.
    """
    joined = b"".join(pieces)
    text = joined.decode("utf-8", "surrogateescape")
    owner: list[int] = []  # character of each byte
    for index, character in enumerate(text):
        owner.extend([index] * len(character.encode("utf-8", "surrogateescape")))
    ranges: list[Range] = []
    start = 0
    for piece in pieces:
        end = start + len(piece)
        first = owner[start] if start < len(owner) else len(text)
        ranges.append((first, owner[end - 1] + 1) if piece else (first, first))
        start = end
    return text, ranges


def token_bytes(tokens: Sequence[str], *, word_pieces: bool = False) -> list[bytes]:
    """Turn tokens as vocabularies write them into the bytes that they stand for.

    Understood are CLIP's (``cat</w>``), GPT-2's (``Ġcat``), SentencePiece's (``▁cat``, ``<0xF0>``)
    and, if ``word_pieces``, BERT's (``##cat``). Which one it is shows in the tokens themselves.

    Args:
        tokens: Tokens of one text, without special ones.
        word_pieces: The vocabulary is BERT's: every token not marked ``##`` starts a word.

    Returns:
        UTF-8 bytes of each token, with the blanks that part words.
    """
    if any(token.endswith("</w>") for token in tokens):
        return [
            _from_byte_alphabet(token.removesuffix("</w>")) + (b" " if "</w>" in token else b"")
            for token in tokens
        ]
    if any("▁" in token for token in tokens):
        return [_from_sentence_piece(token) for token in tokens]
    if word_pieces:
        return [
            token[2:].encode() if token.startswith("##") else b" " + token.encode()
            for token in tokens
        ]
    return [_from_byte_alphabet(token) for token in tokens]


def _pattern(word: str, loose: bool) -> str:
    parts: list[str] = []
    previous = ""
    for run in word.split():
        for place, character in enumerate(run):
            if previous and loose and not (previous.isalpha() and character.isalpha()):
                parts.append(r"\s*")
            elif previous and place == 0:
                parts.append(r"\s+")
            parts.append(re.escape(character))
            previous = character
    return "".join(parts)


def _stands_alone(text: str, start: int, end: int) -> bool:
    before = start > 0 and _is_joined(text[start - 1], text[start])
    after = end < len(text) and _is_joined(text[end - 1], text[end])
    return not before and not after


def _is_joined(left: str, right: str) -> bool:
    if unicodedata.category(right).startswith("M"):
        return True
    if not (left.isalnum() or unicodedata.category(left).startswith("M")) or not right.isalnum():
        return False
    return not (_has_no_spaces(left) or _has_no_spaces(right))


def _has_no_spaces(character: str) -> bool:
    """Whether a character's script is written without spaces, as Chinese, Japanese and Thai."""
    name = unicodedata.name(character, "")
    return name.startswith(
        ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
    )


def _byte_alphabet() -> dict[str, int]:
    """The 256 printable characters by which GPT-2 and CLIP write bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _from_byte_alphabet(token: str) -> bytes:
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    return token.encode("utf-8", "surrogateescape")


def _from_sentence_piece(token: str) -> bytes:
    byte = _BYTE_TOKEN.match(token)
    if byte is not None:
        return bytes.fromhex(byte[1])
    return token.replace("▁", " ").encode("utf-8", "surrogateescape")
