"""Which estimates a step trains on: pure functions of seed and optimiser step, so that a run
resumes without state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np

N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Stage:
    """Optimiser steps first..first + count - 1."""

    first: int
    count: int
    at: int | None
    """The recorded step that is trained on; None for all of `before`, with equal probability."""
    before: tuple[int, ...]
    """The recorded steps of earlier stages."""


@dataclass(frozen=True)
class ComparedSeeds:
    """Estimates of one prompt at one recorded step, whose scores are compared."""

    prompt: int
    step: int
    seeds: tuple[int, ...]
    """Positions in the recording."""


def stages(
    steps: Sequence[int], order: str, steps_per_level: int | Sequence[int]
) -> tuple[Stage, ...]:
    """One stage per recorded step in this order, or one for all ("uniform"). Later steps have
    cleaner estimates.

    steps_per_level: of each, or in this order.
    """
    counts = per_level("steps_per_level", steps_per_level, len(steps))
    if order == "uniform":
        return (Stage(0, sum(counts), None, tuple(sorted(steps))),)
    ordered = sorted(steps, reverse=order == "clean-to-noisy")
    firsts = accumulate(counts, initial=0)
    return tuple(
        Stage(first, count, step, tuple(ordered[:n]))
        for n, (first, count, step) in enumerate(zip(firsts, counts, ordered, strict=False))
    )


def per_level(name: str, value: N | Sequence[N], levels: int) -> Sequence[N]:
    """The values of a setting for each level, which has one for all, or one for each. ValueError
    for another number."""
    values = value if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ValueError(
            f"{name} has {len(values)} values, {list(values)}, for {levels} noise levels; give as"
            " many"
        )
    return values


def stage_at(plan: Sequence[Stage], step: int) -> Stage:
    """The stage of an optimiser step."""
    return next(stage for stage in plan if stage.first <= step < stage.first + stage.count)


def draw(
    step: int,
    stage: Stage,
    prompts: Sequence[int],
    seeds: Sequence[int],
    *,
    groups: int,
    group_size: int,
    earlier: float,
    seed: int,
) -> list[ComparedSeeds]:
    """The groups of an optimiser step, the same for the same seed and data.

    prompts: those to train on, which differ within a batch where there are enough. seeds: how many
    each of them has. round(earlier * groups) groups, at random places, are at random steps of the
    earlier stages.
    """
    rng = np.random.default_rng((seed, step))
    rows = rng.choice(len(prompts), groups, replace=groups > len(prompts))
    if stage.at is None:
        at: list[int] = rng.choice(stage.before, groups).tolist()
    else:
        old = round(earlier * groups) if stage.before else 0
        at = rng.choice(stage.before, old).tolist() if old else []
        at += [stage.at] * (groups - old)
    found = []
    for row, k in zip(rows, rng.permutation(groups), strict=True):
        drawn = rng.choice(seeds[row], group_size, replace=False).tolist()
        found.append(ComparedSeeds(prompts[row], at[k], tuple(drawn)))
    return found


def held_out(texts: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Prompts to train on and prompts to evaluate, by number. Equal texts are on the same side.

    At least one text is held out where share > 0. ValueError where no text would be left to train
    on.
    """
    unique = list(dict.fromkeys(texts))
    count = max(1, round(share * len(unique))) if share > 0 else 0
    if count >= len(unique):
        raise ValueError(
            f"validation {share} of {len(unique)} different prompts leaves none to train on"
        )
    # Another stream than the batches', which are keyed by (seed, step).
    chosen = np.random.default_rng((seed, 0, 1)).permutation(len(unique))[:count]
    out = {unique[i] for i in chosen}
    return [i for i, t in enumerate(texts) if t not in out], [
        i for i, t in enumerate(texts) if t in out
    ]
