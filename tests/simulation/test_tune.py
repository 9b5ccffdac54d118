"""Tuning finds what was planted."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsnap import SeedPruning
from ttsnap.core import utility
from ttsnap.core.cost import Price, Rates
from ttsnap.core.grid import Grid
from ttsnap.loop.budget import Budget
from ttsnap.recordings.replay import Recording
from ttsnap.simulation import tune as tuning
from ttsnap.simulation.calibrate import as_one, enlarge
from ttsnap.simulation.simulate import best_of_n_curve, compare, curve, lead
from ttsnap.simulation.sizing import short_of_budget, short_of_seeds
from ttsnap.simulation.tune import judge, tune

BUDGETS = ["40nfe", "80nfe", "160nfe"]


def planted(informative: int, prompts: int = 20, seeds: int = 40, **details: Any) -> Recording:
    """Scores that say nothing before a step and everything from it on."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(prompts, seeds, 1))
    scores = np.where(np.arange(21) < informative, rng.normal(size=(prompts, seeds, 21)), final)
    names = tuple(f"{i}" for i in range(prompts))
    return Recording(names, scores[..., None], Grid(tuple(np.linspace(1, 0, 21).tolist())), ("r",), **details)


@pytest.mark.parametrize(("step", "seed"), [(3, 1), pytest.param(8, 2, marks=pytest.mark.slow)])
def test_the_planted_step_is_found(step: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SEARCHES", 200)
    recording, calls = planted(step), []
    found = tune(recording, BUDGETS, trials=50, seed=seed, on_progress=lambda *a: calls.append(a))
    assert found.schedule.steps is not None
    assert found.schedule.steps[0] == step  # at once, and no cut before
    assert np.prod(found.schedule.keep) < 0.3
    assert calls == [(i, 50) for i in range(1, 51)]
    assert found.tried == 50
    # Judged on the six prompts that were kept out, on their recorded seeds, as `ttsnap simulate` does it.
    rest, worth = recording.select(slice(14, None)), found.held_out
    assert worth is not None
    mine, base = curve(rest, found.schedule, BUDGETS, 20, seed=seed), best_of_n_curve(rest, BUDGETS)
    default = curve(rest, SeedPruning(), BUDGETS, 20, seed=seed)
    for seen, expected in ((worth.schedule, mine), (worth.base, base), (worth.default, default)):
        np.testing.assert_array_equal(seen.rewards, expected.rewards)
    versus, other = compare(mine, base, rest), compare(default, base, rest)
    assert (worth.omega, worth.error) == (versus.omega, versus.error)
    assert worth.omega > 2 * worth.error > 0
    assert worth.lead == pytest.approx(versus.omega - other.omega)
    assert found.fitted.omega != worth.omega


@pytest.mark.parametrize("informative", [True, False], ids=["the default is best", "nothing is"])
def test_nothing_that_loses_is_returned(informative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is tried keeps one in twenty by scores that say nothing."""
    poor = SeedPruning(None, (0.05,), steps=(0,), denoising_steps=20)
    monkeypatch.setattr("ttsnap.simulation.tune.draw", lambda rng, space: poor)
    monkeypatch.setattr("ttsnap.simulation.tune.change", lambda rng, schedule, space: poor)
    recording = planted(8 if informative else 20)
    assert judge(recording, poor, BUDGETS, utility.mean, 0).loses
    found = tune(recording, BUDGETS, trials=3)
    assert (found.schedule.steps, found.schedule.keep) == (((8,), (0.3,)) if informative else ((), ()))
    assert not found.fitted.loses
    if informative:
        assert (found.fitted.omega > 0, found.fitted.lead) == (True, 0)
    else:
        assert (found.fitted.omega, found.fitted.lead > 0) == (0, True)
    for budgets in (BUDGETS[:2], BUDGETS[:1]):  # too few for an omega
        assert not tune(recording, budgets, trials=3).fitted.loses


def test_what_was_interrupted_goes_on_and_ends_as_undisturbed(tmp_path: Path, ctrl_c: None) -> None:
    whole, kept = tune(planted(3), BUDGETS, trials=10), tmp_path / "tried"
    calls: list[int] = []

    def interrupted(done: int, of: int) -> None:
        calls.append(done)
        if len(calls) in (3, 8):
            os.kill(os.getpid(), signal.SIGINT)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(planted(3), BUDGETS, trials=10, kept_in=kept, on_progress=interrupted)
    judged: list[SeedPruning] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tuning._Judge,
            "__call__",
            lambda self, s, found=tuning._Judge.__call__: [judged.append(s), found(self, s)][1],
        )
        again = tune(planted(3), BUDGETS, trials=10, kept_in=kept)
    assert calls == [1, 2, 3, 1, 2, 3, 4, 5]
    assert len(judged) == 10 - 5 + 12
    assert (again.schedule, again.fitted.omega) == (whole.schedule, whole.fitted.omega)
    with pytest.raises(ValueError, match="10 trials"):
        tune(planted(3), BUDGETS, trials=11, kept_in=kept)


def test_the_same_seed_finds_the_same_schedule() -> None:
    one, other = (tune(planted(3), BUDGETS, trials=4, seed=1) for _ in range(2))
    assert one.held_out is not None
    assert other.held_out is not None
    assert (one.schedule, one.fitted.omega, one.held_out.omega) == (
        other.schedule, other.fitted.omega, other.held_out.omega
    )  # fmt: skip


@pytest.mark.parametrize(("step", "better"), [(2, True), (8, False), (12, False)])
def test_better_is_what_beats_the_default_by_more_than_the_error(step: int, better: bool) -> None:
    """The default checks at step 8 of 20: too late where scores tell all from step 2 on, not where from step 8."""
    recording = planted(min(step, 8))
    worth = judge(recording, SeedPruning(None, (0.3,), steps=(step,)), BUDGETS, utility.mean, 0)
    assert worth.better is better
    assert (worth.lead > worth.lead_error > 0) is better
    alone = judge(recording.select(slice(0, 1)), SeedPruning(), BUDGETS, utility.mean, 0)
    assert np.isnan(alone.error)
    assert np.isnan(alone.lead_error)
    assert not alone.better
    two = judge(recording, SeedPruning(), BUDGETS[:2], utility.mean, 0)
    assert np.isnan([two.omega, two.error, two.lead]).all()
    assert two.ahead == (0, 0), "the default, over itself"


def test_a_schedule_that_wants_more_seeds_than_were_recorded_is_told() -> None:
    """A check at step 3 costs 4 evaluations: 160 pay for 31 seeds of which one in a hundred goes on for 16 more, so
    that 30 recorded ones fall short and 40 do not."""
    schedule = SeedPruning(None, (0.01,), steps=(3,))
    (few, enough) = (planted(3, seeds=n) for n in (30, 40))
    assert short_of_seeds(few, schedule, ["40nfe", "80nfe", "160nfe"]) == Budget(nfe=160)
    assert short_of_seeds(enough, schedule, ["40nfe", "80nfe", "160nfe"]) is None
    # A number of its own is no reason to keep silent, and may be more than a budget pays for.
    given = dataclasses.replace(schedule, n=500)
    assert short_of_seeds(few, given, ["40nfe", "80nfe", "160nfe"]) == Budget(nfe=160)
    assert short_of_seeds(few, dataclasses.replace(schedule, n=few.seeds), ["160nfe"]) is None
    assert short_of_budget(few, given, ["40nfe", "80nfe", "160nfe"]) == Budget(nfe=160)
    assert short_of_budget(few, dataclasses.replace(schedule, n=1), ["40nfe", "160nfe"]) is None
    assert short_of_budget(few, schedule, ["40nfe"]) is None


def test_the_lead_is_paired() -> None:
    """The same curve twice has no lead and no error, however much prompts differ."""
    recording = planted(5)
    base = best_of_n_curve(recording, BUDGETS)
    mine = curve(recording, SeedPruning(), BUDGETS, 20)
    assert lead(mine, mine, base) == pytest.approx((0, 0), abs=1e-9)
    assert compare(mine, base, recording).error > 1


def test_all_rewards_of_a_recording_are_billed() -> None:
    """The reward that is fitted to is made of all recorded ones: a score takes a call of each."""
    scores = np.random.default_rng(0).normal(size=(3, 30, 21, 2))
    grid = Grid(tuple(np.linspace(1, 0, 21).tolist()))
    recording = Recording(("a", "b", "c"), scores, grid, ("p", "q"), price=Price(Rates(1.0, 2.0, 10.0)))
    budgets = ["84flop", "420flop"]
    expected = best_of_n_curve(recording, budgets).spent
    np.testing.assert_array_equal(expected, [84, 420])
    for one in (
        as_one(recording, utility.mean(scores)),
        enlarge(utility.mean(scores), recording, 40, np.random.default_rng(0)),
    ):
        np.testing.assert_array_equal(best_of_n_curve(one, budgets).spent, expected)


def test_only_recorded_steps_are_used_and_all_prompts_where_asked() -> None:
    recorded = (False, False, False, True, False, False, True, *[False] * 13, True)
    found = tune(planted(5, scored=recorded), BUDGETS, trials=8, holdout=0.0)
    assert set(found.schedule.steps or ()) <= {3, 6}
    assert found.held_out is None
    assert found.fitted.default is None  # its step was not recorded
    assert found.fitted.omega > 0
    assert np.isnan(found.fitted.lead)
    assert not found.fitted.better


def test_prompts_kept_out_without_variation_tell_nothing() -> None:
    recording = planted(5)
    recording.scores[14:] = 0.5
    assert tune(recording, BUDGETS, trials=1).held_out is None
    recording.scores[14, :, -1] = recording.scores[0, :, -1]
    assert tune(recording, BUDGETS, trials=1).held_out is not None


def constant(prompts: slice, value: float = 0.3) -> Recording:
    """With one and the same score in these prompts."""
    recording = planted(3)
    recording.scores[prompts] = value
    return recording


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tune(planted(3), BUDGETS, holdout=1.0), "holdout"),
        (lambda: tune(planted(3, prompts=2), BUDGETS, holdout=0.5), "of 2 prompts leaves 1 to fit on"),
        (lambda: tune(planted(3, scored=(False,) * 20 + (True,)), BUDGETS), "there is nothing to prune on"),
        (lambda: tune(planted(3), ["40nfe", "41nfe"], trials=1), "gains nothing"),
        (lambda: tune(planted(3), ["40nfe", "8images", "400nfe"]), "budgets of a curve are in one unit"),
        (lambda: tune(planted(3), BUDGETS, utility=utility.rank_sum), "tune with mean or weights"),
        (lambda: tune(constant(slice(None)), BUDGETS), r"do not vary within any prompt \(20 prompts x 40 seeds\)"),
        (lambda: tune(constant(slice(0, 14)), BUDGETS), r"do not vary within any prompt \(14 prompts x 40 seeds\)"),
        (lambda: tune(constant(slice(0, 1), np.nan), BUDGETS), r"failed \(nan\) scores"),
        (lambda: tune(planted(3), ["10nfe"], trials=1), "too small for one image"),
    ],
)
def test_bad_input_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
