"""HPSv2 and v2.1: CLIP ViT-H-14 finetuned on human preferences (Wu et al., arXiv 2306.09341).

The scale is the cosine as the hpsv2 package returns it, about 0.2 to 0.35; papers report it times 100. Images are
padded to a square, not cropped. The package's resize depends on torchvision: it is antialiased from 0.17 on, and so it
is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.towers import OpenClipTowers, import_open_clip
from ttsnap.reward_models.weights import explained, load_into, locate, read_state


class HPSv2(OpenClipTowers):
    """Cosine of the checkpoint of version 2.0."""

    name = "hpsv2"
    files: tuple[str, ...] = ("HPS_v2_compressed.safetensors", "HPS_v2_compressed.pt")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "xswu/HPSv2",
        *,
        architecture: str = "ViT-H-14",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> HPSv2:
        """A checkpoint file, a folder or hub repository that holds one. ValueError where it cannot be loaded."""
        open_clip = import_open_clip()
        path = locate(name_or_path, cls.files)
        network = explained(lambda: open_clip.create_model(architecture, pretrained=None), architecture)
        load_into(network, read_state(path), str(path))
        preprocess = Preprocess(network.visual.preprocess_cfg["size"][0], fit="pad")
        tokenizer = open_clip.get_tokenizer(architecture)
        return cls(network.to(device, dtype), tokenizer, preprocess, batch_size=batch_size)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.cosine(images, prompts)


class HPSv21(HPSv2):
    """Cosine of the checkpoint of version 2.1."""

    name = "hpsv2.1"
    files = ("HPS_v2.1_compressed.safetensors", "HPS_v2.1_compressed.pt")
