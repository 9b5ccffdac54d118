"""Search over paths, zero-order, best-first and depth-first against plain transcriptions of their
pseudocode."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from ttsnap import Grid, search
from ttsnap.algorithms.depth_first import DepthFirst
from ttsnap.algorithms.search_over_paths import SearchOverPaths
from ttsnap.algorithms.tree import BestFirst
from ttsnap.algorithms.zero_order import ZeroOrder
from ttsnap.core.selection import Selection

from ..scripted import Scripted, noisy, ranked  # noqa: TID252

K = 10
GRID = Grid(tuple(np.linspace(1, 0, K + 1)))
seeds = pytest.mark.parametrize("seed", range(8))


def known(seed, failing=0.0):
    """Scores are a function of (uid, step); a share of them fails."""
    return Scripted(noisy(seed, failing, rise=1 / 3), grid=GRID)


def run(algorithm, engine, budget=None, **options):
    return search([""], algorithm, engine, budget, **options)[0]


def finished(result):
    return np.flatnonzero(result.particles.finished).tolist()


def paths_by_hand(engine, streams, n, start, back, ahead):
    """Parents of each round's candidates, finished uids and evaluations; everything in grid
    steps."""
    at, born, paid, rounds = start, streams, streams * start, []
    alive = list(range(streams))
    while at < K:
        rounds.append(alive * n)
        stop = min(K, at + ahead)
        paid += streams * n * (stop - max(1, at - back) + (stop < K))
        pool = list(range(born, born + streams * n))
        born += len(pool)
        alive = sorted(pool, key=lambda u: -ranked(engine.score)(u, stop))[:streams]
        at = stop
    return rounds, pool, paid


@seeds
def test_search_over_paths_is_the_papers_loop(seed):
    rng = np.random.default_rng(seed)
    streams, n, start = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 5), (2, K)))
    back, ahead = int(rng.integers(1, start)), int(rng.integers(1, 5))
    engine = known(seed, failing=0.3 * (seed % 2))
    algorithm = SearchOverPaths(n, streams, 1 - start / K, back / K, ahead / K)
    result = run(algorithm, engine)
    rounds, pool, paid = paths_by_hand(engine, streams, n, start, back, ahead)
    assert [move["parents"] for move in result.trace[1:]] == rounds
    assert finished(result) == pool
    assert result.spent.nfe == paid
    assert result.best.uid == max(pool, key=lambda u: ranked(engine.score)(u, K))


def test_search_over_paths_in_steps():
    """As DOG-Trim: 10 evaluations, then five legs of 10 by each of 4, but for one not asked for at
    first."""
    of_35 = Scripted(noisy(0), grid=Grid(tuple(np.linspace(1, 0, 36))))
    assert run(SearchOverPaths(4, 1, legs=(10, 5)), of_35).spent.nfe == 9 + 5 * 4 * 10


def test_search_over_paths_keeps_as_many_streams_as_images(engine):
    """The sampler draws no noise: candidates differ by what noised them."""
    (result,) = search(["a"], SearchOverPaths(1), engine(), selection=Selection(keep=5))
    assert len({c.reward for c in result.images}) == 5


def climb_by_hand(engine, n, rounds, check, keep, restart):
    """The pivots, one for each round."""
    born, pivots = 1, [0]
    pivot = 0
    for _ in range(rounds):
        if pivot is None:
            pivot, born = born, born + 1
            pivots[-1] = pivot
        pool = list(range(born, born + n))
        born += n
        if check is not None:
            pool = sorted(pool, key=lambda u: -ranked(engine.score)(u, check))[
                : max(1, int(keep * n + 0.5))
            ]
        best = max([pivot, *pool], key=lambda u: ranked(engine.score)(u, K))
        pivot = None if best == pivot and restart else best
        pivots.append(best)
    return pivots[:-1]


@seeds
def test_zero_order_is_the_papers_loop(seed):
    rng = np.random.default_rng(seed)
    n, check = int(rng.integers(1, 6)), int(rng.integers(0, K)) if seed % 2 else None
    keep, restart = float(rng.uniform(0.1, 1)), bool(rng.random() < 0.7)
    engine = known(seed, failing=0.3 * (seed % 3 == 0))
    level = None if check is None else 1 - check / K
    result = run(ZeroOrder(n, rounds=5, restart=float(restart), check=level, keep=keep), engine)
    moves = [m["parents"] for m in result.trace if m["parents"][0] not in (-1, m["uids"][0])]
    pivots = [parents[0] for parents in moves]
    assert pivots == climb_by_hand(engine, n, 5, check, keep, restart)


def test_zero_order_tries_fresh_noises_too():
    """With probability eps a neighbour has nothing of the pivot's noise."""
    for eps, low, high in ((0.0, 0, 0), (0.4, 340, 460), (1.0, 1000, 1000)):
        engine = known(0)
        run(ZeroOrder(1000, mix=0.9, rounds=1, eps=eps), engine)
        share = engine.plans[1].rows.share
        assert set(share.tolist()) <= {0.0, 0.9}
        assert low <= (share == 0).sum() <= high


