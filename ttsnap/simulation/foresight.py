"""Draws that depend on the results of earlier ones, worked on several at a time."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from ttsnap.simulation.processes import Workers

Unit = TypeVar("Unit")
Made = TypeVar("Made")


class _Guess(NamedTuple, Generic[Unit, Made]):
    """A unit that was drawn before the results of all earlier ones were known; the generator as it was before that."""

    unit: Unit
    before: np.random.Generator
    made: Future[Made]


def one_by_one(
    draw: Callable[[int], Unit], rng: np.random.Generator, count: int, workers: Workers[Unit, Made]
) -> Iterator[tuple[Unit, Made]]:
    """Units 0 to count - 1 with what the workers make of each, exactly as if each was drawn after all earlier results.

    draw(i): draws unit i by `rng`, and may depend on what has been yielded so far; it changes nothing but `rng`. Units
    must be comparable by `==`. Several workers are kept busy by guessing that the next result changes none of the draws
    that follow: these are worked on already. Once it is there they are drawn again, and given up from the first one on
    that comes out otherwise.
    """
    ahead: deque[_Guess[Unit, Made]] = deque()
    for i in range(count):
        while len(ahead) < min(workers.count, count - i):
            before, unit = copy.deepcopy(rng), draw(i + len(ahead))
            ahead.append(_Guess(unit, before, workers.submit(unit)))
        unit, _, made = ahead.popleft()
        yield unit, made.result()
        guesses, ahead = ahead, deque()
        if guesses:
            _rewind(rng, guesses[0].before)
        while guesses:
            guess, before = guesses.popleft(), copy.deepcopy(rng)
            if draw(i + 1 + len(ahead)) != guess.unit:
                _rewind(rng, before)
                for wrong in (guess, *guesses):
                    wrong.made.cancel()
                break
            ahead.append(guess._replace(before=before))


def _rewind(rng: np.random.Generator, to: np.random.Generator) -> None:
    rng.bit_generator.state = to.bit_generator.state
