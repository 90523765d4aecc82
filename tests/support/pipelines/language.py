"""Language models and their tokenizers as text encoders, made in code."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import (
    ByT5Tokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
)
from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from tests.support.pipelines.text import WHOLE_WORDS, WIDTH, loud

SMALL_EYE = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    special: tuple[str, ...], padding: str, begin: str | None = None, side: str = "right"
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: ``WHOLE_WORDS`` are one token behind a blank, others are spelled.

    Args:
        special: Special tokens.
        padding: The one that pads.
        begin: The one in front of each text, if there is one.
        side: Where padding goes.
    """
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in WHOLE_WORDS:
        parts = ["Ġ", *word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = ["".join(parts[:2]), *parts[2:]]
            pieces.append(parts[0])
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges))))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    if begin is not None:
        inner.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=padding, bos_token=begin, padding_side=side
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's: turns of a chat between special tokens."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = byte_tokenizer(special, "<|endoftext|>")
    tokenizer.chat_template = CHAT
    return tokenizer


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's: a begin token, and headers of turns."""
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_tokenizer((*special, "<pad>"), "<pad>", "<|begin_of_text|>")


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Gemma's: a begin token, and padding in front."""
    return byte_tokenizer(("<pad>", "<bos>"), "<pad>", "<bos>", side="left")


def small(words: int) -> dict[str, Any]:
    """Two layers, two heads."""
    return {
        "vocab_size": words,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def qwen_text(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLTextModel:
    """The language model of Qwen 2.5 VL, ``(B, tokens, 32)``."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    config = Qwen2_5_VLTextConfig(**small(len(tokenizer)), rope_parameters=rope)
    return loud(Qwen2_5_VLTextModel(config))


def llama_text(tokenizer: PreTrainedTokenizerFast) -> LlamaModel:
    """Llama, ``(B, tokens, 32)``."""
    return loud(LlamaModel(LlamaConfig(**small(len(tokenizer)))))


def gemma3_text(tokenizer: PreTrainedTokenizerFast) -> Gemma3ForConditionalGeneration:
    """Gemma 3 with its eye, which stays shut: ``(B, tokens, 32)``."""
    text = {**small(len(tokenizer)), "head_dim": 16, "pad_token_id": tokenizer.pad_token_id}
    config = Gemma3Config(text_config=text, vision_config=SMALL_EYE, mm_tokens_per_image=4)
    return loud(Gemma3ForConditionalGeneration(config))


def t5_gemma2_text(tokenizer: PreTrainedTokenizerFast) -> T5Gemma2Encoder:
    """The encoder of T5Gemma 2 with its eye, which stays shut: ``(B, tokens, 32)``."""
    text = {"head_dim": 16, "pad_token_id": tokenizer.pad_token_id, "dropout_rate": 0.0}
    config = T5Gemma2EncoderConfig(
        text_config={**small(len(tokenizer)), **text},
        vision_config=SMALL_EYE,
        mm_tokens_per_image=4,
    )
    return loud(T5Gemma2Encoder(config))


def byt5_tokenizer() -> ByT5Tokenizer:
    """One token a byte."""
    return ByT5Tokenizer()


def byt5_text(tokenizer: ByT5Tokenizer) -> T5EncoderModel:
    """The encoder of glyphs, ``(B, tokens, 32)``."""
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
    )
    return loud(T5EncoderModel(config))