def tree_by_hand(engine, a, budget):
    """(parent, step) of every node in order of birth, and evaluations."""
    rng = np.random.default_rng([0, zlib.crc32(b"")])
    block = a.block or round(K / 5)
    nodes = []
    spent = 0

    def edge(at, stop):
        return stop - at + (stop < K) - (at > 0)

    def root(u):
        return u if nodes[u][0] < 0 else root(nodes[u][0])

    def values():
        found = {}
        for depth in sorted({step for _, step in nodes}):
            group = [u for u, (_, step) in enumerate(nodes) if step == depth]
            scores = {
                u: engine.score(u, depth) for u in group if not math.isnan(engine.score(u, depth))
            }
            credit = np.mean([found.get(nodes[u][0], 0.0) for u in scores]) if scores else 0.0
            deviation = np.std(list(scores.values())) if scores else 0.0
            for u, s in scores.items():
                found[u] = float(credit) + (s - np.mean(list(scores.values()))) / (deviation or 1.0)
        return found

    while True:
        worth, more = values(), list[tuple[int, int]]()
        for _ in range(a.width if nodes else a.n):
            options = []
            everyone = nodes + more
            for u in sorted(worth):
                at = nodes[u][1]
                tries = sum(parent == u for parent, _ in everyone)
                tree = sum(parent >= 0 and root(parent) == root(u) for parent, _ in everyone)
                if at < K - 1 or (at == K - 1 and not tries):
                    options.append(
                        (worth[u] - a.bonus * (math.log(1 + tries) + math.log(1 + tree)), u, at)
                    )
            if a.reseed or not nodes:
                options.append((0.0, -1, 0))
            left, affordable = budget - spent, []
            for value, u, at in options:
                ahead = min(K, at + block)
                if edge(at, ahead) + (edge(ahead, K) if ahead < K else 0) <= left:
                    affordable.append((value, u, at, ahead))
                elif edge(at, K) <= left:
                    affordable.append((value, u, at, K))
            if not affordable:
                break
            draw = rng.gumbel(size=len(affordable)) * a.temperature * left / budget
            _, u, at, stop = affordable[int(np.argmax([o[0] for o in affordable] + draw))]
            spent += edge(at, stop)
            more.append((u, stop))
        if not more:
            return nodes, spent
        nodes += more


@seeds
def test_best_first_is_its_pseudocode(seed):
    rng = np.random.default_rng(seed)
    n, width, block = (int(rng.integers(1, high)) for high in (6, 5, 6))
    algorithm = BestFirst(
        n, width, block, temperature=float(rng.uniform(0, 1)), reseed=bool(seed % 2)
    )
    engine, budget = known(seed, failing=0.2 * (seed % 3 == 0)), int(rng.integers(K, 150))
    result = run(algorithm, engine, f"{budget}nfe")
    nodes, spent = tree_by_hand(engine, algorithm, budget)
    particles = result.particles
    # Where all scores failed and nothing was finished, the loop finishes one node more.
    closed = [u for move in result.trace if move["closing"] for u in move["uids"]]
    assert len(particles) == len(nodes)
    steps = [(int(p), int(s)) for p, s in zip(particles.parent, particles.step, strict=True)]
    assert [x for u, x in enumerate(steps) if u not in closed] == [
        x for u, x in enumerate(nodes) if u not in closed
    ]
    assert closed or result.spent.nfe == spent
    assert result.images


def descent_by_hand(engine, checks, least, back, tries):
    """The finished uid and evaluations."""
    where = {}  # uids that rest at a check
    uid, born, j, paid = 0, 1, 0, checks[0] + 1
    while True:
        at = checks[j]
        if ranked(engine.score)(uid, at) >= least[j]:
            if at == K:
                return uid, paid
        elif tries:
            tries -= 1
            where.setdefault(at, []).append(uid)
            to = max(0, at - back)
            j = next(i for i, s in enumerate(checks) if s > to)
            uid, born = born, born + 1
            paid += checks[j] - to + (checks[j] < K)
            continue
        elif at == K:
            return uid, paid
        else:
            uid = max([*where.get(at, []), uid], key=lambda u: (ranked(engine.score)(u, at), -u))
            return uid, paid + K - at - 1
        j += 1
        paid += checks[j] - at + (checks[j] < K) - 1


@pytest.mark.parametrize(("steps", "block"), [(2, 1), (20, 4)])
def test_an_edge_of_best_first_is_a_fifth_of_the_grid(steps, block):
    first = run(BestFirst(), Scripted(noisy(0), steps), "90nfe").trace[0]
    assert {*first["start"], *first["stop"]} == {0, block}


@seeds
def test_depth_first_is_the_papers_loop(seed):
    rng = np.random.default_rng(seed)
    checks = [
        *sorted(rng.choice(np.arange(1, K), int(rng.integers(1, 4)), replace=False).tolist()),
        K,
    ]
    least = [s / 3 + float(rng.uniform(-0.5, 1)) for s in checks]
    back, tries = int(rng.integers(1, K)), int(rng.integers(0, 12))
    engine = known(seed, failing=0.3 * (seed % 3 == 0))
    levels = tuple(1 - s / K for s in checks[:-1])
    result = run(DepthFirst(levels, back / K, tuple(least), tries=tries), engine)
    uid, paid = descent_by_hand(engine, checks, least, back, tries)
    assert finished(result)[-1] == uid or uid in finished(result)
    assert result.spent.nfe == paid
