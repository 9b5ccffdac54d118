"""Working ahead of results changes nothing but who works when."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from ttsnap.simulation.foresight import one_by_one
from ttsnap.simulation.processes import Workers


def climb(count: int, seed: int) -> tuple[list[tuple[int, float]], int]:
    """40 draws, of which some take more random numbers than others and most depend on the best so far, and how many
    units were worked on. Results are made when they are waited for, so that guesses are made without them."""
    rng, done, submitted = np.random.default_rng(seed), [], 0

    def submit(unit: int) -> Future[float]:
        nonlocal submitted
        submitted += 1
        made: Future[float] = Future()
        made.set_result(-abs(unit - 50) + 0.1 * (unit % 7))
        return made

    def draw(i: int) -> int:
        if i < 8 or not done:
            return int(rng.integers(100))
        parent = max(done, key=lambda entry: entry[1])[0]
        return parent + int(rng.integers(-6, 7)) if rng.random() < 0.8 else int(rng.integers(100))

    for unit, made in one_by_one(draw, rng, 40, Workers(submit, count)):
        done.append((unit, made))
    return done, submitted


@pytest.mark.parametrize("seed", range(10))
def test_units_are_drawn_as_if_every_result_was_awaited(seed: int) -> None:
    expected, submitted = climb(1, seed)
    assert submitted == len(expected) == 40
    for count in (2, 3, 8, 64):
        found, submitted = climb(count, seed)
        assert found == expected
        assert submitted >= 40


def test_most_guesses_are_right_where_few_results_matter() -> None:
    wasted = [climb(4, seed)[1] - 40 for seed in range(10)]
    assert 0 < np.mean(wasted) < 20
