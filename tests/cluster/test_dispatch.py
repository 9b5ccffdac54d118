"""Who does which unit, without any worker: losses at random, and the units all the same."""

from __future__ import annotations

import random

import pytest

from ttsnap.cluster.recorders import TRIES, WorkerPool, dispatch


class Toy(WorkerPool[int, str]):
    """Workers of whom one, at random, is the next to finish; some are lost, by chance or over the units `deadly`."""

    def __init__(self, seed: int, workers: int, losses: int = 0, deadly: frozenset[int] = frozenset()) -> None:
        self.rng, self.losses, self.deadly = random.Random(seed), losses, deadly
        self.state = dict.fromkeys(range(workers), "free")
        self.at_work: dict[int, int] = {}
        self.begun: list[int] = []

    def begin(self, worker: int, unit: int) -> None:
        assert self.state[worker] == "free"
        self.state[worker], self.at_work[worker] = "works", unit
        self.begun.append(unit)

    def finished(self) -> tuple[int, str | None]:
        idle = sum(state == "free" for state in self.state.values())
        assert not idle or len(self.begun) >= 20  # nobody is idle while units wait
        worker = self.rng.choice(sorted(self.at_work))
        unit = self.at_work.pop(worker)
        if unit in self.deadly or (self.losses and self.rng.random() < 0.2):
            self.losses -= 1
            self.state[worker] = "lost"
            return worker, None
        self.state[worker] = "free"
        return worker, f"made of {unit}"

    def replace(self, worker: int) -> None:
        assert self.state[worker] == "lost"
        self.state[worker] = "free"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("workers", [1, 3, 30])
def test_every_unit_is_done_once_whoever_is_lost(workers: int, seed: int) -> None:
    toy = Toy(seed, workers, losses=2)  # of one unit, two losses are borne
    done = list(dispatch(range(20), toy, workers, str))
    assert sorted(done) == [(unit, f"made of {unit}") for unit in range(20)]
    assert len(toy.begun) == 20 + (2 - toy.losses)
    first = list(dict.fromkeys(toy.begun))
    assert first == list(range(20))  # in order; those that are begun again come first


def test_a_unit_over_which_workers_are_lost_again_and_again_is_named() -> None:
    toy, done = Toy(0, 2, deadly=frozenset({4})), []
    with pytest.raises(ValueError, match=f"^unit 4 was begun {TRIES} times.*killed, or out of memory"):
        done += dispatch(range(20), toy, 2, "unit {}".format)
    assert toy.begun.count(4) == TRIES


def test_nothing_is_begun_where_there_is_nothing_to_do() -> None:
    assert list(dispatch([], Toy(0, 2), 2, str)) == []
