"""Image-text models with two towers: the cosine of their embeddings, by transformers or by open_clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import explained

from ttsnap.extras import install


class TwoTowers(Scorer):
    """scale x cosine of image and text. Towers run in the network's dtype, the cosine in float32."""

    tokenize: Callable[[Sequence[str]], dict[str, Tensor]]
    """Texts -> the text tower's input on the CPU, cut to `max_tokens`."""

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), not normalised."""
        raise NotImplementedError

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> (N, D), not normalised."""
        raise NotImplementedError

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(N,) float32 in [-1, 1]. A search scores many images of one prompt, so each text is encoded once."""
        unique = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        texts = normalize(self.embed_texts(list(unique)).float(), dim=-1)
        rows = torch.tensor([unique[prompt] for prompt in prompts], device=texts.device)
        return (normalize(self.embed_images(images).float(), dim=-1) * texts[rows]).sum(-1)


class HFTowers(TwoTowers):
    """A transformers CLIPModel with its tokenizer."""

    default = ""
    processor = ""
    """Where the tokenizer is if not beside the weights."""
    adapted = (
        r"vision_model\.embeddings\.patch_embedding|visual_projection"
        r"|vision_model\.encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])"
    )
    trained = r"vision_model\..*|visual_projection\..*"
    level_sites = r"vision_model\.(embeddings\.patch_embedding|encoder\.layers\.\d+\.layer_norm[12])"

    def __init__(self, network: Any, tokenizer: Any, *, batch_size: int = 32) -> None:
        preprocess = Preprocess(network.config.vision_config.image_size, rules="transformers")
        super().__init__(network, preprocess, batch_size=batch_size)
        self._tokenizer = tokenizer
        self.max_tokens = int(network.config.text_config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> HFTowers:
        """A local folder or a hub id (default: the published one). ValueError where it cannot be loaded."""
        from transformers import AutoTokenizer, CLIPModel

        source = str(name_or_path or cls.default)
        network: nn.Module = explained(lambda: CLIPModel.from_pretrained(source, dtype=dtype), source)
        beside = Path(source).is_dir() and any((Path(source) / f).is_file() for f in ("tokenizer.json", "vocab.json"))
        texts = source if beside or not cls.processor else cls.processor
        tokenizer = explained(lambda: AutoTokenizer.from_pretrained(texts), texts)
        return cls(network.to(device), tokenizer, batch_size=batch_size)

    def embed_images(self, images: Tensor) -> Tensor:
        return _pooled(self.network.get_image_features(pixel_values=self.pixels(images)))  # type: ignore[operator]

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        # The towers are causal and read the embedding off the end token, so the length of the padding does not matter.
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        return _pooled(self.network.get_text_features(input_ids=ids, attention_mask=mask))  # type: ignore[operator]

    def count_tokens(self, prompt: str) -> int:
        return len(self._tokenizer(prompt, truncation=False)["input_ids"])


def _pooled(features: Any) -> Tensor:
    """transformers 5 returns an output object where 4 returned the tensor."""
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled


class OpenClipTowers(TwoTowers):
    """An open_clip model with its tokenizer. Only open_clip's own vision transformers can be made noise-aware."""

    adapted = r"visual\.conv1|visual\.transformer\.resblocks\.\d+\.(attn\.in_proj|attn\.out_proj|mlp\.c_fc|mlp\.c_proj)"
    trained = r"visual\..*"
    level_sites = r"visual\.(conv1|transformer\.resblocks\.\d+\.ln_[12])"

    def __init__(self, network: nn.Module, tokenizer: Any, preprocess: Preprocess, *, batch_size: int = 32) -> None:
        super().__init__(network, preprocess, batch_size=batch_size)
        self._tokenizer = tokenizer
        self.max_tokens = int(tokenizer.context_length)

    def embed_images(self, images: Tensor) -> Tensor:
        features: Tensor = self.network.encode_image(self.pixels(images))  # type: ignore[operator]
        return features

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        features: Tensor = self.network.encode_text(self._tokenizer(list(prompts)).to(self.device))  # type: ignore[operator]
        return features

    def count_tokens(self, prompt: str) -> int:
        encode = getattr(self._tokenizer, "encode", None)
        return len(encode(prompt)) + 2 if encode is not None else 0


def import_open_clip() -> Any:
    """The open_clip module, or a ValueError that says how to install it."""
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"this reward needs open_clip ({error}): {install('rewards')}") from error
    return open_clip
