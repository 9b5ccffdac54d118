"""Pairwise judges: a tournament with a budget, and Bradley-Terry strengths from its results.

A judge of two images (a VLM, a person, any function) orders images with equal pointwise scores.
Model (Bradley and Terry, Biometrika 1952): P(i beats j) = 1 / (1 + exp(s_j - s_i)). A tie is half a
win for each. A normal prior of width `prior` on s keeps unbeaten images finite: strengths are a MAP
estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ttsnap.rewards.reward_model import RewardModel

if TYPE_CHECKING:  # numpy is enough here
    from torch import Tensor

Floats = NDArray[np.float64]
Judge: TypeAlias = "Callable[[Tensor, Tensor, str], float]"
"""Two images (3, H, W) in [0, 1] and their prompt -> as Compare."""
Compare = Callable[[int, int], float]
"""Items i, j -> 1 if i is better, 0 if j is, 0.5 for a tie, or a probability between."""


def bradley_terry(wins: Floats, prior: float = 2.0) -> Floats:
    """Strengths (N,) of N items in log-odds, with mean 0, from comparisons: the maximum a
    posteriori estimate.

    wins: (N, N), wins[i, j] is how often i beat j, a tie being 0.5 for each. prior: standard
    deviation of the normal prior on strengths. ValueError unless wins is a square matrix of finite
    counts >= 0 and prior > 0.
    """
    from scipy.optimize import minimize  # imported late: it is slow to start

    wins = np.asarray(wins, float)
    if (
        wins.ndim != 2
        or wins.shape[0] != wins.shape[1]
        or not np.isfinite(wins).all()
        or (wins < 0).any()
    ):
        raise ValueError(
            f"wins must be a square matrix of finite counts of at least 0, got shape {wins.shape}"
        )
    if not prior > 0:
        raise ValueError(f"prior must be positive, got {prior}")

    def loss(s: Floats) -> tuple[float, Floats]:
        gap = s[:, None] - s[None, :]
        upset = 1 / (1 + np.exp(gap))
        gradient = -(wins * upset).sum(1) + (wins * upset).sum(0) + s / prior**2
        return float((wins * np.logaddexp(0, -gap)).sum() + (s @ s) / (2 * prior**2)), gradient

    optimum = minimize(
        loss,
        np.zeros(len(wins)),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-9, "ftol": 1e-14},
    )
    strengths: Floats = optimum.x - optimum.x.mean()
    return strengths


def tournament(
    n: int, compare: Compare, budget: int, *, seed: int = 0, prior: float = 2.0
) -> Floats:
    """Strengths (n,) of n items after `budget` comparisons.

    The first comparisons join all items in a random ring, or as many as the budget allows: every
    strength is known a little. Each further one goes to the pair whose result is least certain,
    discounted by its earlier meetings. Strengths are fitted once a round of n. The first item of a
    pair is the one that was first less often: judges tend to favour a place.
    """
    if n < 1 or budget < 0:
        raise ValueError(
            f"a tournament needs at least 1 item and a budget of at least 0, got {n} and {budget}"
        )
    rng = np.random.default_rng(seed)
    wins = np.zeros((n, n))
    met = np.zeros((n, n))
    firsts = np.zeros(n)
    strengths = np.zeros(n)
    order = rng.permutation(n)
    ring = [(int(order[k]), int(order[(k + 1) % n])) for k in range(n if n > 2 else n - 1)]
    for turn in range(budget if n > 1 else 0):
        if turn >= len(ring) and turn % n == 0:
            strengths = bradley_terry(wins, prior)
        i, j = ring[turn] if turn < len(ring) else _least_certain(strengths, met, rng)
        if firsts[i] > firsts[j]:
            i, j = j, i
        firsts[i] += 1
        result = float(compare(i, j))
        if not 0 <= result <= 1:
            raise ValueError(
                f"a judge answers between 0 (the second is better) and 1 (the first), got {result}"
            )
        wins[i, j] += result
        wins[j, i] += 1 - result
        met[i, j] += 1
        met[j, i] += 1
    return bradley_terry(wins, prior)


def _least_certain(strengths: Floats, met: Floats, rng: np.random.Generator) -> tuple[int, int]:
    """The pair with the largest p (1 - p) / (1 + meetings); ties at random."""
    p = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    worth = np.triu(p * (1 - p) / (1 + met), 1) * (1 + 1e-6 * rng.random(met.shape))
    i, j = np.unravel_index(int(np.argmax(worth)), worth.shape)
    return int(i), int(j)


class TournamentReward(RewardModel):
    """Strengths of the images of each prompt, from a judge of two images. Comparable within one
    call only.

    judge(image_a, image_b, prompt) -> 1, 0, 0.5 or between, images (3, H, W) in [0, 1]; rounds:
    comparisons per image. Meant for the last choice among finished images, `ttsnap score` and
    `report=`, not for pruning across batches.
    """

    def __init__(self, judge: Judge, rounds: float = 4.0, name: str | None = None) -> None:
        if not rounds > 0:
            raise ValueError(f"rounds must be positive, got {rounds}")
        self.name = name or f"tournament-{getattr(judge, '__name__', 'judge')}"
        self.judge = judge
        self.rounds = rounds

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> NDArray[np.float32]:
        """images (N, 3, H, W) in [0, 1], N prompts -> (N,) float32, mean 0 for each prompt."""
        scores = np.zeros(len(prompts), np.float32)
        for prompt in dict.fromkeys(prompts):
            rows = [i for i, p in enumerate(prompts) if p == prompt]

            def compare(i: int, j: int, rows: list[int] = rows, prompt: str = prompt) -> float:
                return self.judge(images[rows[i]], images[rows[j]], prompt)

            scores[rows] = tournament(len(rows), compare, round(self.rounds * len(rows)))
        return scores
