"""Rewards without weights, (N,) float32: JPEG size, brightness, colourfulness, place. They do not
read the prompt."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ttsnap.reward_models.preprocess import check_images, to_pictures
from ttsnap.rewards.reward_model import RewardModel


def jpeg_kilobytes(images: Tensor, quality: int = 95) -> Tensor:
    """Size of each image as JPEG in units of 1000 bytes, (N,) float32; as in DDPO (arXiv
    2305.13301), quality 95."""
    check_images(images)
    sizes = []
    for picture in to_pictures(images):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=quality)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32)


class Incompressibility(RewardModel):
    """The JPEG size in kB."""

    name = "incompressibility"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        return jpeg_kilobytes(images)


class Compressibility(RewardModel):
    """Minus the JPEG size in kB."""

    name = "compressibility"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        return -jpeg_kilobytes(images)


class Brightness(RewardModel):
    """Mean luma (ITU-R BT.601) in [0, 1]."""

    name = "brightness"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        check_images(images)
        weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
        return torch.einsum("nchw,c->nhw", images.float(), weights).mean((1, 2))


class Colourfulness(RewardModel):
    """Hasler and Suesstrunk's M (Measuring colourfulness in natural images, 2003): 0 for grey,
    above 80 for vivid."""

    name = "colourfulness"

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        check_images(images)
        r, g, b = (images.float() * 255).unbind(1)
        axes = torch.stack([r - g, (r + g) / 2 - b], 1).flatten(2)
        spread: Tensor = axes.std(-1, correction=0).norm(dim=1)
        centre: Tensor = axes.mean(-1).norm(dim=1)
        return spread + 0.3 * centre


class Place(RewardModel):
    """The share of the coloured pixels that an edit and its source have in common, in [0, 1],
    whatever their hues."""

    name = "place"
    needs = frozenset({"source"})

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        level: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        check_images(images)
        assert source is not None  # as `needs` says
        before = interpolate(
            source.to(images.float()), images.shape[-2:], mode="bilinear", antialias=True
        )
        old, new = (x.amax(1) - x.amin(1) for x in (before, images.float()))
        return torch.minimum(old, new).sum((1, 2)) / torch.maximum(old, new).sum((1, 2)).clamp(
            min=1e-6
        )
