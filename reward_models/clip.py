"""Image-text models with two towers, and CLIPScore: by transformers' CLIP or by any model of
open_clip.

Source of CLIPScore: Hessel et al. (arXiv 2104.08718), in the form that torchmetrics reports:
max(100 cos, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ttsnap.extras import install
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import beside, explained, pretrained

VISION_ADAPTED = (
    r"vision_model\.embeddings\.patch_embedding|visual_projection"
    r"|vision_model\.encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])"
)
VISION_SITES = r"vision_model\.(embeddings\.patch_embedding|encoder\.layers\.\d+\.layer_norm[12])"
"""`adapted` and `level_sites` (scorer.py) of transformers' CLIP."""


class TwoTowers(Scorer):
    """The cosine of image and text. Towers run in the network's dtype, the cosine in float32."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), not normalised."""
        raise NotImplementedError

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> (N, D), not normalised."""
        raise NotImplementedError

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.cosine(images, prompts)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N,) float32 in [-1, 1]. Each prompt is encoded once: a search scores many images of
        it."""
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        texts = normalize(self.embed_texts(list(unique)).float(), dim=-1)
        rows = torch.tensor([unique[prompt] for prompt in prompts], device=texts.device)
        return (normalize(self.embed_images(images).float(), dim=-1) * texts[rows]).sum(-1)


class HFTowers(TwoTowers):
    """A transformers CLIPModel with its tokenizer."""

    processor = ""
    """The hub id of the tokenizer, where there is none beside the weights."""
    adapted = VISION_ADAPTED
    trained = r"vision_model\..*|visual_projection\..*"
    level_sites = VISION_SITES

    def __init__(self, network: Any, tokenizer: Any, *, batch_size: int = 32) -> None:
        preprocess = Preprocess(network.config.vision_config.image_size, rules="transformers")
        super().__init__(network, preprocess, batch_size=batch_size)
        self.tokenizer = tokenizer
        self.max_tokens = int(network.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        from transformers import AutoTokenizer, CLIPModel

        network = pretrained(CLIPModel, source, dtype=dtype)
        texts = beside(Path(source), ("tokenizer.json", "vocab.json"), cls.processor or source)
        return cls(network, pretrained(AutoTokenizer, texts), **options)

    def embed_images(self, images: Tensor) -> Tensor:
        return _pooled(self.network.get_image_features(pixel_values=self.pixels(images)))

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        # The towers are causal and read the embedding at the end token: the length of the padding
        # does not matter.
        tokens = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self.device)
        mask = tokens["attention_mask"].to(self.device)
        return _pooled(self.network.get_text_features(input_ids=ids, attention_mask=mask))


def _pooled(features: Any) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled


class CLIPScore(HFTowers):
    """max(100 cos, 0) in [0, 100]; about 20 to 35 on real pairs."""

    name = "clip"
    weights = "openai/clip-vit-large-patch14"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (100 * self.cosine(images, prompts)).clamp(min=0)


class OpenClipTowers(TwoTowers):
    """An open_clip model with its tokenizer. Only open_clip's own vision transformers can be made
    noise-aware."""

    adapted = r"visual\.conv1|visual\.transformer\.resblocks\.\d+\.(attn\.in_proj|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)"
    trained = r"visual\..*"
    level_sites = r"visual\.(conv1|transformer\.resblocks\.\d+\.ln_[12])"

    def __init__(
        self, network: nn.Module, tokenizer: Any, preprocess: Preprocess, *, batch_size: int = 32
    ) -> None:
        super().__init__(network, preprocess, batch_size=batch_size)
        self.tokenizer = tokenizer
        self.max_tokens = int(tokenizer.context_length)

    def embed_images(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.encode_image(self.pixels(images))
        return features

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        features: Tensor = self.network.encode_text(self.tokenizer(list(prompts)).to(self.device))
        return features

    def count_tokens(self, prompt: str) -> int:
        encode = getattr(self.tokenizer, "encode", None)
        return len(encode(prompt)) + 2 if encode is not None else 0


class OpenClipScore(OpenClipTowers):
    """max(100 cos, 0) of an open_clip model."""

    name = "open_clip"
    weights = "ViT-B-32:laion2b_s34b_b79k"

    @classmethod
    def load(cls, source: str, dtype: torch.dtype, **options: Any) -> Self:
        """source: ARCHITECTURE:TAG, ARCHITECTURE:FILE, hf-hub:OWNER/NAME, or a local folder."""
        open_clip = import_open_clip()
        if Path(source).is_dir():
            source = f"local-dir:{source}"
        schema = source.startswith(("hf-hub:", "local-dir:"))
        architecture, _, weights = (source, "", "") if schema else source.partition(":")
        if not schema and not weights:
            raise ValueError(
                f"open_clip weights are named ARCHITECTURE:TAG or ARCHITECTURE:FILE, got {source!r}"
            )
        network = explained(
            lambda: open_clip.create_model(architecture, pretrained=weights or None), source
        )
        tokenizer = explained(lambda: open_clip.get_tokenizer(architecture), source)
        return cls(
            network.to(dtype=dtype),
            tokenizer,
            _preprocess(network.visual.preprocess_cfg, source),
            **options,
        )

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (100 * self.cosine(images, prompts)).clamp(min=0)


def _preprocess(cfg: dict[str, Any], source: str) -> Preprocess:
    """The preprocessing that open_clip's configuration describes."""
    size = cfg["size"]
    mode = cfg["interpolation"]
    fit = {"shortest": "crop", "squash": "squash"}.get(str(cfg["resize_mode"]))
    side = size if isinstance(size, int) else size[0]
    if (
        size not in (side, (side, side), [side, side])
        or fit is None
        or mode not in ("bicubic", "bilinear")
    ):
        raise ValueError(f"{source} preprocesses images in a way that is not supported here: {cfg}")
    return Preprocess(side, tuple(cfg["mean"]), tuple(cfg["std"]), fit, mode)  # type: ignore[arg-type]


def import_open_clip() -> Any:
    """The open_clip module, or a ValueError that says how to install it."""
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"this reward needs open_clip ({error}): {install('rewards')}") from error
    return open_clip
