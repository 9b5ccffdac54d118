"""Tiny autoencoders of video latents, as published under the name TAEHV, for previews of unfinished
estimates.

Diffusers has `AutoencoderTiny` for images, and none for videos. The files are in the folder
`safetensors` of github.com/madebyollin/taehv: `taew2_1` for Wan 2.1, Wan 2.2 A14B and Qwen-Image,
`taeltx_2` for LTX-2. The names and shapes of their convolutions give all sizes. Only the decoder is
read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import FrozenDict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from ttsnap.files.reading import foreign

STAGES = (3, 9, 15)
"""The first layers of the three stages: three blocks with a memory, then more pixels, more frames,
fewer channels."""
BOUND = 3.0
"""Latents are softly clamped to plus and minus this."""


class _Remembering(nn.Module):
    """A residual block that reads each frame together with the one before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        steps = [
            _local(2 * width, width),
            nn.ReLU(),
            _local(width, width),
            nn.ReLU(),
            _local(width, width),
        ]
        self.conv = nn.Sequential(*steps)

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        """frames (N, T, C, h, w) -> the same shape. before (N, 1, C, h, w): the frame that precedes
        them."""
        seen = torch.cat([frames, torch.cat([before, frames[:, :-1]], dim=1)], dim=2)
        made: Tensor = functional.relu(frames + _each(self.conv, seen))
        return made


class _MoreFrames(nn.Module):
    """`times` frames of each frame, made as groups of channels."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(width, width * times, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(N, T, C, h, w) to (N, times * T, C, h, w)."""
        made: Tensor = _each(self.conv, frames).unflatten(2, (self.times, -1))
        return made.flatten(1, 2)


class TinyVideoVAE(nn.Module):
    """The decoder of a TAEHV, for previews: `pipe.preview_vae = TinyVideoVAE.from_file(FILE)`.

    z_dim: channels of latents. widths: of the three stages and of the last layers. times: how many
    frames each stage makes of one. patch_size: the side of the square of pixels that the last layer
    makes of each position.

    It reads latents in the diffusion model's scale, so that its own mean is 0 and its deviation 1.
    """

    def __init__(
        self,
        z_dim: int = 16,
        widths: Sequence[int] = (256, 128, 64, 64),
        times: Sequence[int] = (1, 2, 2),
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Identity(), _local(z_dim, widths[0]), nn.ReLU()]
        for width, after, more in zip(widths[:-1], widths[1:], times, strict=True):
            layers += [_Remembering(width) for _ in range(3)]
            layers += [
                nn.Upsample(scale_factor=2),
                _MoreFrames(width, more),
                _local(width, after, bias=False),
            ]
        self.decoder = nn.ModuleList([*layers, nn.ReLU(), _local(widths[-1], 3 * patch_size**2)])
        self.z_dim = z_dim
        self.patch_size = patch_size
        # What blocks and pipelines read of a VAE's config.
        unscaled = {
            "latents_mean": [0.0] * z_dim,
            "latents_std": [1.0] * z_dim,
            "scaling_factor": 1.0,
        }
        sizes = {
            "z_dim": z_dim,
            "widths": tuple(widths),
            "times": tuple(times),
            "patch_size": patch_size,
        }
        self.config: Any = FrozenDict({**sizes, **unscaled, "timestep_conditioning": False})
        self.temperal_downsample = [more > 1 for more in reversed(times)]
        self.temporal_compression_ratio = math.prod(times)
        self.spatial_compression_ratio = 8 * patch_size

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def latents_mean(self) -> Tensor:
        """(C,) zeros."""
        return torch.zeros(self.z_dim)

    @property
    def latents_std(self) -> Tensor:
        """(C,) ones."""
        return torch.ones(self.z_dim)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The VAE of a safetensors file, in float32. ValueError for a file that is no TAEHV."""
        wrong = f"cannot load a tiny video VAE from {path}"
        with foreign(wrong):
            tensors = load_file(path)
        state = {
            name: value.float() for name, value in tensors.items() if name.startswith("decoder.")
        }
        sizes = _sizes(state)
        if sizes is None:
            raise ValueError(
                f"{wrong}: its tensors are not those of the decoder of a TAEHV, which has three"
                " stages of blocks, from decoder.1.weight to decoder.22.weight"
            )
        with foreign(wrong):
            with torch.device("meta"):  # a file that claims large sizes takes no memory
                vae = cls(**sizes)
            vae.load_state_dict(state, assign=True)
        vae.eval()
        return vae

    def decode(self, z: Tensor, timestep: Any = None, return_dict: bool = True) -> tuple[Tensor]:
        """Videos (N, 3, T', 8 p h, 8 p w) in [-1, 1], in a tuple, of latents z (N, C, T, h, w),
        frame after frame.

        T' is times * (T - 1) + 1. ValueError for latents of another shape. timestep, return_dict:
        as other VAEs have them, and not read.
        """
        if z.ndim != 5 or z.shape[1] != self.z_dim:
            raise ValueError(
                f"this preview VAE decodes videos of latents (N, {self.z_dim}, T, h, w), "
                f"and got {tuple(z.shape)}"
            )
        memory: dict[int, Tensor] = {}
        clips = [self._clip(latent, memory) for latent in z.transpose(1, 2).split(1, dim=1)]
        return (torch.cat(clips, dim=1)[:, self.temporal_compression_ratio - 1 :].transpose(1, 2),)

    def _clip(self, latent: Tensor, memory: dict[int, Tensor]) -> Tensor:
        """Frames (N, times, 3, H, W) of one latent frame (N, 1, C, h, w). memory: the last frame of
        each block."""
        frames = BOUND * torch.tanh(latent / BOUND)
        for i, layer in enumerate(self.decoder):
            if isinstance(layer, _Remembering):
                before = memory.get(i, torch.zeros_like(frames[:, :1]))
                memory[i] = frames[:, -1:].clone()  # not the others with it
                frames = layer(frames, before)
            else:
                frames = layer(frames) if isinstance(layer, _MoreFrames) else _each(layer, frames)
        return 2 * functional.pixel_shuffle(frames, self.patch_size).clamp(0, 1) - 1


def _local(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def _each(layer: nn.Module, frames: Tensor) -> Tensor:
    """A layer for images, applied to every frame (N, T, ...)."""
    made: Tensor = layer(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
    return made


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The arguments of a TinyVideoVAE with these tensors; None where tensors that give its sizes
    are missing."""
    first, *others, last = (
        f"decoder.{i}.weight" for i in (1, *(start + 5 for start in STAGES), 22)
    )
    growing = [f"decoder.{start + 4}.conv.weight" for start in STAGES]
    needed = [state.get(name) for name in (first, *others, last, *growing)]
    if any(tensor is None or tensor.ndim != 4 or not tensor.numel() for tensor in needed):
        return None
    width, z_dim = state[first].shape[:2]
    return {
        "z_dim": z_dim,
        "widths": (width, *(state[name].shape[0] for name in others)),
        "times": tuple(state[name].shape[0] // state[name].shape[1] for name in growing),
        "patch_size": math.isqrt(state[last].shape[0] // 3),
    }
