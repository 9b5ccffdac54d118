"""Decoders that draw latents larger than the model's own, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ttsnap.files.reading import foreign, read_object
from ttsnap.files.settings import Count, Natural, Settings, build

_ROUNDS = 3
"""Of `kept_to`: more agree better, and are less sharp."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"
Counts = tuple[Count, ...]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class DisplaySize(Settings):
    """The size of a decoder, and what it paints with.

    Args:
        palette: colours, each as red, green and blue in [0, 1].
        latent_channels: of what it draws.
        widths: channels at twice the latents' resolution, at four times that, and so on.
        blocks: residual blocks of each.
    """

    palette: tuple[Color, ...]
    latent_channels: Count = 8
    widths: Counts = (64, 32, 16)
    blocks: tuple[Natural, ...] = (3, 1, 0)


class DisplayBlock(nn.Module):
    """A residual block of two convolutions (N, C, H, W) -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(nn.functional.silu(self.conv1(nn.functional.silu(x))))
        return out


class DisplayDecoder(nn.Module):
    """Latents (N, C, h, w), and images (N, 3, 4 h, 4 w) in [0, 1] as the autoencoder decodes them
    -> images four times as large.

    A pixel is a mixture of the palette's colours, so that edges are as sharp as those of a label
    map. Most of the work is done at low resolution; a doubling moves channels to pixels.
    """

    def __init__(self, size: DisplaySize) -> None:
        super().__init__()
        self.size = size
        widths, colors = size.widths, len(size.palette)
        seen = size.latent_channels + 3 * 4
        parts: list[nn.Module] = [nn.Conv2d(seen, widths[0], 3, 1, 1)]
        for here, after, blocks in zip(widths, (*widths[1:], colors), size.blocks, strict=True):
            parts += [DisplayBlock(here) for _ in range(blocks)]
            kernel = 3 if after == colors else 1
            grown = nn.Conv2d(here, 4 * after, kernel, padding=kernel // 2)
            parts += [nn.SiLU(), grown, nn.PixelShuffle(2)]
        self.net = nn.Sequential(*parts)
        self.register_buffer("palette", torch.tensor(size.palette), persistent=False)

    def forward(self, latents: Tensor, images: Tensor) -> Tensor:
        return kept_to(images, self.paint(self.logits(latents, images)))

    def logits(self, latents: Tensor, images: Tensor) -> Tensor:
        """(N, colours, H, W), of which `paint` mixes the colours."""
        pixels = nn.functional.pixel_unshuffle(2 * images - 1, 2)
        cells = nn.functional.interpolate(latents, scale_factor=2.0)
        found: Tensor = self.net(torch.cat([cells, pixels], 1))
        return found

    def paint(self, logits: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1]."""
        return torch.einsum("nkhw,kc->nchw", logits.float().softmax(1), self.palette)


def kept_to(images: Tensor, drawn: Tensor) -> Tensor:
    """Drawings whose pixels, averaged to the size of these images, are nearly theirs: what is
    between them is added, smoothly. Else a checker would see another shape now and then."""
    for _ in range(_ROUNDS):
        apart = images - nn.functional.avg_pool2d(drawn, 4)
        more = nn.functional.interpolate(apart, scale_factor=4.0, mode="bilinear")
        drawn = (drawn + more).clamp(0, 1)
    return drawn


@dataclass(frozen=True)
class LargeDrawing:
    """Latents (C, h, w) as people are shown them (core.outcome.LargePicture)."""

    folder: Path
    """Of the decoder, which any process loads."""
    latents: Tensor = field(repr=False)
    image: Tensor = field(repr=False)
    """As the autoencoder decodes them."""

    @classmethod
    def of(cls, folder: Path, latents: Tensor, image: Tensor) -> LargeDrawing | None:
        """Of a row of a batch, of which it keeps nothing else. None where the image is not of the
        latents' size, as where it was resized."""
        if image.ndim != 3 or [4 * side for side in latents.shape[-2:]] != [*image.shape[-2:]]:
            return None
        return cls(folder, *(part.detach().to("cpu", copy=True) for part in (latents, image)))

    @torch.no_grad()
    def __call__(self) -> Tensor:
        # Alone and rounded, so that the pixels depend neither on what else is drawn nor on the
        # last digits of what is: where a replay gives the small file again, it gives this one.
        latents, image = self.latents[None].float(), self.image[None].float()
        drawn: Tensor = load_display(self.folder)(
            (8 * latents).round() / 8, (255 * image).round() / 255
        )[0]
        return drawn


@cache
def load_display(folder: Path) -> DisplayDecoder:
    """A float32 decoder in evaluation mode. ValueError where its files are missing, damaged or do
    not fit."""
    try:
        model = DisplayDecoder(build(DisplaySize, read_object(folder / CONFIG)))
        with foreign(f"cannot read {folder / WEIGHTS}"):
            state = load_file(folder / WEIGHTS)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no decoder for display: {error}") from error
    return model.eval()
