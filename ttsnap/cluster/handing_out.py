"""Units of work handed out to workers that may be lost: each unit is done once, by whoever is free."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Unit = TypeVar("Unit")
UnitIn = TypeVar("UnitIn", contravariant=True)
Done = TypeVar("Done")
DoneOut = TypeVar("DoneOut", covariant=True)

TRIES = 3
"""So many workers may be lost over one unit before it is given up: it is likely to be what ends them."""


class Hands(Protocol[UnitIn, DoneOut]):
    """Workers, by number from 0."""

    def begin(self, worker: int, unit: UnitIn) -> None:
        """Let a worker that is free do this unit; returns at once."""

    def finished(self) -> tuple[int, DoneOut | None]:
        """Wait for any of those at work: its number, and what it made, or None where it is lost."""

    def replace(self, worker: int) -> None:
        """Put a new worker in the place of one that is lost; returns at once."""


def handed_out(
    units: Iterable[Unit], hands: Hands[Unit, Done], workers: int, name: Callable[[Unit], str]
) -> Iterator[tuple[Unit, Done]]:
    """Each unit with what was made of it, in the order in which they are finished; they are begun in the given order.

    A unit whose worker is lost is begun again, before all that wait. Raises ValueError where that happens TRIES times
    to the same one, which `name` tells.
    """
    waiting, free, at_work, lost = deque(units), deque(range(workers)), dict[int, Unit](), Counter[str]()
    while waiting or at_work:
        while waiting and free:
            worker = free.popleft()
            at_work[worker] = waiting.popleft()
            hands.begin(worker, at_work[worker])
        worker, done = hands.finished()
        unit = at_work.pop(worker)
        free.append(worker)
        if done is not None:
            yield unit, done
            continue
        lost[name(unit)] += 1
        if lost[name(unit)] == TRIES:
            raise ValueError(
                f"{name(unit)} was begun {TRIES} times, and each time the worker that had it was lost: killed, or out "
                "of memory. What is finished is kept"
            )
        waiting.appendleft(unit)
        hands.replace(worker)
