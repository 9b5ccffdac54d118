"""Recordings that hold drafts: the priced policy, its calibration, tuning and simulation on them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsnap import SeedPruning, search
from ttsnap.algorithms.pricing.forecast import Forecast
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.algorithms.pricing.reservation import costs_of
from ttsnap.cli import main
from ttsnap.core import utility
from ttsnap.core.cost import Price, Rates
from ttsnap.core.grid import Grid, Task
from ttsnap.core.looks import EstimatorAt, estimates
from ttsnap.core.needs import Need
from ttsnap.loop.budget import Budget, task_of
from ttsnap.recordings.folder import save_recording
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.simulation.calibrate import calibrate, enlarge, recorded_checks
from ttsnap.simulation.lockstep import lockstep
from ttsnap.simulation.orders import Orders
from ttsnap.simulation.simulate import best_of_n_curve, curve
from ttsnap.simulation.sizing import sized_for
from ttsnap.simulation.tune import tune

GRID = Grid(tuple(np.linspace(1, 0, 11).tolist()))
SETTLING = np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
"""Correlation of the estimates' scores with the final one."""
PRICE = Price(passes_per_nfe=2, passes_per_draft=1)
IN_FLOPS = Price(Rates(nfe=10.0, decodes=2.0, reward_calls=1.0, draft_calls=4.0), passes_per_nfe=2, passes_per_draft=1)


def recording(
    prompts: int = 25, seeds: int = 30, *, one: float = 0.6, two: float = 0.75, seed: int = 0, price: Price = PRICE
) -> Recording:
    """Scores that settle on the final one; drafts of one and two calls correlate with it so well."""
    rng = np.random.default_rng(seed)
    level, spread = rng.normal(size=(prompts, 1, 1)), np.exp(0.3 * rng.normal(size=(prompts, 1, 1)))
    final, known = rng.normal(size=(prompts, seeds, 1)), np.array([*SETTLING, one, two])
    noise = rng.normal(size=(prompts, seeds, len(known)))
    columns = (level + spread * (known * final + np.sqrt(1 - known**2) * noise))[..., None]
    looks = {EstimatorAt("draft:1", 0): columns[:, :, 11], EstimatorAt("draft:2", 0): columns[:, :, 12]}
    names = tuple(f"{i:03d}" for i in range(prompts))
    return Recording(names, columns[:, :, :11], GRID, ("r",), price=price, looks=looks)


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return calibrate(recording(15, seed=9), images=(3,), seeds=30)


def in_order(r: Recording, n: int) -> Any:
    """Each prompt's first n seeds, as the loop takes them."""
    draws = np.tile(np.arange(r.seeds, dtype=np.float32), (len(r.prompts), 1))
    return Orders(draws).play(r, n)


