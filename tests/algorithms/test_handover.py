"""One algorithm hands its survivors, at whatever step they are, to another."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms import name_of
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.epsilon_greedy import EpsilonGreedy
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.noise_ascent import NoiseAscent
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.refined import Refined
from ttsnap.algorithms.search_over_paths import SearchOverPaths
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.algorithms.tree import BestFirst
from ttsnap.algorithms.verifier_threshold import VerifierThreshold
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core import utility
from ttsnap.core.grid import Grid, Task
from ttsnap.core.moves import Move, fresh
from ttsnap.core.particles import Particles

from ..scripted import Scripted, noisy  # noqa: TID252

SECONDS = [
    *(
        RBF(2),
        VerifierThreshold(2),
        CoDe(3, block=1),
        CoDe(n=3, block=3),
        SMC(4, 1.0),
        BestFirst(width=2),
        EpsilonGreedy(3),
    ),
    SearchOverPaths(streams=3, n=2),
]


@pytest.mark.parametrize("second", SECONDS, ids=lambda algorithm: name_of(algorithm))
@pytest.mark.parametrize("check", [2, 5])
def test_survivors_are_gone_on_from_at_the_step_where_they_are(second: Any, check: int) -> None:
    """The union of pruning and particles: who goes on, from where, and that the ledger and the plan agree."""
    score = noisy(9)
    first = SeedPruning(12, (0.25,), steps=(check,))
    (result,) = search([""], Nested(first, second), Scripted(score), "90nfe")
    top = sorted(range(12), key=lambda u: -score(u, check))[:3]
    seeds, after = result.trace[0], result.trace[1:]
    assert seeds["cost"]["nfe"] == 12 * (check + 1)
    seeded = {-1} if isinstance(second, BestFirst) else set()  # which may start other roots
    assert set(after[0]["parents"]) - seeded <= set(top)
    assert top[0] in after[0]["parents"]
    reseeded = [start for move in after for parent, start in zip(move["parents"], move["start"], strict=True)
                if parent < 0]  # fmt: skip
    assert not reseeded or isinstance(second, BestFirst)
    assert min(start for move in after for parent, start in zip(move["parents"], move["start"], strict=True)
               if parent >= 0) == check or isinstance(second, BestFirst)  # fmt: skip
    assert set(range(12)) - set(top) <= set(after[0]["drop"])
    assert result.spent.nfe <= 90
    assert result.images
    if type(second) is RBF:
        assert result.spent.nfe == 90  # it plans with what pruning left


@pytest.mark.parametrize("nfe", [30, 60, 150])
def test_pruning_takes_its_share_of_the_budget(nfe: int) -> None:
    algorithm: Any = make_algorithm("ttsnap-rbf", share=0.4, keep=(0.5, 0.5), levels=(0.9, 0.7))
    (result,) = search([""], algorithm, Scripted(noisy(nfe)), f"{nfe}nfe")
    pruned = [move["cost"]["nfe"] for move in result.trace if set(move["parents"]) == {-1} or max(move["stop"]) <= 3]
    task = Task(Grid(tuple(np.linspace(1, 0, 9))), 1, float(nfe))
    first, seeds = algorithm.first, result.spent.seeds
    assert isinstance(first, SeedPruning)
    assert sum(pruned[:2]) == first.pruning_cost(seeds, task) <= 0.4 * nfe < first.pruning_cost(seeds + 1, task)
    assert result.spent.nfe <= nfe
    with pytest.raises(ValueError, match="needs one in"):
        search([""], Nested(SeedPruning(), CoDe(2, block=1), share=0.5), Scripted(noisy(0)))


@pytest.mark.parametrize("nfe", [40, 100])
def test_a_second_part_beside_a_share_must_have_its_n(nfe: int) -> None:
    with pytest.raises(ValueError, match="fitted to: set"):
        Nested(SeedPruning(), CoDe(block=1), share=0.5)
    (result,) = search([""], Nested(SeedPruning(), CoDe(block=1), share=0.5, n=2), Scripted(noisy(nfe)), f"{nfe}nfe")
    assert result.images
    assert result.spent.nfe <= nfe
    assert Nested(SeedPruning(3), CoDe(block=1), share=0.5).n is None


@pytest.mark.parametrize("algorithm", [RBF(2), VerifierThreshold(2), NoiseAscent(rounds=2)], ids=lambda a: name_of(a))
def test_ranks_among_images_are_refused_where_one_is_valued_by_itself(algorithm: Any) -> None:
    with pytest.raises(ValueError, match=f"rank_sum only ranks images among each other; {name_of(algorithm)} needs"):
        search([""], algorithm, Scripted(noisy(1)), "90nfe", utility=utility.rank_sum)


class Disliking(BestOfN):
    """Best-of-N that rejects its best image in the end, as noise-ascent does what other rewards dislike."""

    def step(self, state: Any, particles: Particles, rng: np.random.Generator) -> tuple[Move | None, Any]:
        move, state = super().step(state, particles, rng)
        return move or dataclasses.replace(fresh(0, 0), reject=particles.ranked()[:1]), state


def test_what_the_first_search_rejects_is_neither_refined_nor_returned() -> None:
    def score(uid: int, step: int) -> float:
        return -float(uid)

    (result,) = search([""], Refined(Disliking(4), ZeroOrder(rounds=3, n=2)), Scripted(score), "200nfe", keep=9)
    first, *after = result.trace
    assert set(first["parents"]) == {-1}
    assert set(after[0]["parents"]) == {1}  # the second best
    assert 0 not in {parent for move in after for parent in move["parents"]}
    assert 0 not in {image.uid for image in result.images}
