"""Algorithms that branch on the path, against transcriptions of their papers' pseudocode in plain
Python."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.algorithms.verifier_threshold import VerifierThreshold
from ttsnap.core import Need, Price, Rates, fresh, perturb
from ttsnap.core.selection import Selection

from ..scripted import Played, Scripted, noisy, ranked  # noqa: TID252


def code_by_hand(score, n, streams, block, temperature, steps):
    """Parents by uid, evaluations, and what was finished."""
    value = ranked(score)
    rng = np.random.default_rng([0, zlib.crc32(b"")])
    parent, now, at, calls = [-1] * streams, list(range(streams)), 0, streams
    while True:
        stop = min(at + block, steps)
        last = stop == steps
        children = {p: [] for p in now}
        for j in range(1 if last and at == steps - 1 else n):
            for p in now:
                if j:
                    parent.append(p)
                children[p].append(len(parent) - 1 if j else p)
                calls += stop - at - 1 + (not last)  # the evaluation at `at` is the parent's
        at = stop
        if last:
            return parent, calls, sorted(u for kids in children.values() for u in kids)
        chosen = []
        for kids in children.values():
            values = np.array([value(u, at) for u in kids])
            if temperature == 0 or values.max() == -np.inf:
                chosen.append(kids[int(values.argmax())])
            else:
                weights = np.exp((values - values.max()) / temperature)
                chosen.append(int(rng.choice(kids, p=weights / weights.sum())))
        now = chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize(
    ("n", "streams", "block", "steps"),
    [(3, 2, 1, 6), (4, 1, 2, 8), (2, 3, 3, 7), (1, 2, 2, 5), (3, 2, 9, 4)],
)
def test_code_is_the_papers_loop(seed, temperature, n, streams, block, steps):
    score = noisy(seed, fail=0.2 * (seed % 2))
    svdd = make_algorithm("svdd", n=n, streams=streams, alpha=temperature)
    algorithm = svdd if block == 1 else CoDe(n, streams, block, temperature)
    (result,) = search([""], algorithm, Scripted(score, steps))
    parent, calls, finished = code_by_hand(score, n, streams, block, temperature, steps)
    assert result.particles.parent.tolist() == parent
    assert result.spent.nfe == calls
    assert np.flatnonzero(result.particles.finished).tolist() == finished
    assert result.particles.alive.sum() == len(finished)


def rbf_by_hand(
    score,
    streams,
    initial,
    steps,
    allowance,
    finish,
    bars=None,
):
    """Algorithm 1 with quotas Q by step: Q[k + 1] += Q[k] - j when candidate j of step k is
    accepted. Parents, evaluations, and what was finished."""
    value = ranked(score)
    noises = max(1, min(streams * initial, allowance - (steps - 1)))
    parent, where, calls = [-1] * noises, [0] * noises, noises
    heads = [
        max(range(i, noises, streams), key=lambda u: value(u, 0))
        for i in range(min(streams, noises))
    ]
    base = (allowance - calls) // (steps * len(heads))
    if bars == "quantiles":
        good = [value(u, 0) for u in range(noises) if value(u, 0) > -np.inf]
        bars = [np.quantile(good, q) if good else -np.inf for q in np.linspace(0.5, 1.0, steps - 1)]
    paths = [
        {"at": u, "step": 0, "best": value(u, 0), "Q": [base] * steps, "j": 0, "seen": []}
        for u in heads
    ]
    best = max(heads, key=lambda u: value(u, 0))

    def present(p):
        return max(p["seen"], key=lambda u: value(u, where[u])) if p["seen"] else p["at"]

    while True:
        going = [p for p in paths if p["step"] < steps - 1]
        while going:
            named = [best] if finish == "best" else [present(p) for p in paths]
            ends = [where[u] for u in named] + [p["step"] + 1 for p in going]
            if calls + len(going) + max(steps - 1 - k for k in ends) <= allowance:
                break
            going.pop()
        if not going:
            break
        for p in going:
            uid, k = len(parent), p["step"]
            parent.append(p["at"])
            where.append(k + 1)
            calls, p["j"] = calls + 1, p["j"] + 1
            p["seen"].append(uid)
        for p in going:
            uid, k = p["seen"][-1], p["step"]
            if value(uid, k + 1) > value(best, where[best]):
                best = uid
            if bars is None and k == steps - 2:
                continue
            accepted = (
                value(uid, k + 1) > p["best"]
                if bars is None
                else value(uid, k + 1) >= max(bars[k], -1e300)
            )
            if accepted:
                p["Q"][k + 1] += max(0, p["Q"][k] - p["j"])
                p.update(at=uid, step=k + 1, best=value(uid, k + 1), j=0, seen=[])
            elif p["j"] >= p["Q"][k]:
                p.update(at=present(p), step=k + 1, j=0, seen=[])
    chosen = (
        best
        if finish == "best"
        else max((present(p) for p in paths), key=lambda u: value(u, where[u]))
    )
    calls += steps - 1 - where[chosen]
    return parent, calls, [chosen]


def as_by_hand(algorithm, allowance, score, steps, bars=None):
    (result,) = search([""], algorithm, Scripted(score, steps), f"{allowance}nfe")
    by_hand = rbf_by_hand(
        score, algorithm.streams, algorithm.initial, steps, allowance, algorithm.finish, bars
    )
    finished = np.flatnonzero(result.particles.finished).tolist()
    assert (result.particles.parent.tolist(), result.spent.nfe, finished) == by_hand
    assert result.spent.nfe <= allowance
    return result


@pytest.mark.parametrize("finish", ["best", "published"])
@pytest.mark.parametrize("fail", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("allowance", [6, 8, 15, 16, 24, 33, 60, 61, 200])
def test_rbf_is_algorithm_1(finish, fail, allowance):
    result = as_by_hand(RBF(2, 5, finish), allowance, noisy(allowance, fail), 6)
    assert bool(result.warnings) == bool(np.isnan(result.best.reward))


@pytest.mark.parametrize("allowance", [8, 15, 33, 60, 200])
@pytest.mark.parametrize("bars", [None, (0.5, 0.8, 1.0, 1.5, 3.0)])
def test_verifier_threshold_accepts_by_threshold(allowance, bars):
    algorithm = VerifierThreshold(2, 4, thresholds=bars)
    found = [
        as_by_hand(algorithm, allowance, noisy(seed, fail=0.1), 6, bars or "quantiles")
        for seed in range(2)
    ]
    spent = min(result.spent.nfe for result in found)
    # it stops where all is passed
    assert allowance < 200 or bars is not None or spent < allowance / 2


@pytest.mark.parametrize("algorithm", [RBF(2, 8), RBF(2, 8, "published"), VerifierThreshold(2, 8)])
def test_memory_stays_small(algorithm):
    """Two states, their steps' best, two candidates, and the best."""
    alive = set[int]()
    for i, move in enumerate(search([""], algorithm, Scripted(noisy(3)), "150nfe")[0].trace):
        alive = (alive | set(move["uids"])) - set(move["drop"])
        assert i == 0 or len(alive) <= 2 + 2 + 2 + 1


