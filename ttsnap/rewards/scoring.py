"""Calls of rewards: which frames and sources they see, and their scores, checked.

A failure costs one score, not the search, unless a reward fails from the start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ttsnap.core.arrays import BoolArray, FloatArray
from ttsnap.core.memory import lacks_memory
from ttsnap.core.outcome import chosen
from ttsnap.core.protocols import Scores
from ttsnap.rewards.reward_model import RewardError, RewardModel, place_of, said

logger = logging.getLogger(__name__)
NOT_FINITE = (
    "the latent or its image is nan or inf; in half precision, try bfloat16 or a VAE in float32"
)
SILENT = 8
"""First images without a score, and without an exception, that mark a reward as broken. Fewer may
be chance where a reward returns nan now and then."""
EXACT = (torch.float16, torch.bfloat16, torch.float32)
"""Of scores that float32 holds as they are."""
Call = Callable[[Tensor, list[str], Tensor], Scores]
"""(images, videos or latents (N, ...), N prompts, levels (N,)) -> N scores."""


def score_images(
    reward: Call, images: Tensor, prompts: list[str], levels: Tensor, name: str
) -> tuple[FloatArray, str | None]:
    """Scores (N,) float64 with nan where the reward failed, and why, in words. name: the
    reward's."""
    scores, error = ask(reward, images, prompts, levels)
    return scores, None if error is None else said(name, error)


def ask(
    reward: Call, images: Tensor, prompts: list[str], levels: Tensor, columns: int = 1
) -> tuple[FloatArray, Exception | None]:
    """Scores (N,), of several columns (N, columns), float64 with nan where the reward failed, and
    why.

    A reward is a user's code and may do anything. An exception marks the batch as failed: one
    broken score must not cost a long search its other images. A reward may write into its images:
    pass a copy of images that are needed later. A lack of memory alone is raised: fewer images may
    fit, and where one does not, none will.
    """
    scores, error = answered(reward, images, prompts, levels, columns)
    return landed([scores])[0], error


def answered(
    reward: Call, images: Tensor, prompts: list[str], levels: Tensor, columns: int = 1
) -> tuple[Tensor | FloatArray, Exception | None]:
    """As `ask`, with scores that may still be on a device: they wait for `landed`."""
    n = len(prompts)
    shape = (n,) if columns == 1 else (n, columns)
    try:
        scores = reward(images, list(prompts), levels)
        scores = (
            scores.detach()
            if isinstance(scores, Tensor) and scores.dtype in EXACT
            else as_float64(scores)
        )
        if tuple(scores.shape) != shape:
            raise ValueError(
                f"returned shape {tuple(scores.shape)} for {n} images; it must be {shape}"
            )
    except Exception as error:
        if lacks_memory(error):
            raise
        logger.debug("reward %r failed", reward, exc_info=True)
        return np.full(shape, np.nan), error
    return scores, None


def landed(parts: Sequence[Tensor | FloatArray]) -> list[FloatArray]:
    """Scores (n, ...) of each part, nan for inf. All leave the device of the first one together, in
    one wait."""
    ahead = [part for part in parts if isinstance(part, Tensor)]
    found = list[FloatArray]()
    if ahead:
        whole = (
            torch.cat([part.to(ahead[0].device).float().flatten() for part in ahead])
            .cpu()
            .double()
            .numpy()
        )
    for part in parts:
        scores = part
        if isinstance(part, Tensor):
            scores = whole[: part.numel()].reshape(tuple(part.shape))
            whole = whole[part.numel() :]
        found.append(np.where(np.isinf(scores), np.nan, scores))
    return found


