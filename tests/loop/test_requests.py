"""Requests that come and go while the loop runs: what each finds, what each pays, and that nothing
is left behind."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.counted import Brightness, Counted
from ttsnap import BestOfN, Budget, Prompt, SeedPruning, search
from ttsnap.algorithms.rbf import RBF
from ttsnap.core.protocols import RunUsage
from ttsnap.core.selection import Selection
from ttsnap.loop.clock import RequestClock
from ttsnap.loop.report import report
from ttsnap.loop.request import LoopSearch, RunningRequest
from ttsnap.loop.run import Run
from ttsnap.loop.search import prepared

PROMPTS = ["a", "b", "c"]
relaxed = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class ByText(Counted):
    """Encodes a prompt by what it says, and not by its place: the same prompt is the same in any
    company."""

    def encode(self, prompts):
        self._offset = self._by_prompt[
            [PROMPTS.index(Prompt.of(prompt).text) for prompt in prompts]
        ].double()


def living(engine, batch=4, kernel="sde"):
    live = engine(batch_size=batch, kernel=kernel)
    live.denoiser.__class__ = ByText
    return live


def ask(run, prompts, spec, *listeners):
    watch = RequestClock(time.monotonic, 0.0)
    return run.add(
        [Prompt(text) for text in prompts], prepared(spec, run.engine), watch, *listeners
    )


def told(run, request):
    return report(request, run.engine, RunUsage())


specs = st.builds(
    LoopSearch,
    st.one_of(
        st.builds(BestOfN, n=st.integers(1, 6)),
        st.builds(SeedPruning, n=st.integers(2, 9)),
        st.builds(RBF, streams=st.integers(1, 2), initial=st.integers(1, 3)),
    ),
    st.builds(Budget, nfe=st.integers(8, 50)),
    seed=st.integers(0, 5),
    selection=st.builds(Selection, keep=st.integers(1, 3)),
    shared=st.booleans(),
)
ask_for = st.tuples(
    specs,
    st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3, unique=True),
    st.integers(0, 12),
    st.sampled_from(["cancel", "stop", "", "", ""]),
    st.integers(0, 15),
)
asks = st.lists(ask_for, min_size=1, max_size=4)
"""Each: what is asked for, the turn at which it comes, and how it ends how many turns later."""


@relaxed
@given(asked=asks, batch=st.integers(1, 7))
def test_what_comes_and_goes_keeps_the_books_and_finds_what_it_finds_alone(engine, asked, batch):
    live = living(engine, batch)
    run, requests, early, turn = Run(live), list[Any](), list[RunningRequest](), 0
    waiting = sorted(asked, key=lambda ask_: ask_[2])
    while run.busy or waiting:
        while waiting and waiting[0][2] <= turn:
            spec, prompts, _, how, when = waiting.pop(0)
            requests.append((ask(run, prompts, spec), spec, prompts, how, turn + when))
        run.turn()
        for request, _, _, how, when in requests:
            if when == turn and not request.done and how:
                (run.cancel if how == "cancel" else run.stop)(request)
                early.append(request)
        turn += 1
    spent = np.zeros(2, int)
    for request, spec, prompts, how, _ in requests:
        mine = told(run, request)
        spent += np.sum([(r.spent.nfe, r.spent.cost.decodes) for r in mine], 0)
        if request in early:
            assert how == "cancel" or mine[0].images
            continue
        assert all(r.images for r in mine)
        if spec.shared and len(prompts) > 1:
            continue  # how full the batch is decides how far a round of a shared budget goes
        alone = search(
            prompts,
            spec.algorithm,
            living(engine, 1),
            spec.budget,
            selection=spec.selection,
            seed=spec.seed,
            shared=spec.shared,
        )
        for one, other in zip(mine, alone, strict=True):
            assert [c.uid for c in one.images] == [c.uid for c in other.images]
            assert one.spent.cost == other.spent.cost
            for a, b in zip(one.images, other.images, strict=True):
                torch.testing.assert_close(a.image, b.image, atol=1e-6, rtol=1e-6)
    denoiser = cast("Counted", live.denoiser)
    assert tuple(spent) == (denoiser.calls, denoiser.decodes)
    assert not live.pending()
    assert not live.executor.prompts.living
    assert not live.store


def test_a_cancelled_search_says_so_and_pays_for_what_ran(engine):
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


def test_a_large_request_does_not_keep_a_small_one_out(engine):
    # It fills the engine many times over, and yet the other one is taken up in the same turn as it
    # comes.
    live = living(engine, batch=2)
    run = Run(live)
    ask(run, ["a"], LoopSearch(BestOfN(50), Budget(nfe=400)))
    run.turn()
    assert live.pending() > 5 * live.capacity
    small = ask(run, ["b"], LoopSearch(BestOfN(1)))
    run.turn()
    assert small.active


def test_events_name_prompts_by_their_place_in_the_request(engine):
    run, spec, heard = Run(living(engine)), LoopSearch(BestOfN(2), Budget(nfe=16)), ([], [])
    for prompts, events in zip((["a"], ["b", "c"]), heard, strict=True):
        ask(run, prompts, spec, events.append)
    while run.busy:
        run.turn()
    assert [{event.job for event in events if event.kind == "score"} for events in heard] == [
        {0},
        {0, 1},
    ]


def test_what_is_refused_changes_nothing_for_others(engine):
    class Picky(Brightness):
        def check(self, prompts):
            if "" in prompts:
                raise ValueError("brightness needs a prompt")

    live = engine(rewards=[Picky()], batch_size=3)
    assert live.batch_sizes == {"batch_size": 3, "decode_batch_size": 3}
    live.denoiser.__class__ = ByText
    run, spec = Run(live), LoopSearch(BestOfN(2))
    rbf = LoopSearch(RBF(initial=2), Budget(nfe=40))
    first = ask(run, ["a"], spec)
    for prompt, asked, said in (
        ("", spec, "a prompt"),
        ("unknown", spec, "in list"),
        ("a", rbf, "draws noise"),
    ):
        with pytest.raises(ValueError, match=said):
            ask(run, [prompt], asked)
    second = ask(run, ["b"], spec)
    while run.busy:
        run.turn()
    for request, prompt in ((first, "a"), (second, "b")):
        (alone,) = search([prompt], BestOfN(2), living(engine, kernel="pipeline"))
        assert told(run, request)[0].best.reward == pytest.approx(alone.best.reward, abs=1e-6)
