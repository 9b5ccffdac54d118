"""The noise levels of DOG-Trim (arXiv 2511.22242, its later version): steps of FLUX.1 dev at 512 x
512 pixels."""

from __future__ import annotations

import math

STEPS = 35
TOKENS = 1024
"""Of an image of 512 x 512 pixels in FLUX.1 dev."""
SHIFTS = (0.5, 1.15)
SHIFTED = (256, 4096)
"""FLUX.1 dev's scheduler: the logarithm of its shift at the smallest and the largest number of
tokens, and these."""


def level_of(step: float, steps: int = STEPS) -> float:
    """The noise level, in (0, 1], of the x0 estimate that `step` of `steps` evaluations end with.

    It is that of FLUX.1 dev's shifted schedule at 512 x 512 pixels. The authors name an estimate by
    the evaluations that it took. Its latent is the one before the last of these, so that step 1 is
    level 1.
    """
    share = (TOKENS - SHIFTED[0]) / (SHIFTED[1] - SHIFTED[0])
    shift = math.exp(SHIFTS[0] + share * (SHIFTS[1] - SHIFTS[0]))
    time = 1 - (step - 1) / steps
    return shift * time / (shift * time + (1 - time))