def test_scoring_and_finishing_are_planned_for():
    """A decode with its reward takes 2 evaluations, a check 1: noises cost 2 each, candidates 2, an
    image 8 + 2 - 1. The first noise stays the best: 9 are held back for it, so 40 - 8 - 9 pay for
    11 candidates."""
    engine = Scripted(lambda uid, step: -float(uid))
    engine.price = Price(Rates(1.0, 1.0, 1.0), estimates="preview")
    (result,) = search([""], RBF(1, 4), engine, "40flop")
    assert result.spent.flops == 8 + 11 * 2 + 9


def test_top_noises():
    score = noisy(4)
    (result,) = search([""], TopNoises(10, 3), Scripted(score), selection=Selection(keep=2))
    top = sorted(range(10), key=lambda u: -score(u, 0))[:3]
    assert result.spent.nfe == 10 + 3 * 7
    assert sorted(np.flatnonzero(result.particles.finished).tolist()) == sorted(top)


def test_nested_fits_and_is_built_from_json():
    first, second = {"name": "top-noises", "n": 12, "keep": 2}, {"name": "svdd", "alpha": 0.1}
    nested = make_algorithm({"name": "nested", "first": first, "second": second})
    assert nested == Nested(TopNoises(12, 2), CoDe(block=1, temperature=0.1))
    (result,) = search([""], nested, Scripted(noisy(0)), "100nfe")
    assert result.spent.nfe == 12 + 6 * 14 < 100
    assert make_algorithm("nested", first="top-noises", second="rbf") == Nested(TopNoises(), RBF())


def test_nested_takes_any_search_of_noises():
    """One that tries a neighbour of the best noise once, then leaves the best."""
    score = noisy(6)
    first = Played(
        (lambda p: fresh(4, 0), lambda p: perturb(p.ranked()[:1], 0.9, 0)), frozenset({Need.MIX})
    )
    nested = Nested(first, CoDe(n=2, streams=1, block=4))
    assert nested.needs == {Need.MIX, Need.BRANCH}
    (result,) = search([""], nested, Scripted(score))
    assert result.trace[2]["parents"] == [max(range(5), key=lambda u: score(u, 0))] * 2


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (
            lambda: search([""], Nested(BestOfN(3), CoDe(n=2)), Scripted(noisy(0))),
            "best-of-n takes",
        ),
        (lambda: Nested(TopNoises(), BestOfN(3)), "best-of-n cannot"),
        (lambda: Nested(BestOfN(), CoDe(n=2)), "number of seeds"),
        (lambda: Nested(SeedPruning(), CoDe(block=1), share=0.5), "set its n"),
        (
            lambda: search([""], Nested(SeedPruning(), CoDe(2), share=0.5), Scripted(noisy(0))),
            "budget needs one",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build()
