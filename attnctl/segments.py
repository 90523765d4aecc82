"""Where the tokens of each text encoder lie on the text axis of a pipeline's image attention."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from attnctl.errors import AttnctlError
from attnctl.families import DENOISER_ATTRIBUTES, find_family

SANE_LENGTH = 100_000  # tokenizers without a limit claim 1e30
CLIP_LENGTH = 77


@dataclass(frozen=True)
class TextSegment:
    """A stretch of the text axis that one text encoder fills.

    Attributes:
        encoder: Attribute of the pipeline that holds the text encoder.
        tokenizer: Its tokenizer.
        offset: Position of its first token on the text axis.
        length: Number of tokens it fills, at most; a longer prompt is cut off there.
        prepare: What the pipeline does to a prompt before it tokenizes it.
        template: Tokens of the pipeline's template in front of the prompt, which it cuts off
            again; ``None`` without a template.
        closing: Token of the template that ends the prompt; what follows is not the user's.
        is_front: Padding in front of a prompt is moved behind it.
        is_behind: Padding stands in front, so that positions depend on the length of a call.
    """

    encoder: str
    tokenizer: Any
    offset: int
    length: int
    prepare: Callable[[str], str] | None = field(default=None, repr=False)
    template: int | None = None
    closing: str = ""
    is_front: bool = False
    is_behind: bool = False

    def on_axis(self, ids: Sequence[int]) -> list[int]:
        """The ids that lie on the text axis, of those that the encoder was given.

        What is not the user's text counts as padding.
        """
        own = list(ids)[self.template or 0 :]
        padding = getattr(self.tokenizer, "pad_token_id", None)
        if self.closing:
            closing = self.tokenizer.convert_tokens_to_ids(self.closing)
            end = own.index(closing) if closing in own else len(own)
            own[end:] = [] if padding is None else [padding] * (len(own) - end)
        if self.is_front:
            start = next((place for place, one in enumerate(own) if one != padding), 0)
            own = own[start:] + own[:start]
        return own


def text_segments(pipe: Any) -> tuple[TextSegment, ...]:
    """Tell where the tokens of each text encoder lie on the text axis of a pipeline.

    Stable Diffusion, SDXL and AnimateDiff: all CLIP encoders share one axis. Stable Diffusion 3:
    the CLIP encoders share the first 77 positions, T5 follows. FLUX.1: T5 alone. One CLIP or T5
    encoder (PixArt, CogVideoX, Wan, LTX-Video): that one, from 0. Language models as text encoders
    wrap the prompt in a template of the pipeline's, so the denoiser's family, or the caller, must
    describe them.

    Raises:
        AttnctlError: The pipeline has no tokenizer, or the place of its tokens is not known.
    """
    segments = [
        _segment(pipe, suffix)
        for suffix in ("", "_2", "_3", "_4")
        if getattr(pipe, f"tokenizer{suffix}", None) is not None
    ]
    if not segments:
        raise AttnctlError(
            f"{type(pipe).__name__} has no tokenizer; give token positions instead of words"
        )
    # A T5 left out of Stable Diffusion 3 has a tokenizer all the same, but its keys are zeros.
    loaded = [s for s in segments if getattr(pipe, s.encoder, None) is not None]
    segments = loaded or segments
    clip = [segment for segment in segments if _is_a(pipe, segment, "CLIP")]
    t5 = [segment for segment in segments if _is_a(pipe, segment, "T5")]
    names = _names(pipe)
    described = _described(pipe, segments)
    if described:
        return described
    if len(clip) == len(segments) or (len(t5) == 1 and len(segments) == 1):
        return tuple(segments)
    if len(clip) + len(t5) == len(segments) and len(t5) == 1:
        if "Flux" in names:
            return tuple(t5)
        if "SD3" in names or "StableDiffusion3" in names:
            return (*clip, replace(t5[0], offset=max(segment.length for segment in clip)))
    raise AttnctlError(
        f"it is not known where {type(pipe).__name__} puts the tokens of "
        f"{', '.join(segment.encoder for segment in segments)}; pass segments="
    )


def _described(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """What the family of the pipeline's denoiser says of its text encoders, if it does."""
    for name in DENOISER_ATTRIBUTES:
        model = getattr(pipe, name, None)
        if isinstance(model, nn.Module):
            return find_family(model).text(pipe, segments)
    return ()


def _segment(pipe: Any, suffix: str) -> TextSegment:
    tokenizer = getattr(pipe, f"tokenizer{suffix}")
    segment = TextSegment(f"text_encoder{suffix}", tokenizer, 0, 0)
    length = getattr(tokenizer, "model_max_length", SANE_LENGTH)
    if not _is_a(pipe, segment, "CLIP"):
        parameters = inspect.signature(type(pipe).__call__).parameters
        default = getattr(parameters.get("max_sequence_length"), "default", None)
        length = default if isinstance(default, int) else length
    elif length >= SANE_LENGTH:
        length = CLIP_LENGTH
    prepare = _preparation(pipe, tokenizer)
    return replace(segment, length=min(int(length), SANE_LENGTH), prepare=prepare)


def _preparation(pipe: Any, tokenizer: Any) -> Callable[[str], str] | None:
    """Find what a pipeline does to prompts: textual inversion, or cleaning as in PixArt."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    if convert is not None:
        return lambda prompt: str(convert(prompt, tokenizer))
    clean = getattr(pipe, "_text_preprocessing", None)
    if clean is not None:
        return lambda prompt: str(clean(prompt)[0])
    return None


def _is_a(pipe: Any, segment: TextSegment, kind: str) -> bool:
    encoder = getattr(pipe, segment.encoder, None)
    encoder = getattr(encoder, "_orig_mod", encoder)  # torch.compile wraps it
    return kind in type(segment.tokenizer if encoder is None else encoder).__name__


def _names(pipe: Any) -> str:
    denoisers = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    return " ".join(type(part).__name__ for part in (pipe, *denoisers))


def word_indices(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Find the ids that are neither special nor padding.

    Padding counts only at the ends: some CLIP tokenizers pad with ``!``, which is a word too.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    names = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    special = {getattr(tokenizer, name, None) for name in names}
    start, end = 0, len(ids)
    while start < end and ids[end - 1] == pad:
        end -= 1
    while start < end and ids[start] == pad:
        start += 1
    return [index for index in range(start, end) if ids[index] not in special]


def is_word_piece(tokenizer: Any) -> bool:
    """Whether a vocabulary is BERT's kind, where ``##`` marks tokens inside a word."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    return type(model).__name__ == "WordPiece" or "Bert" in type(tokenizer).__name__
