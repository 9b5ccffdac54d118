"""LAION aesthetics predictor v2: a linear stack on CLIP ViT-L/14 (christophschuhmann/improved-aesthetic-predictor)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import explained, load_into, locate, read_state

FILES = ("aesthetic-model.safetensors", "aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth")


def linear_stack(width: int) -> nn.Sequential:
    """width-1024-128-64-16-1 as published, without non-linearities; the gaps are its dropouts, which keep the names."""
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    gap = nn.Identity
    return nn.Sequential(layers[0], gap(), layers[1], gap(), layers[2], gap(), layers[3], layers[4])


class Aesthetics(Scorer):
    """How much people would like the image, about 4 to 7 of 10. It does not read the prompt."""

    name = "aesthetics"
    adapted = (
        r"clip\.vision_model\.embeddings\.patch_embedding|clip\.visual_projection"
        r"|clip\.vision_model\.encoder\.layers\.\d+\.(self_attn\.[qkv]_proj|self_attn\.out_proj|mlp\.fc[12])"
    )
    trained = r".*"
    level_sites = r"clip\.vision_model\.(embeddings\.patch_embedding|encoder\.layers\.\d+\.layer_norm[12])"

    def __init__(self, clip: Any, head: nn.Module, *, batch_size: int = 32) -> None:
        # The stack is small and its outputs are compared in the second decimal: it stays in float32.
        network = nn.ModuleDict({"clip": clip, "head": head.float()})
        preprocess = Preprocess(clip.config.image_size, rules="transformers")
        super().__init__(network, preprocess, batch_size=batch_size)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "trl-lib/ddpo-aesthetic-predictor",
        *,
        clip: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> Aesthetics:
        """The stack from a file, a folder or a hub repository; CLIP from `clip`, from the same folder where that holds
        a config.json, or from openai/clip-vit-large-patch14. ValueError where they cannot be loaded."""
        from transformers import CLIPVisionModelWithProjection

        path = locate(name_or_path, FILES)
        beside = (path.parent / "config.json").is_file()
        source = str(clip or (path.parent if beside else "openai/clip-vit-large-patch14"))
        tower: Any = explained(lambda: CLIPVisionModelWithProjection.from_pretrained(source, dtype=dtype), source)
        head = linear_stack(tower.config.projection_dim)
        load_into(head, {k.removeprefix("layers."): v for k, v in read_state(path).items()}, str(path))
        return cls(tower.to(device), head.to(device), batch_size=batch_size)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        network: Any = self.network
        embeds = network["clip"](pixel_values=self.pixels(images)).image_embeds
        scores: Tensor = network["head"](normalize(embeds.float(), dim=-1))[:, 0]
        return scores
