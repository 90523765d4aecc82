"""Tokenizer and text encoder of the shapes pipeline.

The encoder is one ordinary CLIP layer whose attention pattern is built instead of learned: each
token looks at the token before it if that is an adjective (``red``, ``dark``), else at the begin
token. So a noun knows its own colour and nothing else; a colour word, a comma, the end token and
all padding know nothing but themselves. With an encoder that mixes freely, every later token
knows the whole prompt and attention maps no longer show where a word's object lies.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from attnctl.shapes.vocabulary import BACKGROUNDS, LARGE_VOCABULARY

TOKENS = 77
WIDTH = 128
HEADS = 4
ADJECTIVES = (*LARGE_VOCABULARY.colours, *BACKGROUNDS)
MOTION_WORDS = ("moving", "turning", "left", "right", "up", "down", "behind")
WORDS = (*ADJECTIVES, *LARGE_VOCABULARY.shapes, "a", "and", "on", "background", ",", *MOTION_WORDS)
BEGIN, END = "<|startoftext|>", "<|endoftext|>"

# Layout of the embedding channels: 15 pairs of waves tell positions, two flags mark tokens.
WAVES = 15
ADJECTIVE_CHANNEL = 2 * WAVES
BEGIN_CHANNEL = 2 * WAVES + 1
WAVE_SIZE = 0.5
# Attention scores: the token before gets NEAR, an adjective ADJECTIVE more, the begin token BEGIN.
NEAR_SCORE, ADJECTIVE_SCORE, BEGIN_SCORE = 40.0, 20.0, 50.0


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes, as in GPT-2 and CLIP."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def _join(parts: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Apply merges to a word's parts, earliest merge first, as byte-pair encoding does."""
    for left, right in merges:
        at = 0
        while at < len(parts) - 1:
            if (parts[at], parts[at + 1]) == (left, right):
                parts[at : at + 2] = [left + right]
            at += 1
    return parts


def _word_merges() -> list[tuple[str, str]]:
    """Merges that turn each word of the world into one token."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = _join([*word[:-1], word[-1] + "</w>"], merges)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
    return merges


def build_tokenizer(length: int = TOKENS) -> CLIPTokenizer:
    """Build a byte-level CLIP tokenizer in which each word of the world is one token.

    Other text is spelled in smaller pieces; every string has tokens. Texts are padded with the
    end token, as Stable Diffusion's.

    Args:
        length: Tokens of a padded text, at most 77.
    """
    symbols = _byte_symbols()
    merges = _word_merges()
    entries = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), BEGIN, END]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, merges), model_max_length=length)


def _wave_frequencies() -> Tensor:
    # With this spacing the sum of cosines stays below 0.41 of its peak for offsets up to 76.
    return math.pi * ((torch.arange(WAVES) + 0.5) / WAVES) ** 1.2


def _token_table(tokenizer: CLIPTokenizer) -> Tensor:
    """Fixed random codes ``(tokens, width)`` of equal norm and zero mean, with flags."""
    generator = torch.Generator().manual_seed(1234)
    table = torch.zeros(len(tokenizer), WIDTH)
    codes = table[:, BEGIN_CHANNEL + 1 :]
    codes.copy_(torch.randn(codes.shape, generator=generator))
    for word in ADJECTIVES:
        table[_token_of(tokenizer, word), ADJECTIVE_CHANNEL] = 1.0
    table[cast(int, tokenizer.bos_token_id), BEGIN_CHANNEL] = 1.0
    codes -= table.sum(1, keepdim=True) / codes.shape[1]
    flags = table[:, : BEGIN_CHANNEL + 1].square().sum(1, keepdim=True)
    codes *= ((codes.shape[1] - flags) / codes.square().sum(1, keepdim=True)).sqrt()
    # Rescaling moved the mean of the flagged tokens by under 0.001; the layer norm removes it.
    return table


def _token_of(tokenizer: CLIPTokenizer, word: str) -> int:
    pieces: list[int] = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(pieces) != 1:
        raise ValueError(f'"{word}" is {len(pieces)} tokens; add it to WORDS')
    return pieces[0]


def _position_table() -> Tensor:
    """Waves ``(77, width)``; none at position 0: the begin token is equally far from all."""
    phase = torch.arange(TOKENS)[:, None] * _wave_frequencies()
    table = torch.zeros(TOKENS, WIDTH)
    table[:, :WAVES] = WAVE_SIZE * phase.cos()
    table[:, WAVES : 2 * WAVES] = WAVE_SIZE * phase.sin()
    table[0] = 0.0
    return table


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the one-layer encoder; embeddings, first norm, queries and keys are frozen.

    Args:
        tokenizer: From ``build_tokenizer``.

    Returns:
        A ``CLIPTextModel`` with hidden states ``(B, 77, 128)``. Values, output projection, MLP
        and the other norms keep ``requires_grad`` and are trained along with the UNet.
    """
    encoder = CLIPTextModel(_config(tokenizer, layers=1))
    _build_first_layer(encoder, tokenizer)
    return encoder


