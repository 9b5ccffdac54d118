"""Which seeds a search starts from: what `seed=`, a generator and torch.manual_seed say, and stock makes again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ttsnap import BestOfN
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.grid import Grid
from ttsnap.loop.dry import DryEngine
from ttsnap.loop.search import search
from ttsnap.pipelines import upgrade
from ttsnap.pipelines.arguments import first_seed, source_of
from ttsnap.recordings.folder import load_recording, save_recording
from ttsnap.recordings.replay import Recording, ReplayEngine

from .tiny import FAMILIES, shared

LAST = 2**64 - 1
CALL: dict[str, Any] = {**FAMILIES["sd3"].call, "num_inference_steps": 2, "output_type": "pt"}


def bright(images: Any, prompts: Any) -> Any:
    return images.mean((1, 2, 3))


SEARCH: dict[str, Any] = {"search": BestOfN(2), "reward": bright, "num_images_per_prompt": 2}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def used(seed: int) -> torch.Generator:
    """A generator that something was drawn from."""
    found = generator(seed)
    torch.randn(3, generator=found)
    return found


def seeds(out: Any) -> list[int]:
    found: list[int] = out.search[0].particles.seed.tolist()
    return found


@pytest.fixture(scope="module")
def pipe() -> Any:
    return upgrade(shared("sd3"))


# --- what a generator says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**63, LAST, -1, -5, -(2**63)])
def test_every_seed_that_torch_takes_is_taken(seed: int) -> None:
    assert first_seed(source_of(None, generator(seed), 1)) == seed % 2**32
    assert first_seed(source_of(seed, None, 1)) == seed % 2**64


def test_a_seed_of_torchs_own_choice_is_one_that_other_tools_read() -> None:
    for _ in range(8):
        found = torch.Generator()
        found.seed()  # torch chooses among 2^64
        own = found.initial_seed()
        seed = first_seed(found)
        assert seed == own % 2**32
        assert torch.equal(torch.randn(9, generator=generator(seed)), torch.randn(9, generator=generator(own)))


def test_a_generator_gives_its_own_seed_once_and_then_draws_others() -> None:
    one, two = generator(7), generator(7)
    first, second, third = (first_seed(one) for _ in range(3))
    assert first == 7
    assert len({first, second, third}) == 3
    assert [first_seed(two) for _ in range(3)] == [first, second, third]
    assert first_seed(used(7)) == first_seed(used(7)) != 7
    copied = torch.Generator()
    copied.set_state(used(7).get_state())
    assert first_seed(copied) == first_seed(used(7))


@pytest.mark.parametrize(
    ("seed", "given", "images", "message"),
    [
        (3, generator(4), 1, "give seed= or generator=, not both.*seed is 3"),
        (2**64, None, 1, "got 18446744073709551616"),
        (-(2**63) - 1, None, 1, "got -9223372036854775809"),
        (1.5, None, 1, "whole number.*got 1.5"),
        ("7", None, 1, "whole number.*got '7'"),
        (None, 7, 1, "generator= must be a torch.Generator, got 7; seed= takes a number"),
        (None, [], 1, "list of 0, for 1 images"),
        (None, [generator(1)], 2, "list of 1, for 2 images"),
        (None, [generator(1), generator(2)], 2, "not a list"),
        (None, ["one"], 1, "got 'one'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_says_no_seed_is_refused(seed: Any, given: Any, images: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source_of(seed, given, images)


def test_a_single_generator_may_come_in_a_list() -> None:
    assert first_seed(source_of(None, [generator(9)], 1)) == 9


# --- calls ---------------------------------------------------------------------------------------------------------


def test_two_calls_with_one_generator_give_two_images(pipe: Any) -> None:
    one, two = generator(5), generator(5)
    first, second = (pipe("a cat", generator=one, **SEARCH, **CALL) for _ in range(2))
    assert seeds(first) == [5, 6]
    assert not set(seeds(first)) & set(seeds(second))
    assert not torch.equal(first.images, second.images)
    again = [pipe("a cat", generator=two, **SEARCH, **CALL) for _ in range(2)]
    assert [seeds(out) for out in again] == [seeds(first), seeds(second)]


def test_without_a_generator_torchs_own_seed_counts(pipe: Any) -> None:
    def twice(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [seeds(pipe("a cat", **SEARCH, **CALL)) for _ in range(2)]

    with torch.random.fork_rng():
        first, other = twice(11), twice(12)
        assert first == twice(11)
        assert first[0] == [11, 12]
        assert first[0] != first[1]
        assert first[1] != other[1]


@pytest.mark.parametrize("given", [lambda: generator(LAST), lambda: generator(-5), lambda: used(3)])
def test_plain_diffusers_makes_the_winner_again_from_its_seed(pipe: Any, given: Callable[[], torch.Generator]) -> None:
    out = pipe("a cat", generator=given(), **SEARCH, **CALL)
    for image, candidate in zip(out.images, out.search[0].images, strict=True):
        assert 0 <= candidate.seed <= LAST
        again = shared("sd3")("a cat", generator=generator(candidate.seed), **CALL).images[0]
        torch.testing.assert_close(image, again, atol=1e-4, rtol=0)


def test_candidate_0_of_a_fresh_generator_is_the_image_of_the_stock_call(pipe: Any) -> None:
    out = pipe("a cat", generator=generator(2**63), search=BestOfN(1), reward=bright, **CALL | {"output_type": "np"})
    assert seeds(out) == [0]
    expected = shared("sd3")("a cat", generator=generator(2**63), **CALL).images
    torch.testing.assert_close(torch.as_tensor(out.images[0]), expected[0].permute(1, 2, 0), atol=1e-5, rtol=0)


def test_a_refused_call_leaves_the_generator_as_it_was(pipe: Any) -> None:
    mine = generator(5)
    with pytest.raises(ValueError, match="unknown algorithm"):
        pipe("a cat", generator=mine, **{**SEARCH, "search": "beam"}, **CALL)
    assert torch.equal(mine.get_state(), generator(5).get_state())


@pytest.mark.parametrize("prompts", ["a cat", ["a cat", "two dogs"]])
def test_a_list_of_one_generator_is_for_one_image_as_in_stock(pipe: Any, prompts: Any) -> None:
    call = {**CALL, "generator": [generator(1)]}
    if isinstance(prompts, list):
        for run in (shared("sd3"), lambda *a, **k: pipe(*a, search=BestOfN(1), reward=bright, **k)):
            with pytest.raises(ValueError, match=r"list of.*(length|for 2 images)"):
                run(prompts, **call)
    else:
        assert seeds(pipe(prompts, search=BestOfN(1), reward=bright, **call)) == [1]


# --- the core ------------------------------------------------------------------------------------------------------


def test_a_recording_of_large_seeds_is_written_read_and_played_back(tmp_path: Path) -> None:
    grid = Grid((1.0, 0.5, 0.0))
    made = search(["a"], KeepAll(4), DryEngine(grid, ("r",)), seed=2**63)
    save_recording(Recording.from_results(made, grid, ("r",)), tmp_path / "found")
    recording = load_recording(tmp_path / "found")
    assert recording.first_seed == 2**63
    (again,) = search(["a"], KeepAll(4), ReplayEngine(recording), seed=2**63)
    assert again.best.seed == made[0].best.seed
    with pytest.raises(ValueError, match=r"recorded are 9223372036854775808\.\.9223372036854775811"):
        search(["a"], KeepAll(2), ReplayEngine(recording), seed=0)
