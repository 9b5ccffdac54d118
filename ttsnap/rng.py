"""Random numbers by key: what a particle draws depends on its key alone, never on the batch it shares.

Initial noise is not drawn here: it comes from torch.Generator().manual_seed(seed) through the pipeline's own
prepare_latents, so that a seed gives the image that stock diffusers gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

Key = tuple[int, ...]


def generator(key: Key) -> torch.Generator:
    """A CPU generator seeded by hashing the key (non-negative integers)."""
    state = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator("cpu").manual_seed(int(state[0]) << 32 | int(state[1]))


def seeded(seed: int) -> torch.Generator:
    """The CPU generator of a seed, as one passes it to diffusers."""
    return torch.Generator("cpu").manual_seed(seed)


def noise(keys: Sequence[Key], like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise shaped like `like` (N, ...), row i drawn from keys[i]; float32, or like's float64."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    rows = [torch.randn(like.shape[1:], generator=generator(key), dtype=dtype) for key in keys]
    return torch.stack(rows).to(like.device)
