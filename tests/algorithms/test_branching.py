"""Algorithms that branch on the path, against transcriptions of their papers' pseudocode in plain Python."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, ClassVar

import numpy as np
import pytest

from ttsnap import BestOfN, Budget, SeedPruning, make_algorithm, search
from ttsnap.algorithms import name_of
from ttsnap.algorithms.code import CoDe
from ttsnap.algorithms.nested import Nested
from ttsnap.algorithms.rbf import RBF
from ttsnap.algorithms.top_noises import TopNoises
from ttsnap.algorithms.verifier_threshold import VerifierThreshold
from ttsnap.core import utility
from ttsnap.core.grid import Grid, Task
from ttsnap.core.moves import fresh, perturb
from ttsnap.core.needs import Need, Needs
from ttsnap.core.plans import resolve
from ttsnap.core.table import ParticleTable
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.search import fit
from ttsnap.sampling.kernels import Sde

from ..scripted import Score, Scripted, noisy, ranked  # noqa: TID252


class Watched:
    """An algorithm with its states, and how many particles lived, written down."""

    needs: ClassVar[Needs] = frozenset({Need.BRANCH})
    lockstep: ClassVar[bool] = False

    def __init__(self, algorithm: Any) -> None:
        self.algorithm, self.n, self.init = algorithm, algorithm.n, algorithm.init
        self.states: list[Any] = []
        self.alive: list[int] = []

    def step(self, state: Any, particles: Any, rng: Any) -> Any:
        move, state = self.algorithm.step(state, particles, rng)
        self.states.append(state)
        self.alive.append(int(particles.alive.sum()))
        return move, state


# --- CoDe and SVDD ---------------------------------------------------------------------------------------------


def code_by_hand(score: Score, n: int, streams: int, block: int, temperature: float, steps: int) -> Any:
    """Parents by uid, evaluations, and what was finished."""
    value = ranked(score)
    rng = np.random.default_rng([0, zlib.crc32(b"")])
    parent, now, at, calls = [-1] * streams, list(range(streams)), 0, streams
    while True:
        stop = min(at + block, steps)
        last = stop == steps
        children: dict[int, list[int]] = {p: [] for p in now}
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


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize(
    ("n", "streams", "block", "steps"), [(3, 2, 1, 6), (4, 1, 2, 8), (2, 3, 3, 7), (1, 2, 2, 5), (3, 2, 9, 4)]
)
def test_code_is_the_papers_loop(seed: int, temperature: float, n: int, streams: int, block: int, steps: int) -> None:
    score = noisy(seed, fail=0.2 * (seed % 2))
    svdd = make_algorithm("svdd", n=n, streams=streams, alpha=temperature)
    algorithm = svdd if block == 1 else CoDe(n, streams, block, temperature)
    (result,) = search([""], algorithm, Scripted(score, steps))
    parent, calls, finished = code_by_hand(score, n, streams, block, temperature, steps)
    assert result.particles.parent.tolist() == parent
    assert result.spent.nfe == calls
    assert np.flatnonzero(result.particles.finished).tolist() == finished
    assert result.particles.alive.sum() == len(finished)


def test_code_fits_its_children_to_the_budget_and_keeps_as_many_streams_as_images() -> None:
    engine = Scripted(noisy(0), 8)
    # A stream: 1 for noise, then n * 4 to step 4, scored, and n * 3 to the images.
    assert fit(CoDe(streams=2, block=4), engine, Budget(nfe=100)).n == 7
    (result,) = search([""], CoDe(streams=2, block=4), engine, "100nfe")
    assert result.spent.nfe == 2 * (1 + 7 * 4 + 7 * 3)
    (result,) = search([""], make_algorithm("svdd", streams=1), engine, "100nfe", keep=3)
    assert len(result.images) == 3


# --- RBF and verifier-threshold --------------------------------------------------------------------------------


def rbf_by_hand(
    score: Score, streams: int, initial: int, steps: int, allowance: int, finish: str, bars: Any = None
) -> dict[str, Any]:
    """Algorithm 1 with quotas Q by step: Q[k + 1] += Q[k] - j when candidate j of step k is accepted."""
    value = ranked(score)
    noises = max(1, min(streams * initial, allowance - (steps - 1)))
    parent, where, calls = [-1] * noises, [0] * noises, noises
    heads = [max(range(i, noises, streams), key=lambda u: value(u, 0)) for i in range(min(streams, noises))]
    base = (allowance - calls) // (steps * len(heads))
    if bars == "quantiles":
        good = [value(u, 0) for u in range(noises) if value(u, 0) > -np.inf]
        bars = [np.quantile(good, q) if good else -np.inf for q in np.linspace(0.5, 1.0, steps - 1)]
    paths: list[dict[str, Any]] = [
        {"at": u, "step": 0, "best": value(u, 0), "Q": [base] * steps, "j": 0, "seen": []} for u in heads
    ]
    best, quotas = max(heads, key=lambda u: value(u, 0)), []

    def present(p: dict[str, Any]) -> Any:
        return max(p["seen"], key=lambda u: value(u, where[u])) if p["seen"] else p["at"]

    while True:
        quotas.append([(p["at"], max(0, p["Q"][p["step"]]) - p["j"]) for p in paths])
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
            accepted = value(uid, k + 1) > p["best"] if bars is None else value(uid, k + 1) >= max(bars[k], -1e300)
            if accepted:
                p["Q"][k + 1] += max(0, p["Q"][k] - p["j"])
                p.update(at=uid, step=k + 1, best=value(uid, k + 1), j=0, seen=[])
            elif p["j"] >= p["Q"][k]:
                p.update(at=present(p), step=k + 1, j=0, seen=[])
    chosen = best if finish == "best" else max((present(p) for p in paths), key=lambda u: value(u, where[u]))
    calls += steps - 1 - where[chosen]
    return {"parent": parent, "calls": calls, "finished": [chosen], "quotas": quotas, "base": base}


@pytest.mark.parametrize("finish", ["best", "published"])
@pytest.mark.parametrize("fail", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("allowance", [6, 8, 15, 16, 24, 33, 60, 61, 200])
def test_rbf_is_algorithm_1(finish: str, fail: float, allowance: int) -> None:
    steps, streams, initial = 6, 2, 5
    for seed in range(4):
        score = noisy(seed, fail)
        watched = Watched(RBF(streams, initial, finish))
        (result,) = search([""], watched, Scripted(score, steps), f"{allowance}nfe")
        hand = rbf_by_hand(score, streams, initial, steps, allowance, finish)
        assert result.particles.parent.tolist() == hand["parent"]
        assert result.spent.nfe == hand["calls"] <= allowance
        assert np.flatnonzero(result.particles.finished).tolist() == hand["finished"]
        quotas = [[(s.at, s.quota) for s in state.streams] for state in watched.states[1:-1]]
        assert quotas[: len(hand["quotas"])] == without_last_step(hand, steps, quotas)
        assert all("no image has a score" in warning for warning in result.warnings)
        assert bool(result.warnings) == bool(np.isnan(result.best.reward))


def without_last_step(hand: dict[str, Any], steps: int, quotas: Any) -> Any:
    """Quotas as traced by hand; a stream at its last step has none, so what is written there does not matter."""
    return [
        [mine if mine[0] != his[0] or mine[1] >= 0 else his for mine, his in zip(a, b, strict=True)]
        for a, b in zip(hand["quotas"], quotas, strict=True)
    ]


def test_rbf_rolls_over_what_is_left() -> None:
    # One stream of 6 steps, 2 noises and 20 evaluations: int(18 / 6) = 3 candidates a step.
    rises = {0: 1.0, 1: 2.0, 2: 3.0, 3: 0.0, 4: 4.0}
    watched = Watched(RBF(1, 2))
    search([""], watched, Scripted(lambda uid, step: rises.get(uid, 0.5), 6), "20nfe")
    quotas = [state.streams[0][::2] for state in watched.states[1:]]
    # 2 is accepted at once (2 left, 5 next), then 4 as the second (3 left, 6 next), then none for six candidates.
    assert quotas[:10] == [(1, 3), (2, 5), (2, 4), (4, 6), (4, 5), (4, 4), (4, 3), (4, 2), (4, 1), (5, 3)]
    assert {s.streams[0].best for s in watched.states[4:]} == {4.0}


def test_rbf_published_loses_what_best_keeps() -> None:
    def score(uid: int, step: int) -> float:
        return 3.0 if uid == 1 else 1.0

    best, published = (search([""], a, Scripted(score, 4), "20nfe")[0] for a in (RBF(1, 1), RBF(1, 1, "published")))
    assert (best.best.uid, best.best.reward) == (1, 3.0)
    assert published.best.reward == 1.0
    # Both spend all, the one to denoise its image from step 1.
    assert best.spent.nfe == published.spent.nfe == 20


@pytest.mark.parametrize("allowance", [8, 15, 33, 60, 200])
@pytest.mark.parametrize("bars", [None, (0.5, 0.8, 1.0, 1.5, 3.0)])
def test_verifier_threshold_accepts_by_threshold(allowance: int, bars: Any) -> None:
    steps, streams, initial, spent = 6, 2, 4, []
    for seed in range(5):
        score = noisy(seed, fail=0.1)
        algorithm = VerifierThreshold(streams, initial, thresholds=bars)
        (result,) = search([""], algorithm, Scripted(score, steps), f"{allowance}nfe")
        hand = rbf_by_hand(score, streams, initial, steps, allowance, "best", bars or "quantiles")
        assert result.particles.parent.tolist() == hand["parent"]
        assert result.spent.nfe == hand["calls"] <= allowance
        assert np.flatnonzero(result.particles.finished).tolist() == hand["finished"]
        spent.append(hand["calls"])
    assert allowance < 200 or bars is not None or min(spent) < allowance / 2  # it stops where all is passed


@pytest.mark.parametrize("algorithm", [RBF(2, 3), RBF(2, 3, "published"), VerifierThreshold(2, 3)])
def test_planned_budgets(algorithm: Any) -> None:
    for keep in (1, 2):
        for nfe in range(8, 50):
            (result,) = search([""], algorithm, Scripted(noisy(nfe, fail=0.2)), f"{nfe}nfe", keep=keep)
            assert 8 <= result.spent.nfe <= nfe
            assert len(result.images) == keep or (result.images and nfe < 8 * 3)
    with pytest.raises(ValueError, match=f"^{name_of(algorithm)} .*budget"):
        search([""], algorithm, Scripted(noisy(0)))


def test_another_cap_ends_with_the_best_candidate() -> None:
    score = noisy(1)
    (result,) = search([""], RBF(2, 3), Scripted(score), "100nfe,9decodes")
    assert result.spent.cost.decodes == 9
    assert len(result.particles) == 8
    assert result.best.uid == max(range(8), key=lambda u: score(u, 0 if u < 6 else 1))


def test_scoring_and_finishing_are_planned_for() -> None:
    # A decode with its reward takes 2 evaluations, a check 1: noises cost 2 each, candidates 2, an image 8 + 2 - 1.
    algorithm = RBF(1, 4)
    grid = Grid(tuple(np.linspace(1, 0, 9)))
    state, spent = drive(algorithm, Task(grid, 1, 40.0, 2.0, check_cost=1.0), Scripted(lambda uid, step: -uid))
    # The first noise stays the best: 9 are held back for it, so 40 - 8 - 9 pay for 11 candidates.
    assert state.base == int((40 - 8) / (8 * 2))
    assert spent == 8 + 11 * 2 + 9


def drive(algorithm: Any, task: Task, engine: Any) -> Any:
    """Play an algorithm for a task, without a ledger: its last state, and what it spent."""
    table, state, spent, moved = ParticleTable(task.grid.steps, 1, utility.mean), algorithm.init(task), 0.0, np.empty(0)
    while True:
        particles = dataclasses.replace(table.view, moved=moved, left=task.allowance - spent)
        move, state = algorithm.step(state, particles, np.random.default_rng(0))
        if move is None:
            return state, spent
        plan = resolve(move, particles, task.grid, 1)
        ends = plan.rows.score & (plan.rows.stop == task.grid.steps)
        spent += plan.cost.nfe + task.score_cost * ends.sum() + task.checking * (plan.rows.score & ~ends).sum()
        table.place(plan)
        moved = plan.uid
        engine.submit(0, plan)
        for outcome in engine.tick():
            table.record(outcome)


@pytest.mark.parametrize("algorithm", [RBF(2, 8), RBF(2, 8, "published"), VerifierThreshold(2, 8)])
def test_memory_stays_small(algorithm: Any) -> None:
    watched = Watched(algorithm)
    search([""], watched, Scripted(noisy(3)), "150nfe")
    assert max(watched.alive[2:]) <= 2 + 2 + 2 + 1  # states, their steps' best, two candidates, the best


# --- Nested and TopNoises ---------------------------------------------------------------------------------------


def test_top_noises() -> None:
    score = noisy(4)
    (result,) = search([""], TopNoises(10, 3), Scripted(score), keep=2)
    top = sorted(range(10), key=lambda u: -score(u, 0))[:3]
    assert result.spent.nfe == 10 + 3 * 7
    assert sorted(np.flatnonzero(result.particles.finished).tolist()) == sorted(top)
    (result,) = search([""], TopNoises(None, 3), Scripted(score), "31nfe")
    assert result.spent.nfe == 31  # as many as the budget affords


@pytest.mark.parametrize("first", [TopNoises(10, 3), SeedPruning(10, (0.3,), steps=(0,))])
def test_nested_goes_on_from_the_best_noises(first: Any) -> None:
    score = noisy(5)
    top = sorted(range(10), key=lambda u: -score(u, 0))
    (result,) = search([""], Nested(first, CoDe(n=3, streams=2, block=4)), Scripted(score))
    assert result.trace[1]["parents"] == top[:2] * 3
    assert sorted(result.trace[1]["drop"]) == sorted(top[2:])
    # Noises are paid: 2 streams of 3 children to step 4, scored, and on to the images.
    assert result.spent.nfe == 10 + 2 * 3 * 4 + 2 * 3 * 3
    (result,) = search([""], Nested(first, RBF(2)), Scripted(score), "60nfe")
    assert sorted(set(result.trace[1]["parents"])) == sorted(top[:2])
    assert result.spent.nfe == 60
    watched = Watched(Nested(first, VerifierThreshold(1)))
    search([""], watched, Scripted(score), "60nfe")
    inner = watched.states[1].inner
    assert inner.base == int(50 / 8)  # 10 of 60 went to the noises
    assert inner.bars[-1] == score(top[0], 0)


def test_nested_fits_and_is_built_from_json() -> None:
    spec = {
        "name": "nested",
        "first": {"name": "top-noises", "n": 12, "keep": 2},
        "second": {"name": "svdd", "alpha": 0.1},
    }
    nested = make_algorithm(spec)
    assert nested == Nested(TopNoises(12, 2), CoDe(block=1, temperature=0.1))
    assert nested.n is None
    assert dataclasses.replace(nested, n=5).second == CoDe(5, block=1, temperature=0.1)  # type: ignore[type-var]
    engine = Scripted(noisy(0))
    n = fit(nested, engine, Budget(nfe=100)).n
    assert n == (100 - 12) // (2 * 7) == 6
    (result,) = search([""], nested, engine, "100nfe")
    assert result.spent.nfe == 12 + 6 * 14
    assert make_algorithm("nested", first="top-noises", second="rbf") == Nested(TopNoises(), RBF())


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Tries a neighbour of the best noise once, then leaves the best."""

    n: int = 4
    needs: ClassVar[Needs] = frozenset({Need.MIX})
    lockstep: ClassVar[bool] = False

    def init(self, task: Task) -> None:
        return None

    def step(self, state: None, particles: Any, rng: Any) -> Any:
        if not len(particles):
            return fresh(self.n, 0), state
        return (perturb(particles.ranked()[:1], 0.9, 0) if len(particles) == self.n else None), state


