"""Pruning schedules at random, and random changes to one: what `ttsnap tune` tries."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.core.arrays import FloatArray, IntArray


class Space(NamedTuple):
    """What schedules over a recording are made of."""

    steps: IntArray
    """(k,) steps whose estimates were scored."""
    most: int
    """The most checks at these steps."""
    drafts: tuple[int, ...]
    """Calls of the recorded drafts, rising."""
    denoising_steps: int | None = None
    """Of the recording."""

    @property
    def best_of_n(self) -> SeedPruning:
        """The schedule that checks nothing."""
        return SeedPruning(
            None, (), steps=(), draft_share=0.0, denoising_steps=self.denoising_steps
        )

    def schedule(self, steps: IntArray, keep: FloatArray) -> SeedPruning:
        """Without drafts that are fitted."""
        shares = tuple(np.clip(keep, 0.05, 0.98).round(3).tolist())
        return SeedPruning(
            None, shares, steps=tuple(steps.tolist()), denoising_steps=self.denoising_steps
        )


def draw(rng: np.random.Generator, space: Space) -> SeedPruning:
    """Any schedule of a space."""
    if not len(space.steps):
        nothing = space.schedule(space.steps, np.array([]))
        return _with_drafts(nothing, _draw_share(rng), int(rng.choice(space.drafts)))
    n = int(rng.integers(1, min(space.most, len(space.steps)) + 1))
    steps = np.sort(rng.choice(space.steps, n, replace=False))
    share = np.exp(rng.uniform(np.log(0.03), np.log(0.5)))  # that reaches the end
    keep = np.exp(np.log(share) * rng.dirichlet(np.ones(n)))
    if not space.drafts:
        return space.schedule(steps, keep)
    drafts = _draw_share(rng) if rng.random() > 0.2 else 0.0
    after = slice(0 if drafts and rng.random() < 0.3 else n)  # checks that follow the drafts
    return _with_drafts(
        space.schedule(steps[after], keep[after]), drafts, int(rng.choice(space.drafts))
    )


def change(rng: np.random.Generator, schedule: SeedPruning, space: Space) -> SeedPruning:
    """A schedule of a space near another one."""
    shares, _, share = schedule.settled()
    steps = list(schedule.steps or ())
    keep = list(shares)
    free = [int(k) for k in space.steps if k not in steps]
    least = 0 if space.drafts and share else 1
    what = rng.random()
    if what < 0.4 and free and steps:
        i = int(rng.integers(len(steps)))
        steps[i] = min(free, key=lambda k: abs(k - steps[i]) + rng.random() * 3)
    elif what < 0.55 and free and len(steps) < space.most:
        steps.append(int(rng.choice(free)))
        keep.append(float(rng.uniform(0.4, 0.95)))
    elif what < 0.7 and len(steps) > least:
        i = int(rng.integers(len(steps)))
        del steps[i], keep[i]
    order = np.argsort(steps)
    scaled = np.exp(np.log(np.array(keep)) * np.exp(0.25 * rng.standard_normal(len(keep))))
    changed = space.schedule(np.array(steps, int)[order], scaled[order])
    if not space.drafts:
        return changed
    calls = schedule.draft_calls or space.drafts[0]
    if rng.random() < 0.1:
        share = _draw_share(rng) if not share else 0.0 if steps else share
    elif rng.random() < 0.2:
        calls = int(rng.choice(space.drafts))
    return _with_drafts(changed, share * np.exp(0.3 * rng.standard_normal()), calls)


def _draw_share(rng: np.random.Generator) -> float:
    """The share of the cost that goes to drafts."""
    return float(np.exp(rng.uniform(np.log(0.05), np.log(0.7))))


def _with_drafts(schedule: SeedPruning, share: float, calls: int) -> SeedPruning:
    if not share:
        return replace(schedule, draft_share=0.0)
    return replace(
        schedule, draft_share=round(float(min(max(share, 0.03), 0.8)), 3), draft_calls=calls
    )
