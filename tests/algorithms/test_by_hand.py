"""Wishes while a search runs: dropped, finished, ended, with an exact ledger, an image, and the
same search again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from tests.cover import each_once
from ttsnap import Event, Result, SeedPruning, make_algorithm, search
from ttsnap.algorithms.by_hand import BEST, DROP, FINISH, ByHand, UserCommand
from ttsnap.core.selection import Selection
from ttsnap.request.allowlist import OFFERED

NFE = 64


def hand(
    when: Callable[[Event], Sequence[UserCommand]],
) -> tuple[list[UserCommand], Callable[[Event], None]]:
    """A list of wishes, and a listener that adds what `when` says of each event."""
    said: list[UserCommand] = []
    return said, lambda event: said.extend(when(event))


def run(
    engine: Callable[..., Any],
    algorithm: Any,
    budget: str | None = f"{NFE}nfe",
    keep: int = 1,
    **more: Any,
) -> Result:
    made = engine(prompts=1, kernel="sde")
    return search(["a"], algorithm, made, budget, selection=Selection(keep=keep), **more)[0]


@pytest.mark.parametrize("name", OFFERED)
def test_without_wishes_it_finds_and_spends_what_the_algorithm_does(
    name: str, engine: Callable[..., Any]
) -> None:
    algorithm = make_algorithm(name)
    alone, by_hand = run(engine, algorithm, keep=2), run(engine, ByHand(algorithm), keep=2)
    assert [c.seed for c in by_hand.images] == [c.seed for c in alone.images]
    np.testing.assert_allclose(
        [c.reward for c in by_hand.images], [c.reward for c in alone.images], rtol=1e-5
    )
    assert by_hand.spent.cost == alone.spent.cost
    assert by_hand.spent.seeds == alone.spent.seeds


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        *((name, DROP) for name in OFFERED),
        *each_once(["best-of-n", "seed-pruning", "svdd", "smc"], [FINISH, BEST]),
    ],
)
def test_wishes_are_carried_out_and_the_script_repeats_them(
    name: str, verb: str, engine: Callable[..., Any]
) -> None:
    """After the third move, of whoever moved then: at most three of them."""

    def when(event: Event) -> list[UserCommand]:
        if event.move is None or event.move["move"] != 2:
            return []
        wishes = [UserCommand(verb, uid) for uid in event.move["uids"][:3]]
        return [UserCommand(BEST, number=2)] if verb == BEST else wishes

    said, listen = hand(when)
    algorithm = make_algorithm(name)
    result = run(engine, ByHand(algorithm, wishes=lambda: said, rows=3), on_event=listen)
    spent = sum(move["cost"]["nfe"] - move.get("refund", {}).get("nfe", 0) for move in result.trace)
    assert result.spent.cost.nfe == spent <= NFE
    assert result.images
    taken = result.state.taken
    uids = {wish.uid for _, wish in taken}
    if verb == DROP:
        later = [uid for turn, _ in taken for move in result.trace[turn:] for uid in move["uids"]]
        assert not uids & set(later)
    elif verb == FINISH:
        assert result.particles.finished[sorted(uids)].all()
    elif taken:
        ((turn, _),) = taken
        assert len(result.trace) <= turn + 1
        assert all(
            stop == len(result.levels) - 1 for move in result.trace[turn:] for stop in move["stop"]
        )
    again = run(engine, ByHand(algorithm, result.state.n, script=taken, rows=3))
    first, second = (
        [{**move, "scores": list(move["scores"])} for move in r.trace] for r in (result, again)
    )
    assert first == second


def test_a_wish_names_an_unfinished_candidate_by_its_uid_or_its_seed() -> None:
    alive, finished = np.array([True, True, False]), np.array([False, True, False])
    particles: Any = MagicMock(
        alive=alive, finished=finished, seed=np.arange(5, 8), **{"__len__.return_value": 3}
    )
    particles.parent = np.full(3, -1)
    assert [UserCommand(DROP, uid).meant(particles) for uid in range(4)] == [0, -1, -1, -1]
    assert [UserCommand(DROP, seed=seed).meant(particles) for seed in (5, 6, 9)] == [0, -1, -1]


def test_wishes_take_effect_at_once(engine: Callable[..., Any]) -> None:
    """A candidate that is dropped by its seed is not taken to its check; what it had left goes to
    nobody else."""
    pruning = SeedPruning(6, (0.5,), steps=(7,))
    said, listen = hand(
        lambda event: [UserCommand(DROP, seed=1)] if event.move and event.move["move"] == 0 else []
    )
    result = run(engine, ByHand(pruning, wishes=lambda: said, rows=2), None, on_event=listen)
    assert [wish.seed for _, wish in result.state.taken] == [1]
    assert not result.particles.alive[1]
    assert result.particles.step[1] == 5
    plain = run(engine, pruning, None)
    # from step 5 to 7, and the evaluation that is scored there
    assert result.spent.nfe == plain.spent.nfe - 3


def test_when_all_are_dropped_there_is_an_image_all_the_same(engine: Callable[..., Any]) -> None:
    said, listen = hand(
        lambda event: [UserCommand(DROP, uid) for uid in event.uids] if event.kind == "move" else []
    )
    for budget in ("150nfe", "40nfe", "9nfe"):
        result = run(
            engine, ByHand(SeedPruning(), wishes=lambda: said, rows=2), budget, on_event=listen
        )
        assert len(result.images) == 1
        assert result.spent.nfe <= int(budget.removesuffix("nfe"))
        said.clear()


def test_what_is_not_there_is_ignored(engine: Callable[..., Any]) -> None:
    said = [UserCommand(DROP, 10**6), UserCommand(FINISH, seed=10**6), UserCommand(DROP)]
    result = run(engine, ByHand(SeedPruning(4), wishes=lambda: said))
    assert not result.state.taken
    assert result.spent.nfe == run(engine, SeedPruning(4)).spent.nfe
