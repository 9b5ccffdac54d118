"""LAION aesthetics predictor v2: a linear stack on CLIP ViT-L/14
(christophschuhmann/improved-aesthetic-predictor)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ttsnap.reward_models.clip import VISION_ADAPTED, VISION_SITES
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.scorer import Scorer
from ttsnap.reward_models.weights import beside, load_into, locate, pretrained, read_state

FILES = ("aesthetic-model.safetensors", "aesthetic-model.pth", "sac+logos+ava1-l14-linearMSE.pth")


def linear_stack(width: int) -> nn.Sequential:
    """width-1024-128-64-16-1 as published, without non-linearities; the gaps are its dropouts,
    which keep the names."""
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    gap = nn.Identity
    return nn.Sequential(layers[0], gap(), layers[1], gap(), layers[2], gap(), layers[3], layers[4])


class Aesthetics(Scorer):
    """How much people would like the image, about 4 to 7 of 10. It does not read the prompt."""

    name = "aesthetics"
    weights = "trl-lib/ddpo-aesthetic-predictor"
    adapted = rf"clip\.({VISION_ADAPTED})"
    trained = r".*"
    level_sites = rf"clip\.{VISION_SITES}"

    def __init__(self, clip: Any, head: nn.Module, *, batch_size: int = 32) -> None:
        # The stack is small and its outputs are compared in the second decimal: it stays in
        # float32.
        network = nn.ModuleDict({"clip": clip, "head": head.float()})
        preprocess = Preprocess(clip.config.image_size, rules="transformers")
        super().__init__(network, preprocess, batch_size=batch_size)

    @classmethod
    def load(
        cls, source: str, dtype: torch.dtype, *, clip: str | Path | None = None, **options: Any
    ) -> Self:
        """clip: the image tower; by default from beside the stack, where a config.json is, or
        openai's ViT-L/14."""
        from transformers import CLIPVisionModelWithProjection

        path = locate(source, FILES)
        where = str(clip or beside(path, ("config.json",), "openai/clip-vit-large-patch14"))
        tower = pretrained(CLIPVisionModelWithProjection, where, dtype=dtype)
        head = linear_stack(tower.config.projection_dim)
        load_into(head, read_state(path, [(r"^layers\.", "")]), path)
        return cls(tower, head, **options)

    def embed_images(self, images: Tensor) -> Tensor:
        embeds: Tensor = self.network["clip"](pixel_values=self.pixels(images)).image_embeds
        return embeds

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = self.network["head"](normalize(self.embed_images(images).float(), dim=-1))[
            :, 0
        ]
        return scores