def build_projected_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Build a two-layer encoder with a pooled output, as Stable Diffusion 3's pipeline wants.

    That pipeline reads hidden states before the last layer, so the first layer is the one of
    ``build_text_encoder``. The second gives the pooled vector; its attention adds nothing, so
    that this vector knows the end token and where it stands, and no word.

    Args:
        tokenizer: From ``build_tokenizer``.
    """
    encoder = CLIPTextModelWithProjection(_config(tokenizer, layers=2))
    inner: Any = encoder.text_model
    _build_first_layer(inner, tokenizer)
    attention = inner.encoder.layers[1].self_attn
    for parameter in attention.out_proj.parameters():
        torch.nn.init.zeros_(parameter)
    attention.requires_grad_(False)
    return encoder


def _config(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=cast(int, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )


def _build_first_layer(encoder: Any, tokenizer: CLIPTokenizer) -> None:
    """Fill and freeze embeddings, first norm, queries and keys of an encoder's first layer."""
    layer: Any = encoder.encoder.layers[0]
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight.copy_(_token_table(tokenizer))
        encoder.embeddings.position_embedding.weight.copy_(_position_table())
        _build_pattern(layer.self_attn.q_proj, layer.self_attn.k_proj)
    for part in (
        encoder.embeddings,
        layer.layer_norm1,
        layer.self_attn.q_proj,
        layer.self_attn.k_proj,
    ):
        part.requires_grad_(False)


def _build_pattern(query: torch.nn.Linear, key: torch.nn.Linear) -> None:
    """Set both projections so that every head gives the scores named at the top of this file."""
    head_width = WIDTH // HEADS
    # The first norm divides by the root mean square of a token's code and its waves.
    coded = WIDTH - BEGIN_CHANNEL - 1
    norm = math.sqrt(WIDTH / (coded + WAVES * WAVE_SIZE**2))
    begin_norm = math.sqrt(WIDTH / coded)
    temperature = math.sqrt(head_width)
    gain = temperature * NEAR_SCORE / (WAVES * (WAVE_SIZE * norm) ** 2)
    turn = _wave_frequencies()
    for tensor in (query.weight, query.bias, key.weight, key.bias):
        tensor.zero_()
    for head in range(HEADS):
        start = head * head_width
        for wave in range(WAVES):
            cos, sin = start + wave, start + WAVES + wave
            # The query is turned back by one position: it matches the key of the token before.
            query.weight[cos, wave] = query.weight[sin, WAVES + wave] = gain * turn[wave].cos()
            query.weight[cos, WAVES + wave] = gain * turn[wave].sin()
            query.weight[sin, wave] = -gain * turn[wave].sin()
            key.weight[cos, wave] = key.weight[sin, WAVES + wave] = 1.0
        flag = start + 2 * WAVES
        query.bias[flag] = temperature
        key.weight[flag, ADJECTIVE_CHANNEL] = ADJECTIVE_SCORE / norm
        key.weight[flag, BEGIN_CHANNEL] = BEGIN_SCORE / begin_norm
