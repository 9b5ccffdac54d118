"""Searches that keep images which differ: what they keep, what that costs, and where it cannot be done."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.counted import Brightness
from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.core.diversity import objective
from ttsnap.core.results import Result
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.dry import DryEngine
from ttsnap.options.engine import EngineOptions

PROMPTS = ["a", "b"]


class Colour:
    """Features that count the images they were taken of; all alike for one `colour`."""

    def __init__(self, colour: float | None = None) -> None:
        self.colour, self.images = colour, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        seen = images.flatten(1) - 0.5
        return seen if self.colour is None else torch.full_like(seen, self.colour)


def kept(result: Result) -> list[tuple[int, float]]:
    return [(candidate.seed, candidate.reward) for candidate in result.images]


def same_images(one: Result, other: Result) -> bool:
    return all(torch.equal(a.pixels, b.pixels) for a, b in zip(one.images, other.images, strict=True))


@pytest.mark.parametrize("algorithm", [BestOfN(12), SeedPruning(16)], ids=["best-of-n", "seed-pruning"])
def test_one_image_and_no_weight_are_what_a_plain_search_finds(engine: Any, algorithm: Any) -> None:
    for keep, diversity in ((1, 5.0), (3, 0.0)):
        plain = search(PROMPTS, algorithm, engine(), keep=keep)
        found = search(PROMPTS, algorithm, engine(features="pixels"), keep=keep, diversity=diversity)
        for one, other in zip(plain, found, strict=True):
            assert kept(one) == kept(other)
            assert same_images(one, other)
            assert one.spent.cost == other.spent.cost.__class__(**{**other.spent.cost.named(), "features": 0})


def test_the_group_is_the_best_of_all_that_hold_the_winner(engine: Any) -> None:
    """By brute force over the finished images. Groups of two hold the winner and one more: greedy is exact there."""
    everything = search(PROMPTS, BestOfN(14), engine(), keep=14)
    found = search(PROMPTS, BestOfN(14), engine(features=Colour()), keep=2, diversity=1.0)
    for whole, result in zip(everything, found, strict=True):
        values = np.array([candidate.reward for candidate in whole.images])
        features = np.array([(candidate.pixels.flatten() - 0.5).double().numpy() for candidate in whole.images])
        pairs = [np.array(pair) for pair in itertools.combinations(range(14), 2) if 0 in pair]
        first, second = max(pairs, key=lambda pair: objective(values, features, pair, 1.0))
        assert kept(result) == [kept(whole)[first], kept(whole)[second]]
    assert any(kept(result) != kept(whole)[:2] for whole, result in zip(everything, found, strict=True))


def test_images_are_returned_best_first_and_the_winner_is_among_them(engine: Any) -> None:
    (plain,) = search(["a"], BestOfN(20), engine())
    (found,) = search(["a"], BestOfN(20), engine(features="pixels"), keep=5, diversity=50.0)
    rewards = [candidate.reward for candidate in found.images]
    assert rewards == sorted(rewards, reverse=True)
    assert kept(found)[0] == kept(plain)[0]


def test_of_images_that_are_alike_the_best_are_kept(engine: Any) -> None:
    plain = search(PROMPTS, BestOfN(12), engine(), keep=4)
    found = search(PROMPTS, BestOfN(12), engine(features=Colour(0.3)), keep=4, diversity=50.0)
    assert [kept(result) for result in plain] == [kept(result) for result in found]


@pytest.mark.parametrize("budget", [None, "70nfe", "6rewards", "5features"])
@pytest.mark.parametrize("algorithm", [BestOfN(9), SeedPruning(9)], ids=["best-of-n", "seed-pruning"])
@pytest.mark.parametrize("batch", [1, 4])
def test_ledger_equals_counter(engine: Any, algorithm: Any, budget: str | None, batch: int) -> None:
    colour, reward = Colour(), Brightness()
    live = engine(rewards=[reward], batch_size=batch, features=colour)
    results = search(PROMPTS, algorithm, live, budget, keep=3, diversity=1.0)
    spent = [result.spent for result in results]
    assert sum(each.cost.features for each in spent) == colour.images
    assert colour.images == live.denoiser.decodes
    assert sum(each.cost.reward_calls for each in spent) == reward.images
    assert live.stats["features"] == colour.images
    assert budget != "5features" or all(each.cost.features <= 5 for each in spent)


def test_a_stopped_search_gives_back_what_it_did_not_take(engine: Any) -> None:
    colour, ticks = Colour(), itertools.count()
    live = engine(batch_size=2, features=colour)
    results = search(PROMPTS, BestOfN(9), live, keep=3, diversity=1.0, should_stop=lambda: next(ticks) > 30)
    assert sum(result.spent.cost.features for result in results) == colour.images > 0


def test_what_features_take_is_priced(engine: Any) -> None:
    live = engine(features="pixels")
    live._price = None
    one = search(["a"], BestOfN(4), live, keep=2, diversity=1.0)[0]
    assert one.spent.to_json()["features"] == 4
    assert "4 features" in str(one.spent)
    seconds = engine(features="pixels")
    assert seconds.calibrate().features == 2
    assert seconds.price.seconds.features > 0


def test_batches_and_other_prompts_change_nothing(engine: Any) -> None:
    found = [
        search(prompts, BestOfN(70), engine(batch_size=batch, features="pixels"), keep=3, diversity=1.0)[0]
        for prompts, batch in ((["a"], 1), (["a", "b"], 5), (["a", "b", "c"], 64))
    ]
    assert kept(found[0]) == kept(found[1]) == kept(found[2])


def test_many_more_images_than_are_held_give_the_group_of_the_best(engine: Any) -> None:
    """Of each prompt, images that are not among the best are let go on the way."""
    live = engine(batch_size=8, features="pixels")
    (found,) = search(["a"], BestOfN(150), live, keep=2, diversity=1.0)
    assert len(found.images) == 2
    assert all(candidate.pixels is not None for candidate in found.images)


def test_an_engine_without_features_is_refused_before_any_compute(engine: Any) -> None:
    for live in (engine(), DryEngine(engine().grid, ("r",))):
        with pytest.raises(ValueError, match="takes no features"):
            search(["a"], BestOfN(4), live, keep=2, diversity=1.0)
        assert live.nfe == 0
    search(["a"], BestOfN(4), engine(), keep=1, diversity=1.0)


@pytest.mark.parametrize("diversity", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(engine: Any, diversity: float) -> None:
    with pytest.raises(ValueError, match="number from 0"):
        search(["a"], BestOfN(4), engine(features="pixels"), keep=2, diversity=diversity)


def test_features_of_another_shape_are_refused(engine: Any) -> None:
    with pytest.raises(ValueError, match=r"\(4,\) for 4"):
        search(["a"], BestOfN(4), engine(features=lambda images: images.flatten(1).mean(1)), keep=2, diversity=1.0)


def test_images_without_a_score_are_not_chosen_for_being_different(engine: Any) -> None:
    class Failing(Brightness):
        def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
            scores = super().__call__(images, prompts, level)
            scores[images[:, 0].flatten(1).mean(1) > 0.5] = float("nan")
            return scores

    class Without(Colour):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            features = super().__call__(images)
            features[images[:, 0].flatten(1).mean(1) > 0.5] = float("nan")  # as of an image that is nan itself
            return features

    (plain,) = search(["a"], BestOfN(24), engine(rewards=[Failing()]), keep=3)
    for features in (Colour(), Without()):
        (found,) = search(["a"], BestOfN(24), engine(rewards=[Failing()], features=features), keep=3, diversity=90.0)
        assert all(np.isfinite(candidate.reward) for candidate in found.images)
        assert kept(found) != kept(plain)


def test_videos_are_compared_by_the_frames_that_rewards_see(engine: Any) -> None:
    colour = Colour()
    live = engine()
    live.denoiser.frames = 6
    live = LiveEngine(live.denoiser, [Brightness(times=2)], EngineOptions(4, frames=2, features=colour))
    (found,) = search(["a"], BestOfN(6), live, Budget(nfe=48), keep=2, diversity=1.0)
    assert found.spent.cost.features == 6
    assert colour.images == 12
