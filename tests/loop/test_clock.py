"""Budgets in seconds, by a clock that the model itself moves on: sized by what was measured, and
again as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.counted import Brightness, Counted
from tests.cover import each_once
from ttsnap import BestOfN, Budget, Cost, make_algorithm, search
from ttsnap.core import Rates
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.request import LoopSearch
from ttsnap.loop.search import prepared, searched
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.kernels import KERNELS

RATES = Rates(0.025, 0.02, 0.005, draft_calls=0.012, call=0.01)
"""Seconds, about those of the embedded model on two quiet cores: an image takes half a second."""
Speed = Callable[[float], float]
"""The time since the begin -> how many times as long everything takes."""


class Slow(Counted):
    """Takes its time, by a clock of its own."""

    speed: Speed = staticmethod(lambda now: 1.0)
    now = 0.0
    passes_per_nfe = 2

    def takes(self, seconds):
        self.now += seconds * self.speed(self.now)

    def predict(self, x, step, cond):
        self.takes(RATES.call + RATES.nfe * len(x))
        return super().predict(x, step, cond)

    def decode(self, x0):
        self.takes((RATES.decodes + RATES.reward_calls) * len(x0))
        return super().decode(x0)

    def guess(self, x, step, cond, calls):
        self.takes(RATES.call + RATES.draft_calls * len(x))
        return x


def made(speed=lambda now: 1.0, *, drafts=False, kernel="ode"):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 3, generator=generator)
    denoiser = Slow(means, torch.full((4,), 0.3), torch.tensor([0.1, 0.2, 0.3, 0.4]), steps=20)
    denoiser.speed = speed
    if drafts:
        denoiser.drafts = SimpleNamespace(
            calls=1, passes=1, guess=denoiser.guess, level=lambda *_: 0.5, start=None
        )
    live = LiveEngine(denoiser, [Brightness()], EngineOptions(16), kernel=KERNELS[kernel](denoiser))
    live._price = replace(live.price, seconds=RATES)
    return live


def timed(name, budget, live, prompts=("a",)):
    """The share of the time that was taken, and the results."""
    slow = live.denoiser
    results = search(prompts, make_algorithm(name), live, f"{budget}s", clock=lambda: slow.now)
    return slow.now / (budget * len(prompts)), results


def meant(name, budget, live):
    """Images that the plan finishes."""
    return prepared(LoopSearch(make_algorithm(name), Budget(seconds=budget)), live).plan[-1].rows


CASES = [
    ("best-of-n", False, "ode"),
    ("seed-pruning", False, "ode"),
    ("seed-pruning", True, "ode"),
    ("ttsnap", False, "ode"),
    ("evolution", False, "ode"),
    ("smc", False, "sde"),
    ("funnel", False, "sde"),
]


@pytest.mark.parametrize(("case", "budget"), each_once(CASES, [3.0, 6.0, 12.0]))
def test_the_time_is_used_and_what_was_meant_is_finished(case, budget):
    """Batches take up to twice as long as foretold, or half as long, and on average as long."""
    name, drafts, kernel = case
    rng = np.random.default_rng(0)
    live = made(lambda now: float(np.exp(rng.normal(-0.04, 0.3))), drafts=drafts, kernel=kernel)
    share, (result,) = timed(name, budget, live)
    assert 0.85 <= share <= 1.1
    whole = meant(name, budget, live)
    assert result.spent.finished >= whole - max(1, whole // 9)
    assert f"{budget:g} s " in result.spent.ended


@pytest.mark.parametrize(("case", "speed"), each_once(CASES, [0.6, 1.5, 2.5]))
def test_a_search_is_sized_again_where_it_was_measured_wrongly(case, speed):
    name, drafts, kernel = case
    live = made(lambda now: speed, drafts=drafts, kernel=kernel)
    share, (result,) = timed(name, 12.0, live)
    assert 0.85 <= share <= 1.1
    assert result.spent.finished >= min(2, 0.4 * meant(name, 12.0, live) / speed)


def test_whole_images_are_finished_where_the_machine_turns_slow():
    share, (result,) = timed("best-of-n", 6.0, made(lambda now: 1.0 if now < 1.5 else 2.0))
    assert share <= 1.1
    assert result.spent.finished >= 4  # 11 are under way, and there is time for 7


def test_prompts_share_the_time():
    share, results = timed("seed-pruning", 4.0, made(lambda now: 1.4), ["a", "b", "c", "d"])
    assert 0.85 <= share <= 1.1
    assert all(result.spent.finished >= 2 for result in results)


@pytest.mark.parametrize("name", ["rbf", "best-first", "zero-order", "svdd", "search-over-paths"])
def test_algorithms_that_plan_by_what_is_left_keep_to_the_time(name):
    share, (result,) = timed(name, 12.0, made(lambda now: 1.5, kernel="sde"))
    assert share <= 1.1
    assert result.images


def test_getting_ready_is_not_on_the_clock(monkeypatch):
    live = made()
    slow = live.denoiser

    def measure(self):
        slow.now += 100.0
        self._price = replace(self.price, seconds=RATES)
        return Cost()

    monkeypatch.setattr(LiveEngine, "calibrate", measure)
    live._price = replace(live.price, seconds=None)
    _, (result,) = timed("best-of-n", 6.0, live)
    assert (result.spent.seconds_before, result.spent.finished) == (100.0, 11)
    assert 5.5 <= result.spent.seconds <= 6.2


def test_the_cap_that_ended_a_search_is_told():
    """Never that a budget was not used up where its cap was met."""
    _, (timely,) = timed("best-of-n", 6.0, made())
    assert (timely.spent.ended, timely.warnings) == ("6 s were up", ())
    # an image takes .5 s: there is no time for a third
    _, (early,) = timed("best-of-n", 1.4, made())
    assert " of 1.4 s " in early.spent.ended
    (cut,) = search(["a"], BestOfN(5), made(), "60nfe")
    assert cut.spent.ended == "60 NFE were used up"
    (done,) = search(["a"], BestOfN(3), made(), "60nfe")
    assert (done.spent.ended, "ended" in done.spent.to_json()) == ("", False)
    (stopped,) = search(["a"], BestOfN(3), made(), "60nfe", should_stop=lambda: True)
    assert stopped.spent.ended == "stopped"
    assert "not used up" in stopped.warnings[0]


def test_a_search_that_the_clock_winds_up_can_be_stopped():
    live = made(lambda now: 3.0)
    slow = live.denoiser
    results = search(
        ["a"], BestOfN(), live, "12s", clock=lambda: slow.now, should_stop=lambda: slow.now > 8
    )
    assert results[0].spent.ended == "stopped"
    assert results[0].images
    assert slow.now < 11


@pytest.mark.parametrize("budget", ["100nfe", "400nfe", "20s"])
def test_a_fifth_of_the_default_search_brings_a_picture(budget):
    """Where somebody waits for one; else batches are as full as they can be."""
    live, seen = made(), list[int]()
    spec = LoopSearch(make_algorithm("seed-pruning"), Budget.parse(budget))
    slow = live.denoiser
    (result,) = searched(
        ["a"],
        spec,
        live,
        [lambda e: seen.append(live.nfe) if e.kind == "score" else None],
        clock=lambda: slow.now,
        eager=True,
    )
    assert seen[0] <= 0.2 * result.spent.nfe
