"""Rewards on a device of their own: an actor fetches images that other actors made, and scores them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ttsnap.cluster import messages as m
from ttsnap.cluster.actor import SearchActor
from ttsnap.core.cost import Cost
from ttsnap.core.prompt import Prompt
from ttsnap.core.protocols import Scores
from ttsnap.engine.batch_sizes import BatchSizes
from ttsnap.options.option import Spec
from ttsnap.profiling.meter import Stopwatch
from ttsnap.request.request import EngineSpec
from ttsnap.reward_models.registry import heavy, make_rewards
from ttsnap.rewards.reward_model import RewardModel, said
from ttsnap.rewards.scoring import RewardHealthCheck, ask, explained

BATCH = 16
"""Images that are scored at once; half as many from then on where memory runs out."""


def load_rewards(specs: tuple[Spec, ...], device: str) -> tuple[RewardModel, ...]:
    """The rewards of an actor, with their weights, here.

    ValueError for an unknown one, and for rewards that must be where the latents are.
    """
    made = make_rewards(specs, device=device)
    for reward in made:
        if reward.estimates != "pixels" or reward.tokens or reward.needs:
            raise ValueError(f"reward {reward.name!r} reads more than images and prompts, or asks a model behind "
                             "an API: it is scored where the latents are; leave reward_actors out")  # fmt: skip
    return made


class RemoteReward(RewardModel):
    """A reward of another process, for an engine that makes its images and leaves its scores open."""

    remote = True

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        raise RuntimeError(f"reward {self.name!r} is scored in another process")

    def differentiable(self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None) -> Scores:
        raise ValueError(f"gradients of reward {self.name!r} are taken where the latents are; leave reward_actors out")


def split_rewards(spec: EngineSpec) -> tuple[EngineSpec, tuple[int, ...]]:
    """A spec without its heavy rewards, and the columns of these. ValueError where it has none."""
    columns = tuple(i for i, reward in enumerate(spec.rewards) if heavy(reward))
    if not columns:
        raise ValueError("none of these rewards has a network that is worth a device of its own; leave "
                         "reward_actors out, or say heavy = True in your own reward's class")  # fmt: skip
    left = tuple(RemoteReward(f"reward {i + 1}") if i in columns else reward for i, reward in enumerate(spec.rewards))
    return replace(spec, rewards=left), columns


class RewardActor(SearchActor):
    """Some rewards of pixels, and no model."""

    def __init__(self, make: Callable[[], Sequence[RewardModel]]) -> None:
        self.rewards = make()
        self.device = self.rewards[0].trial_image().device
        super().__init__(self.device)
        self._seconds, self._watch = [0.0] * len(self.rewards), Stopwatch(("reward",))
        self._sizes = BatchSizes(BATCH, BATCH, lambda a, b: (a or BATCH, b or BATCH), defaultdict(int))
        self.start()

    def _turn(self, answer: object) -> m.Turn:
        return m.Turn(answer, self._ran, timings=dict(self._watch.seconds))

    def start(self) -> None:
        self._ran, self._health = Cost(), RewardHealthCheck(self.rewards)
        self._watch.reset()

    def check(self, prompts: Sequence[Prompt]) -> None:
        for reward in self.rewards:
            reward.check([prompt.read for prompt in prompts])

    def describe(self) -> m.RewardsDescription:
        """What the rewards are. Each call has the price of a finished image: an upper bound where looks cost less."""
        flops, names = sum(r.flops + r.base_flops for r in self.rewards), tuple(r.name for r in self.rewards)
        return m.RewardsDescription(names, flops, sum(self._seconds), self._sizes.batch_size)

    def calibrate(self) -> tuple[Cost, m.RewardsDescription]:
        """Measure the seconds of a call of each; what that took, and the rewards with their seconds."""
        self._seconds = [_seconds(reward) for reward in self.rewards]
        return Cost(reward_calls=2 * len(self.rewards)), self.describe()

    @torch.no_grad()
    def score(self, images: Sequence[m.ImageToScore]) -> m.ImageScores:
        """The scores of these images, in as many batches as memory takes."""
        scores, errors, left = np.empty((0, len(self.rewards))), list[str | None](), images
        while left:
            part, n = self._sizes.run(left, self._score_batch)
            scores, errors, left = np.concatenate([scores, part.scores]), [*errors, *part.errors], left[n:]
        return m.ImageScores(scores, errors)

    def _score_batch(self, batch: Sequence[m.ImageToScore]) -> m.ImageScores:
        images = torch.stack([one.picture.fetch() for one in batch]).to(self.device)
        levels = torch.tensor([one.picture.level for one in batch], device=self.device)
        last = np.array([one.last for one in batch])
        broken = ~np.asarray(torch.isfinite(images).flatten(1).all(1).cpu().numpy())
        scores, causes = np.full((len(batch), len(self.rewards)), np.nan), dict[str, str | None]()
        for r, reward in enumerate(self.rewards):
            with self._watch("reward", self.device):
                # A reward may write into what it gets.
                scores[:, r], error = ask(reward, images.clone(), [one.prompt for one in batch], levels)
            scores[broken, r] = np.nan
            self._health.check(reward.name, scores[:, r], last, broken, error)
            causes[reward.name] = said(reward.name, error) if error else None
        self._ran += Cost(reward_calls=scores.size)
        return m.ImageScores(scores, [explained(row, causes) for row in scores])


def _seconds(reward: RewardModel) -> float:
    """Seconds of the second call on one image."""

    def call() -> Tensor:
        return torch.as_tensor(np.asarray(ask(reward, reward.trial_image(), [reward.example], torch.zeros(1))[0]))

    call()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
