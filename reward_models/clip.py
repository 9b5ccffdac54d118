"""CLIPScore, by transformers' CLIP or any open_clip model.

Source: Hessel et al., CLIPScore (arXiv 2104.08718), in the form that torchmetrics reports: max(100 cos, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from ttsnap.reward_models.preprocess import Preprocess
from ttsnap.reward_models.towers import HFTowers, OpenClipTowers, import_open_clip
from ttsnap.reward_models.weights import explained


class CLIPScore(HFTowers):
    """max(100 cos, 0) in [0, 100]; about 20 to 35 on real pairs."""

    name = "clip"
    default = "openai/clip-vit-large-patch14"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (100 * self.cosine(images, prompts)).clamp(min=0)


class OpenClipScore(OpenClipTowers):
    """max(100 cos, 0) of an open_clip model."""

    name = "open_clip"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = "ViT-B-32:laion2b_s34b_b79k",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> OpenClipScore:
        """ARCHITECTURE:TAG, ARCHITECTURE:FILE, hf-hub:OWNER/NAME, or a local folder. ValueError if it does not load."""
        open_clip = import_open_clip()
        if Path(name_or_path).is_dir():
            name_or_path = f"local-dir:{name_or_path}"
        schema = name_or_path.startswith(("hf-hub:", "local-dir:"))
        architecture, _, weights = (name_or_path, "", "") if schema else name_or_path.partition(":")
        if not schema and not weights:
            raise ValueError(f"open_clip weights are named ARCHITECTURE:TAG or ARCHITECTURE:FILE, got {name_or_path!r}")
        network = explained(
            lambda: open_clip.create_model(architecture, pretrained=weights or None, device=device), name_or_path
        )
        tokenizer = explained(lambda: open_clip.get_tokenizer(architecture), name_or_path)
        preprocess = _preprocess(network.visual.preprocess_cfg, name_or_path)
        return cls(network.to(dtype=dtype), tokenizer, preprocess, batch_size=batch_size)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (100 * self.cosine(images, prompts)).clamp(min=0)


def _preprocess(cfg: dict[str, object], source: str) -> Preprocess:
    """From open_clip's description of it."""
    size, mode = cfg["size"], cfg["interpolation"]
    fit = {"shortest": "crop", "squash": "squash"}.get(str(cfg["resize_mode"]))
    side = size if isinstance(size, int) else size[0]  # type: ignore[index]
    if size not in (side, (side, side), [side, side]) or fit is None or mode not in ("bicubic", "bilinear"):
        raise ValueError(f"{source} preprocesses images in a way that is not supported here: {cfg}")
    return Preprocess(side, tuple(cfg["mean"]), tuple(cfg["std"]), fit, mode)  # type: ignore[arg-type]
