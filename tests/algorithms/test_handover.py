"""One algorithm hands its survivors, at whatever step they are, to another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ttsnap import Grid, SeedPruning, make_algorithm, search
from ttsnap.algorithms import name_of
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.epsilon_greedy import EpsilonGreedy
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.noise_ascent import NoiseAscent
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.refined import Refined
from ttsnap.algorithms.search_over_paths import SearchOverPaths
from ttsnap.algorithms.smc.smc import SMC
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.algorithms.tree import BestFirst
from ttsnap.algorithms.verifier_threshold import VerifierThreshold
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core import Task, fresh, utility
from ttsnap.core.selection import Selection

from ..scripted import Played, Scripted, noisy  # noqa: TID252

SECONDS = [
    RBF(2),
    VerifierThreshold(2),
    CoDe(3, block=1),
    CoDe(n=3, block=3),
    SMC(4, 1.0),
    SMC(2, 1.0),
    BestFirst(width=2),
    EpsilonGreedy(3),
    SearchOverPaths(streams=3, n=2),
]


@pytest.mark.parametrize("second", SECONDS, ids=lambda algorithm: name_of(algorithm))
@pytest.mark.parametrize("check", [-1, 0, 2, 5])
def test_survivors_are_gone_on_from_at_the_step_where_they_are(second, check):
    """Who goes on, from where, and that the ledger and the plan agree; -1: noises that another
    class chose."""
    score = noisy(9)
    first = TopNoises(12, 3) if check < 0 else SeedPruning(12, (0.25,), steps=(check,))
    check = max(check, 0)
    (result,) = search([""], Nested(first, second), Scripted(score), "90nfe")
    top = sorted(range(12), key=lambda u: -score(u, check))[:3]
    seeds, after = result.trace[0], result.trace[1:]
    assert seeds["cost"]["nfe"] == 12 * (check + 1)
    assert top[0] in after[0]["parents"]
    assert set(range(12)) - set(top) <= set(after[0]["drop"])
    if not isinstance(second, BestFirst):  # which may start other roots, and try a root again
        assert set(after[0]["parents"]) <= set(top)
        assert min(start for move in after for start in move["start"]) == check
        assert -1 not in {parent for move in after for parent in move["parents"]}
    assert result.spent.nfe <= 90
    assert result.images
    if type(second) is RBF:
        assert result.spent.nfe == 90  # it plans with what pruning left


@pytest.mark.parametrize("nfe", [30, 150])
def test_pruning_takes_its_share_of_the_budget(nfe):
    algorithm = make_algorithm("ttsnap-rbf", share=0.4, keep=(0.5, 0.5), levels=(0.9, 0.7))
    (result,) = search([""], algorithm, Scripted(noisy(nfe)), f"{nfe}nfe")
    pruned = [
        move["cost"]["nfe"]
        for move in result.trace
        if set(move["parents"]) == {-1} or max(move["stop"]) <= 3
    ]
    task = Task(Grid(tuple(np.linspace(1, 0, 9))), 1, float(nfe))
    first, seeds = algorithm.first, result.spent.seeds
    assert (
        sum(pruned[:2])
        == first.pruning_cost(seeds, task)
        <= 0.4 * nfe
        < first.pruning_cost(seeds + 1, task)
    )


@pytest.mark.parametrize(
    "algorithm", [RBF(2), VerifierThreshold(2), NoiseAscent(rounds=2)], ids=lambda a: name_of(a)
)
def test_ranks_among_images_are_refused_where_one_is_valued_by_itself(algorithm):
    with pytest.raises(ValueError, match=f"rank_sum .* {name_of(algorithm)}"):
        search(
            [""],
            algorithm,
            Scripted(noisy(1)),
            "90nfe",
            selection=Selection(utility=utility.rank_sum),
        )


def test_what_the_first_search_rejects_is_neither_refined_nor_returned():
    """As noise-ascent rejects what other rewards dislike."""
    rejecting = Played(
        (lambda p: fresh(4, 8), lambda p: dataclasses.replace(fresh(0, 0), reject=p.ranked()[:1]))
    )
    worse = Scripted(lambda uid, step: -float(uid))
    (result,) = search(
        [""],
        Refined(rejecting, ZeroOrder(rounds=3, n=2)),
        worse,
        "200nfe",
        selection=Selection(keep=9),
    )
    first, *after = result.trace
    assert set(first["parents"]) == {-1}
    assert set(after[0]["parents"]) == {1}  # the second best
    assert 0 not in {parent for move in after for parent in move["parents"]}
    assert 0 not in {image.uid for image in result.images}
