"""The recipe of the preview VAE. None is packaged, for none was found that pays (docs/embedded_model.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ttsnap.files.settings import Bounds, Count, Decay, Natural, NotNegative, Positive, Settings


@dataclass(frozen=True)
class PreviewSize(Settings):
    """The decoder: its width, residual blocks at each resolution from the latent's on, and how it grows pictures."""

    width: Count = 16
    blocks: Annotated[tuple[int, ...], Bounds(0)] = (2, 1, 0)
    upsample: str = "nearest"


@dataclass(frozen=True)
class PreviewData(Settings):
    """Latents to learn from.

    clean: latents of renders, half of them with noise.
    noise: largest noise level, in latent standard deviations.
    mixtures: weighted means of a few renders' latents: blurred as early x0 estimates are.
    of: most latents in a mixture.
    prompts: whose x0 estimates at every step are in the data, none of them held out.
    seeds: trajectories of each of these prompts.
    """

    clean: Count = 12_000
    noise: NotNegative = 0.3
    mixtures: Count = 6000
    of: Annotated[int, Bounds(2)] = 6
    prompts: Count = 64
    seeds: Count = 4


@dataclass(frozen=True)
class PreviewRecipe(Settings):
    """How the decoder is trained. l1: weight of the absolute error beside the squared one."""

    seed: Natural = 0
    model: PreviewSize = PreviewSize()
    data: PreviewData = PreviewData()
    lr: Positive = 4e-3
    batch: Count = 64
    steps: Count = 4000
    warmup: Natural = 100
    l1: NotNegative = 0.1
    ema: Decay = 0.998
