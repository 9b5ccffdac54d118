"""From decoded images to a network's input: rounded to 8 bits, resized, cropped or padded,
normalised.

Rounding makes images those of an 8-bit PNG, so that saving an image does not change its score.
Published rewards resize with PIL, which filters columns, then rows, and rounds to 8 bits after
each. The code here does so in PIL's fixed-point arithmetic on the images' device, equal to the bit.
A float kernel (torch's, antialiased) differs by 1 of 255 in some pixels, which moves scores by up
to 1e-3 of their size. Pillow 13 filters rows first where the height shrinks more than the width;
the published rewards predate it.

Sources of the geometry: torchvision's Resize and CenterCrop or transformers' CLIPImageProcessor for
"crop", hpsv2's ResizeMaxSize for "pad", and Pillow's Resample.c and Convert.c for the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)
"""Mean and deviation of SigLIP and others, which map [0, 1] to [-1, 1]."""
PRECISION = 22
"""Bits of PIL's fixed-point weights for 8-bit images."""


@dataclass(frozen=True)
class Preprocess:
    """Images (N, 3, H, W) in [0, 1], of any size -> (N, 3, size, size) float32, normalised, on the
    same device.

    fit: "crop" resizes the shorter side to `size` and crops the centre; "pad" resizes the longer
    side and pads with black, without PIL's rounding, since hpsv2 resizes tensors; "squash" ignores
    the aspect ratio.
    rules: of "crop" and "squash", where libraries differ. "transformers" rounds half of an odd
    margin down, and drops an alpha channel first. "torchvision" rounds to the nearest even number,
    and its users (OpenAI's CLIP, open_clip, ImageReward) drop alpha last.
    exact: rounded as by an 8-bit file and PIL, without a gradient; else by torch's filters without
        rounding.
    """

    size: int
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    fit: Literal["crop", "pad", "squash"] = "crop"
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    exact: bool = True
    rules: Literal["torchvision", "transformers"] = "torchvision"

    def __call__(self, images: Tensor) -> Tensor:
        x = to_levels(images) if self.exact else images.clamp(0, 1) * 255
        resize = resize_like_pil if self.exact else resize_smoothly
        if self.fit == "pad":
            x = pad_to_square(resize_longer_side(x, self.size, self.mode), self.size)
        else:
            x = self._cropped(resize(x, self._resized(x), self.mode))
        mean = torch.tensor(self.mean, device=x.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=x.device).view(3, 1, 1)
        return (x / 255 - mean) / std

    def without_alpha(self, images: Tensor) -> Tensor:
        """(N, 4, H, W) in [0, 1] -> (N, 3, h, w) for a call: the colours that the reference sees.

        Where alpha is dropped last, PIL has resized colours weighted by alpha: the result is
        resized and cropped.
        """
        if self.rules == "transformers" or self.fit == "pad":
            return images[:, :3]
        x = to_levels(images)
        to = self._resized(images)
        if to != tuple(x.shape[-2:]):
            x = divide_by_alpha(resize_like_pil(weight_by_alpha(x), to, self.mode))
        return self._cropped(x)[:, :3] / 255

    def _resized(self, x: Tensor) -> tuple[int, int]:
        return shorter_side(x, self.size) if self.fit == "crop" else (self.size, self.size)

    def _cropped(self, x: Tensor) -> Tensor:
        return centre_crop(x, self.size, round if self.rules == "torchvision" else math.floor)


