"""Layouts of latents: their shape for pictures of a size in pixels.

`Plain` latents are maps. `Packed` latents are tokens (FLUX.1, FLUX.2, Qwen-Image). `Binned` latents
are maps of the nearest size that the network was trained on, whose pictures are resized afterwards
(PixArt-Sigma, Sana).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Plain:
    """Maps (N, C, h, w)."""

    height: int
    width: int

    def channels(self, network: Any) -> int:
        """The channels that the pipeline's `prepare_latents` takes."""
        return int(network.config.in_channels)

    def fitted(self, processor: Any, images: Tensor) -> Tensor:
        """Decoded images at the size that the call asks for."""
        return images


@dataclass(frozen=True)
class Packed(Plain):
    """Tokens (N, rows * columns, D), one for 2 x 2 latent pixels."""

    rows: int
    columns: int

    @classmethod
    def of(cls, height: int, width: int, vae_scale_factor: int) -> Self:
        """The layout for this size, rounded down to whole tokens as in the pipeline."""
        side = 2 * vae_scale_factor  # in pixels
        rows, columns = height // side, width // side
        return cls(rows * side, columns * side, rows, columns)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.rows * self.columns

    def channels(self, network: Any) -> int:
        return super().channels(network) // 4


@dataclass(frozen=True)
class Binned(Plain):
    """Maps of a size that the network knows."""

    wanted: tuple[int, int]
    """Height and width of the pictures."""

    @classmethod
    def of(cls, height: int, width: int, pipe: Any, bins: Mapping[int, Any] | None) -> Self:
        """The bin of this shape, or the size itself without bins.

        bins: sizes by aspect ratio, for each `sample_size` of a transformer. ValueError for another
            sample_size.
        """
        wanted = (height, width)
        if bins is not None:
            native = pipe.transformer.config.sample_size
            if native not in bins:
                raise ValueError(
                    f"no resolution bins for sample_size {native}; they need a transformer of"
                    f" sample size {', '.join(map(str, bins))}, this one has {native}; set"
                    " use_resolution_binning=False"
                )
            height, width = pipe.image_processor.classify_height_width_bin(
                height, width, ratios=bins[native]
            )
        return cls(height, width, wanted)

    def fitted(self, processor: Any, images: Tensor) -> Tensor:
        if (self.height, self.width) == self.wanted:
            return images
        height, width = self.wanted
        resized: Tensor = processor.resize_and_crop_tensor(images, width, height)
        return resized


def without_variance(out: Tensor, latents: Tensor, network: Any) -> Tensor:
    """A network's output without the variance that some checkpoints predict, which no sampler
    reads."""
    learned = network.config.out_channels // 2 == latents.shape[1]
    return out.chunk(2, dim=1)[0] if learned else out


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents in the scale of this VAE, by its own scale and shift, where it has them."""
    c = vae.config
    return latents / (c.get("scaling_factor") or 1.0) + (c.get("shift_factor") or 0.0)
