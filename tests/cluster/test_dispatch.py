"""Who makes which unit of a recording, without any process: losses at random, and the units all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttsnap.cluster.actor import Actor
from ttsnap.cluster.actor_group import MOST_DEATHS, ActorDied
from ttsnap.cluster.recorders import recorded_by
from ttsnap.core.grid import Grid
from ttsnap.core.prompt import Prompt
from ttsnap.options.record import RecordOptions
from ttsnap.recordings.header import Header, Unit
from ttsnap.recordings.record import RecordedUnit, RecordingSetup
from ttsnap.recordings.replay import Recording

from .local import LocalPool

HEADER = Header.of(Recording(("a",), np.zeros((1, 20, 2, 1)), Grid((1.0, 0.0)), ("r",)))
UNITS = [Unit(index, range(1), range(index, index + 1)) for index in range(20)]


class Worker(Actor):
    """Makes a unit of its number. Units of a log that are `deadly` end it."""

    def __init__(self, begun: list[int], deadly: frozenset[int] = frozenset(), loads: bool = True) -> None:
        self.begun, self.deadly, self.loads = begun, deadly, loads

    def load(self) -> None:
        if not self.loads:
            raise ActorDied("out of memory")

    def describe(self, prompts: Sequence[Prompt], options: Any) -> RecordingSetup:
        self.load()
        return RecordingSetup(HEADER, tuple(prompts), 2.0)

    def begin(self, setup: RecordingSetup) -> None:
        self.setup = setup

    def make(self, unit: Unit, path: Path) -> RecordedUnit:
        assert self.setup.prompts == (Prompt("a"),)
        self.begun.append(unit.index)
        if unit.index in self.deadly:
            raise ActorDied("out of memory")
        if unit.index == 7 and path.parent.parent.name == "broken":
            raise ValueError("the disk is full")
        return RecordedUnit(np.full(1, float(unit.index)), None)


def pool_of(workers: int, seed: int = 0, *args: Any, kills: int = 0) -> tuple[LocalPool, list[int]]:
    begun: list[int] = []
    pool = LocalPool(lambda: None, 0, seed=seed, kills=kills, often=0.2)
    pool.makers = [lambda: Worker(begun, *args)] * workers
    pool.actors = [make() for make in pool.makers]
    pool.queues, pool.row = [[] for _ in pool.makers], [0] * workers
    return pool, begun


def made_by(pool: LocalPool, units: list[Unit], folder: str = "r") -> list[tuple[int, float]]:
    setup, making = recorded_by(pool, [Prompt("a")], Path(folder), RecordOptions(20))
    spent: list[float] = []
    found = [(unit.index, float(made.scores[0])) for unit, made in making(units, spent.append, lambda: False)]
    assert sum(spent) == setup.nfe * len(found)
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("workers", [1, 3, 30])
def test_every_unit_is_made_once_whoever_is_lost(workers: int, seed: int) -> None:
    pool, begun = pool_of(workers, seed, kills=2)
    assert sorted(made_by(pool, UNITS)) == [(unit.index, unit.index) for unit in UNITS]
    assert 20 <= len(begun) <= 20 + pool.deaths
    if workers == 1:
        assert list(dict.fromkeys(begun)) == list(range(20))  # in order


def test_a_unit_over_which_workers_are_lost_again_and_again_is_named() -> None:
    pool, begun = pool_of(2, 0, frozenset({4}))
    with pytest.raises(ValueError, match=f"^unit 4 was begun {MOST_DEATHS} times.*killed, or out of memory"):
        made_by(pool, UNITS)
    assert begun.count(4) == MOST_DEATHS


def test_what_a_worker_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="disk is full"):
        made_by(pool_of(2)[0], UNITS, "broken")


def test_workers_that_are_lost_as_they_load_are_said() -> None:
    with pytest.raises(ValueError, match=f"^{MOST_DEATHS} workers were lost while they loaded the model"):
        made_by(pool_of(2, 0, frozenset(), False)[0], UNITS)


def test_nothing_is_begun_where_there_is_nothing_to_do() -> None:
    pool, begun = pool_of(2)
    assert (made_by(pool, []), begun) == ([], [])
