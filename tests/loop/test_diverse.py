"""Searches that keep images which differ: what they keep, what that costs, and where it cannot be
done."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.counted import Brightness
from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.core.diversity import objective
from ttsnap.core.selection import Selection
from ttsnap.engine.live import LiveEngine
from ttsnap.options.engine import EngineOptions

PROMPTS = ["a", "b"]


class Colour:
    """Features that count the images they were taken of."""

    images = 0

    def __call__(self, images):
        self.images += len(images)
        return images.flatten(1) - 0.5


def kept(result):
    return [(candidate.seed, candidate.reward) for candidate in result.images]


@pytest.mark.parametrize("algorithm", [BestOfN(12), SeedPruning(16)])
def test_one_image_and_no_weight_are_what_a_plain_search_finds(engine, algorithm):
    for keep, diversity in ((1, 5.0), (3, 0.0)):
        plain = search(PROMPTS, algorithm, engine(), selection=Selection(keep=keep))
        found = search(
            PROMPTS,
            algorithm,
            engine(features="pixels"),
            selection=Selection(keep=keep, diversity=diversity),
        )
        for one, other in zip(plain, found, strict=True):
            assert kept(one) == kept(other)
            assert all(
                torch.equal(a.pixels, b.pixels)
                for a, b in zip(one.images, other.images, strict=True)
            )
            assert one.spent.cost == other.spent.cost.__class__(
                **{**other.spent.cost.named(), "features": 0}
            )


def test_the_group_is_the_best_of_all_that_hold_the_winner(engine):
    """By brute force over the finished images. Groups of two hold the winner and one more: greedy
    is exact there."""
    everything = search(PROMPTS, BestOfN(14), engine(), selection=Selection(keep=14))
    found = search(
        PROMPTS, BestOfN(14), engine(features=Colour()), selection=Selection(keep=2, diversity=1.0)
    )
    for whole, result in zip(everything, found, strict=True):
        values = np.array([candidate.reward for candidate in whole.images])
        features = np.array(
            [(candidate.pixels.flatten() - 0.5).double().numpy() for candidate in whole.images]
        )
        pairs = [np.array(pair) for pair in itertools.combinations(range(14), 2) if 0 in pair]
        first, second = max(pairs, key=lambda pair: objective(values, features, pair, 1.0))
        assert kept(result) == [kept(whole)[first], kept(whole)[second]]
    assert any(
        kept(result) != kept(whole)[:2] for whole, result in zip(everything, found, strict=True)
    )


@pytest.mark.parametrize("budget", [None, "70nfe", "6rewards", "5features", "stopped"])
@pytest.mark.parametrize(("algorithm", "batch"), [(BestOfN(9), 1), (SeedPruning(9), 4)])
def test_ledger_equals_counter(engine, algorithm, budget, batch):
    colour, reward, ticks = Colour(), Brightness(), itertools.count()
    live = engine(rewards=[reward], batch_size=batch, features=colour)
    stopped = budget == "stopped"
    results = search(
        PROMPTS,
        algorithm,
        live,
        None if stopped else budget,
        selection=Selection(keep=3, diversity=1.0),
        should_stop=lambda: stopped and next(ticks) > 30,
    )
    spent = [result.spent for result in results]
    assert sum(each.cost.features for each in spent) == colour.images == live.denoiser.decodes > 0
    assert sum(each.cost.reward_calls for each in spent) == reward.images
    assert live.stats["features"] == colour.images
    assert budget != "5features" or all(each.cost.features <= 5 for each in spent)
    for result in results:
        assert [c.reward for c in result.images] == sorted(
            (c.reward for c in result.images), reverse=True
        )


def test_what_features_take_is_priced(engine):
    live = engine(features="pixels")
    live._price = None
    (one,) = search(["a"], BestOfN(4), live, selection=Selection(keep=2, diversity=1.0))
    assert one.spent.to_json()["features"] == 4
    seconds = engine(features="pixels")
    assert seconds.calibrate().features == 2
    assert seconds.price.seconds.features > 0


def test_batches_and_other_prompts_change_nothing(engine):
    """Also where images that are not among the best are let go on the way."""
    found = [
        search(
            prompts,
            BestOfN(70),
            engine(batch_size=batch, features="pixels"),
            selection=Selection(keep=3, diversity=1.0),
        )[0]
        for prompts, batch in ((["a"], 8), (["a", "b"], 64))
    ]
    assert kept(found[0]) == kept(found[1])
    assert all(candidate.pixels is not None for candidate in found[0].images)


@pytest.mark.parametrize(
    ("features", "diversity", "said"),
    [
        (None, 1.0, "takes no features"),
        *[("pixels", weight, "number from 0") for weight in (-1.0, float("nan"), float("inf"))],
        (lambda images: images.flatten(1).mean(1), 1.0, r"\(4,\) for 4"),
    ],
)
def test_what_cannot_be_compared_is_refused(engine, features, diversity, said):
    live = engine(features=features)
    with pytest.raises(ValueError, match=said):
        search(["a"], BestOfN(4), live, selection=Selection(keep=2, diversity=diversity))
    assert live.nfe == 0 or callable(features)


def test_images_without_a_score_are_not_chosen_for_being_different(engine):
    class Failing(Brightness):
        def __call__(self, images, prompts, level):
            scores = super().__call__(images, prompts, level)
            scores[images[:, 0].flatten(1).mean(1) > 0.5] = float("nan")
            return scores

    (plain,) = search(["a"], BestOfN(24), engine(rewards=[Failing()]), selection=Selection(keep=3))
    (found,) = search(
        ["a"],
        BestOfN(24),
        engine(rewards=[Failing()], features=Colour()),
        selection=Selection(keep=3, diversity=90.0),
    )
    assert all(np.isfinite(candidate.reward) for candidate in found.images)
    assert kept(found) != kept(plain)


def test_videos_are_compared_by_the_frames_that_rewards_see(engine):
    colour = Colour()
    live = engine()
    live.denoiser.frames = 6
    live = LiveEngine(
        live.denoiser, [Brightness(times=2)], EngineOptions(4, frames=2, features=colour)
    )
    (found,) = search(
        ["a"], BestOfN(6), live, Budget(nfe=48), selection=Selection(keep=2, diversity=1.0)
    )
    assert found.spent.cost.features == 6
    assert colour.images == 12
