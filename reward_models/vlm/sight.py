"""Images and videos as Qwen2-VL and Qwen2.5-VL read them: resized to whole patches, normalised, and cut into these.

Source: Qwen2-VL (arXiv 2409.12191), and transformers' Qwen2VLImageProcessor, whose order of patches this is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from ttsnap.reward_models.preprocess import CLIP_MEAN, CLIP_STD, resize_like_pil, resize_smoothly, to_levels


@dataclass(frozen=True)
class Sight:
    """How a model cuts what it sees. patch: pixels of a side; merge: patches of a side that are one token; frames: that
    are one patch; pixels: fewest and most of an image or frame."""

    patch: int
    merge: int
    frames: int
    pixels: tuple[int, int]

    @classmethod
    def of(cls, config: Any, pixels: tuple[int, int]) -> Sight:
        """The sight of a transformers configuration."""
        seen = config.vision_config
        return cls(int(seen.patch_size), int(seen.spatial_merge_size), int(seen.temporal_patch_size), pixels)

    def image(self, images: Tensor, *, exact: bool = True) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, 3, h, w) levels 0..255, resized as by PIL; not exact, it has a gradient."""
        to = self._size(images)
        x = resize_like_pil(to_levels(images), to) if exact else resize_smoothly(images.clamp(0, 1) * 255, to)
        return x[:, None]

    def video(self, videos: Tensor, *, exact: bool = True) -> Tensor:
        """(N, T, 3, H, W) in [0, 1] -> (N, T, 3, h, w) levels, as `image`, but resized as torchvision does frames."""
        x = videos.flatten(0, 1)
        x = to_levels(x) if exact else x.clamp(0, 1) * 255
        frames: Tensor = functional.interpolate(x, size=self._size(videos), mode="bicubic", antialias=True)
        frames = frames.clamp(0, 255)
        return (frames.round() if exact else frames).view(*videos.shape[:2], *frames.shape[1:])

    def patches(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(T, 3, h, w) levels -> patches (P, 3 * frames * patch^2) and their grid (3,), over time, height and width.

        Frames are repeated at the end up to a multiple of `frames`: an image is seen as two frames of it.
        """
        mean, std = (torch.tensor(v, device=levels.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        x = (levels / 255 - mean) / std
        x = torch.cat([x, x[-1:].expand(-len(x) % self.frames, -1, -1, -1)])
        time, _, height, width = x.shape
        grid = (time // self.frames, height // self.patch, width // self.patch)
        cells = (grid[1] // self.merge, self.merge, self.patch, grid[2] // self.merge, self.merge, self.patch)
        x = x.reshape(grid[0], self.frames, 3, *cells).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return x.reshape(grid[0] * grid[1] * grid[2], -1), torch.tensor(grid, device=levels.device)

    def _size(self, images: Tensor) -> tuple[int, int]:
        """The height and width, in whole tokens, that keep the shape best and have as many pixels as asked for.

        ValueError for images that are more than 200 times as long as wide.
        """
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        height, width = images.shape[-2:]
        to: tuple[int, int] = smart_resize(height, width, self.patch * self.merge, *self.pixels)
        return to

    def tokens(self, grid: Tensor) -> int:
        """How many tokens the patches of a grid are."""
        return int(grid.prod()) // self.merge**2
