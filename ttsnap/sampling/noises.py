"""Initial noises of low discrepancy: each standard normal by itself, but spread among seeds better than by chance.

Seeds are taken in groups of GROUP consecutive ones (seed // GROUP), so that what a seed draws depends on it alone. An
"orthogonal" noise has its own length, and that part of its own direction which is orthogonal to the earlier noises of
its group: as lengths and directions of Gaussian noise are independent, its distribution is unchanged. An "antithetic"
noise is minus that of the seed before, for odd seeds. The first seed of a group draws what it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from ttsnap.options.sampler import Noises
from ttsnap.sampling import rng

NOISES = get_args(Noises)
GROUP = 8
"""Seeds of a group of orthogonal noises; fewer where latents have fewer numbers."""
Draw = Callable[[Sequence[torch.Generator]], Tensor]
"""Denoiser.init_latents: (N, ...) noise, one row a generator."""


def check(kind: str) -> None:
    """ValueError for an unknown kind of noises."""
    if kind not in NOISES:
        raise ValueError(f"noises are {', '.join(NOISES)}, got {kind!r}")


def initial(kind: str, seeds: Sequence[int], draw: Draw) -> tuple[Tensor, list[torch.Generator]]:
    """Initial noise (N, ...) of these seeds, and the generator of each, from which its independent noise was drawn."""
    generators = [rng.seeded(seed) for seed in seeds]
    noise = draw(generators)
    if kind == "antithetic":
        odd = [i for i, seed in enumerate(seeds) if seed % 2]
        if odd:
            noise = noise.clone()
            noise[odd] = -draw([rng.seeded(seeds[i] - 1) for i in odd])
    elif kind == "orthogonal":
        size = min(GROUP, noise[0].numel())
        ends = {seed // size: 0 for seed in seeds}
        for seed in seeds:
            ends[seed // size] = max(ends[seed // size], seed + 1)
        spread = {first: _spread(range(first * size, end), draw) for first, end in ends.items()}
        noise = torch.stack([spread[seed // size][seed % size] for seed in seeds])
    return noise, generators


def _spread(seeds: Sequence[int], draw: Draw) -> Tensor:
    """Gram-Schmidt on the directions of these seeds' noises, in order; lengths are kept."""
    noise = torch.cat([draw([rng.seeded(seed)]) for seed in seeds])
    rows: list[Tensor] = []
    directions: list[Tensor] = []
    for row in noise.flatten(1).float():
        direction = row / row.norm()
        for _ in range(2):  # once loses digits where a row lies near the others' plane
            for other in directions:
                direction = direction - (direction @ other) * other
        direction = direction / direction.norm()
        rows.append(row.norm() * direction if directions else row)
        directions.append(direction)
    return torch.stack(rows).reshape(noise.shape).to(noise.dtype)
