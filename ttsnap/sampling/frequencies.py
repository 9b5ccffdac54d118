"""Low frequencies of a picture, or of noise shaped like one, by the orthonormal cosine transform."""

from __future__ import annotations

import torch
from torch import Tensor

PER_WAVE = 16
"""Pixels of a latent for each cosine that is kept along an axis: as many numbers as the approximation of a Haar wavelet
of four levels has, which arXiv 2602.03208 searches."""
LEAST = 2
"""Cosines that are kept where an axis is short; the first of them is constant."""


def low_frequencies(x: Tensor) -> Tensor:
    """The projection of x (..., H, W), or of a vector (D,), onto its lowest frequencies along these axes.

    What it takes away is orthogonal to what it keeps: of standard normal noise the two are independent.
    """
    kept = x.double()
    for axis in range(-min(2, x.ndim), 0):
        kept = torch.movedim(torch.movedim(kept, axis, -1) @ _projection(x.shape[axis]).to(x.device), -1, axis)
    return kept.to(x.dtype)


def _projection(n: int) -> Tensor:
    """(n, n) float64, onto the first cosines of the transform of n numbers (DCT-II)."""
    waves = torch.arange(min(n, max(LEAST, n // PER_WAVE)), dtype=torch.float64)[:, None]
    cosines = torch.cos(torch.pi / n * waves * (torch.arange(n) + 0.5))
    cosines /= cosines.norm(dim=1, keepdim=True)
    return cosines.T @ cosines
