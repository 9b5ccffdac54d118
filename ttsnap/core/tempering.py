"""How an inverse temperature rises over a search."""

from __future__ import annotations


def scheduled(temper: str, step: int, steps: int, check: int, checks: int, gamma: float | None) -> float:
    """Inverse temperature as a share of the last one's, at check 1, 2, ... of `checks`, the last at the end, `steps`.

    "increase" is DAS's min((1 + gamma)^step - 1, 1) (arXiv 2501.05803); it reaches 1 after 0.87 of the steps
    where gamma is None, as with their .008 and 100 steps.
    """
    if temper == "increase":
        gamma = 2 ** (1 / (0.87 * steps)) - 1 if gamma is None else gamma
        return min(float((1 + gamma) ** step) - 1, 1.0)
    return check / checks if temper == "linear" else 1.0
