"""Candidates of a running search that a person drops or finishes: at once, with an exact ledger, and
always an image."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from ttsnap import SeedPruning, make_algorithm, search
from ttsnap.core.cost import Cost
from ttsnap.core.results import DROP, FINISH
from ttsnap.core.selection import Selection
from ttsnap.request.limits import PUBLIC_ALGORITHMS

Said = Sequence[tuple[str, int]]
NFE = 64


class Hand:
    """A listener that leads the search that it hears: `when` gives commands after an event."""

    def __init__(self, when):
        self.when, self.led = when, None

    def __call__(self, event):
        self.led = event.led or self.led
        for verb, uid in self.when(event):
            getattr(self.led, verb)(uid)


def run(
    engine,
    algorithm,
    when,
    budget=f"{NFE}nfe",
    keep=1,
    kernel="sde",
    **more,
):
    made = engine(prompts=1, kernel=kernel, **more)
    hand = Hand(when)
    (result,) = search(
        ["a"], algorithm, made, budget, selection=Selection(keep=keep), on_event=hand
    )
    return result, made


def net(result):
    """Evaluations by the trace."""
    return sum(move["cost"]["nfe"] - move.get("refund", {}).get("nfe", 0) for move in result.trace)


def check_ledger(result, made, budget=NFE):
    """That it is what ran, and within the cap."""
    ran = made.ran
    spent = result.spent.cost
    assert (spent.nfe, spent.decodes) == (ran.nfe, ran.decodes)
    assert spent.nfe == net(result) <= (budget or np.inf)


def _first_three(moment, verb, seen, named, event):
    """Commands about the first three candidates that are seen, once."""
    seen.extend(event.uids if event.kind == "move" else ())
    if named or event.kind != moment or len(seen) < 3:
        return []
    named.extend(seen[:3])
    return [(verb, uid) for uid in named]


@pytest.mark.parametrize("verb", [DROP, FINISH])
@pytest.mark.parametrize("name", PUBLIC_ALGORITHMS)
def test_commands_are_carried_out(name, verb, engine):
    """As soon as there are three candidates: when a move begins, and after a batch."""
    for moment in ("move", "tick"):
        seen, named = list[int](), list[int]()
        hand = partial(_first_three, moment, verb, seen, named)
        result, made = run(engine, make_algorithm(name), hand)
        assert result.images
        check_ledger(result, made)
        done = result.by_hand.get(verb, [])
        assert set(done) <= set(named)
        if verb == FINISH:
            assert result.particles.finished[done].all()
        elif done:
            at = [i for i, move in enumerate(result.trace) if "by_hand" in move]
            later = [uid for move in result.trace[at[-1] :] for uid in move["uids"]]
            assert not set(done) & set(later)
            assert not result.particles.alive[done].any()


@pytest.mark.parametrize("kernel", ["pipeline", "sde"])
def test_a_command_changes_nothing_of_the_others(kernel, engine):
    """What goes on comes to the same images, and costs the same: of six seeds one is dropped after
    three batches, another one finished."""
    pruning = SeedPruning(6, (0.5,), steps=(7,))
    ticks = []

    def when(event):
        ticks.extend([1] * (event.kind == "tick"))
        return [(DROP, 1), (FINISH, 4)] if event.kind == "tick" and len(ticks) == 5 else []

    plain, _ = run(engine, pruning, lambda event: [], None, 6, kernel)
    result, made = run(engine, pruning, when, None, 6, kernel)
    check_ledger(result, made, None)
    assert result.by_hand == {DROP: [1], FINISH: [4]}
    assert not result.particles.alive[1]
    assert 0 < result.particles.step[1] < 7
    assert result.particles.finished[4]
    before = {image.seed: image.image for image in plain.images}
    both = [image for image in result.images if image.seed in before]
    assert both
    for image in both:
        np.testing.assert_allclose(image.image, before[image.seed], atol=1e-5)
    scored = plain.particles.scores[:, 7], result.particles.scores[:, 7]
    kept = ~np.isnan(scored[1][:, 0])
    np.testing.assert_allclose(scored[0][kept], scored[1][kept], atol=1e-5)


def test_a_candidate_that_is_dropped_takes_no_more(engine):
    pruning = SeedPruning(6, (0.5,), steps=(7,))

    def when(event):
        return [(DROP, 1)] if event.move and event.move["move"] == 0 else []

    result, made = run(engine, pruning, when, None, batch_size=8)
    plain, _ = run(engine, pruning, lambda event: [], None, batch_size=8)
    check_ledger(result, made, None)
    assert result.particles.step[1] == 1  # one batch had run
    # from step 1 to 7, and the evaluation that is scored there
    assert result.spent.nfe == plain.spent.nfe - 7


@pytest.mark.parametrize("budget", [150, 40, 9, 8])
def test_when_all_are_dropped_there_is_an_image_all_the_same(budget, engine):
    def when(event):
        return [(DROP, uid) for uid in range(40)] if event.kind in ("move", "tick") else []

    result, made = run(engine, SeedPruning(), when, f"{budget}nfe")
    assert len(result.images) == 1
    check_ledger(result, made, budget)


@pytest.mark.parametrize("budget", [150, 40, 9])
def test_what_is_finished_is_paid(budget, engine):
    def when(event):
        return [(FINISH, uid) for uid in range(40)] if event.kind in ("move", "tick") else []

    result, made = run(engine, SeedPruning(), when, f"{budget}nfe")
    assert result.images
    check_ledger(result, made, budget)


def test_what_is_not_there_is_ignored(engine):
    def when(event):
        return [(DROP, 10**6), (FINISH, 10**9), (DROP, -1)] if event.kind == "move" else []

    result, _ = run(engine, SeedPruning(4), when)
    plain, _ = run(engine, SeedPruning(4), lambda event: [])
    assert not result.by_hand
    assert result.spent.cost == plain.spent.cost


def test_commands_come_from_any_thread(engine):
    """While the search runs, two threads name its candidates at random."""
    over = threading.Event()
    threads = []

    def say(led, verb):
        draw = np.random.default_rng(len(verb))
        while not over.wait(0.0005):
            getattr(led, verb)(int(draw.integers(0, 60)))

    def when(event):
        if event.led is not None:
            threads.extend(
                threading.Thread(target=say, args=(event.led, verb)) for verb in (DROP, FINISH)
            )
            for thread in threads:
                thread.start()
        return []

    try:
        result, made = run(engine, SeedPruning(), when, "600nfe")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert result.images
    check_ledger(result, made, 600)
    assert not set(result.by_hand.get(DROP, [])) & {image.uid for image in result.images}


def test_prompts_that_share_a_budget_keep_to_it(engine):
    def when(event):
        return [(DROP, 0), (FINISH, 2)] if event.kind == "tick" else []

    for shared in (False, True):
        made = engine(prompts=3, kernel="sde")
        hand = Hand(when)
        results = search(
            ["a", "b", "c"], SeedPruning(), made, "50nfe", shared=shared, on_event=hand
        )
        assert results[0].by_hand
        assert not results[1].by_hand
        spent = Cost().plus(*(result.spent.cost for result in results))
        assert spent.nfe == made.ran.nfe <= 150
        assert all(result.images for result in results)
