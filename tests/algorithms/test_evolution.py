"""Evolution of noises: against a plain transcription of what it says, and on the mixture, where the
answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.engine.test_drafts import made
from ttsnap import SeedPruning, search
from ttsnap.algorithms.evolution import Evolution
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.mixture import MixtureDenoiser


@pytest.mark.parametrize("draft_share", [0.2, 0.0])
def test_children_descend_from_the_best_so_far(draft_share):
    n, generations, best = 10, 4, 0.15
    algorithm = Evolution(n, generations, parents=best, mix=0.9, draft_share=draft_share)
    (result,) = search(["a"], algorithm, made(error=0.3))
    step = 0 if draft_share else 4  # of the level .6 on 8 steps
    scores, parent = result.particles.scores[:, step, 0], result.particles.parent
    assert (parent[:n] == -1).all()
    for g in range(1, generations):
        ranked = np.argsort(-scores[: g * n], kind="stable")[: int(best * g * n + 0.5)]
        assert parent[g * n : (g + 1) * n].tolist() == np.resize(ranked, n).tolist()
    # The check keeps the best of all generations.
    gone_on = np.flatnonzero(result.particles.scored > step)
    assert set(gone_on) == set(np.argsort(-scores, kind="stable")[: len(gone_on)])


def test_one_generation_is_seed_pruning():
    algorithms = Evolution(40, 1, draft_share=0.2), SeedPruning(40, draft_share=0.2)
    one, plain = (
        search(["a", "b"], algorithm, made(error=1.0), "200nfe") for algorithm in algorithms
    )
    assert [r.trace for r in one] == [r.trace for r in plain]


def test_children_have_the_known_distribution():
    """Of a single Gaussian around 0 the end is linear in the noise, so that a child's is normal
    around mix times its parent's, with sqrt(1 - mix^2) of the spread of fresh seeds."""
    mix, n = 0.8, 400
    reward = FunctionReward(
        lambda images, prompts: torch.logit(images.double())[:, 0, 0, 0], "first"
    )
    gaussian = MixtureDenoiser(torch.zeros(1, 3), torch.full((1,), 0.5), torch.ones(1), steps=8)
    live = LiveEngine(gaussian, [reward], EngineOptions(64))
    (result,) = search(["a"], Evolution(n, 2, parents=1 / n, mix=mix, keep=(), levels=()), live)
    ends = result.particles.scores[:, -1, 0]
    fresh, children = ends[:n], ends[n:]
    assert set(result.particles.parent[n:]) == {int(np.argmax(fresh))}
    spread = math.sqrt(1 - mix * mix) * fresh.std()
    assert children.mean() == pytest.approx(mix * fresh.max(), abs=4 * spread / math.sqrt(n))
    assert children.std() == pytest.approx(spread, rel=0.15)
