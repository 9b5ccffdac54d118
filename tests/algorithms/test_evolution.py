"""Evolution of noises: against a plain transcription of what it says, and on the mixture, where the answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_drafts import counted, made
from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms.evolution import Evolution
from ttsnap.core.results import Result
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.rewards.reward_model import FunctionReward
from ttsnap.sampling.mixture import MixtureDenoiser


def drafts_of(result: Result) -> Any:
    """(N,) the scores of all drafts of a search."""
    return result.particles.scores[:, 0, 0]


@given(
    n=st.integers(1, 9),
    generations=st.integers(1, 4),
    parents=st.floats(0.05, 1),
    levels=st.sampled_from([(), (0.6,), (0.9, 0.4)]),
    draft_share=st.sampled_from([0, 0.3]),
    budget=st.none() | st.integers(8, 120),
    batch=st.integers(1, 7),
)
@settings(max_examples=40, deadline=None)
def test_ledger_equals_counter(
    n: int, generations: int, parents: float, levels: Any, draft_share: float, budget: Any, batch: int
) -> None:
    live = made(batch=batch, error=1.0)
    keep = (0.5,) * len(levels)
    algorithm = Evolution(n, generations, parents, 0.7, keep, levels, draft_share)
    results = search(["a", "b"], algorithm, live, None if budget is None else f"{budget}nfe")
    assert sum(r.spent.cost.nfe for r in results) == counted(live).calls
    assert sum(r.spent.cost.draft_calls for r in results) == counted(live).drafted
    assert all(r.spent.nfe <= (budget or np.inf) for r in results)
    assert all(r.images for r in results)
    if budget is None:
        assert all(len(r.particles) == n * generations for r in results)
        assert all(r.particles.seeds == n for r in results)


@pytest.mark.parametrize("draft_share", [0.2, 0.0])
def test_children_descend_from_the_best_so_far(draft_share: float) -> None:
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


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_drafts_take_their_share_of_the_budget(share: float) -> None:
    (result,) = search(["a"], Evolution(draft_share=share), made(), "600nfe")
    drafts = result.spent.cost.draft_calls / 2
    assert drafts / result.spent.nfe == pytest.approx(share, abs=0.03)
    assert 575 < result.spent.nfe <= 600


def test_one_generation_is_seed_pruning() -> None:
    algorithms = Evolution(40, 1, draft_share=0.2), SeedPruning(40, draft_share=0.2)
    one, plain = (search(["a", "b"], algorithm, made(error=1.0), "200nfe") for algorithm in algorithms)
    assert [r.trace for r in one] == [r.trace for r in plain]


def test_batches_change_nothing() -> None:
    one, many = (search(["a", "b"], Evolution(6, mix=0.8), made(batch=b, error=1.0)) for b in (1, 9))
    for x, y in zip(one, many, strict=True):
        np.testing.assert_array_equal(x.particles.parent, y.particles.parent)
        np.testing.assert_allclose(drafts_of(x), drafts_of(y), atol=1e-12)
        torch.testing.assert_close(x.best.image, y.best.image, atol=1e-6, rtol=1e-6)


def test_breeding_climbs_where_near_noise_gives_near_images() -> None:
    """On the mixture with a drafter that knows the end: the last generation is better than as many fresh seeds, and the
    answer better than the best of as many seeds as were bred."""
    result = search(["a"], Evolution(20, 5, mix=0.8, keep=(1.0,)), made())[0]
    fresh, last = drafts_of(result)[:20], drafts_of(result)[-20:]
    assert last.mean() > fresh.mean() + fresh.std()
    assert result.best.reward > search(["a"], BestOfN(100), made())[0].best.reward
    assert result.best.reward == pytest.approx(drafts_of(result).max(), abs=1e-12)  # the drafter makes no error here


def test_children_have_the_known_distribution() -> None:
    """Of a single Gaussian around 0 the end is linear in the noise, so that a child's is normal around mix times its
    parent's, with sqrt(1 - mix^2) of the spread of fresh seeds."""
    mix, n = 0.8, 400
    reward = FunctionReward(lambda images, prompts: torch.logit(images.double())[:, 0, 0, 0], "first")
    gaussian = MixtureDenoiser(torch.zeros(1, 3), torch.full((1,), 0.5), torch.ones(1), steps=8)
    live = LiveEngine(gaussian, [reward], EngineOptions(64))
    (result,) = search(["a"], Evolution(n, 2, parents=1 / n, mix=mix, keep=(), levels=()), live)
    ends = result.particles.scores[:, -1, 0]
    fresh, children = ends[:n], ends[n:]
    assert set(result.particles.parent[n:]) == {int(np.argmax(fresh))}
    spread = math.sqrt(1 - mix * mix) * fresh.std()
    assert children.mean() == pytest.approx(mix * fresh.max(), abs=4 * spread / math.sqrt(n))
    assert children.std() == pytest.approx(spread, rel=0.15)


def test_without_levels_generations_are_finished_images() -> None:
    algorithm = make_algorithm({"name": "evolution", "keep": [], "levels": []}, n=4, draft_share=0)
    (result,) = search(["a"], algorithm, made())
    assert result.particles.finished.all()
    assert result.spent.nfe == 4 * 4 * 8


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in ({"generations": 0}, {"parents": 0}, {"mix": 1}, {"draft_share": 1}, {"keep": (0.5, 0.5)}):
        with pytest.raises(ValueError, match=r"generations must|parents must|mix must|draft_share must|2 keep ratios"):
            Evolution(**wrong)