def score_in_parts(
    reward: Call, images: Tensor, prompts: list[str], levels: Tensor, name: str
) -> tuple[FloatArray, str | None]:
    """As score_images, in halves where memory runs out."""
    try:
        return score_images(reward, images, prompts, levels, name)
    except Exception as error:  # a lack of memory, as all others are told
        if (n := len(prompts) // 2) == 0:
            return np.full(1, np.nan), said(name, error)
        halves = (slice(None, n), slice(n, None))
        parts = [
            score_in_parts(reward, images[half], prompts[half], levels[half], name)
            for half in halves
        ]
        return np.concatenate([scores for scores, _ in parts]), parts[0][1] or parts[1][1]


def as_float64(scores: Scores) -> FloatArray:
    """A reward's scores (numbers, an array, a tensor, or a list of these) as an array."""
    if isinstance(scores, Tensor):
        # In this order: numpy has no bfloat16, and MPS no float64.
        return np.asarray(scores.detach().cpu().double().numpy())
    parts = [as_float64(s) if isinstance(s, Tensor) else s for s in scores]
    return np.asarray(parts).astype(np.float64)


@dataclass(frozen=True)
class Shown:
    """What there is for rewards to see: images or videos, with or without the images that were
    edited."""

    frames: int | None = None
    """Frames of a video that a reward of images sees, whose mean is the score; None where images
    are made."""
    edits: bool = False
    """Whether prompts edit images."""

    def check(self, rewards: Sequence[RewardModel]) -> None:
        """ValueError for a reward that needs what there is not."""
        for reward in rewards:
            if "source" in reward.needs and not self.edits:
                raise ValueError(
                    f"reward {reward.name!r} compares a result with the image that was edited, and"
                    " here no image is edited; take a reward of images and prompts, or a pipeline"
                    " that edits"
                )
            if "video" in reward.needs and self.frames is None:
                raise ValueError(
                    f"reward {reward.name!r} scores videos, and here images are made; take a reward"
                    " of images, or a pipeline that makes videos"
                )
            if (
                self.frames is not None
                and reward.estimates != "pixels"
                and "video" not in reward.needs
            ):
                raise ValueError(
                    f"reward {reward.name!r} reads {reward.estimates} of a whole video, but images"
                    ' one by one; give it needs = {"video"}, so that it gets finished videos'
                    " whole as well"
                )

    def seen(self, reward: RewardModel) -> int:
        """How many images the reward sees for one score; of a whole video one."""
        return 1 if self.frames is None or "video" in reward.needs else self.frames

    def calls(self, reward: RewardModel) -> int:
        """Reward calls that its scores of one image or video are charged as."""
        return self.seen(reward) * len(reward.names)

    def by(self, reward: RewardModel, sources: Tensor | None = None) -> Call:
        """A call of this reward on images (N, 3, H, W) or videos (N, T, 3, H, W), with its sources.

        sources: the images that were edited, (N, 3, h, w), or (1, 3, h, w) for all rows; None
            without.
        """
        scores_of: Callable[..., Scores] = reward
        whole = self.frames is None or "video" in reward.needs
        times = self.seen(reward)
        given = sources if "source" in reward.needs else None

        def of_images(images: Tensor, texts: list[str], levels: Tensor) -> Scores:
            if given is None:
                return scores_of(images, texts, levels)
            source = given.expand(len(images) // times, -1, -1, -1).repeat_interleave(times, 0)
            return scores_of(images, texts, levels, source=source)

        def of_frames(videos: Tensor, prompts: list[str], levels: Tensor) -> Scores:
            images = videos[:, chosen(videos.shape[1], times)].flatten(0, 1)
            texts = [prompt for prompt in prompts for _ in range(times)]
            each = as_float64(of_images(images, texts, levels.repeat_interleave(times)))
            if each.shape[:1] != (len(images),):
                raise ValueError(
                    f"returned shape {each.shape} for {len(images)} frames; it must be"
                    f" ({len(images)},)"
                )
            return np.asarray(each.reshape(len(videos), times, *each.shape[1:]).mean(1))

        return of_images if whole else of_frames

    def differentiable(
        self, reward: RewardModel, images: Tensor, prompts: Sequence[str], levels: Tensor
    ) -> Scores:
        """Scores (N,) with a graph; of a video the mean over the frames that the reward sees."""
        if self.frames is None:
            return reward.differentiable(images, prompts, levels)
        times = self.seen(reward)
        seen = images[:, chosen(images.shape[1], times)].flatten(0, 1)
        texts = [prompt for prompt in prompts for _ in range(times)]
        scores = torch.as_tensor(
            reward.differentiable(seen, texts, levels.repeat_interleave(times))
        )
        return scores.view(len(images), times).mean(1)

    def features(self, describe: Callable[[Tensor], Tensor], images: Tensor) -> FloatArray:
        """Features (N, D) of images, or of videos by those of the frames that a reward of images
        sees.

        ValueError where `describe` does not return a row for each image.
        """
        seen = (
            images
            if self.frames is None
            else images[:, chosen(images.shape[1], self.frames)].flatten(0, 1)
        )
        found = as_float64(describe(seen))
        if found.ndim != 2 or len(found) != len(seen):
            raise ValueError(
                f"a likeness returned shape {found.shape} for {len(seen)} images; it must be (N, D)"
            )
        return found.reshape(len(images), -1)

    def tokens(self, reward: RewardModel) -> list[int]:
        """Tokens of a language model that each row of the reward's last call took; none without
        such a model."""
        taken = list(reward.tokens_taken)
        times = self.seen(reward)
        return [sum(taken[i : i + times]) for i in range(0, len(taken), times)]


class RewardHealthCheck:
    """Ends a search whose reward fails from the start, before the budget is spent.

    Estimates and finished images are counted separately where different code scores them. An
    exception in the first batch is enough; without one, SILENT images must fail.
    """

    def __init__(self, rewards: Sequence[RewardModel]) -> None:
        self._split = {name: r.scores_estimates_apart for r in rewards for name in r.names}
        # By name, and whether images are finished: failures while none was scored, -1 from the
        # first score on.
        self._failed: dict[tuple[str, bool], int] = {}

    def check(
        self,
        name: str,
        scores: FloatArray,
        last: BoolArray,
        broken: BoolArray,
        error: Exception | None,
    ) -> None:
        """RewardError where this reward has failed on all images so far.

        scores (N,): of a batch; last (N,): which are finished images; broken (N,): which are nan or
        inf already.
        """
        last = last & self._split[name]
        for kind in np.unique(last).tolist():
            of_kind = last == kind
            before = self._failed.get((name, kind), 0)
            if before < 0 or not np.isnan(scores[of_kind]).all():
                self._failed[name, kind] = -1
                continue
            n = before + int(of_kind.sum())
            self._failed[name, kind] = n
            if error is not None or n >= SILENT:
                why = NOT_FINITE if broken[of_kind].all() else f"{name} failed; it gave nan or inf"
                why = f"{said(name, error)}{place_of(error)}" if error is not None else why
                raise RewardError(f"none of the first {n} images could be scored: {why}") from error


def explained(scores: FloatArray, causes: dict[str, str | None]) -> str | None:
    """Why some of an image's scores (R,) are nan, None where none is. causes: each reward's error,
    by name."""
    if not np.isnan(scores).any():
        return None
    known = [cause for cause in causes.values() if cause]
    bad = [name for name, s in zip(causes, scores, strict=True) if np.isnan(s)]
    return "; ".join(known) or f"{', '.join(bad)} returned nan or inf"
