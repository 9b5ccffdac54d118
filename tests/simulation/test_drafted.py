"""Recordings that hold drafts: the priced policy, its calibration, tuning and simulation on
them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ttsnap import Budget, Grid, SeedPruning, search
from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.algorithms.pricing.reservation import costs_of
from ttsnap.cli import main
from ttsnap.core import Need, Price, Rates, Task, utility
from ttsnap.core.looks import EstimatorAt, estimates
from ttsnap.loop.budget import task_of
from ttsnap.options.record import TuneOptions
from ttsnap.recordings.folder import save_recording
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.calibrate import Fit, calibrate, enlarge, priced_task, recorded_checks
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.simulate import curve
from ttsnap.simulation.sizing import sized_for
from ttsnap.simulation.tune import tune

from .test_lockstep import agrees, in_order

GRID = Grid(tuple(np.linspace(1, 0, 11).tolist()))
SETTLING = np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
"""Correlation of the estimates' scores with the final one."""
PRICE = Price(passes_per_nfe=2, passes_per_draft=1)
IN_FLOPS = Price(
    Rates(nfe=10.0, decodes=2.0, reward_calls=1.0, draft_calls=4.0),
    passes_per_nfe=2,
    passes_per_draft=1,
)


def recording(
    prompts=25,
    seeds=30,
    *,
    one=0.6,
    two=0.75,
    seed=0,
    price=PRICE,
):
    """Scores that settle on the final one; drafts of one and two calls correlate with it so
    well."""
    rng = np.random.default_rng(seed)
    level, spread = rng.normal(size=(prompts, 1, 1)), np.exp(0.3 * rng.normal(size=(prompts, 1, 1)))
    final, known = rng.normal(size=(prompts, seeds, 1)), np.array([*SETTLING, one, two])
    noise = rng.normal(size=(prompts, seeds, len(known)))
    columns = (level + spread * (known * final + np.sqrt(1 - known**2) * noise))[..., None]
    looks = {
        EstimatorAt("draft:1", 0): columns[:, :, 11],
        EstimatorAt("draft:2", 0): columns[:, :, 12],
    }
    names = tuple(f"{i:03d}" for i in range(prompts))
    return Recording(names, columns[:, :, :11], GRID, ("r",), price=price, looks=looks)


@pytest.fixture(scope="module")
def forecast():
    return calibrate(recording(15, seed=9), images=(3,), fit=Fit(seeds=30))


@pytest.mark.parametrize("decodes", [0.0, 12.0])
@pytest.mark.parametrize("kind", ["flops", "seconds"])
def test_pruning_after_drafts_keeps_to_caps_in_which_decodes_are_dear(kind, decodes):
    """Drafts leave more seeds the dearer decodes are, and the number of seeds that a budget affords
    knows that."""
    rates = dataclasses.replace(IN_FLOPS.flops, decodes=decodes)
    r = recording(3, price=dataclasses.replace(IN_FLOPS, **{kind: rates}))
    for amount in (250, 900):
        budget = Budget(**{kind: amount})
        task, sized = sized_for(r, SeedPruning(keep=(0.5,), steps=(4,)), budget)
        assert sized.n is not None
        assert sized.n > 1
        out = lockstep(sized, in_order(r, sized.n), 3, task)
        assert (out.paid.spent(task) <= task.allowance * (1 + 1e-9)).all()
        agrees(out, search(r.prompts, sized, ReplayEngine(r), budget))


# --- the priced policy ----------------------------------------------------------------------------

PREVIEWED = dataclasses.replace(
    IN_FLOPS, flops=dataclasses.replace(IN_FLOPS.flops, previews=0.5), estimates="preview"
)


