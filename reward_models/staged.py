"""A cheap reward for pruning and an expensive one for the last choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ttsnap.core.protocols import Reward, Scores
from ttsnap.rewards.reward_model import RewardModel, adapted


class Staged(RewardModel):
    """One reward for x0 estimates (level > 0), another for finished images (level 0).

    The two scales need not agree: pruning compares estimates of one step, and the winner is chosen
    among finished images. Algorithms that compare estimates with finished images do not fit.
    """

    def __init__(self, early: Reward, final: Reward) -> None:
        self.early = adapted(early)
        self.final = adapted(final)
        self.name = f"{self.early.name} then {self.final.name}"
        self.tokens = max(self.early.tokens, self.final.tokens)
        self.needs = self.early.needs | self.final.needs
        if ("video" in self.early.needs) != ("video" in self.final.needs):
            raise ValueError(
                f"{self.name}: one scores videos and the other single frames; take two of one kind"
            )
        self.estimates = self.early.estimates
        self.embed_images = self.final.embed_images
        self.example = self.final.example

    @property
    def scores_estimates_apart(self) -> bool:
        return True

    def leaves_free(self, device: torch.device, *, early: bool) -> bool:
        asked = (self.final, self.early) if early else (self.final,)
        return all(reward.leaves_free(device, early=early) for reward in asked)

    @cached_property
    def flops(self) -> float:
        """FLOPs of an estimate."""
        return self.early.flops

    @cached_property
    def base_flops(self) -> float:
        """Where the final reward is the cheaper one, its images are priced as estimates are: an
        upper bound."""
        return max(0.0, self.final.flops - self.early.flops)

    def check(self, prompts: Sequence[str]) -> None:
        """Both rewards' checks."""
        self.early.check(prompts)
        self.final.check(prompts)

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        level: Tensor | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """images (N, 3, H, W), N prompts, level (N,) or None for finished images -> (N,) float32 on
        the CPU.

        source: the images that were edited, for the reward that needs them.
        """
        levels = torch.zeros(len(images)) if level is None else torch.as_tensor(level).cpu().float()
        scores = torch.zeros(len(images))
        taken = [0] * len(images)
        self.tokens_taken = taken
        for reward, rows in ((self.final, levels <= 0), (self.early, levels > 0)):
            index = rows.nonzero()[:, 0]
            if len(index):
                chosen = [prompts[i] for i in index.tolist()]
                score: Callable[..., Scores] = reward
                sources = None if source is None else source[index.to(source.device)]
                given = {"source": sources} if "source" in reward.needs else {}
                try:
                    part = score(
                        images[index.to(images.device)],
                        chosen,
                        levels[index].to(images.device),
                        **given,
                    )
                finally:  # a failed call has taken tokens, too
                    for i, tokens in zip(index.tolist(), reward.tokens_taken, strict=False):
                        taken[i] = tokens
                scores[index] = torch.as_tensor(part).float().cpu()
        return scores

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        """As a call, with a graph back to the images, for rows that are all estimates or all
        finished."""
        levels = torch.zeros(len(images)) if level is None else torch.as_tensor(level).cpu().float()
        if bool((levels <= 0).any()) and bool((levels > 0).any()):
            raise ValueError(
                f"{self.name}: gradients of estimates and of finished images are taken apart"
            )
        reward = self.final if bool((levels <= 0).all()) else self.early
        return reward.differentiable(images, prompts, level)

    def score_estimates(
        self, x: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        """By the early reward, where that reads latents."""
        return self.early.score_estimates(x, prompts, level)