@dataclass(frozen=True)
class Sight:
    """Images and videos for Qwen2-VL and Qwen2.5-VL: resized to whole patches, normalised, and cut
    into patches.

    patch: pixels of a patch's side; merge: patches of a token's side; frames: of a patch; pixels:
    fewest and most of an image or frame; exact: as in Preprocess. Source: arXiv 2409.12191; the
    order of patches is that of transformers' Qwen2VLImageProcessor.
    """

    patch: int
    merge: int
    frames: int
    pixels: tuple[int, int]
    exact: bool = True

    @classmethod
    def of(cls, config: Any, pixels: tuple[int, int]) -> Sight:
        """From a transformers configuration."""
        seen = config.vision_config
        return cls(
            int(seen.patch_size),
            int(seen.spatial_merge_size),
            int(seen.temporal_patch_size),
            pixels,
        )

    def image(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, 3, h, w) levels 0..255, resized as by PIL where
        `exact`."""
        resize = resize_like_pil if self.exact else resize_smoothly
        return resize(self._levels(images), self._size(images))[:, None]

    def video(self, videos: Tensor) -> Tensor:
        """(N, T, 3, H, W) in [0, 1] -> (N, T, 3, h, w) levels, resized as torchvision does
        frames."""
        x = self._levels(videos.flatten(0, 1))
        frames: Tensor = functional.interpolate(
            x, size=self._size(videos), mode="bicubic", antialias=True
        )
        frames = frames.clamp(0, 255)
        return (frames.round() if self.exact else frames).view(*videos.shape[:2], *frames.shape[1:])

    def _levels(self, images: Tensor) -> Tensor:
        return to_levels(images) if self.exact else images.clamp(0, 1) * 255

    def patches(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(T, 3, h, w) levels -> patches (P, 3 * frames * patch^2) and their grid (3,), over time,
        height and width.

        The last frame is repeated up to a multiple of `frames`: an image is two equal frames.
        """
        mean, std = (
            torch.tensor(v, device=levels.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD)
        )
        x = (levels / 255 - mean) / std
        x = torch.cat([x, x[-1:].expand(-len(x) % self.frames, -1, -1, -1)])
        time, _, height, width = x.shape
        grid = (time // self.frames, height // self.patch, width // self.patch)
        cells = (
            grid[1] // self.merge,
            self.merge,
            self.patch,
            grid[2] // self.merge,
            self.merge,
            self.patch,
        )
        x = x.reshape(grid[0], self.frames, 3, *cells).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return x.reshape(grid[0] * grid[1] * grid[2], -1), torch.tensor(grid, device=levels.device)

    def _size(self, images: Tensor) -> tuple[int, int]:
        """The height and width, in whole tokens and within `pixels`, nearest to the images' shape.

        ValueError for images that are more than 200 times as long as wide.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        height, width = images.shape[-2:]
        to: tuple[int, int] = smart_resize(height, width, self.patch * self.merge, *self.pixels)
        return to

    def tokens(self, grid: Tensor) -> int:
        """The number of tokens of a grid of patches."""
        return int(grid.prod()) // self.merge**2


def check_images(images: Tensor, prompts: Sequence[str] | None = None) -> None:
    """ValueError unless images are (N, 3, H, W) floats, and prompts, where given, as many."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be (N, 3, H, W) floats in [0, 1], got {tuple(images.shape)}"
            f" {images.dtype}; convert uint8 by / 255, and drop an alpha channel"
        )
    if prompts is not None and len(prompts) != len(images):
        raise ValueError(
            f"{len(prompts)} prompts for {len(images)} images; give one prompt per image"
        )


