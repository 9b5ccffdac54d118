"""Random numbers by key: what a particle draws depends on its key alone, never on the batch it
shares.

Initial noise is not drawn here: it comes from torch.Generator().manual_seed(seed) through the
pipeline's own prepare_latents, so that a seed gives the image that stock diffusers gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

Key = tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Noise near other noise: that of `first`, then in turn share * it + sqrt(1 - share^2) * the
    noise of a key.

    Standard normal again, with a correlation of the product of the shares with the first; shares in
    [0, 1].
    """

    first: Key
    more: tuple[tuple[float, Key], ...]


Source = Key | Mixture
"""Where a row's noise comes from."""


def near(source: Source, share: float, key: Key) -> Mixture:
    """Noise that has this correlation with that of `source`; the rest is drawn from `key`."""
    if isinstance(source, Mixture):
        return Mixture(source.first, (*source.more, (share, key)))
    return Mixture(source, ((share, key),))


def generator(key: Key) -> torch.Generator:
    """A CPU generator seeded by hashing the key (non-negative integers)."""
    state = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator("cpu").manual_seed(int(state[0]) << 32 | int(state[1]))


def seeded(seed: int) -> torch.Generator:
    """The CPU generator of a seed, as one passes it to diffusers."""
    return torch.Generator("cpu").manual_seed(seed)


def noise(sources: Sequence[Source], like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise shaped like `like` (N, ...), row i from sources[i]; float32, or like's
    float64."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

    def draw(key: Key) -> torch.Tensor:
        return torch.randn(like.shape[1:], generator=generator(key), dtype=dtype)

    rows = []
    for source in sources:
        row = draw(source.first if isinstance(source, Mixture) else source)
        for share, key in source.more if isinstance(source, Mixture) else ():
            row = share * row + math.sqrt(1 - share * share) * draw(key)
        rows.append(row)
    return torch.stack(rows).to(like.device, non_blocking=True)
