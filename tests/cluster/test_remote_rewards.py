"""Rewards on devices of their own: a search finds what it finds without them, and no image goes through the driver."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttsnap import make_algorithm, search
from ttsnap.algorithms import ALGORITHMS
from ttsnap.cluster.engine import ClusterEngine
from ttsnap.cluster.messages import ImageScores, ImageToScore
from ttsnap.cluster.remote_rewards import AHEAD, RewardQueue
from ttsnap.cluster.reward_actor import RemoteReward, RewardActor, load_rewards, split_rewards
from ttsnap.core.cost import Cost
from ttsnap.core.needs import Gradient
from ttsnap.core.outcome import Here, Outcome
from ttsnap.core.protocols import Algorithm
from ttsnap.engine.live import LiveEngine
from ttsnap.loop.budget import Budget
from ttsnap.options.engine import EngineOptions
from ttsnap.options.model import ModelOptions
from ttsnap.request.request import EngineSpec
from ttsnap.reward_models.pickscore import PickScore
from ttsnap.reward_models.registry import heavy, make_rewards
from ttsnap.reward_models.staged import Staged
from ttsnap.rewards.reward_model import RewardError
from ttsnap.sampling.guided_steps import RewardGuidance
from ttsnap.sampling.kernels import KERNELS

from ..algorithms.test_contract import PROMPTS, STEPS, Coarse, build  # noqa: TID252
from ..loop.test_requests import ByText  # noqa: TID252
from .local import LocalPool, Shelf, same, search_again, spent, stopped


class Noted(Coarse):
    """Tells noise levels apart."""

    def __call__(self, images: Any, prompts: Any, level: Any) -> Any:
        return super().__call__(images, prompts, level) + level.double().cpu()


class Rewards:
    """Makes one reward that has actors of its own."""

    def __init__(self, reward: Any = Noted, **how: Any) -> None:
        self.reward, self.how = reward, how

    def __call__(self) -> Any:
        return make_rewards([self.reward("noted", **self.how)])


def apart(mixture: Any, algorithm: Algorithm, engines: int, rewards: int, own: Any = None, **how: Any) -> Any:
    """A cluster whose first reward is cheap and whose second one has actors of its own."""
    pool = LocalPool(
        lambda: mixture(algorithm, rewards=[Coarse(), RemoteReward("two")]),
        engines,
        own or Rewards(),
        rewards,
        **how,
    )
    return ClusterEngine(pool, rewards, [1]), pool


def alone(mixture: Any, algorithm: Algorithm) -> LiveEngine:
    live: LiveEngine = mixture(algorithm, rewards=[Coarse(), Noted("noted")])
    return live


@pytest.mark.parametrize(("actors", "kills"), [(1, 0), (1, 2), (2, 2)])
@pytest.mark.parametrize("name", ["best-of-n", "seed-pruning", "svdd"])
def test_what_is_found_is_the_same_also_when_actors_die(mixture: Any, name: str, actors: int, kills: int) -> None:
    algorithm, budget = build(name), Budget(nfe=60)
    plain = search(PROMPTS[:2], algorithm, alone(mixture, algorithm), budget, keep=2)
    cluster, pool = apart(mixture, algorithm, 2, actors, kills=kills, often=0.3)
    search_again(plain, algorithm, cluster, budget)
    assert cluster.reward_names == ("brightness", "noted")
    assert bool(pool.deaths) == bool(kills)
    assert not cluster.rewards.queue.held
    pool.kills = 0
    search_again(plain, algorithm, cluster, budget)
    assert cluster.lost == Cost()


def takes_gradients(name: str) -> bool:
    return any(isinstance(need, Gradient) for need in build(name).needs)


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2])
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if not takes_gradients(name)])
def test_every_algorithm_finds_the_same_with_rewards_apart_that_die_all_the_time(
    mixture: Any, name: str, actors: int
) -> None:
    algorithm, budget = build(name), Budget(nfe=90)
    plain = search(PROMPTS, algorithm, alone(mixture, algorithm), budget, keep=2)
    for seed, kills in ((0, 0), (1, 20)):
        cluster, _ = apart(mixture, algorithm, 2, actors, seed=seed, kills=kills, often=0.15)
        search_again(plain, algorithm, cluster, budget)


def test_images_that_an_actor_of_rewards_had_when_it_died_are_scored_again_and_reported(mixture: Any) -> None:
    algorithm = build("best-of-n")
    cluster, pool = apart(mixture, algorithm, 1, 1)
    killed: list[int] = []

    def kill(event: Any) -> None:
        at = cluster.rewards.queue.sent[0]
        if event.kind != "move" and not killed and at:
            pool.dead.add(1)
            killed.append(len(at[0]))

    found = search(["a"], algorithm, cluster, Budget(nfe=160), on_event=kill)
    same(search(["a"], algorithm, alone(mixture, algorithm), Budget(nfe=160)), found)
    assert killed
    assert found[0].spent.lost == Cost(reward_calls=killed[0])


def test_a_search_that_is_stopped_pays_what_ran(mixture: Any) -> None:
    algorithm = build("seed-pruning")
    for after in (2, 5, 9):
        cluster, _ = apart(mixture, algorithm, 2, 1, seed=after)
        results = stopped(PROMPTS, algorithm, cluster, after)
        assert all(result.images or not result.trace for result in results)
        assert cluster.group.ran == spent(results)


def test_a_reward_apart_that_fails_costs_scores_and_one_that_fails_from_the_start_ends_the_search(
    mixture: Any,
) -> None:
    algorithm = build("best-of-n")
    cluster, _ = apart(mixture, algorithm, 1, 1, Rewards(Coarse, nan=0.3))
    result = search(["a"], algorithm, cluster, Budget(nfe=200))[0]
    scores = result.particles.scores[:, -1]
    assert 0 < np.isnan(scores[:, 1]).sum() < len(scores)
    assert np.isfinite(scores[:, 0]).all()
    assert "noted returned nan or inf" in result.warnings[0]
    cluster, _ = apart(mixture, algorithm, 1, 1, Rewards(Coarse, broken=1.0))
    with pytest.raises(RewardError, match="noted: RuntimeError: the scorer is down"):
        search(["a"], algorithm, cluster, Budget(nfe=60))


def test_prices_are_those_of_all_rewards(counted: Any) -> None:
    class Dear(Noted):
        flops = 50.0

    def engine(*rewards: Any) -> LiveEngine:
        return LiveEngine(counted(STEPS), rewards, EngineOptions(3))

    plain = engine(Coarse(), Dear("noted"))
    cluster = ClusterEngine(LocalPool(lambda: engine(Coarse(), RemoteReward("two")), 2, Rewards(Dear), 2), 2, [1])
    assert cluster.price.flops == plain.price.flops
    assert cluster.price.flops.reward_calls == 25
    assert cluster.calibrate().reward_calls == 2 * 2 + 2 * 2
    assert cluster.price.seconds.reward_calls > 0


def test_a_reward_apart_has_the_price_of_a_finished_image_for_looks_as_well() -> None:
    class Dear(Noted):
        flops = 50.0

    actor = RewardActor(lambda: [Staged(Coarse(), Dear("noted"))])
    assert actor.describe().flops == 50


def test_gradients_of_rewards_apart_are_refused(counted: Any) -> None:
    denoiser = counted(STEPS)
    with pytest.raises(ValueError, match="leave reward_actors out"):
        LiveEngine(denoiser, [RemoteReward("far")], EngineOptions(3), kernel=KERNELS["sde"](denoiser),
                   guidance=RewardGuidance.parse("tilted:0.2"))  # fmt: skip


# --- bytes ------------------------------------------------------------------------------------------------------------


class Large(ByText):
    """Images of 256 x 256 pixels, 786 kB each."""

    def decode(self, x0: Any) -> Any:
        return super().decode(x0).expand(-1, -1, 256, 256).contiguous()


@pytest.mark.parametrize("rewards", [0, 2])
def test_only_kept_images_reach_the_driver(counted: Any, rewards: int) -> None:
    def make() -> LiveEngine:
        stock = counted(STEPS)
        denoiser = Large(stock.means, stock.stds, stock.weights, steps=STEPS, by_prompt=stock._by_prompt)
        return LiveEngine(denoiser, [RemoteReward("two") if rewards else Coarse()], EngineOptions(3))

    pool = LocalPool(make, 2, Rewards(), rewards)
    cluster = ClusterEngine(pool, rewards, [0] if rewards else [])
    found = search(["a"], make_algorithm("best-of-n", n=24), cluster, keep=2)
    image, small = 3 * 256 * 256 * 4, 3 * 256 * 256
    assert len(Shelf.images) == 24
    assert [candidate.pixels.shape for candidate in found[0].images] == [(3, 256, 256)] * 2
    assert 2 * image <= Shelf.fetched["driver"] < 2 * image + 1000
    assert pool.heard < 24 * small + 60_000, "answers hold small copies only"
    scored = sum(amount for who, amount in Shelf.fetched.items() if who in ("actor 2", "actor 3"))
    assert (scored >= 24 * image) == bool(rewards)


def test_an_image_that_is_lost_with_its_machine_gives_way_to_the_next_best(mixture: Any) -> None:
    algorithm = make_algorithm("best-of-n", n=6)
    plain = search(["a"], algorithm, mixture(algorithm), keep=2)[0]
    cluster = ClusterEngine(LocalPool(lambda: mixture(algorithm), 2))

    def lose(event: Any) -> None:
        if event.kind == "score" and event.uids[0] == plain.best.uid:
            Shelf.images[event.picture.place.number] = b""

    found = search(["a"], algorithm, cluster, keep=1, on_event=lose)[0]
    assert found.best.uid == plain.images[1].uid
    assert f"the image of seed {plain.best.seed} is lost" in found.warnings[0]


# --- the queue --------------------------------------------------------------------------------------------------------


def outcome(job: int, first: int, rows: int) -> tuple[Outcome, list[ImageToScore]]:
    uids = np.arange(first, first + rows)
    flags = np.zeros(rows, bool)
    pictures = [Here(torch.zeros(3, 1, 1), float(uid)) for uid in uids]
    open_scores = np.full((rows, 1), np.nan)
    return (
        Outcome(job, uids, uids, flags, open_scores, pictures, errors=[None] * rows),
        [ImageToScore(picture, "", True) for picture in pictures],
    )


@given(st.integers(1, 3), st.integers(1, 5), st.lists(st.integers(1, 9), max_size=30), st.randoms())
def test_every_image_is_scored_once_in_batches_that_are_full_while_others_wait(
    actors: int, batch: int, sizes: list[int], rng: Any
) -> None:
    lanes: list[deque[Any]] = [deque() for _ in range(actors)]
    sent: list[int] = []

    def post(actor: int, images: Any) -> None:
        lanes[actor].append(images)
        assert len(lanes[actor]) <= AHEAD
        assert len(images) <= batch
        assert len(lanes[actor]) == 1 or len(images) == batch, "what waits behind another is full"
        sent.append(len(images))

    queue = RewardQueue(actors, [0], post)
    queue.batch = batch
    first, done = 0, []
    waiting = deque(sizes)
    while waiting or any(lanes):
        if waiting and rng.random() < 0.6:
            queue.add(*outcome(0, first, size := waiting.popleft()))
            first += size
            queue.send()
            assert all(lanes) or not queue.queue, "none is idle while images wait"
        elif busy := [i for i in range(actors) if lanes[i]]:
            actor = rng.choice(busy)
            if rng.random() < 0.1:
                lanes[actor].clear()
                queue.died(actor)
            else:
                scores = np.array([[image.picture.level] for image in lanes[actor].popleft()])
                done += queue.heard(actor, ImageScores(scores, [None] * len(scores)))
            queue.send()
    assert not queue.held
    assert sorted(uid for one in done for uid in one.uids) == list(range(first))
    for one in done:
        assert one.scores is not None
        np.testing.assert_array_equal(one.scores[:, 0], one.uids)


# --- which rewards, and of what ---------------------------------------------------------------------------------------


def test_which_rewards_are_worth_a_device_is_known_without_their_weights() -> None:
    assert heavy("pickscore")
    assert heavy("pickscore:/nowhere")
    assert heavy("brightness then vqascore")
    assert heavy(PickScore)
    assert heavy("hpsv3")
    assert not heavy("editreward"), "it needs what was edited"
    assert not any(map(heavy, ("brightness", "http://localhost:1", "judge:yes", "scenes", Coarse())))
    with pytest.raises(ValueError, match="unknown reward 'nothing'"):
        heavy("nothing")


def test_a_spec_parts_from_its_heavy_rewards() -> None:
    cpu = ModelOptions(device="cpu")
    bare, columns = split_rewards(EngineSpec(cpu, ("brightness", "scenes-learned")))
    assert [getattr(reward, "remote", reward) for reward in bare.rewards] == ["brightness", True]
    assert columns == (1,)
    assert [reward.name for reward in load_rewards(("scenes-learned",), "cpu")] == ["scenes-learned"]
    with pytest.raises(ValueError, match="none of these rewards has a network"):
        split_rewards(EngineSpec(cpu, ("brightness",)))