def to_levels(images: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> the whole numbers 0..255 of an 8-bit file, as float32."""
    return (images.float().clamp(0, 1) * 255).round()


def to_pictures(images: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [0, 1] -> N pictures of 8 bits."""
    return [
        Image.fromarray(array)
        for array in to_levels(images).byte().permute(0, 2, 3, 1).cpu().numpy()
    ]


def shorter_side(x: Tensor, size: int) -> tuple[int, int]:
    """The height and width with a shorter side of `size`; the longer side is rounded down, as in
    torchvision."""
    height, width = x.shape[-2:]
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def resize_like_pil(x: Tensor, to: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Levels 0..255 (N, 3, H, W) -> levels (N, 3, *to) float32, equal to PIL.Image.resize of each
    image."""
    levels = x.int()
    for dim in (-1, -2):
        if levels.shape[dim] != to[dim]:
            levels = _filter(levels, dim, to[dim], mode)
    return levels.float()


def weight_by_alpha(levels: Tensor) -> Tensor:
    """Levels 0..255 (N, 4, H, W) -> levels with colours times alpha: PIL's RGBa, in which PIL
    resizes RGBA."""
    x = levels.int()
    product = x[:, :3] * x[:, 3:] + 128
    return torch.cat([(product + (product >> 8)) >> 8, x[:, 3:]], 1).float()


def divide_by_alpha(levels: Tensor) -> Tensor:
    """The inverse of weight_by_alpha: PIL's RGBA of RGBa. Colours stay where alpha is 0."""
    x = levels.int()
    alpha = torch.where(x[:, 3:] == 0, 255, x[:, 3:])
    return torch.cat([(255 * x[:, :3] // alpha).clamp(max=255), x[:, 3:]], 1).float()


def resize_smoothly(x: Tensor, to: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """As resize_like_pil within 1 of 255, differentiable: without rounding."""
    if tuple(x.shape[-2:]) == tuple(to):
        return x
    return functional.interpolate(x, size=to, mode=mode, antialias=True).clamp(0, 255)


def _filter(levels: Tensor, dim: int, size: int, mode: str) -> Tensor:
    """One pass over int32 levels along a dimension. Sums stay below 2^31 as in PIL: integers are
    exact."""
    index, weight = (
        torch.from_numpy(a).to(levels.device) for a in _taps(levels.shape[dim], size, mode)
    )
    shape = (size, 1) if dim == -2 else (size,)
    total = torch.full_like(levels.index_select(dim, index[0]), 1 << (PRECISION - 1))
    # few taps; their product with the image would be large
    for column, factor in zip(index, weight, strict=True):
        total += levels.index_select(dim, column) * factor.view(shape)
    return (total >> PRECISION).clamp(0, 255)


@lru_cache(maxsize=64)
def _taps(n: int, size: int, mode: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The inputs, of n, of each of `size` outputs, and their weights x 2^22: two arrays (taps,
    size)."""
    scale = n / size
    stretch = max(scale, 1.0)
    support = (2.0 if mode == "bicubic" else 1.0) * stretch
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    count = np.minimum((centre + support + 0.5).astype(int), n) - first
    tap = np.arange(count.max())[:, None]
    weight = np.where(tap < count, _kernel((tap + first - centre + 0.5) / stretch, mode), 0.0)
    weight /= weight.sum(0)
    fixed = np.trunc(weight * (1 << PRECISION) + np.copysign(0.5, weight)).astype(np.int32)
    return np.minimum(tap + first, n - 1).astype(np.int32), fixed


def _kernel(x: NDArray[np.float64], mode: str) -> NDArray[np.float64]:
    """PIL's: a triangle, or Keys' cubic with a = -0.5."""
    x = np.abs(x)
    if mode == "bilinear":
        return np.maximum(1 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_longer_side(x: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """(N, 3, H, W) -> a longer side of `size`; values may overshoot a little, as in torchvision on
    float tensors."""
    height, width = x.shape[-2:]
    scale = size / max(height, width)
    to = (max(1, round(height * scale)), max(1, round(width * scale)))
    if to == (height, width):
        return x
    return functional.interpolate(x, size=to, mode=mode, antialias=True)


def centre_crop(x: Tensor, size: int, whole: Callable[[float], int]) -> Tensor:
    """(N, C, H, W) with sides of at least `size` -> (N, C, size, size). whole: rounds half of an
    odd margin."""
    top, left = (whole((side - size) / 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def pad_to_square(x: Tensor, size: int) -> Tensor:
    """(N, 3, H, W) with sides of at most `size` -> (N, 3, size, size) on black; an odd pixel goes
    right, down."""
    down, right = (size - side for side in x.shape[-2:])
    return functional.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
