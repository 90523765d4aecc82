"""Tokenizers and text encoders made in code."""

from __future__ import annotations

from typing import TypeVar

import torch
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WHOLE_WORDS = ("a", "and", "the", "of", "on", "cat", "dog", "frog", "red", "blue", "photo")
WIDTH = 32
CLIP_LENGTH = 77
T5_LENGTH = 16


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer: ``WHOLE_WORDS`` are one token, other words several."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WHOLE_WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = ["".join(parts[:2]), *parts[2:]]
            pieces.append(parts[0])
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    merges = list(dict.fromkeys(merges))
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def clip_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Two layers, two heads; the special tokens are the tokenizer's."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def clip_text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP text encoder, ``(B, 77, 32)``."""
    return loud(CLIPTextModel(clip_config(tokenizer)))


def clip_text_projected(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """CLIP text encoder with a pooled projection of width 32."""
    return loud(CLIPTextModelWithProjection(clip_config(tokenizer)))


def t5_tokenizer() -> T5Tokenizer:
    """Unigram tokenizer: ``WHOLE_WORDS`` are one token, other words are spelled."""
    special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    other = [(sign, -9.0) for sign in "0123456789.,:;!?'-()"]
    words = [(f"▁{word}", -3.0) for word in WHOLE_WORDS]
    return T5Tokenizer(
        vocab=[*special, *letters, *other, *words], extra_ids=0, model_max_length=512
    )


def t5_settings(width: int) -> dict[str, int]:
    """One layer, two heads."""
    return {
        "vocab_size": len(t5_tokenizer()),
        "d_model": width,
        "d_kv": 8,
        "d_ff": WIDTH,
        "num_layers": 1,
        "num_heads": 2,
    }


def t5_text(width: int = WIDTH) -> T5EncoderModel:
    """T5 text encoder, ``(B, tokens, width)``."""
    return loud(T5EncoderModel(T5Config(**t5_settings(width))))


def umt5_text() -> UMT5EncoderModel:
    """UMT5 text encoder, ``(B, tokens, 32)``."""
    return loud(UMT5EncoderModel(UMT5Config(**t5_settings(WIDTH))))


def gemma_text() -> Gemma2Model:
    """Gemma 2 as a text encoder, ``(B, tokens, 32)``; reads the ids of ``t5_tokenizer``."""
    config = Gemma2Config(
        vocab_size=len(t5_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
    )
    return loud(Gemma2Model(config))


Encoder = TypeVar("Encoder", bound=torch.nn.Module)


def loud(encoder: Encoder) -> Encoder:
    """Raise the tiny initial embeddings, so that different words give different conditions."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "embed" in name or "shared" in name:
                parameter.normal_()
    return encoder.eval()
