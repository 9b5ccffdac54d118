"""ImageReward: a BLIP text encoder that attends to the image, and a linear stack (Xu et al., arXiv
2304.05977).

The networks are transformers' BLIP classes; NAMES translates the checkpoint's names, those of the
original BLIP code. The weights show all sizes but the width of the attention heads, which is 64 in
the published towers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ttsnap.reward_models.aesthetics import linear_stack
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import beside, load_into, locate, pretrained, read_state, renamed

MEAN = 0.16717362830052426
STD = 1.0333394966054072
"""Of the raw output on the authors' data, from the image-reward package."""
MAX_TOKENS = 35
FILES = ("ImageReward.safetensors", "ImageReward.pt")
UNUSED = ("blip.vision_proj", "blip.text_proj", "blip.text_encoder.embeddings.position_ids")
NAMES = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^mlp\.layers\.", "head."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.blocks\.(\d+)\.norm([12])\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^vision\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^vision\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^vision\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
)


class ImageReward(Scorer):
    """(stack(text encoder's first token) - mean) / std: about N(0, 1) on the authors' data, higher
    is better."""

    name = "imagereward"
    weights = "THUDM/ImageReward"
    max_tokens = MAX_TOKENS
    # The text encoder attends to the image: it is on the image side, and reads one text per image.
    adapted = (
        r"vision\.embeddings\.patch_embedding|vision\.encoder\.layers\.\d+\.(self_attn\.(qkv|projection)|mlp\.fc[12])"
        r"|text\.encoder\.layer\.\d+\.(attention|crossattention)\.(self\.(query|key|value)|output\.dense)"
        r"|text\.encoder\.layer\.\d+\.(intermediate|output)\.dense"
    )
    trained = r".*"
    level_sites = (
        r"vision\.(embeddings\.patch_embedding|encoder\.layers\.\d+\.layer_norm[12])"
        r"|text\.(embeddings|encoder\.layer\.\d+\.attention\.output)\.LayerNorm"
    )

    def __init__(
        self, vision: Any, text: Any, head: nn.Module, tokenizer: Any, *, batch_size: int = 32
    ) -> None:
        # As published, the stack runs in float32, whatever the towers' dtype.
        network = nn.ModuleDict({"vision": vision, "text": text, "head": head.float()})
        super().__init__(network, Preprocess(vision.config.image_size), batch_size=batch_size)
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        source: str,
        dtype: torch.dtype,
        *,
        tokenizer: str | Path | None = None,
        head_width: int = 64,
        **options: Any,
    ) -> Self:
        """tokenizer: by default from beside the checkpoint, where a vocab.txt is, or
        bert-base-uncased.

        head_width: of both towers' attention, 64 as published.
        """
        from transformers import BertTokenizer

        path = locate(source, FILES)
        words = pretrained(
            BertTokenizer, str(tokenizer or beside(path, ("vocab.txt",), "bert-base-uncased"))
        )
        words.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        given = read_state(path, unused=UNUSED)
        state = {renamed(name, NAMES): tensor for name, tensor in given.items()}
        vision, text = _towers(state, path, head_width)
        head = linear_stack(text.config.hidden_size)
        load_into(nn.ModuleDict({"vision": vision, "text": text, "head": head}), state, path)
        made = cls(vision.to(dtype), text.to(dtype), head, words, **options)
        made.published = dict(zip(state, given, strict=True))
        return made

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        )
        seen = self.network["vision"](pixel_values=self.pixels(images)).last_hidden_state
        read = self.network["text"](
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
            encoder_hidden_states=seen,
        ).last_hidden_state
        raw: Tensor = self.network["head"](read[:, 0].float())[:, 0]
        return (raw - MEAN) / STD


def _towers(state: Mapping[str, Tensor], source: Path, head_width: int) -> tuple[Any, Any]:
    """Both towers, their sizes from the weights' shapes. ValueError where these are not
    ImageReward's."""
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    try:
        patch = state["vision.embeddings.patch_embedding.weight"]
        tokens = state["vision.embeddings.position_embedding"].shape[1] - 1
        vocabulary, hidden = state["text.embeddings.word_embeddings.weight"].shape
        positions = len(state["text.embeddings.position_embeddings.weight"])
        wide = len(state["vision.encoder.layers.0.mlp.fc1.weight"])
        between = len(state["text.encoder.layer.0.intermediate.dense.weight"])
    except KeyError as error:
        raise ValueError(
            f"the weights in {source} are for another model: no {error.args[0]}"
        ) from None
    if head_width < 1 or len(patch) % head_width or hidden % head_width:
        raise ValueError(
            f"the weights in {source} are {len(patch)} (image) and {hidden} (text) wide, not whole"
            f" attention heads of {head_width}; give the width of theirs as head_width, in Python"
        )
    vision = BlipVisionConfig(
        hidden_size=len(patch),
        intermediate_size=wide,
        num_hidden_layers=_count(state, r"vision\.encoder\.layers\.(\d+)\."),
        num_attention_heads=len(patch) // head_width,
        image_size=patch.shape[-1] * round(tokens**0.5),
        patch_size=patch.shape[-1],
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        encoder_hidden_size=len(patch),
        intermediate_size=between,
        num_hidden_layers=_count(state, r"text\.encoder\.layer\.(\d+)\."),
        num_attention_heads=hidden // head_width,
        max_position_embeddings=positions,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
        # This gives the layers their cross attention; the attention itself stays bidirectional.
        is_decoder=True,
    )
    return BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(
        (int(m.group(1)) for name in state if (m := re.match(pattern, name))), default=-1
    )
