"""Tuning finds what was planted."""

from __future__ import annotations

import dataclasses
import os
import signal
from typing import Any

import numpy as np
import pytest

from ttsnap import Budget, Grid, SeedPruning
from ttsnap.core import Price, Rates, utility
from ttsnap.options.record import TuneOptions
from ttsnap.recordings.replay import Recording
from ttsnap.simulation import tune as tuning
from ttsnap.simulation.calibrate import Fit, as_one, enlarge
from ttsnap.simulation.schedules import Space, change, draw
from ttsnap.simulation.simulate import best_of_n_curve, compare, curve, lead
from ttsnap.simulation.sizing import short_of_budget, short_of_seeds
from ttsnap.simulation.tune import judge, tune

BUDGETS = ["40nfe", "80nfe", "160nfe"]


def planted(informative, prompts=20, seeds=40, **details):
    """Scores that say nothing before a step and everything from it on."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(prompts, seeds, 1))
    scores = np.where(np.arange(21) < informative, rng.normal(size=(prompts, seeds, 21)), final)
    names = tuple(f"{i}" for i in range(prompts))
    return Recording(
        names, scores[..., None], Grid(tuple(np.linspace(1, 0, 21).tolist())), ("r",), **details
    )


def test_the_planted_step_is_found(monkeypatch):
    monkeypatch.setattr(tuning, "SEARCHES", 200)
    step, seed, recording, calls = 3, 1, planted(3), list[Any]()
    found = tune(
        recording,
        BUDGETS,
        TuneOptions(trials=50),
        fit=Fit(seed=seed, on_progress=lambda *a: calls.append(a)),
    )
    assert found.schedule.steps is not None
    assert found.schedule.steps[0] == step  # at once, and no cut before
    assert np.prod(found.schedule.keep) < 0.3
    assert calls == [(i, 50) for i in range(1, 51)]
    assert found.tried == 50
    # Judged on the six prompts that were kept out, on their recorded seeds, as `ttsnap simulate`
    # does it.
    rest, worth = recording.select(slice(14, None)), found.held_out
    assert worth is not None
    mine, base = curve(rest, found.schedule, BUDGETS, 20, seed=seed), best_of_n_curve(rest, BUDGETS)
    default = curve(rest, SeedPruning(), BUDGETS, 20, seed=seed)
    for seen, expected in ((worth.schedule, mine), (worth.base, base), (worth.default, default)):
        np.testing.assert_array_equal(seen.rewards, expected.rewards)
    versus, other = compare(mine, base, rest), compare(default, base, rest)
    assert lead(mine, mine, base) == pytest.approx((0, 0), abs=1e-9)  # paired
    assert (worth.omega, worth.error) == (versus.omega, versus.error)
    assert worth.omega > 2 * worth.error > 0
    assert worth.lead == pytest.approx(versus.omega - other.omega)
    assert found.fitted.omega != worth.omega


@pytest.mark.parametrize("informative", [True, False], ids=["the default is best", "nothing is"])
def test_nothing_that_loses_is_returned(informative, monkeypatch):
    """All that is tried keeps one in twenty by scores that say nothing."""
    poor = SeedPruning(None, (0.05,), steps=(0,), denoising_steps=20)
    monkeypatch.setattr("ttsnap.simulation.tune.draw", lambda rng, space: poor)
    monkeypatch.setattr("ttsnap.simulation.tune.change", lambda rng, schedule, space: poor)
    recording = planted(8 if informative else 20)
    assert judge(recording, poor, BUDGETS).loses
    found = tune(recording, BUDGETS, TuneOptions(trials=2))
    assert (found.schedule.steps, found.schedule.keep) == (
        ((8,), (0.3,)) if informative else ((), ())
    )
    assert not found.fitted.loses
    assert (found.fitted.omega > 0, found.fitted.lead > 0) == (informative, not informative)
    assert not tune(
        recording, BUDGETS[:1], TuneOptions(trials=2)
    ).fitted.loses  # too few for an omega


def test_what_was_interrupted_goes_on_and_ends_as_undisturbed(tmp_path, ctrl_c):
    whole, kept = tune(planted(3), BUDGETS, TuneOptions(trials=10)), tmp_path / "tried"
    calls = []

    def interrupted(done, of):
        calls.append(done)
        if len(calls) in (3, 8):
            os.kill(os.getpid(), signal.SIGINT)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(
                planted(3),
                BUDGETS,
                TuneOptions(trials=10),
                kept_in=kept,
                fit=Fit(on_progress=interrupted),
            )
    judged = []
    found = tuning._Judge.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tuning._Judge, "__call__", lambda self, s: (judged.append(s), found(self, s))[1]
        )
        again = tune(planted(3), BUDGETS, TuneOptions(trials=10), kept_in=kept)
    assert calls == [1, 2, 3, 1, 2, 3, 4, 5]
    assert len(judged) == 10 - 5 + tuning.FINALISTS + 2
    assert (again.schedule, again.fitted.omega) == (whole.schedule, whole.fitted.omega)
    with pytest.raises(ValueError, match="10 trials"):
        tune(planted(3), BUDGETS, TuneOptions(trials=11), kept_in=kept)


@pytest.mark.parametrize(("step", "better"), [(2, True), (8, False), (12, False)])
def test_better_is_what_beats_the_default_by_more_than_the_error(step, better):
    """The default checks at step 8 of 20: too late where scores tell all from step 2 on, not where
    from step 8."""
    recording = planted(min(step, 8))
    worth = judge(recording, SeedPruning(None, (0.3,), steps=(step,)), BUDGETS)
    assert worth.better is better
    assert (worth.lead > worth.lead_error > 0) is better
    alone = judge(recording.select(slice(0, 1)), SeedPruning(), BUDGETS)
    assert np.isnan(alone.error)
    assert np.isnan(alone.lead_error)
    assert not alone.better
    two = judge(recording, SeedPruning(), BUDGETS[:2])
    assert np.isnan([two.omega, two.error, two.lead]).all()
    assert two.ahead == (0, 0), "the default, over itself"


def test_a_schedule_that_wants_more_seeds_than_were_recorded_is_told():
    """A check at step 3 costs 4 evaluations: 160 pay for 31 seeds of which one in a hundred goes on
    for 16 more, so that 30 recorded ones fall short and 40 do not."""
    schedule = SeedPruning(None, (0.01,), steps=(3,))
    (few, enough) = (planted(3, seeds=n) for n in (30, 40))
    assert short_of_seeds(few, schedule, BUDGETS) == Budget(nfe=160)
    assert short_of_seeds(enough, schedule, BUDGETS) is None
    # A number of its own is no reason to keep silent, and may be more than a budget pays for.
    given = dataclasses.replace(schedule, n=500)
    assert short_of_seeds(few, given, BUDGETS) == Budget(nfe=160)
    assert short_of_seeds(few, dataclasses.replace(schedule, n=30), BUDGETS) is None
    assert short_of_budget(few, given, BUDGETS) == Budget(nfe=160)
    assert short_of_budget(few, dataclasses.replace(schedule, n=1), ["40nfe", "160nfe"]) is None
    assert short_of_budget(few, schedule, ["40nfe"]) is None


def test_all_rewards_of_a_recording_are_billed():
    """The reward that is fitted to is made of all recorded ones: a score takes a call of each."""
    scores, grid = np.random.default_rng(0).normal(size=(3, 30, 21, 2)), planted(3).grid
    both = Recording(("a", "b", "c"), scores, grid, ("p", "q"), price=Price(Rates(1.0, 2.0, 10.0)))
    one = utility.mean(scores)
    for recording in (both, as_one(both, one), enlarge(one, both, 40, np.random.default_rng(0))):
        np.testing.assert_array_equal(
            best_of_n_curve(recording, ["84flop", "420flop"]).spent, [84, 420]
        )


def test_only_recorded_steps_are_used_and_all_prompts_where_asked():
    recorded = tuple(k in (3, 6, 20) for k in range(21))
    found = tune(planted(5, scored=recorded), BUDGETS, TuneOptions(trials=4, holdout=0.0))
    assert set(found.schedule.steps or ()) <= {3, 6}
    assert found.held_out is None
    assert found.fitted.default is None  # its step was not recorded
    assert found.fitted.omega > 0
    assert np.isnan(found.fitted.lead)
    assert not found.fitted.better


def test_prompts_kept_out_without_variation_tell_nothing():
    recording = planted(5, prompts=5, seeds=20)
    recording.scores[4:] = 0.5
    assert tune(recording, BUDGETS, TuneOptions(trials=1)).held_out is None
    recording.scores[4, :, -1] = recording.scores[0, :, -1]
    assert tune(recording, BUDGETS, TuneOptions(trials=1)).held_out is not None


def constant(prompts, value=0.3):
    """With one and the same score in these prompts."""
    recording = planted(3)
    recording.scores[prompts] = value
    return recording


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: tune(planted(3), BUDGETS, TuneOptions(holdout=1.0)), "holdout"),
        (
            lambda: tune(planted(3, prompts=2), BUDGETS, TuneOptions(holdout=0.5)),
            "of 2 prompts leaves 1",
        ),
        (lambda: tune(planted(3, scored=(False,) * 20 + (True,)), BUDGETS), "nothing to prune on"),
        (lambda: tune(planted(3), ["40nfe", "41nfe"], TuneOptions(trials=1)), "gains nothing"),
        (lambda: tune(planted(3), ["40nfe", "8images", "400nfe"]), "in one unit"),
        (lambda: tune(planted(3), BUDGETS, fit=Fit(utility=utility.rank_sum)), "mean or weights"),
        (lambda: tune(constant(slice(None)), BUDGETS), "20 prompts x 40 seeds"),
        (lambda: tune(constant(slice(0, 14)), BUDGETS), "14 prompts x 40 seeds"),
        (lambda: tune(constant(slice(0, 1), np.nan), BUDGETS), r"failed \(nan\)"),
        (lambda: tune(planted(3), ["10nfe"], TuneOptions(trials=1)), "too small for one image"),
    ],
)
def test_bad_input_is_named(build, said):
    with pytest.raises(ValueError, match=said):
        build()


@pytest.mark.parametrize(
    ("steps", "drafts"), [((), (1, 2)), ((2, 3, 5, 8), ()), ((2, 3, 5, 8), (1, 2))]
)
def test_schedules_stay_within_their_space_and_come_to_all_of_it(steps, drafts):
    rng, space, seen = (
        np.random.default_rng(0),
        Space(np.array(steps, int), 3, drafts),
        list[SeedPruning](),
    )
    for i in range(600):
        seen.append(change(rng, seen[-1], space) if i % 20 else draw(rng, space))
        assert all(0.05 <= share <= 0.98 for share in seen[-1].keep)
        draft_share = seen[-1].settled().draft_share
        assert seen[-1].keep or draft_share
        assert 0.03 <= draft_share <= 0.8 or (drafts and steps)
    assert {k for one in seen for k in one.steps or ()} == set(steps)
    assert {len(one.keep) for one in seen} == {*range(0 if drafts else 1, 4 if steps else 1)}
    assert {one.draft_calls for one in seen if one.draft_share != 0} == set(drafts or [None])
    assert {one.draft_share != 0 for one in seen} == ({True, False} if drafts and steps else {True})
