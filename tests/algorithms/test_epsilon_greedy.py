"""Step noise near a sibling's, and the search that draws it (arXiv 2506.03164)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.counted import Brightness
from ttsnap import Grid, search
from ttsnap.algorithms.epsilon_greedy import EpsilonGreedy
from ttsnap.core import Kind, Move, Need, Rows, advance, fresh, perturb
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling import rng
from ttsnap.sampling.kernels import Sde

from ..scripted import Played, Scripted, noisy  # noqa: TID252


@dataclass(frozen=True)
class Watched(Sde):
    """Writes down the step noise of every row."""

    seen: list[Tensor] = field(default_factory=list)

    def step(self, x, prediction, k, keys, state):
        moved, state = super().step(x, prediction, k, keys, state)
        mean, std = self.moments(x, prediction, k)
        self.seen.extend((moved - mean) / std[:, None])
        return moved, state


def beside(
    near,
    at,
    mix=0.8,
    parent=0,
    *,
    wait=False,
    **changes,
):
    """One child of `parent` at step `at` for each of `near` (-1: plain); the parent waits."""

    def move(particles):
        n, w = len(near), int(wait)
        near_ = np.array([-1] * w + near)
        stop = np.array([at] * w + [at + 1] * n)
        plain = near_ == -1
        rows = Rows(
            np.where(plain, Kind.CONTINUE, Kind.NEAR),
            np.where(plain, parent, near_),
            np.full(n + w, at),
            stop,
            stop > at,
            np.where(plain, 1.0, mix),
        )
        return Move(rows._replace(**changes))

    return move


@pytest.mark.parametrize("at", [0, 3])
def test_near_noise_is_a_mixture_with_that_of_a_sibling(engine, at):
    """Also from step 0, where mixing could be taken for that of initial noise, and in a chain."""
    script = Played(
        (
            lambda p: fresh(1, at),
            beside([-1], at, wait=True),  # uid 1
            beside([1, -1, 1], at, wait=True),  # 2 near 1, 3 plain, 4 near 1
            beside([2], at, mix=0.6, wait=True),  # 5 near 2
            lambda p: advance(p, [5, 0, 1], 8),
        )
    )
    found = []
    for batch in (1, 16):
        denoiser = engine().denoiser
        kernel = Watched(denoiser.path, denoiser.times)
        live = LiveEngine(denoiser, [Brightness()], EngineOptions(batch), kernel=kernel)
        (result,) = search(["a"], script, live, seed=7, selection=Selection(keep=3))
        assert result.particles.parent.tolist() == [-1, 0, 0, 0, 0, 0]
        # The evaluation at the parent is paid once, whoever uses it.
        assert result.spent.nfe == live.nfe == at + 1 + 5 + 2 * (6 - at) + 7 - at
        made = dict(zip(range(1, 6), kernel.seen[at : at + 5], strict=True))
        found.append(torch.stack(list(made.values())))
        drawn = {u: rng.noise([(7, u + 1, at)], made[1][None])[0] for u in made}
        assert made[1].dtype == torch.float64
        for uid, near, mix in ((2, 1, 0.8), (4, 1, 0.8), (5, 2, 0.6)):
            torch.testing.assert_close(
                made[uid], mix * made[near] + math.sqrt(1 - mix**2) * drawn[uid]
            )
        for uid in (1, 3):
            torch.testing.assert_close(made[uid], drawn[uid])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    "move",
    [
        beside([1], 2, wait=True, stop=np.array([2, 4])),
        beside([3], 2, wait=True, start=np.array([2, 1])),
        beside([9], 2, wait=True),
        beside([-2], 2, wait=True),
        # the child of another, and one two steps away
        beside([2], 2, wait=True),
        beside([1], 2, wait=True),
        beside([3], 4, parent=2, wait=True),
        beside([3], 0, parent=-1, wait=True),
        beside([3], 2),  # no plain row before it
    ],
)
def test_rows_that_cannot_be_near_others_are_refused(engine, move):
    script = Played(
        (
            lambda p: fresh(1, 2),
            beside([-1], 2, wait=True),  # 1
            lambda p: advance(p, [1, 1], 4),  # 1 goes on, 2 is its child
            beside([-1], 2, wait=True),  # 3
            move,
        )
    )
    with pytest.raises(ValueError, match=r"one step|outside 0\.\."):
        search(["a"], script, engine(kernel="sde"))
    good = Played((*script.moves[:-1], beside([3], 2, wait=True)))
    assert len(search(["a"], good, engine(kernel="sde"))[0].particles) == 5


def test_noise_of_other_steps_and_other_samplers_is_not_near(engine):
    """A child that was made from mixed initial noise is where a step would have brought it, but no
    step did."""
    script = Played(
        (lambda p: fresh(1, 0), lambda p: perturb([0], 0.5, 1), beside([1], 0, wait=True))
    )
    with pytest.raises(ValueError, match=r"particle 1 .* 0 is"):
        search(["a"], script, engine(kernel="sde"))
    moves = (lambda p: fresh(1, 2), beside([-1], 2, wait=True), beside([1], 2, wait=True))
    for need, kernel, said in (
        (Need.NEAR, "pipeline", "history"),
        (Need.BRANCH, "sde", "Need.NEAR"),
    ):
        with pytest.raises(ValueError, match=said):
            search(["a"], Played(moves, frozenset({need})), engine(kernel=kernel))
    live = engine(kernel="sde")
    assert Need.NEAR in live.offers
    live.grid = Grid(live.grid.levels, (2,) * live.grid.steps)
    assert Need.NEAR not in live.offers


def known(seed, steps=6):
    return Scripted(noisy(seed, rise=0.0), steps)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_papers_loop(seed):
    draw = np.random.default_rng(seed)
    n, width, steps = int(draw.integers(1, 9)), int(draw.integers(1, 5)), int(draw.integers(1, 6))
    engine = known(seed, steps)
    (result,) = search([""], EpsilonGreedy(n, width, eps=0.3), engine)
    state, born, best = 0, 1, -1
    rounds = [min(width, n - j) for j in range(0, n, width)]
    plans = iter(engine.plans[1:])
    for step in range(steps - 1):
        best, value = -1, -math.inf
        for size in rounds:
            plan = next(plans)
            assert plan.rows.parent.tolist() == [state] * (1 + size)
            assert plan.rows.stop.tolist() == [step] + [step + 1] * size
            assert set(plan.near.tolist()) <= {-1, best}
            assert plan.near[0] == -1
            for uid in range(born, born + size):
                if engine.score(uid, step + 1) > value:
                    best, value = uid, engine.score(uid, step + 1)
            born += size
        state = best
    assert next(plans).rows.parent.tolist() == [state]
    assert result.spent.nfe == 1 + n * (steps - 1)
    assert result.particles.finished.sum() == 1


def test_how_often_and_how_near_it_draws():
    engine = known(0, 40)
    search([""], EpsilonGreedy(40, 8, eps=0.25, lam=0.5), engine)
    later = [p for p in engine.plans if (p.near >= 0).any()]
    near = np.concatenate([p.near[1:] for p in later])
    mix = np.concatenate([p.rows.share[1:] for p in later])
    assert len(near) > 1000
    assert abs((near < 0).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(near))
    assert (mix[near < 0] == 1).all()
    angle = np.sqrt(1 / mix[near >= 0] ** 2 - 1)
    assert angle.max() <= 0.5
    assert abs(angle.mean() - 0.25) < 4 * 0.5 / math.sqrt(12 * len(angle))
    # the first round of a step has no pivot
    for eps, pivots in ((0.0, [0, 4, 4]), (1.0, [0, 0, 0])):
        engine = known(0, 8)
        search([""], EpsilonGreedy(12, 4, eps=eps), engine)
        assert [int((p.near >= 0).sum()) for p in engine.plans[1:-1]] == pivots * 7
