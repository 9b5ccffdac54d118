"""What a draft says of seeds, beside the estimates and the ends of the model that it guesses for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttsnap.sampling.rng import seeded


@torch.no_grad()
def guesses(denoiser: Any, prompt: str, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of n seeds: guesses by one call and by two, x0 estimates of the first step, and where the seeds end."""
    denoiser.encode([prompt])
    x, cond = denoiser.init_latents([seeded(i) for i in range(n)]), torch.zeros(n, dtype=torch.long)
    first, second = (denoiser.drafts.guess(x, cond, cond, calls) for calls in (1, 2))
    estimate = denoiser.predict(x, cond, cond).x0
    for step in range(denoiser.grid.steps):
        k = torch.full((n,), step)
        x = denoiser.kernel.step(x, denoiser.predict(x, k, cond), k, [(0, 0, 0)] * n, [None] * n)[0]
    return first, second, estimate, x
