"""Fit a pruning schedule, steps and keep ratios, to a recording: random search, then small changes to the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ttsnap import utility as utilities
from ttsnap.algorithms.seed_pruning import SeedPruning
from ttsnap.budget import Budget
from ttsnap.calibrate import enlarge
from ttsnap.replay import Recording
from ttsnap.simulate import best_of_n_curve, curve
from ttsnap.types import FloatArray, Utility


@dataclass(frozen=True)
class Tuned:
    """schedule: the winner. fitted: its mean gain over best-of-N on the prompts it was chosen on, as a share of what
    best-of-N gains from the smallest budget to the others; held_out: the same on the other prompts, with its standard
    error (nan where fewer than two prompts were kept out); tried: schedules tried."""

    schedule: SeedPruning
    fitted: float
    held_out: float
    error: float
    tried: int


def tune(
    recording: Recording,
    budgets: Sequence[Budget | str],
    *,
    trials: int = 400,
    holdout: float = 0.3,
    checks: int = 5,
    seeds: int = 200,
    utility: Utility = utilities.mean,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """One schedule for all of these budgets, the best of `trials` with at most `checks` checks.

    The last `holdout` share of the prompts is kept out of the search and tells what the winner is worth on prompts
    that it was not chosen on. Fitting uses enlarged recordings (see calibrate.enlarge) of `seeds` seeds, so that
    large budgets do not use up what was recorded. Raises ValueError with too few prompts, seeds or budgets.
    """
    prompts = len(recording.prompts)
    fit_prompts = prompts - int(holdout * prompts)
    if not 0 <= holdout < 1 or fit_prompts < 2:
        raise ValueError(
            f"holdout {holdout} of {prompts} prompts leaves {fit_prompts} to fit on; at least 2 are needed"
        )
    rng = np.random.default_rng(seed)
    wide = _single(recording.select(slice(0, fit_prompts)), utility, seeds, rng)
    allowed = np.flatnonzero(wide.scored[:-1])
    if not len(allowed):
        raise ValueError("the recording scored only finished images: there is nothing to prune on")
    base = best_of_n_curve(wide, budgets).mean

    again = _single(recording.select(slice(0, fit_prompts)), utility, seeds, rng)  # for the last word

    def worth(schedule: SeedPruning, repeats: int, on: Recording = wide, reference: FloatArray = base) -> float:
        return gain(curve(on, schedule, budgets, repeats, seed=seed).mean, reference)

    pool: list[tuple[float, SeedPruning]] = []
    repeats = max(1, 600 // fit_prompts)
    for trial in range(trials):
        if on_progress is not None:
            on_progress(trial, trials)
        explore = trial < trials * 0.4
        parent = pool[min(int(rng.exponential(4)), len(pool) - 1)][1] if not explore else None
        schedule = _draw(rng, allowed, checks) if parent is None else _change(rng, parent, allowed, checks)
        pool.append((worth(schedule, repeats), schedule))
        pool.sort(key=lambda entry: -entry[0])
    base_again = best_of_n_curve(again, budgets).mean
    finals = [(worth(schedule, 3 * repeats, again, base_again), schedule) for _, schedule in pool[:20]]
    fitted, best = max(finals, key=lambda entry: entry[0])
    held_out = error = float("nan")
    if fit_prompts < prompts:
        rest = _single(recording.select(slice(fit_prompts, None)), utility, seeds, rng)
        found, reference = curve(rest, best, budgets, 5 * repeats, seed=seed), best_of_n_curve(rest, budgets)
        held_out = gain(found.mean, reference.mean)
        n = len(found.rewards)
        draws = np.random.default_rng(0).integers(n, size=(200 if n > 1 else 0, n))  # one prompt tells no spread
        gains = [gain(found.rewards[d].mean(0), reference.rewards[d].mean(0)) for d in draws]
        error = float(np.std(gains)) if gains else float("nan")
    return Tuned(best, fitted, held_out, error, trials)


def gain(found: np.ndarray, base: np.ndarray) -> float:
    """Excess over best-of-N at all budgets, over what best-of-N gains above its first."""
    gained = float((base - base[0]).sum())
    if gained <= 0:
        raise ValueError("best-of-N gains nothing from the smallest budget to the largest; give budgets further apart")
    return float((found - base).sum()) / gained


def _single(recording: Recording, utility: Utility, seeds: int, rng: np.random.Generator) -> Recording:
    """One reward, the utility, with more seeds by enlarging where there are fewer than asked for."""
    rewards = utility(recording.scores)
    if recording.seeds < seeds:
        return enlarge(rewards, recording, seeds, rng)
    return replace(recording, scores=rewards[..., None], reward_names=("utility",))


def _draw(rng: np.random.Generator, allowed: np.ndarray, most: int) -> SeedPruning:
    n = int(rng.integers(1, min(most, len(allowed)) + 1))
    steps = np.sort(rng.choice(allowed, n, replace=False))
    share = np.exp(rng.uniform(np.log(0.03), np.log(0.5)))  # that reaches the end
    keep = np.exp(np.log(share) * rng.dirichlet(np.ones(n)))
    return _schedule(steps, keep)


def _change(rng: np.random.Generator, schedule: SeedPruning, allowed: np.ndarray, most: int) -> SeedPruning:
    steps, keep = list(schedule.steps or ()), list(schedule.keep)
    free = [int(k) for k in allowed if k not in steps]
    what = rng.random()
    if what < 0.4 and free:
        i = int(rng.integers(len(steps)))
        steps[i] = min(free, key=lambda k: abs(k - steps[i]) + rng.random() * 3)
    elif what < 0.55 and free and len(steps) < most:
        steps.append(int(rng.choice(free)))
        keep.append(float(rng.uniform(0.4, 0.95)))
    elif what < 0.7 and len(steps) > 1:
        i = int(rng.integers(len(steps)))
        del steps[i], keep[i]
    order = np.argsort(steps)
    scaled = np.exp(np.log(np.array(keep)) * np.exp(0.25 * rng.standard_normal(len(keep))))
    return _schedule(np.array(steps)[order], scaled[order])


def _schedule(steps: np.ndarray, keep: np.ndarray) -> SeedPruning:
    return SeedPruning(None, tuple(np.clip(keep, 0.05, 0.98).round(3).tolist()), steps=tuple(steps.tolist()))