def test_nested_takes_any_search_of_noises() -> None:
    score = noisy(6)
    nested = Nested(Neighbours(), CoDe(n=2, streams=1, block=4))
    assert nested.needs == {Need.MIX, Need.BRANCH}
    (result,) = search([""], nested, Scripted(score))
    assert result.trace[2]["parents"] == [max(range(5), key=lambda u: score(u, 0))] * 2
    with pytest.raises(ValueError, match="best-of-n takes"):
        search([""], Nested(BestOfN(3), CoDe(n=2)), Scripted(score))
    with pytest.raises(ValueError, match="best-of-n cannot"):
        Nested(TopNoises(), BestOfN(3))
    with pytest.raises(ValueError, match="number of seeds"):
        Nested(BestOfN(), CoDe(n=2))


# --- On a model --------------------------------------------------------------------------------------------------


def test_all_beat_a_single_sample_of_a_mixture(engine: Any) -> None:
    def mean(algorithm: Any, budget: str | None = None) -> float:
        live: Any = engine()
        live = LiveEngine(live.denoiser, live.rewards, kernel=Sde(live.denoiser.path, live.denoiser.times))
        results = [search(["a", "b", "c"], algorithm, live, budget, seed=100 * s) for s in range(8)]
        return float(np.mean([r.best.reward for found in results for r in found]))

    one, many = mean(BestOfN(1)), mean(BestOfN(8))
    algorithms = {
        "svdd": make_algorithm("svdd"),
        "code": CoDe(block=2),
        "rbf": RBF(2, 6),
        "rbf-published": make_algorithm("rbf-published", initial=6),
        "threshold": VerifierThreshold(2, 6, quantiles=(0.9, 1.0)),
        "nested": Nested(TopNoises(12), CoDe(block=1)),
    }
    found = {name: mean(algorithm, "64nfe") for name, algorithm in algorithms.items()}
    gain = many - one
    assert gain > 0
    assert all(value > one + 0.3 * gain for value in found.values()), (one, many, found)
