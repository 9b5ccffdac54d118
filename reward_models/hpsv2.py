"""HPSv2 and v2.1: CLIP ViT-H-14 finetuned on human preferences (Wu et al., arXiv 2306.09341).

The scale is the cosine as the hpsv2 package returns it, about 0.2 to 0.35; papers report it times
100. Images are padded to a square, not cropped. The package's resize depends on torchvision: it is
antialiased from 0.17 on, and so it is here.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from ttsnap.reward_models.clip import OpenClipTowers, import_open_clip
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.weights import explained, load_into, locate, read_state


class HPSv2(OpenClipTowers):
    """Cosine of the checkpoint of version 2.0."""

    name = "hpsv2"
    weights = "xswu/HPSv2"
    files: tuple[str, ...] = ("HPS_v2_compressed.safetensors", "HPS_v2_compressed.pt")

    @classmethod
    def load(
        cls, source: str, dtype: torch.dtype, *, architecture: str = "ViT-H-14", **options: Any
    ) -> Self:
        open_clip = import_open_clip()
        path = locate(source, cls.files)
        network = explained(
            lambda: open_clip.create_model(architecture, pretrained=None), architecture
        )
        load_into(network, read_state(path), path)
        preprocess = Preprocess(network.visual.preprocess_cfg["size"][0], fit="pad")
        return cls(
            network.to(dtype=dtype), open_clip.get_tokenizer(architecture), preprocess, **options
        )


class HPSv21(HPSv2):
    """Cosine of the checkpoint of version 2.1."""

    name = "hpsv2.1"
    files = ("HPS_v2.1_compressed.safetensors", "HPS_v2.1_compressed.pt")
