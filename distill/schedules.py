"""Learning-rate schedules: pure functions from progress in [0, 1] to a factor in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable


def linear(progress: float) -> float:
    """1 - p."""
    return 1 - progress


def cosine(progress: float) -> float:
    """(1 + cos(pi p)) / 2; arXiv 1608.03983 without restarts."""
    return (1 + math.cos(math.pi * progress)) / 2


def rex(progress: float) -> float:
    """(1 - p) / (1/2 + (1 - p)/2): high for long, then steep; for fixed budgets, arXiv 2107.04197."""
    return (1 - progress) / (0.5 + 0.5 * (1 - progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"linear": linear, "cosine": cosine, "rex": rex}


def factor(step: int, steps: int, *, schedule: str, final: float = 0.0, warmup: int = 0) -> float:
    """Of step 0..steps-1: rises over `warmup` steps, and falls from 1 towards `final` (reached after the last step)."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * (final + (1 - final) * SCHEDULES[schedule](step / steps))
