"""A toy model of videos, and of edits: a Gaussian mixture whose latents are (3, T, 1, 1), a colour
for each frame."""

from __future__ import annotations

import torch

from ttsnap.sampling.denoiser import Capability, Denoiser
from ttsnap.sampling.mixture import MixtureDenoiser


class Clips(MixtureDenoiser):
    """Videos of T frames of `size` (H, W), each of one colour, with a bar at the left that grows
    from frame to frame.

    `decodes` counts videos. sources: (prompts, 3, h, w) where prompts edit images.
    """

    def __init__(self, frames=5, *, steps=6, size=(4, 6), sources=None):
        means = torch.randn(4, 3 * frames, generator=torch.Generator().manual_seed(1))
        offsets = torch.randn(3, 3 * frames, generator=torch.Generator().manual_seed(2))
        weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
        super().__init__(2 * means, torch.full((4,), 0.5), weights, steps=steps, by_prompt=offsets)
        self.frames, self.size, self.given, self.decodes, self.previewed = (
            frames,
            size,
            sources,
            0,
            0,
        )
        if sources is not None:
            self.can |= {Capability.EDIT}

    def init_latents(self, generators):
        return super().init_latents(generators).reshape(len(generators), 3, self.frames, 1, 1)

    def predict(self, x, step, cond):
        prediction = super().predict(x.flatten(1), step, cond)
        return prediction._replace(
            out=prediction.out.reshape(x.shape), x0=prediction.x0.reshape(x.shape)
        )

    def decode(self, x0):
        self.decodes += len(x0)
        colours = torch.sigmoid(x0).float().movedim(2, 1)  # (N, T, 3, 1, 1)
        videos = colours.expand(-1, -1, -1, *self.size).clone()
        for t in range(self.frames):
            videos[:, t, :, : 1 + t * (self.size[0] - 1) // self.frames, :1] = 1
        return videos

    def preview(self, x0):
        """Every second frame."""
        self.previewed += len(x0)
        return torch.sigmoid(x0).float().movedim(2, 1)[:, ::2].expand(-1, -1, -1, *self.size)

    def sources(self, cond):
        return Denoiser.sources(self, cond) if self.given is None else self.given[cond]


class Mean:
    """The mean pixel of an image; `images` counts those that it saw, `shapes` how they came."""

    name = "mean"

    def __init__(self):
        self.images, self.shapes = 0, set[tuple[int, ...]]()

    def __call__(self, images, prompts, level):
        assert len(images) == len(prompts) == len(level)
        self.images += len(images)
        self.shapes.add(tuple(images.shape[1:]))
        return images.double().flatten(1).mean(1)


class Motion(Mean):
    """How much a video changes from frame to frame."""

    name, needs = "motion", frozenset({"video"})

    def __call__(self, images, prompts, level):
        super().__call__(images, prompts, level)
        return images.double().diff(dim=1).abs().flatten(1).mean(1)


class Near(Mean):
    """How little an image differs from the one that it was made of, in its mean."""

    name, needs = "near", frozenset({"source"})

    def __call__(self, images, prompts, level, source=None):
        assert source is not None
        assert len(source) == len(images)
        super().__call__(images, prompts, level)
        return -(images.double().flatten(1).mean(1) - source.double().flatten(1).mean(1)).abs()
