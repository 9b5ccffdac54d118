"""Drafts that are finished: what they cost, that the ledger counts them as they run, and known answers at both ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.engine.test_drafts import Drafting, bright
from ttsnap import BestOfN, SeedPruning, make_algorithm, search
from ttsnap.algorithms.pricing.fitting import fit
from ttsnap.algorithms.pricing.price_of_compute import PriceOfCompute
from ttsnap.core.cost import Cost
from ttsnap.core.looks import estimates
from ttsnap.core.plans import image_cost
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions
from ttsnap.options.record import RecordOptions
from ttsnap.options.sampler import Finish, SamplerOptions
from ttsnap.recordings.folder import load_recording, save_recording
from ttsnap.recordings.record import record
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.sampling.rng import seeded
from ttsnap.simulation.simulate import curve

STEPS = 8


class Finishing(Drafting):
    """Begins at step `begin` of eight from the drafts of a perfect drafter with an error, put back by the noise."""

    def __init__(self, begin: int, error: float = 0.0, calls: int = 1) -> None:
        mixture = torch.randn(4, 3, generator=seeded(0)), torch.full((4,), 0.3), torch.tensor([0.1, 0.2, 0.3, 0.4])
        self.whole = Drafting(*mixture, steps=STEPS, error=error)
        super().__init__(*mixture, steps=self.whole.times[begin:], error=error)
        self.grid = replace(self.grid, image_nfe=STEPS)
        start = SimpleNamespace(level=0.9 / calls, begin=self.started)
        self.drafts = SimpleNamespace(calls=calls, passes=1, guess=self.guess, level=self.level, start=start)

    def encode(self, prompts: Any) -> None:
        super().encode(prompts)
        self.whole.encode(prompts)

    def started(self, noise: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        self.drafted += self.drafts.calls * len(noise)
        guess = self.whole.guess(noise, torch.zeros(len(noise), dtype=torch.long), cond, self.drafts.calls)
        return guess, (1 - self.times[0]) * guess + self.times[0] * noise


def made(begin: int = 4, error: float = 1.0, batch: int = 4, calls: int = 1) -> LiveEngine:
    return LiveEngine(Finishing(begin, error, calls), [bright()], EngineOptions(batch))


def counts(live: LiveEngine) -> tuple[int, int, int]:
    denoiser = live.denoiser
    assert isinstance(denoiser, Finishing)
    return denoiser.calls, denoiser.drafted, denoiser.decodes


def test_a_perfect_draft_ends_as_its_seed_does() -> None:
    """x0 estimates of a drafter without error: put back by the seed's noise, they lie on the line to its end, from
    which few steps end near it; the nearer to the end they begin, the nearer."""
    (plain,) = search(["a"], BestOfN(6), LiveEngine(Finishing(0).whole, [bright()]), keep=6)
    ends = {c.seed: c.pixels for c in plain.images}
    off = []
    for begin in (4, 7):
        (finished,) = search(["a"], BestOfN(6), made(begin, error=0.0), keep=6)
        off.append(max(float((c.pixels - ends[c.seed]).abs().max()) for c in finished.images))
    assert off[1] < off[0] < 0.1
    assert off[1] < 0.05


def test_a_draft_put_back_to_no_noise_is_the_draft() -> None:
    live = made(7)
    noise = live.denoiser.init_latents([seeded(s) for s in range(5)])
    live.denoiser.times[0] = 0.0  # type: ignore[union-attr]
    guess, begun = live.denoiser.drafts.start.begin(noise, torch.zeros(5, dtype=torch.long))  # type: ignore[union-attr]
    assert torch.equal(begun, guess)


@given(
    algorithm=st.sampled_from(["seed-pruning", "best-of-n", "epsilon-greedy", "zero-order", "evolution"]),
    seeds=st.integers(1, 12),
    share=st.floats(0.05, 0.9),
    begin=st.integers(1, 7),
    calls=st.integers(1, 2),
    budget=st.integers(9, 90),
    batch=st.integers(1, 7),
    stop_after=st.none() | st.integers(0, 15),
)
@settings(max_examples=40, deadline=None)
def test_ledger_equals_counter(
    algorithm: str, seeds: int, share: float, begin: int, calls: int, budget: int, batch: int, stop_after: int | None
) -> None:
    live, ticks = made(begin, batch=batch, calls=calls), []
    options = {"n": seeds, "draft_share": share} if algorithm == "seed-pruning" else {}
    method = make_algorithm(algorithm, **options)
    if any(need not in live.offers for need in method.needs):
        return
    results = search(
        ["a", "b"], method, live, f"{budget}nfe",
        on_event=lambda event: ticks.append(event) if event.kind == "tick" else None,
        should_stop=lambda: stop_after is not None and len(ticks) > stop_after,
    )  # fmt: skip
    spent = sum((r.spent.cost for r in results), Cost())
    assert (spent.nfe, spent.draft_calls, spent.decodes) == counts(live)
    assert all(r.spent.nfe <= budget for r in results)
    assert all(r.images for r in results) or stop_after is not None


def test_an_image_is_priced_with_its_draft() -> None:
    live = made(6)
    one = image_cost(live.grid, 1, live.price)
    assert (one.nfe, one.draft_calls) == (2, 1)
    (result,) = search(["a"], BestOfN(), live, "10nfe")
    assert (result.spent.cost.nfe, result.spent.cost.draft_calls, result.spent.nfe) == (8, 4, 10)
    assert Budget.parse("2images").on(live.grid).nfe == 2 * STEPS
    with pytest.raises(ValueError, match="too small"):
        search(["a"], BestOfN(), live, "2nfe")


def test_the_draft_is_looked_at_for_nothing_more() -> None:
    live, events = made(5), list[Any]()
    algorithm = SeedPruning(keep=(), levels=(), draft_share=0.5)
    (result,) = search(["a"], algorithm, live, "60nfe", on_event=events.append)
    drafts, finished = result.spent.cost.draft_calls, result.spent.cost.decodes - result.spent.cost.draft_calls
    assert result.spent.cost.nfe == 3 * finished
    assert drafts / 2 / result.spent.nfe == pytest.approx(0.5, abs=0.05)
    assert {(e.look, e.step) for e in events if e.kind == "score"} == {("draft:1", 0), ("", 3)}


def test_batches_change_nothing() -> None:
    one, many = (search(["a", "b"], SeedPruning(20), made(batch=b)) for b in (1, 9))
    assert [r.best.seed for r in one] == [r.best.seed for r in many]
    assert [r.spent.cost for r in one] == [r.spent.cost for r in many]


def test_gradients_of_initial_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="noise-ascent"):
        search(["a"], make_algorithm("noise-ascent"), made(), "90nfe")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    options = RecordOptions(seeds=30, seed=3, looks=("draft:1@0",), block=(1, 13))
    return record(made(), ["a", "b"], tmp_path_factory.mktemp("recorded") / "r", options)


def test_a_replay_is_the_live_search(recorded: Recording, tmp_path: Path) -> None:
    save_recording(recorded, tmp_path / "r")
    again = load_recording(tmp_path / "r")
    assert (again.grid, again.price) == (recorded.grid, recorded.price)
    assert again.price.begin_calls == 1
    for algorithm in (SeedPruning(), BestOfN()):
        live = search(["a", "b"], algorithm, made(), "30nfe", seed=3)
        replayed = search(["a", "b"], algorithm, ReplayEngine(again), "30nfe", seed=3)
        for x, y in zip(live, replayed, strict=True):
            assert (x.best.seed, x.spent.cost) == (y.best.seed, y.spent.cost)
            assert [(m["uids"], m["stop"]) for m in x.trace] == [(m["uids"], m["stop"]) for m in y.trace]


def test_lockstep_pays_as_the_loop_does_and_priced_searches_are_refused(recorded: Recording) -> None:
    in_step = curve(recorded, SeedPruning(), [Budget(nfe=30)], 5)
    alone = search(
        ["a"], SeedPruning(), DryEngine(recorded.grid, ("bright",), price=recorded.price, draft_calls=1), "30nfe"
    )
    assert in_step.spent.mean() == pytest.approx(alone[0].spent.nfe)
    forecast = fit(np.tile(recorded.scores[..., 0], (2, 1, 1)), recorded.grid.levels, estimates(1, 4))
    with pytest.raises(ValueError, match="starts seeds"):
        search(["a"], PriceOfCompute(forecast, price=0.01), ReplayEngine(recorded), "25nfe", seed=3)


def test_finishes_are_read_and_written() -> None:
    assert str(Finish.parse("0.6:4")) == "0.6:4"
    assert Finish.parse(SamplerOptions(draft="hot", finish=0.6).finish) == Finish(0.6)
    for text in ("0", "0.0:3", "1.2", "0.6:0", "often", "0.6:"):
        with pytest.raises(ValueError, match="a noise level in"):
            SamplerOptions(draft="hot", finish=text)
    assert np.isclose(Finish.parse("1").level, 1)
