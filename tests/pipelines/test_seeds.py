"""Which seeds a search starts from: what `seed=`, a generator and torch.manual_seed say, and stock
makes again."""

from __future__ import annotations

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
CALL = {**FAMILIES["sd3"].call, "num_inference_steps": 2, "output_type": "pt"}


def bright(images, prompts):
    return images.mean((1, 2, 3))


SEARCH = {"search": BestOfN(2), "reward": bright, "num_images_per_prompt": 2}


def generator(seed):
    return torch.Generator().manual_seed(seed)


class OnDevice(torch.Generator):
    """As one of a GPU."""

    device = torch.device("cuda")  # type: ignore[assignment]


def used(seed):
    """A generator that something was drawn from."""
    found = generator(seed)
    torch.randn(3, generator=found)
    return found


def seeds(out):
    found = out.search[0].particles.seed.tolist()
    return found


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**63, LAST, -1, -5, -(2**63)])
def test_every_seed_that_torch_takes_is_taken(seed):
    assert first_seed(source_of(None, generator(seed), 1)) == seed % 2**32
    assert first_seed(source_of(seed, None, 1)) == seed % 2**64
    with pytest.warns(UserWarning, match="on the CPU"):
        source_of(None, OnDevice(), 1)


def test_a_generator_gives_its_own_seed_once_and_then_draws_others():
    one, two = generator(7), generator(7)
    drawn = [first_seed(one) for _ in range(3)]
    assert drawn[0] == 7
    assert len(set(drawn)) == 3
    assert [first_seed(two) for _ in range(3)] == drawn
    assert first_seed(used(7)) == first_seed(used(7)) != 7
    copied = torch.Generator()
    copied.set_state(used(7).get_state())
    assert first_seed(copied) == first_seed(used(7))


@pytest.mark.parametrize(
    ("seed", "given", "images", "said"),
    [
        (3, generator(4), 1, "not both.* 3"),
        (2**64, None, 1, str(2**64)),
        (-(2**63) - 1, None, 1, str(-(2**63) - 1)),
        (1.5, None, 1, "got 1.5"),
        ("7", None, 1, "got '7'"),
        (None, 7, 1, "got 7; seed= takes"),
        (None, ["one"], 1, "'one'"),
        (None, [], 1, "list of 0, for 1"),
        (None, [generator(1)], 2, "list of 1, for 2"),
        (None, [generator(1), generator(2)], 2, "not a list"),
    ],
)
def test_what_says_no_seed_is_refused(seed, given, images, said):
    with pytest.raises(ValueError, match=said):
        source_of(seed, given, images)


def searched(prompt="a cat", **given):
    return upgrade(shared("sd3"))(prompt, **{**SEARCH, **CALL, **given})


def test_without_a_generator_torchs_own_seed_counts():
    def twice(seed):
        torch.manual_seed(seed)
        return [seeds(searched()) for _ in range(2)]

    with torch.random.fork_rng():
        first, other = twice(11), twice(12)
        assert first == twice(11)
    assert first[0] == [11, 12] != first[1] != other[1]


@pytest.mark.parametrize("given", [generator(LAST), generator(-5), used(3)])
def test_plain_diffusers_makes_the_winner_again_from_its_seed(given):
    out = searched(generator=given)
    for image, candidate in zip(out.images, out.search[0].images, strict=True):
        assert 0 <= candidate.seed <= LAST
        again = shared("sd3")("a cat", generator=generator(candidate.seed), **CALL).images[0]
        torch.testing.assert_close(image, again, atol=1e-4, rtol=0)


def test_candidate_0_of_a_fresh_generator_is_the_image_of_the_stock_call():
    found = searched(generator=[generator(2**63)], search=BestOfN(1), num_images_per_prompt=1)
    expected = shared("sd3")("a cat", generator=generator(2**63), **CALL).images
    torch.testing.assert_close(found.images, expected, atol=1e-5, rtol=0)


def test_a_refused_call_leaves_the_generator_as_it_was():
    mine = generator(5)
    with pytest.raises(ValueError, match="unknown algorithm"):
        searched(generator=mine, search="beam")
    assert torch.equal(mine.get_state(), generator(5).get_state())


def test_a_recording_of_large_seeds_is_written_read_and_played_back(tmp_path):
    grid = Grid((1.0, 0.5, 0.0))
    made = search(["a"], KeepAll(4), DryEngine(grid, ("r",)), seed=2**63)
    save_recording(Recording.from_results(made, grid, ("r",)), tmp_path / "found")
    recording = load_recording(tmp_path / "found")
    assert recording.first_seed == 2**63
    (again,) = search(["a"], KeepAll(4), ReplayEngine(recording), seed=2**63)
    assert again.best.seed == made[0].best.seed
    with pytest.raises(ValueError, match=rf"{2**63}\.\.{2**63 + 3}"):
        search(["a"], KeepAll(2), ReplayEngine(recording), seed=0)
