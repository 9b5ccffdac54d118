"""Requests that come and go while the loop runs: what each finds, what each pays, and that nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.counted import Brightness, Counted
from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.algorithms.rbf import RBF
from ttsnap.core.needs import Need
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import RunUsage
from ttsnap.core.results import Event, Result
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch, RunningRequest
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared
from ttsnap.options.engine import EngineOptions
from ttsnap.sampling.kernels import Sde

PROMPTS = ["a", "b", "c"]
relaxed = settings(max_examples=16, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class ByText(Counted):
    """Encodes a prompt by what it says, and not by its place: the same prompt is the same in any company."""

    def encode(self, prompts: Sequence[str | Prompt]) -> None:
        self._offset = self._by_prompt[[PROMPTS.index(Prompt.of(prompt).text) for prompt in prompts]].double()


def living(engine: Any, batch: int = 4, *, noisy: bool = False) -> LiveEngine:
    live: LiveEngine = engine(batch_size=batch)
    denoiser = live.denoiser
    denoiser.__class__ = ByText
    kernel = Sde(denoiser.path, denoiser.times) if noisy else None
    return LiveEngine(denoiser, live.rewards, EngineOptions(batch), kernel=kernel)


def ask(run: Run, prompts: Sequence[str], spec: LoopSearch, *listeners: Any) -> RunningRequest:
    return run.add(
        [Prompt(text) for text in prompts], prepared(spec, run.engine), RequestClock(time.monotonic, 0.0), *listeners
    )


def told(run: Run, request: RunningRequest) -> list[Result]:
    return report(request, run.engine, RunUsage())


specs = st.builds(
    LoopSearch,
    st.one_of(
        st.builds(BestOfN, n=st.integers(1, 6)),
        st.builds(SeedPruning, n=st.integers(2, 9)),
        st.builds(RBF, streams=st.integers(1, 2), initial=st.integers(1, 3)),
    ),
    st.builds(Budget, nfe=st.integers(8, 70)),
    seed=st.integers(0, 5),
    keep=st.integers(1, 3),
    shared=st.booleans(),
)
asks = st.lists(
    st.tuples(specs, st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3, unique=True), st.integers(0, 12)),
    min_size=1,
    max_size=4,
)


@relaxed
@given(asked=asks, batch=st.integers(1, 7))
def test_a_request_finds_the_same_alone_and_in_company(engine: Any, asked: list[Any], batch: int) -> None:
    live = living(engine, batch, noisy=True)
    run, requests, turn = Run(live), [], 0
    waiting = sorted(asked, key=lambda ask_: ask_[2])
    while run.busy or waiting:
        while waiting and waiting[0][2] <= turn:
            spec, prompts, _ = waiting.pop(0)
            requests.append((spec, prompts, ask(run, prompts, spec)))
        run.turn()
        turn += 1
    spent = np.zeros(2, int)
    for spec, prompts, request in requests:
        alone = search(prompts, spec.algorithm, living(engine, 1, noisy=True), spec.budget, seed=spec.seed,
                       keep=spec.keep, shared=spec.shared)  # fmt: skip
        for mine, theirs in zip(told(run, request), alone, strict=True):
            spent += (mine.spent.nfe, mine.spent.cost.decodes)
            if spec.shared and len(prompts) > 1:
                continue  # how full the batch is decides how far a round of a shared budget goes
            assert [c.uid for c in mine.images] == [c.uid for c in theirs.images]
            assert mine.spent.cost == theirs.spent.cost
            for one, other in zip(mine.images, theirs.images, strict=True):
                torch.testing.assert_close(one.image, other.image, atol=1e-6, rtol=1e-6)
    denoiser = cast("Counted", live.denoiser)
    assert tuple(spent) == (denoiser.calls, denoiser.decodes)
    assert not live.pending()
    assert not live.executor.prompts.living
    assert not live.store


@relaxed
@given(asked=asks, ends=st.lists(st.tuples(st.sampled_from(["cancel", "stop", ""]), st.integers(0, 15)), min_size=4,
                                 max_size=4))  # fmt: skip
def test_requests_that_end_early_keep_the_books_and_leave_the_others_alone(
    engine: Any, asked: list[Any], ends: list[Any]
) -> None:
    live = living(engine, noisy=True)
    run = Run(live)
    requests = [ask(run, prompts, spec) for spec, prompts, _ in asked]
    turn = 0
    while run.busy:
        run.turn()
        for request, (how, when) in zip(requests, ends, strict=False):
            if how and when == turn and not request.done:
                (run.cancel if how == "cancel" else run.stop)(request)
        turn += 1
    results = [told(run, request) for request in requests]
    spent = sum(r.spent.nfe for rs in results for r in rs), sum(r.spent.cost.decodes for rs in results for r in rs)
    denoiser = cast("Counted", live.denoiser)
    assert spent == (denoiser.calls, denoiser.decodes)
    assert not live.pending()
    assert not live.executor.prompts.living
    assert not live.store
    for rs, request, (how, when), (spec, prompts, _) in zip(results, requests, ends, asked, strict=False):
        assert request.done
        if not how or when >= turn:
            assert all(r.images for r in rs)
            if not spec.shared:
                alone = search(prompts, spec.algorithm, living(engine, noisy=True), spec.budget, seed=spec.seed,
                               keep=spec.keep)  # fmt: skip
                assert [r.best.uid for r in rs] == [r.best.uid for r in alone]
        if how == "stop":
            assert rs[0].images or when == 0 or when >= turn


def test_a_cancelled_search_says_so_and_pays_for_what_ran(engine: Any) -> None:
    live = living(engine, batch=2)
    run = Run(live)
    request = ask(run, PROMPTS, LoopSearch(BestOfN(6), Budget(nfe=60)))
    for _ in range(3):
        run.turn()
    run.cancel(request)
    first, *others = told(run, request)
    assert not run.busy
    assert not first.images
    assert first.warnings == ("cancelled; no further image was finished",)
    assert first.spent.nfe == cast("Counted", live.denoiser).calls == 6
    assert all(other.warnings == ("stopped before this prompt was taken up",) for other in others)


def test_a_large_request_does_not_keep_a_small_one_out(engine: Any) -> None:
    # It fills the engine many times over, and yet the other one is taken up in the same turn as it comes.
    live = living(engine, batch=2)
    run = Run(live)
    ask(run, ["a"], LoopSearch(BestOfN(50), Budget(nfe=400)))
    run.turn()
    assert live.pending() > 5 * live.capacity
    small = ask(run, ["b"], LoopSearch(BestOfN(1)))
    run.turn()
    assert small.active


def test_events_name_prompts_by_their_place_in_the_request(engine: Any) -> None:
    run = Run(living(engine))
    heard: dict[str, list[Event]] = {"first": [], "second": []}
    spec = LoopSearch(BestOfN(2), Budget(nfe=16))
    ask(run, ["a"], spec, heard["first"].append)
    ask(run, ["b", "c"], spec, heard["second"].append)
    while run.busy:
        run.turn()
    assert {event.job for event in heard["first"] if event.kind == "score"} == {0}
    assert {event.job for event in heard["second"] if event.kind == "score"} == {0, 1}


def test_a_prompt_that_is_refused_changes_nothing(engine: Any) -> None:
    class Picky(Brightness):
        def check(self, prompts: Sequence[str]) -> None:
            if "" in prompts:
                raise ValueError("brightness needs a prompt")

    live = engine(rewards=[Picky()])
    run = Run(live)
    with pytest.raises(ValueError, match="needs a prompt"):
        ask(run, [""], LoopSearch(BestOfN(2)))
    assert not run.busy
    request = ask(run, ["a"], LoopSearch(BestOfN(2)))
    while run.busy:
        run.turn()
    assert told(run, request)[0].images


def test_prompts_that_cannot_be_encoded_leave_the_numbers_of_jobs_as_they_were(engine: Any) -> None:
    live = living(engine)
    run = Run(live)
    first = ask(run, ["a"], LoopSearch(BestOfN(2)))
    with pytest.raises(ValueError, match="in list"):
        ask(run, ["unknown"], LoopSearch(BestOfN(2)))
    second = ask(run, ["b"], LoopSearch(BestOfN(2)))
    while run.busy:
        run.turn()
    for request, prompt in ((first, "a"), (second, "b")):
        alone = search([prompt], BestOfN(2), living(engine))[0]
        assert told(run, request)[0].best.reward == pytest.approx(alone.best.reward, abs=1e-6)


def test_needs_are_those_of_the_algorithms_asked_for(engine: Any) -> None:
    run = Run(living(engine))
    assert Need.BRANCH not in run.engine.offers
    with pytest.raises(ValueError, match="draws noise"):
        ask(run, ["a"], LoopSearch(RBF(initial=2), Budget(nfe=40)))