@pytest.mark.parametrize(
    ("budget", "price", "draft"),
    [
        ("11nfe", PRICE, 0.5),
        ("90nfe", PRICE, 0.5),
        ("300nfe", PRICE, 0.5),
        ("500flop", IN_FLOPS, 0.4),
        ("500flop", PREVIEWED, 0.4),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_priced_lockstep_with_drafts_is_the_loop(forecast, budget, price, draft, shared):
    r = recording(3, 16, price=price)
    engine, algorithm = (
        ReplayEngine(r),
        PriceOfCompute(forecast, n=16, price=0.02 if shared else None),
    )
    loop = search(r.prompts, algorithm, engine, budget, shared=shared)
    task = task_of(Budget.parse(budget), engine, shared=shared)
    assert task.draft_cost == pytest.approx(draft)
    out = lockstep(algorithm, in_order(r, 16), 3, task, pot=3 if shared else None)
    agrees(out, loop)
    assert out.paid.drafts.sum() > 3
    spent = out.paid.spent(task)
    assert spent.sum() <= 3 * task.allowance
    in_flops = [x.spent.flops / 10 for x in loop]
    np.testing.assert_allclose(
        spent, in_flops if "flop" in budget else out.paid.nfe + out.paid.drafts / 2
    )


def test_costs_of_checks_are_those_of_their_looks(forecast):
    task = Task(GRID, score_cost=0.3, check_cost=0.2, draft_calls=1, draft_cost=0.5)
    checks = (
        EstimatorAt("draft:2", 0),
        EstimatorAt("estimate", 2),
        EstimatorAt("draft:1", 4),
        *estimates(10),
    )
    costs, finish = costs_of(dataclasses.replace(forecast, checks=checks), task)
    # A draft of two calls; three evaluations; one step on to 4, the second being paid, and a call;
    # six to the end.
    np.testing.assert_allclose(costs, [1 + 0.2, 3 + 0.2, 1 + 0.5 + 0.2, 6 + 0.3])
    np.testing.assert_allclose(finish, [10.3, 10.3, 7.3, 6.3, 0])
    plain, _ = costs_of(dataclasses.replace(forecast, checks=estimates(2, 4, 10)), task)
    np.testing.assert_allclose(plain, [3.2, 2.2, 5.3])


def test_drafts_are_worth_their_price_where_they_tell_much():
    r, other = recording(8, 24, one=0.95, seed=1), recording(12, 24, one=0.95, seed=2)
    drafted, plain = (
        PriceOfCompute(calibrate(r, checks=checks, images=(4,), fit=Fit(seeds=24)))
        for checks in (None, [2, 4, 6, 10])
    )
    more, less = (curve(other, a, ["40nfe"], 1).mean[0] for a in (drafted, plain))
    assert more > less + 0.2


def test_calibration_begins_with_the_cheapest_draft_and_knows_what_it_tells(
    forecast,
):
    assert forecast.checks == (EstimatorAt("draft:1", 0), *estimates(1, 2, 3, 4, 6, 7, 8, 10))
    text = json.dumps(forecast.to_json())
    assert json.loads(text)["checks"] == ["draft:1@0", 1, 2, 3, 4, 6, 7, 8, 10]
    assert Forecast.from_json(json.loads(text)).checks == forecast.checks
    assert PriceOfCompute(forecast).needs == {Need.DRAFT}
    wide = calibrate(
        recording(100, 40, seed=3), checks=["draft:2@0", 4, 10], images=(1,), fit=Fit(seeds=40)
    )
    # Of its variance within a prompt, a draft of two calls explains .75^2, as far as the regression
    # knows.
    assert np.var(wide.paths[:, 0]) == pytest.approx(0.75**2, abs=0.04)
    assert wide.residual[0] == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="recording: draft:1@0, draft:2@0"):
        calibrate(recording(), checks=["draft:3@0", 4, 10])


def test_the_price_of_a_pot_hangs_on_what_drafts_cost():
    r, checks = recording(4, 12), ["draft:1@0", 10]
    by_passes, dear = (
        calibrate(r, checks=checks, costs=cost, images=(2,), fit=Fit(seeds=12)).prices[0, 1]
        for cost in (None, dataclasses.replace(priced_task(r), draft_cost=2.0))
    )
    # half an evaluation each, without guidance; dearer ones spend the same pot sooner
    assert dear > 1.05 * by_passes


def test_a_forecast_with_drafts_is_refused_without_a_drafter(forecast):
    bare = dataclasses.replace(recording(), looks={})
    with pytest.raises(ValueError, match="name one: --draft"):
        search(bare.prompts, PriceOfCompute(forecast), ReplayEngine(bare), "90nfe")
    with pytest.raises(ValueError, match="looks at"):
        curve(bare, PriceOfCompute(forecast), ["90nfe"])


def test_drafts_that_cost_nothing_are_bought_first(forecast):
    r = recording(2, price=Price())
    results = search(r.prompts, PriceOfCompute(forecast, n=30), ReplayEngine(r), "40nfe")
    assert min(x.spent.cost.draft_calls for x in results) > 20


def test_enlarging_keeps_what_drafts_tell():
    r = recording(60, 40, one=0.7)
    wide = enlarge(utility.mean(r.columns), r, 400, np.random.default_rng(0))
    assert list(wide.looks) == list(r.looks)
    assert wide.scores.shape == (60, 400, 11, 1)
    np.testing.assert_allclose(wide.scores.mean(1), r.scores.mean(1), atol=0.4)
    np.testing.assert_allclose(wide.final.std(1), r.final.std(1), rtol=0.2)
    for seen, told in ((EstimatorAt("draft:1", 0), 0.7), (EstimatorAt("draft:2", 0), 0.75)):
        assert wide.looks[seen].shape == (60, 400, 1)
        both = np.stack([wide.looks[seen][..., 0], wide.final[..., 0]])
        inside = both - both.mean(-1, keepdims=True)
        assert np.corrcoef(inside.reshape(2, -1))[0, 1] == pytest.approx(told, abs=0.05)
    assert recorded_checks(dataclasses.replace(r, looks={}))[0] == EstimatorAt("estimate", 1)


# --- pruning schedules ----------------------------------------------------------------------------

BUDGETS = ["20nfe", "40nfe", "80nfe"]


@pytest.mark.parametrize(
    ("told", "trials", "calls"), [((0.95, 0.75), 15, 1), ((0.0, 0.95), 30, 2), ((0, 0), 15, None)]
)
def test_tuning_takes_the_drafts_that_tell_and_finishes_what_they_leave(told, trials, calls):
    """The only estimate that was scored besides is that at step 0, which tells next to nothing."""
    r = dataclasses.replace(
        recording(15, 40, one=told[0], two=told[1]), scored=(True, *(False,) * 9, True)
    )
    found = tune(r, BUDGETS, TuneOptions(trials=trials, checks=2), fit=Fit(seeds=40))
    if calls is None:
        assert found.schedule.draft_share < 0.06
        return
    assert found.schedule.draft_calls == calls
    assert np.prod(found.schedule.keep) > 0.5  # hardly a check besides
    assert found.held_out is not None
    assert found.held_out.omega > 2 * found.held_out.error > 0


def test_tuning_works_on_drafts_alone_and_is_printed_to_be_pasted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blind = dataclasses.replace(recording(6, 30, one=0.95), scored=(False,) * 10 + (True,))
    save_recording(blind, tmp_path / "r")
    assert main(["tune", "r", "--trials", "3", "--budgets", *BUDGETS]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("in Python: "))
    pasted = eval(line.removeprefix("in Python: "), {"SeedPruning": SeedPruning})
    saved = json.loads(Path("tuned.json").read_text())
    assert pasted == SeedPruning(**{name: value for name, value in saved.items() if name != "name"})
    assert (pasted.keep, bool(pasted.steps), type(pasted.draft_share)) == ((), False, float)
    assert f"drafts of {pasted.draft_calls} call" in out
    assert f"{pasted.draft_share:.1%} of the cost" in out


def test_simulate_shows_pruning_with_drafts_and_without(tmp_path, capsys):
    r = recording(6, 30, price=IN_FLOPS)
    few = ["--budgets", "300flop", "600flop", "900flop", "--repeats", "2"]
    save_recording(r, tmp_path / "r")
    assert main(["simulate", str(tmp_path / "r"), *few]) == 0
    head, _, *rows = [line for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert head.index("best-of-n") < head.index("seed-pruning") < head.index("without drafts")
    for share in (0.2, 0.0):
        found = curve(r, SeedPruning(draft_share=share), few[1:4], 2)
        assert all(f"{mean:.4f}" in row for mean, row in zip(found.mean, rows, strict=False))
    save_recording(dataclasses.replace(r, looks={}), tmp_path / "bare")
    assert main(["simulate", str(tmp_path / "bare"), *few]) == 0
    assert "without drafts" not in capsys.readouterr().out
