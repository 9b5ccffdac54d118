"""Tuning finds what was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ttsnap.replay import Recording
from ttsnap.simulate import best_of_n_curve, curve
from ttsnap.tune import tune
from ttsnap.types import Grid

BUDGETS = ["40nfe", "80nfe", "160nfe"]


def planted(informative: int, prompts: int = 20, seeds: int = 40, **details: Any) -> Recording:
    """Scores that say nothing before a step and everything from it on."""
    rng = np.random.default_rng(0)
    final = rng.normal(size=(prompts, seeds, 1))
    scores = np.where(np.arange(21) < informative, rng.normal(size=(prompts, seeds, 21)), final)
    names = tuple(f"{i}" for i in range(prompts))
    return Recording(names, scores[..., None], Grid(tuple(np.linspace(1, 0, 21).tolist())), ("r",), **details)


@pytest.mark.parametrize("step", [3, 8])
def test_the_planted_step_is_found(step: int) -> None:
    recording, calls = planted(step), []
    found = tune(recording, BUDGETS, trials=80, seed=1, on_progress=lambda *a: calls.append(a))
    assert found.schedule.steps is not None
    assert found.schedule.steps[0] == step  # at once, and no cut before
    assert np.prod(found.schedule.keep) < 0.3
    assert calls == [(i, 80) for i in range(80)]
    assert found.tried == 80
    # Judged on the six prompts that were kept out as well, and not by the same number.
    assert found.held_out != found.fitted
    assert found.fitted > 0.2
    assert found.held_out > 2 * found.error > 0
    rest = recording.select(slice(14, None))
    mine, base = curve(rest, found.schedule, BUDGETS, 60).mean, best_of_n_curve(rest, BUDGETS).mean
    assert found.held_out == pytest.approx((mine - base).sum() / (base - base[0]).sum(), abs=0.1)
    again = tune(recording, BUDGETS, trials=80, seed=1)
    assert (again.schedule, again.fitted, again.held_out) == (found.schedule, found.fitted, found.held_out)


def test_only_recorded_steps_are_used_and_all_prompts_where_asked() -> None:
    recorded = (False, False, False, True, False, False, True, *[False] * 13, True)
    found = tune(planted(5, scored=recorded), BUDGETS, trials=20, holdout=0.0)
    assert set(found.schedule.steps or ()) <= {3, 6}
    assert np.isnan(found.held_out)
    assert np.isnan(found.error)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tune(planted(3), BUDGETS, holdout=1.0), "holdout"),
        (lambda: tune(planted(3, prompts=2), BUDGETS, holdout=0.5), "of 2 prompts leaves 1 to fit on"),
        (lambda: tune(planted(3, scored=(False,) * 20 + (True,)), BUDGETS), "there is nothing to prune on"),
        (lambda: tune(planted(3), ["40nfe", "41nfe"], trials=1), "gains nothing"),
        (lambda: tune(planted(3), ["10nfe"], trials=1), "too small for one image"),
    ],
)
def test_bad_input_is_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
