"""Words to token positions: where a word of a prompt lies on the text axis of image attention.

Positions count from the first text key. Where text and image share one key axis (joint attention),
add the start of the text there (``Layout.text.start``).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from attnctl.errors import AttnctlError, WordNotFoundError
from attnctl.ops.words import (
    Range,
    check_text,
    find_words,
    join_pieces,
    split_occurrence,
    token_bytes,
)
from attnctl.segments import TextSegment, is_word_piece, text_segments, word_indices

SHOWN_TOKENS = 80  # an error lists no more than this

__all__ = ["PromptTokens", "TextSegment", "TokenSpan", "locate_tokens", "text_segments"]


@dataclass(frozen=True)
class TokenSpan:
    """The tokens of one occurrence of a word.

    Attributes:
        encoder: Attribute of the pipeline that holds the text encoder, e.g. ``"text_encoder_2"``.
        text: The word as it stands in the prompt.
        positions: Its positions on the text axis, ascending; BOS is 0 with CLIP.
        tokens: The tokens there, as the vocabulary writes them.
        occurrence: Which occurrence of the word this is, from 1.
    """

    encoder: str
    text: str
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    occurrence: int


@dataclass(frozen=True)
class PromptTokens:
    """One prompt as one text encoder sees it.

    Attributes:
        encoder: Attribute of the pipeline that holds the text encoder.
        ids: Token ids, special and padding ones included.
        tokens: The same as the vocabulary writes them.
        pieces: The text that each token touches; empty for special tokens.
        word_positions: Positions on the text axis of all tokens that are real words: not BOS,
            EOS or padding, nor cut off.
        offset: Position of ``ids[0]`` on the text axis.
        text: The text that `find` searches: the prompt, or what the ids spell.
        ranges: Characters of ``text`` that each token touches.
        limit: Most tokens that the encoder sees, closing special ones included; None if no token
            is cut off.
        closing: Number of special tokens that close the text.
        is_spelled: Whether ``text`` was spelled from ids, so that blanks in it are not the user's.
    """

    encoder: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    pieces: tuple[str, ...]
    word_positions: tuple[int, ...]
    offset: int = 0
    text: str = field(default="", repr=False)
    ranges: tuple[Range, ...] = field(default=(), repr=False)
    limit: int | None = None
    closing: int = 0
    is_spelled: bool = False

    @classmethod
    def from_ids(
        cls,
        tokenizer: Any,
        ids: Sequence[int] | Any,
        encoder: str = "text_encoder",
        offset: int = 0,
    ) -> "PromptTokens":
        """Read a prompt back from the ids that went into a text encoder.

        Args:
            tokenizer: The encoder's tokenizer.
            ids: Token ids of one prompt, a sequence or a tensor ``(T,)``.
            encoder: Attribute of the pipeline that holds the encoder.
            offset: Position of the first id on the text axis.
        """
        numbers = tuple(int(number) for number in ids)
        tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(list(numbers)))
        words = word_indices(tokenizer, numbers)
        spelled = token_bytes(
            [tokens[index] for index in words], word_pieces=is_word_piece(tokenizer)
        )
        by_index = dict(zip(words, spelled, strict=True))
        text, ranges = join_pieces([by_index.get(index, b"") for index in range(len(numbers))])
        # A blank that SentencePiece keeps as a token of its own begins the word behind it.
        ranges = [
            (end, min(end + 1, len(text))) if token == "▁" and start < end else (start, end)
            for token, (start, end) in zip(tokens, ranges, strict=True)
        ]
        return cls(
            encoder=encoder,
            ids=numbers,
            tokens=tokens,
            pieces=tuple(text[start:end] for start, end in ranges),
            word_positions=tuple(offset + index for index in words),
            offset=offset,
            text=text,
            ranges=tuple(ranges),
            is_spelled=True,
        )

    @classmethod
    def from_text(
        cls,
        tokenizer: Any,
        prompt: str,
        encoder: str = "text_encoder",
        offset: int = 0,
        length: int | None = None,
        special: bool = True,
    ) -> "PromptTokens":
        """Tokenize a prompt as a pipeline does, remembering which characters each token covers.

        Args:
            tokenizer: The encoder's tokenizer; with a slow one the words are looked up in the
                text that the ids spell.
            prompt: The prompt.
            encoder: Attribute of the pipeline that holds the encoder.
            offset: Position of the first token on the text axis.
            length: Most tokens that the encoder sees, closing special tokens included.
            special: Whether the tokenizer adds its special tokens; a template brings its own.
        """
        offsets = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
        offsets |= {} if special else {"add_special_tokens": False}
        encoded = tokenizer(check_text(prompt), verbose=False, **offsets)
        plain = cls.from_ids(tokenizer, encoded["input_ids"], encoder, offset)
        places = [position - offset for position in plain.word_positions]
        count = len(plain.ids)
        closing = count - places[-1] - 1 if places else 0
        limit = length if length is not None and count > length else None
        end = count if limit is None else limit - closing
        seen = tuple(offset + place for place in places if place < end)
        plain = replace(plain, word_positions=seen, limit=limit, closing=closing)
        if "offset_mapping" not in encoded:
            return plain
        covered = dict.fromkeys(places)
        ranges = tuple(
            (int(start), int(stop)) if place in covered else (0, 0)
            for place, (start, stop) in enumerate(encoded["offset_mapping"])
        )
        pieces = tuple(prompt[start:stop] for start, stop in ranges)
        return replace(plain, text=prompt, ranges=ranges, pieces=pieces, is_spelled=False)

    def find(self, word: str) -> list[TokenSpan]:
        """Find every occurrence of a word or phrase; ``"cat#2"`` means the second one alone.

        Upper and lower case are alike; ``cat`` does not match in ``catalogue``. A word of several
        tokens gives all of them. Occurrences that are cut off are left out if another one is
        whole.

        Raises:
            WordNotFoundError: The word, or that occurrence of it, is not in the prompt, or was
                cut off; the message shows the prompt's tokens with their positions.
            TypeError: ``word`` is not a string.
        """
        if not isinstance(word, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a word must be a string; got {type(word).__name__} {word!r}")
        if not word.strip():
            raise WordNotFoundError("the word is empty; name a word of the prompt")
        plain, number = split_occurrence(word, self.text)
        spans = self._spans(plain)
        if number is not None and len(spans) >= number:
            spans = spans[number - 1 : number]
        elif number is not None and spans:
            raise WordNotFoundError(
                f"{plain!r} occurs {len(spans)} time(s) in the prompt, so there is no {word!r}"
            )
        if not spans:
            raise WordNotFoundError(f"{plain!r} is not in the prompt; {self._shown()}")
        if self.limit is None:
            return spans
        end = self.offset + self.limit - self.closing
        whole = [span for span in spans if span.positions[-1] < end]
        if not whole:
            raise WordNotFoundError(
                f"word was truncated at token {self.limit}: {plain!r} lies behind what "
                f"{self.encoder} sees of the prompt's {len(self.ids)} tokens; name it earlier or "
                "shorten the prompt"
            )
        return whole

    def _spans(self, word: str) -> list[TokenSpan]:
        words = [index for index, (start, end) in enumerate(self.ranges) if end > start]
        starts = [self.ranges[index][0] for index in words]
        ends = [self.ranges[index][1] for index in words]
        spans: list[TokenSpan] = []
        for start, end in find_words(self.text, word, loose=self.is_spelled):
            inside = words[bisect_right(ends, start) : bisect_left(starts, end)]
            if inside:
                spans.append(
                    TokenSpan(
                        encoder=self.encoder,
                        text=self.text[start:end],
                        positions=tuple(self.offset + index for index in inside),
                        tokens=tuple(self.tokens[index] for index in inside),
                        occurrence=len(spans) + 1,
                    )
                )
        return spans

    def _shown(self) -> str:
        if not self.word_positions:
            return "the prompt has no words"
        shown = [
            f"{position} {self.tokens[position - self.offset]!r}"
            for position in self.word_positions[:SHOWN_TOKENS]
        ]
        more = len(self.word_positions) - len(shown)
        tail = f" and {more} more" if more > 0 else ""
        is_full = self.is_spelled and len(self.word_positions) >= len(self.ids) - 2
        cut = " (no padding is left: a longer prompt was cut off here)" if is_full else ""
        return f"its tokens in {self.encoder} are {', '.join(shown)}{tail}{cut}"


def locate_tokens(
    pipe: Any,
    prompt: str,
    words: str | Iterable[str],
    *,
    segments: Sequence[TextSegment] | None = None,
) -> list[TokenSpan]:
    """Find words of a prompt on the text axis of a pipeline's image attention.

    Args:
        pipe: A diffusers pipeline; only its tokenizers are used.
        prompt: One prompt.
        words: A word or phrase, or several. ``"cat#2"`` is the second occurrence of ``cat``.
        segments: Where each encoder's tokens lie; None asks `text_segments`.

    Returns:
        For each word, for each text encoder, for each occurrence a `TokenSpan`. An encoder that
        does not see the word (its limit is shorter) is left out if another one does.

    Raises:
        WordNotFoundError: No encoder sees a word; a ``ValueError`` that shows the prompt's tokens,
            or says that the word was truncated.
        TypeError: ``prompt`` is not a string.
        AttnctlError: The pipeline has no tokenizer, or its text axis is not known.
    """
    if not isinstance(prompt, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"prompt must be one string; got {type(prompt).__name__}. Locate each prompt of a "
            "list by itself; with prompt_embeds give token positions instead of words"
        )
    known = text_segments(pipe) if segments is None else tuple(segments)
    if any(segment.is_behind for segment in known):
        raise AttnctlError(
            f"{type(pipe).__name__} puts padding in front of the prompt, so where words lie "
            "depends on max_sequence_length; name them in a technique, which sees the call, or "
            "pass segments= with the offset of the first token"
        )
    seen = [
        PromptTokens.from_text(
            segment.tokenizer,
            prompt if segment.prepare is None else segment.prepare(prompt),
            segment.encoder,
            segment.offset,
            segment.length,
            special=segment.template is None,
        )
        for segment in known
    ]
    spans: list[TokenSpan] = []
    for word in [words] if isinstance(words, str) else list(words):
        found: list[TokenSpan] = []
        errors: list[WordNotFoundError] = []
        for tokens in seen:
            try:
                found.extend(tokens.find(word))
            except WordNotFoundError as error:
                errors.append(error)
        if not found:
            raise errors[0]
        spans.extend(found)
    return spans