@pytest.mark.parametrize("decodes", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("kind", ["flops", "seconds"])
def test_pruning_after_drafts_keeps_to_caps_in_which_decodes_are_dear(kind: str, decodes: float) -> None:
    """Drafts leave more seeds the dearer decodes are, and the number of seeds that a budget affords knows that."""
    rates = dataclasses.replace(IN_FLOPS.flops, decodes=decodes)
    price = dataclasses.replace(IN_FLOPS, **{kind: rates})
    r = recording(4, price=price)
    schedule = SeedPruning(keep=(0.5,), steps=(4,))
    for amount in (250, 500, 900):
        budget = Budget(**{kind: amount})
        task, sized = sized_for(r, schedule, budget)
        assert isinstance(sized, SeedPruning)
        assert sized.n is not None
        assert sized.n > 1
        loop = search(r.prompts, sized, ReplayEngine(r), budget)
        out = lockstep(sized, in_order(r, sized.n), 4, task)
        assert (out.paid.spent(task) <= task.allowance * (1 + 1e-9)).all()
        assert out.paid.nfe.tolist() == [x.spent.cost.nfe for x in loop]
        assert out.paid.drafts.tolist() == [x.spent.cost.draft_calls for x in loop]
        assert out.winner.tolist() == [x.best.seed for x in loop]


# --- the priced policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["11nfe", "37nfe", "90nfe", "600nfe"])
@pytest.mark.parametrize("shared", [False, True])
def test_priced_lockstep_with_drafts_is_the_loop(forecast: Forecast, budget: str, shared: bool) -> None:
    r = recording(3)
    engine, algorithm = ReplayEngine(r), PriceOfCompute(forecast, n=30, price=0.02 if shared else None)
    loop = search(r.prompts, algorithm, engine, budget, shared=shared)
    task = task_of(Budget.parse(budget), engine, shared=shared)
    out = lockstep(algorithm, in_order(r, 30), 3, task, pot=3 if shared else None)
    assert out.winner.tolist() == [x.best.seed for x in loop]
    assert out.paid.nfe.tolist() == [x.spent.cost.nfe for x in loop]
    assert out.paid.drafts.tolist() == [x.spent.cost.draft_calls for x in loop]
    assert out.paid.scored.tolist() == [x.spent.cost.decodes for x in loop]
    assert out.paid.drafts.sum() > 3
    assert (out.paid.nfe + out.paid.drafts / 2).sum() <= 3 * task.allowance
    assert out.paid.spent(task).tolist() == (out.paid.nfe + out.paid.drafts / 2).tolist()


@pytest.mark.parametrize(("shared", "estimates_take"), [(False, "decode"), (True, "preview")])
def test_in_flops_drafts_have_their_own_price(forecast: Forecast, shared: bool, estimates_take: Any) -> None:
    price = dataclasses.replace(
        IN_FLOPS, flops=dataclasses.replace(IN_FLOPS.flops, previews=0.5), estimates=estimates_take
    )
    r = recording(3, price=price)
    engine, algorithm = ReplayEngine(r), PriceOfCompute(forecast, n=30, price=0.02 if shared else None)
    loop = search(r.prompts, algorithm, engine, "500flop", shared=shared)
    task = task_of(Budget(flops=500), engine, shared=shared)
    assert task.draft_cost == pytest.approx(0.4)
    out = lockstep(algorithm, in_order(r, 30), 3, task, pot=3 if shared else None)
    assert out.winner.tolist() == [x.best.seed for x in loop]
    np.testing.assert_allclose(10 * out.paid.spent(task), [x.spent.flops for x in loop])
    assert out.paid.drafts.tolist() == [x.spent.cost.draft_calls for x in loop]


def test_costs_of_checks_are_those_of_their_looks(forecast: Forecast) -> None:
    task = Task(GRID, score_cost=0.3, check_cost=0.2, draft_calls=1, draft_cost=0.5)
    checks = (
        EstimatorAt("draft:2", 0),
        EstimatorAt("estimate", 2),
        EstimatorAt("draft:1", 4),
        *estimates(10),
    )
    costs, finish = costs_of(dataclasses.replace(forecast, checks=checks), task)
    # A draft of two calls; three evaluations; one step on to 4, the second being paid, and a call; six to the end.
    np.testing.assert_allclose(costs, [1 + 0.2, 3 + 0.2, 1 + 0.5 + 0.2, 6 + 0.3])
    np.testing.assert_allclose(finish, [10.3, 10.3, 7.3, 6.3, 0])
    plain, _ = costs_of(dataclasses.replace(forecast, checks=estimates(2, 4, 10)), task)
    np.testing.assert_allclose(plain, [3.2, 2.2, 5.3])


def test_drafts_are_worth_their_price_where_they_tell_much() -> None:
    r, other = recording(12, 30, one=0.9, seed=1), recording(16, 40, one=0.9, seed=2)
    drafted, plain = (
        PriceOfCompute(calibrate(r, checks=checks, images=(4,), seeds=30)) for checks in (None, [2, 4, 6, 10])
    )
    for shared in (False, True):
        more, less = (curve(other, a, ["40nfe"], 1, shared=shared) for a in (drafted, plain))
        assert more.mean[0] > less.mean[0] + 0.2
    useless = PriceOfCompute(calibrate(recording(40, 30, one=0.0, seed=1), images=(4,), seeds=30))
    nothing = recording(40, 40, one=0.0, seed=2)
    assert curve(nothing, useless, ["40nfe"], 1).mean[0] > best_of_n_curve(nothing, ["40nfe"]).mean[0]


def test_calibration_begins_with_the_cheapest_draft_and_knows_what_it_tells(forecast: Forecast) -> None:
    assert forecast.checks == (EstimatorAt("draft:1", 0), *estimates(1, 2, 3, 4, 6, 7, 8, 10))
    assert PriceOfCompute(forecast).needs == {Need.DRAFT}
    wide = calibrate(recording(200, 40, seed=3), checks=["draft:2@0", 4, 10], images=(1,), seeds=40)
    # Of its variance within a prompt, a draft of two calls explains .75^2, as far as the regression knows.
    assert np.var(wide.paths[:, 0]) == pytest.approx(0.75**2, abs=0.03)
    assert wide.residual[0] == pytest.approx(1, abs=0.05)
    with pytest.raises(ValueError, match="recording: draft:1@0, draft:2@0"):
        calibrate(recording(), checks=["draft:3@0", 4, 10])


def test_the_price_of_a_pot_hangs_on_what_drafts_cost() -> None:
    r, checks = recording(8, 12), ["draft:1@0", 10]
    by_passes, dear = (
        calibrate(r, checks=checks, draft_cost=cost, images=(2,), seeds=24).prices[0, 1] for cost in (None, 2.0)
    )
    assert dear > 1.05 * by_passes  # half an evaluation each, without guidance; dearer ones spend the same pot sooner


def test_a_forecast_with_drafts_survives_its_file(forecast: Forecast) -> None:
    text = json.dumps(forecast.to_json())
    assert json.loads(text)["checks"] == ["draft:1@0", 1, 2, 3, 4, 6, 7, 8, 10]
    again = Forecast.from_json(json.loads(text))
    assert again.checks == forecast.checks
    # Files that were written before there were drafts hold steps only.
    plain = calibrate(recording(6), checks=[2, 4, 10], images=(2,), seeds=30)
    assert plain.to_json()["checks"] == [2, 4, 10]
    assert Forecast.from_json(plain.to_json()).checks == plain.checks == estimates(2, 4, 10)
    assert PriceOfCompute(plain).needs == frozenset()


def test_a_forecast_with_drafts_is_refused_without_a_drafter(forecast: Forecast) -> None:
    bare = dataclasses.replace(recording(), looks={})
    with pytest.raises(ValueError, match="name one: --draft"):
        search(bare.prompts, PriceOfCompute(forecast), ReplayEngine(bare), "90nfe")
    with pytest.raises(ValueError, match="looks at candidates"):
        curve(bare, PriceOfCompute(forecast), ["90nfe"])


def test_drafts_that_cost_nothing_are_bought_first(forecast: Forecast) -> None:
    r = recording(6, price=Price())
    results = search(r.prompts, PriceOfCompute(forecast, n=30), ReplayEngine(r), "40nfe")
    assert min(x.spent.cost.draft_calls for x in results) > 20


def test_enlarging_keeps_what_drafts_tell() -> None:
    r = recording(60, 40, one=0.7)
    wide = enlarge(utility.mean(r.columns), r, 400, np.random.default_rng(0))
    assert list(wide.looks) == list(r.looks)
    for seen, told in ((EstimatorAt("draft:1", 0), 0.7), (EstimatorAt("draft:2", 0), 0.75)):
        assert wide.looks[seen].shape == (60, 400, 1)
        both = np.stack([wide.looks[seen][..., 0], wide.final[..., 0]])
        inside = both - both.mean(-1, keepdims=True)
        assert np.corrcoef(inside.reshape(2, -1))[0, 1] == pytest.approx(told, abs=0.05)
    assert recorded_checks(dataclasses.replace(r, looks={}))[0] == EstimatorAt("estimate", 1)


# --- pruning schedules --------------------------------------------------------------------------------------------

BUDGETS = ["20nfe", "40nfe", "80nfe"]


def test_tuning_drafts_where_they_tell_all_and_finishes_what_they_leave() -> None:
    """The only estimate that was scored besides is that at step 0, which tells next to nothing."""
    r = dataclasses.replace(recording(20, 60, one=0.95), scored=(True, *(False,) * 9, True))
    found = tune(r, BUDGETS, trials=20, checks=2, seeds=40)
    assert found.schedule.draft_share > 0
    assert found.schedule.draft_calls == 1
    assert np.prod(found.schedule.keep) > 0.5  # hardly a check besides
    assert found.held_out is not None
    assert found.held_out.omega > 2 * found.held_out.error > 0


def test_tuning_takes_the_calls_that_tell_and_no_drafts_where_none_do() -> None:
    assert tune(recording(20, 60, one=0.0, two=0.95), BUDGETS, trials=15, checks=2, seeds=40).schedule.draft_calls == 2
    none = tune(recording(20, 60, one=0.0, two=0.0), BUDGETS, trials=20, checks=2, seeds=40).schedule
    assert none.draft_share < 0.06
    whole = tune(recording(20, 60), BUDGETS, trials=3, seeds=40).held_out
    assert whole is not None
    assert np.isfinite(whole.lead)  # over the default, which drafts


def test_tuning_works_on_drafts_alone() -> None:
    r = recording(20, 60, one=0.9)
    blind = dataclasses.replace(r, scored=(False,) * 10 + (True,))
    schedule = tune(blind, BUDGETS, trials=5, seeds=40).schedule
    assert (schedule.keep, schedule.steps) == ((), ())
    assert schedule.draft_share > 0
    assert type(schedule.draft_share) is float  # as it is printed, to be pasted


# --- the command line ---------------------------------------------------------------------------------------------


def test_simulate_shows_pruning_with_drafts_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    r = recording(12, 40, price=IN_FLOPS)
    save_recording(r, tmp_path / "r")
    few = ["--budgets", "300flop", "600flop", "900flop", "--repeats", "3"]
    assert main(["simulate", str(tmp_path / "r"), *few]) == 0
    head, *rows = capsys.readouterr().out.splitlines()[1:]
    assert head.split("  ")[0] == "budget"
    assert [name for name in ("best-of-n", "seed-pruning", "without drafts") if name in head] == [
        "best-of-n", "seed-pruning", "without drafts",
    ]  # fmt: skip
    drafted, plain = (curve(r, SeedPruning(draft_share=share), few[1:4], 3) for share in (0.2, 0.0))
    for i, row in enumerate(rows[:3]):
        assert f"{drafted.mean[i]:.4f}" in row
        assert f"{plain.mean[i]:.4f}" in row
    save_recording(dataclasses.replace(r, looks={}), tmp_path / "bare")
    assert main(["simulate", str(tmp_path / "bare"), *few]) == 0
    assert "without drafts" not in capsys.readouterr().out


@pytest.mark.usefixtures("few_prices")
def test_a_tuned_schedule_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_recording(recording(6, 30, one=0.99), tmp_path / "r")
    assert main(["tune", "r", "--trials", "3", "--budgets", *BUDGETS]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("in Python: "))
    pasted = eval(line.removeprefix("in Python: "), {"SeedPruning": SeedPruning})
    saved = json.loads(Path("tuned.json").read_text())
    assert pasted == SeedPruning(**{name: value for name, value in saved.items() if name != "name"})
    assert pasted.draft_share > 0
    assert f"drafts of 1 call for {pasted.draft_share:.1%} of the cost" in out
    assert main(["simulate", "r", "--algorithms", "tuned.json", "--repeats", "2", "--budgets", *BUDGETS]) == 0
    assert main(["calibrate", "r", "--checks", '["draft:2@0", 4, 10]']) == 0
    assert "draft:2@0: " in capsys.readouterr().out
    priced = ["simulate", "r", "--algorithms", "priced.json", "--repeats", "1", "--budgets", *BUDGETS]
    assert main(priced) == 0
    assert main([*priced, "--shared"]) == 0
