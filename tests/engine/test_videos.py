"""Searches of videos and of edits: what rewards see of them, what that costs, and what is
refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ttsnap import BestOfN, Budget, SeedPruning, search
from ttsnap.algorithms.keep_all import KeepAll
from ttsnap.core.cost import Cost, Rates
from ttsnap.core.outcome import Here, chosen
from ttsnap.core.price import Price
from ttsnap.core.selection import Selection
from ttsnap.engine.batch_sizes import fit_batches
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.job import Job
from ttsnap.options.engine import EngineOptions
from ttsnap.recordings.header import Header
from ttsnap.recordings.replay import Recording, ReplayEngine
from ttsnap.reward_models.registry import make_reward
from ttsnap.reward_models.staged import Staged
from ttsnap.sampling.denoiser import Capability

from ..clips import Clips, Mean, Motion, Near  # noqa: TID252
from ..counted import Counted  # noqa: TID252
from ..profiling.test_memory import FakeGauge  # noqa: TID252

PROMPTS = ["a", "b", "c"]
SOURCES = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(3))


def engine(denoiser, *rewards, **options):
    return LiveEngine(denoiser, rewards, EngineOptions(**{"batch_size": 3, **options}))


def test_frames_are_chosen_evenly():
    assert (chosen(81, 4), chosen(9, 3), chosen(5, 1)) == ([10, 30, 50, 70], [1, 4, 7], [2])
    assert (chosen(4, 4), chosen(2, 4)) == ([0, 1, 2, 3], [0, 0, 1, 1])
    assert Here(torch.zeros(9, 3, 480, 832), 0.0).small().shape == (4, 3, 240, 416)
    assert Here(torch.rand(2, 3, 4, 4), 0.0).small().shape == (2, 3, 4, 4)
    assert all(len(set(chosen(total, n))) == n for n in range(1, 9) for total in range(n, 30))


def test_a_reward_of_images_gets_a_few_frames_and_one_of_videos_all_in_one_call_a_video():
    frames, videos, denoiser = Mean(), Motion(), Clips(9)
    live = engine(denoiser, frames, videos, frames=3)
    results = search(PROMPTS, SeedPruning(4, (0.5,), steps=(2,)), live, selection=Selection(keep=2))
    assert (frames.shapes, videos.shapes) == ({(3, 4, 6)}, {(9, 3, 4, 6)})
    looks = sum(result.spent.cost.decodes for result in results)
    assert (frames.images, videos.images, denoiser.decodes) == (3 * looks, looks, looks)
    assert (
        sum(result.spent.cost.reward_calls for result in results)
        == 4 * looks
        == live.stats["reward_calls"]
    )
    for found in (image for result in results for image in result.images):
        pixels = found.pixels.double()
        by_hand = {
            "mean": float(pixels[[1, 4, 7]].mean()),
            "motion": float(pixels.diff(dim=0).abs().mean()),
        }
        assert found.scores == pytest.approx(by_hand, abs=1e-12)
        assert abs(by_hand["mean"] - float(pixels.mean())) > 1e-4  # not the mean of all frames


def test_frames_are_counted_and_capped_one_by_one():
    reward = Mean()
    live = engine(Clips(2), reward, frames=7)
    (result,) = search(["a"], BestOfN(2), live)
    assert (live.price.more_calls, reward.images, result.spent.cost.reward_calls) == (1, 4, 4)
    live, reward.images = engine(Clips(), reward, frames=4), 0
    search(["a"], BestOfN(), live, Budget(reward_calls=11))
    assert reward.images == 8  # a third video would take 12
    with pytest.raises(ValueError, match="4 reward"):
        search(["a"], BestOfN(), live, Budget(reward_calls=3))


def test_flops_and_tokens_are_those_of_all_calls():
    frames, videos = make_reward(Mean()), make_reward(Motion())
    frames.flops, videos.flops = 10.0, 70.0  # type: ignore[misc]
    frames.tokens = 5
    live = engine(Clips(), frames, videos, frames=3)
    assert live.price.calls(2) * live.price.flops.reward_calls == pytest.approx(3 * 10 + 70)
    assert live.price.tokens == 15
    frames.tokens_taken = [1, 2, 3, 4, 5, 6]
    assert live.scorer.shown.tokens(frames) == [6, 15]
    assert live.calibrate().tokens == 2 * (6 + 15), "each call of the reward counts"
    *_, spent = fit_batches(live.denoiser, live.scorer, FakeGauge(10_000), 3, None)
    assert spent.tokens == 2 * (6 + 15), "one row, and three"


def test_previews_may_have_fewer_frames():
    reward, denoiser = Mean(), Clips(5)
    denoiser.can |= {Capability.PREVIEW}
    live = engine(denoiser, reward, frames=4, preview=True, batch_size=8)
    results = search(PROMPTS, SeedPruning(4, (0.5,), steps=(4,)), live, Budget(nfe=60))
    cost = Cost().plus(*(result.spent.cost for result in results))
    assert (cost.previews, cost.decodes) == (denoiser.previewed, denoiser.decodes)
    assert denoiser.previewed > 0
    assert cost.reward_calls == reward.images == 4 * (cost.previews + cost.decodes)


def test_a_reward_of_edits_sees_what_each_prompt_edits():
    live = engine(Clips(4, sources=SOURCES), Near(), frames=2)
    results = search(PROMPTS, SeedPruning(5, (0.4,), steps=(3,)), live, selection=Selection(keep=2))
    for source, result in zip(SOURCES, results, strict=True):
        for found in result.images:
            means = found.pixels[[1, 3]].double().mean((1, 2, 3))
            assert found.reward == pytest.approx(
                -float((means - source.double().mean()).abs().mean()), abs=1e-12
            )


def test_what_is_tried_before_a_search_is_shown_the_same():
    rewards, denoiser = (Near(), Motion(), Mean()), Clips(4, sources=SOURCES)
    live = engine(denoiser, *rewards, frames=3)
    (result,) = search(["a"], BestOfN(), live, Budget(seconds=0.2))
    assert result.spent.calibration.reward_calls == 2 * live.scorer.calls == 2 * (3 + 1 + 3)
    denoiser.encode(["a"])
    before = sum(reward.images for reward in rewards)
    *_, spent = fit_batches(denoiser, live.scorer, FakeGauge(10_000), 3, None)
    assert spent.reward_calls == sum(reward.images for reward in rewards) - before > 0


def test_a_recorded_search_of_videos_costs_the_same_when_played_back():
    live = engine(Clips(), Mean(), Motion(), frames=3)
    every = Recording.from_results(
        search(PROMPTS, KeepAll(6), live), live.grid, live.reward_names, live.price
    )
    told = json.loads(json.dumps(Header.of(every).to_json()))
    there = Header.from_json(told, Path("there"))
    assert there.price.calls(2) == 4
    algorithm = SeedPruning(6, (0.5, 0.5), steps=(1, 4))
    played = search(
        PROMPTS,
        algorithm,
        ReplayEngine(there.recording(every.columns)),
        selection=Selection(keep=2),
    )
    for one, other in zip(
        search(PROMPTS, algorithm, live, selection=Selection(keep=2)), played, strict=True
    ):
        assert one.spent.cost == other.spent.cost
        assert [(c.seed, c.scores) for c in one.images] == [
            (c.seed, c.scores) for c in other.images
        ]
    with pytest.raises(ValueError, match="0, got -1"):
        Price(Rates(), more_calls=-1)


def asks(reward, needs):
    reward.needs = needs
    return reward


class Latent(Mean):
    estimates, score_estimates = "latents", Mean.__call__


@pytest.mark.parametrize(
    ("denoiser", "reward", "message"),
    [
        (Clips(), asks(Mean(), "source"), "reward 'mean' compares"),
        (
            Clips(sources=SOURCES),
            asks(Mean(), {"sound", "source"}),
            r"'mean' needs \['sound'\]; .*source and video",
        ),
        (
            Counted(torch.zeros(1, 3), torch.ones(1), torch.ones(1), steps=4),
            Motion(),
            "reward 'motion' scores",
        ),
        (Clips(), Latent(), "'mean' reads latents"),
    ],
)
def test_rewards_that_need_what_there_is_not_are_refused(denoiser, reward, message):
    with pytest.raises(ValueError, match=message):
        engine(denoiser, reward)
    assert not denoiser.decodes


def test_a_reward_of_latents_scores_videos_whole():
    reward = asks(Latent(), {"video"})
    (result,) = search(["a"], SeedPruning(4, (0.5,), steps=(2,)), engine(Clips(), reward))
    assert (
        (result.spent.cost.reward_calls, result.spent.cost.decodes) == (reward.images, 2) == (6, 2)
    )


def test_what_is_asked_of_no_such_model_is_refused(counted):
    with pytest.raises(ValueError, match="edits no images"):
        counted().sources(torch.zeros(1, dtype=torch.long))


def test_a_function_takes_its_source_by_name():
    def changed(images, prompts, level, source):
        return images.flatten(1).mean(1) - source.flatten(1).mean(1) + level

    images, source, level = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 5), torch.tensor([1.0, 2.0])
    reward = make_reward(asks(changed, ("source",)))
    assert reward.needs == {"source"}
    scores = reward(images, ["a", "b"], level, source=source)
    torch.testing.assert_close(scores, changed(images, None, level, source))


def test_of_two_rewards_in_turn_each_gets_what_it_needs():
    staged = Staged(Near(), Mean())
    assert staged.needs == {"source"}
    images, level = torch.rand(3, 3, 4, 4), torch.tensor([0.5, 0.0, 0.7])
    means = images.flatten(1).mean(1) - SOURCES.flatten(1).mean(1)
    wanted = torch.where(level > 0, -means.abs(), images.flatten(1).mean(1))
    torch.testing.assert_close(staged(images, PROMPTS, level, source=SOURCES), wanted)
    with pytest.raises(ValueError, match="motion then mean:"):
        Staged(Motion(), Mean())


@pytest.mark.parametrize("bound", ["MOST_SPARE", "MOST_HELD"])
def test_of_large_videos_only_the_best_are_held(bound, monkeypatch):
    """A search with room for three videos finds what one with room for all does."""
    held, take = list[int](), Job.take

    def taken(self, *args):
        found = take(self, *args)
        held.append(sum(picture is not None for picture in self.images.values()))
        return found

    monkeypatch.setattr(Job, "take", taken)
    wanted = search(["a"], BestOfN(9), engine(Clips(4), Mean()), selection=Selection(keep=2))[0]
    assert max(held) > 3
    held.clear()
    monkeypatch.setattr(f"ttsnap.loop.job.{bound}", 3 * 4 * 4 * 3 * 4 * 6)  # bytes of three videos
    found = search(["a"], BestOfN(9), engine(Clips(4), Mean()), selection=Selection(keep=2))[0]
    assert max(held) <= 3
    assert [c.seed for c in found.images] == [c.seed for c in wanted.images]
    assert all(
        torch.equal(one.pixels, other.pixels)
        for one, other in zip(wanted.images, found.images, strict=True)
    )
