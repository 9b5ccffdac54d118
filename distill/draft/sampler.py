"""A denoiser's own sampler, for many seeds in step with each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttsnap.sampling import rng
from ttsnap.sampling.denoiser import Denoiser
from ttsnap.sampling.kernels import Prediction, State


def begin(denoiser: Denoiser, seeds: Sequence[int]) -> tuple[Tensor, Sequence[State]]:
    """Initial noise (N, ...) of N seeds, as stock diffusers draws it, and the sampler's state of each."""
    generators = [rng.seeded(seed) for seed in seeds]
    x = denoiser.init_latents(generators)
    return x, [denoiser.kernel.init((seed, 0), made) for seed, made in zip(seeds, generators, strict=True)]


def predict(denoiser: Denoiser, x: Tensor, step: Tensor, cond: Tensor, precision: str) -> Prediction:
    """One evaluation, where precision is "bf16" under autocast.

    The output is then narrower than the latents, and a step would round those to it; so it is widened here.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        found = denoiser.predict(x, step, cond)
    return found._replace(out=found.out.to(torch.promote_types(x.dtype, found.out.dtype)))
