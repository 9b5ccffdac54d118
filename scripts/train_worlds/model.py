"""Builders for the embedded model: every part a class that diffusers or transformers ships."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ttsnap.scenes.grammar import WORDS

MAX_TOKENS = 17
"""Length of a tokenised caption: the longest canonical caption plus begin and end."""
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"


def _byte_pairs(words: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Symbols and merges that make every word one symbol, the most frequent pair first, ties by
    spelling.

    (The trainer of `tokenizers` breaks ties by hash order, differently in every run.)
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in sorted(words)]
    symbols = sorted({symbol for word in spelled for symbol in word})
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        symbols.append(left + right)
        for word in spelled:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return symbols, merges


def build_tokenizer(words: Iterable[str] = WORDS) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges make each word, and the comma, one token."""
    symbols, merges = _byte_pairs((*words, ","))
    vocab = {symbol: i for i, symbol in enumerate((*symbols, _BOS, _EOS))}
    kind: Any = CLIPTokenizer  # its annotations are narrower than what it takes
    tokenizer: CLIPTokenizer = kind(
        vocab=vocab,
        merges=merges,
        unk_token=_EOS,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_EOS,
        model_max_length=MAX_TOKENS,
    )
    return tokenizer


def build_letter_tokenizer(
    words: Sequence[str], letters: str, longest: int
) -> PreTrainedTokenizerFast:
    """A tokenizer to which each lower-case word is a token, and each capital letter and quote.

    longest: words and letters of the longest prompt.
    """
    vocab = {word: i for i, word in enumerate((*words, *letters, '"', _BOS, _EOS))}
    core = Tokenizer(models.WordLevel(vocab, unk_token=_EOS))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r'[A-Z"]|[^\sA-Z"]+'), "removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A {_EOS}", special_tokens=[(_BOS, vocab[_BOS]), (_EOS, vocab[_EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_EOS,
        unk_token=_EOS,
        model_max_length=longest + 2,
    )


def build_text_encoder(
    tokenizer: Any, *, width: int, layers: int, heads: int
) -> CLIPTextModelWithProjection:
    """A CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    # as fast as SDPA for so few tokens, and faster to train on CPUs
    encoder.set_attn_implementation("eager")
    return encoder


def build_blank_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that reads every text as empty, for `build_blank_t5`."""
    blank = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    blank.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    blank.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=blank, pad_token="<pad>", eos_token="</s>", model_max_length=MAX_TOKENS
    )


def build_blank_t5(width: int) -> T5EncoderModel:
    """A T5 encoder whose every output is exactly zero.

    The SD3 pipeline runs without T5 (it then appends zero tokens), but diffusers cannot load a
    folder that leaves it out unless `text_encoder_3=None, tokenizer_3=None` are passed. This stub
    gives the same zeros with no argument.
    """
    encoder = T5EncoderModel(
        T5Config(vocab_size=2, d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    return encoder


def build_vae(
    *, image_size: int, latent_channels: int, channels: Sequence[int], layers: int, groups: int
) -> Any:
    """A narrow convolutional autoencoder with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        sample_size=image_size,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_transformer(
    *,
    latent_size: int,
    latent_channels: int,
    layers: int,
    heads: int,
    head_dim: int,
    text_dim: int,
    patch: int = 1,
) -> Any:
    """An SD3 transformer with random weights.

    latent_size: cells of the longer side.
    patch: cells of a token's side.
    text_dim: channels of the text's tokens, and of the pooled text.
    """
    return SD3Transformer2DModel(
        sample_size=latent_size,
        patch_size=patch,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=layers,
        attention_head_dim=head_dim,
        num_attention_heads=heads,
        joint_attention_dim=text_dim,
        caption_projection_dim=heads * head_dim,
        pooled_projection_dim=text_dim,
        pos_embed_max_size=latent_size // patch,
        qk_norm="rms_norm",
    )


def build_scheduler(shift: float) -> FlowMatchEulerDiscreteScheduler:
    """The rectified-flow Euler scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def tokenize(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """Token ids (N, MAX_TOKENS) as the stock pipeline makes them."""
    ids: torch.Tensor = tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids
