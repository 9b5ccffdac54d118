"""Noise-aware rewards: a frozen reward with a small trained part that predicts final scores from x0
estimates.

Source: TTSnap (arXiv 2511.22242). The noise level is that of ttsnap.core.grid.Grid, sigma / (alpha
+ sigma), so what is learned does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self

import torch
from annotated_types import Interval, MaxLen
from torch import Tensor, nn

from ttsnap.core.arrays import FloatArray
from ttsnap.core.protocols import Reward, Scores
from ttsnap.files.settings import Json, Positive, Share, check
from ttsnap.profiling.flops import count_flops
from ttsnap.reward_models.noise_aware import KINDS
from ttsnap.reward_models.noise_aware.files import (
    HEADER,
    fill,
    fingerprint,
    named_by,
    read_header,
    trained_for,
    write_adapter,
)
from ttsnap.reward_models.noise_aware.network import Network
from ttsnap.reward_models.preprocess import check_images
from ttsnap.reward_models.scorer import Scorer
from ttsnap.rewards.reward_model import RewardModel, adapted

SETTINGS: dict[str, object] = {
    "rank": Annotated[int, Interval(ge=1, le=4096)],
    "levels": Annotated[tuple[float, ...], MaxLen(1000)],
    "level_embedding": bool,
    "base_below": Share,
    "scale": Positive,
    "shift": float,
}
"""What a file may say of a student: no adapter needs more, and every level has a copy of its
own."""
NEWER = {"base_below": 0.0, "scale": 1.0, "shift": 0.0}
"""What files mean that do not say it."""


class NoiseAware(RewardModel):
    """Finished images are scored by `base`, estimates by a trained copy of its network. A new one
    scores as the base.

    scorer: the reward whose network is copied and trained in place of the base's. The base may then
    be any reward, such as one behind an address, which is asked about finished images only. A new
    one scores as the scorer does, in the base's units after `match`.

    base: on its device already, and never changed. kind: "lora" or "dora" put low-rank adapters
    into the image side; "full" trains a copy of the image side in the base's dtype (train on a
    float32 base); "per-level" keeps a LoRA for each of `levels` and scores an estimate by the
    nearest, and "full" with levels a copy, as the paper does. Others read the level through a
    LevelEmbedding, unless level_embedding is False. spec: the base as make_reward takes it, for
    saved folders. ValueError where a setting does not fit.

    base_below: the highest level at which the base scores estimates too. distill sets it to where
    the base ranked held-out prompts as well.
    """

    name = "noise-aware"
    space = "pixels"
    base: RewardModel
    network: Network

    def __init__(
        self,
        base: Reward,
        kind: str = "lora",
        *,
        scorer: Reward | None = None,
        rank: int = 16,
        levels: Sequence[float] = (),
        level_embedding: bool = True,
        spec: str = "",
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
        teacher = adapted(base)
        learner = adapted(scorer or base)
        if not isinstance(learner, Scorer) or not (
            learner.adapted and learner.trained and learner.level_sites
        ):
            raise ValueError(
                f"reward {learner.name!r} cannot be made noise-aware; take one whose class says"
                " what to train (adapted, trained and level_sites of reward_models/scorer.py),"
                " such as imagereward, or train the network of such a one (student.network; in"
                " Python: scorer=)"
            )
        if min(rank, batch_size) < 1:
            raise ValueError(f"rank and batch_size must be at least 1, got {rank} and {batch_size}")
        levels = tuple(sorted(float(level) for level in levels))
        valid = all(0 < level <= 1 for level in levels) and len(set(levels)) == len(levels)
        if not valid or (bool(levels) != (kind == "per-level") and kind != "full"):
            raise ValueError(
                "per-level takes different levels in (0, 1], full may, other kinds none; got"
                f" {levels} for {kind}"
            )
        self.name = f"{teacher.name}-na"
        self.base = teacher
        self.spec = spec or teacher.name
        self.scorer = learner
        self.example = teacher.example
        self.embed_images = learner.embed_images
        self.tokens = teacher.tokens
        self.scale = 1.0
        self.shift = 0.0
        self.kind = kind
        self.rank = rank
        self.levels = levels
        self.batch_size = batch_size
        self.level_embedding = level_embedding and not levels
        self.base_below = 0.0
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = Network(learner, kind, rank, levels, self.level_embedding)
        self._trainable = [name for name, p in self.network.named_parameters() if p.requires_grad]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters to train, by stable name."""
        return {name: self.network.get_parameter(name) for name in self._trainable}

    def predict(self, x: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
        """One batch: images (N, 3, H, W) in [0, 1], N prompts, levels (N,) -> (N,) float32, with a
        graph."""
        scores: Tensor = self.network(
            x, list(prompts), level_of_rows(level, len(x)), self.scale, self.shift
        )
        return scores

    def match(self, scores: FloatArray, targets: FloatArray) -> None:
        """Bring the scorer's scores (N,) of some images to the mean and spread of the base's scores
        (N,) of them."""
        self.scale = (
            float(targets.std() / scores.std()) if targets.std() > 0 and scores.std() > 0 else 1.0
        )
        self.shift = float(targets.mean() - self.scale * scores.mean())

    @torch.no_grad()
    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | float | None = None
    ) -> Tensor:
        """images (N, 3, H, W) in [0, 1], N prompts, levels (N,) in [0, 1] or None for finished
        images -> (N,)."""
        check_images(images, prompts)
        levels = level_of_rows(level, len(images))
        scores = torch.zeros(len(images), device=self.scorer.device)
        taken = [0] * len(images)
        self.tokens_taken = taken
        below = levels <= self.base_below + 1e-6
        clean = below.nonzero()[:, 0]
        estimates = (~below).nonzero()[:, 0]
        for rows in (clean, *estimates.split(self.batch_size)):
            if len(rows):
                x = images[rows.to(images.device)]
                texts = [prompts[i] for i in rows.tolist()]
                at = levels[rows]
                part = (
                    self._by_base(x, texts, rows.tolist(), taken)
                    if rows is clean
                    else self.predict(x, texts, at)
                )
                scores[rows.to(scores.device)] = torch.as_tensor(part).to(scores)
        return scores

    def _by_base(
        self, images: Tensor, prompts: list[str], rows: list[int], taken: list[int]
    ) -> Scores:
        """The base's scores; what tokens each of `rows` took is noted, after a failed call too."""
        try:
            return self.base(images, prompts)
        finally:
            for row, tokens in zip(rows, self.base.tokens_taken, strict=False):
                taken[row] = tokens

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | float | None = None
    ) -> Tensor:
        """As a call, in one batch, with a graph back to the images
        (NetworkReward.differentiable)."""
        check_images(images)
        levels = level_of_rows(level, len(images))
        below = levels <= self.base_below + 1e-6
        if bool(below.all()):
            return torch.as_tensor(self.base.differentiable(images, prompts))
        estimates: Tensor = self.network(
            images, list(prompts), levels, self.scale, self.shift, smooth=True
        )
        if not bool(below.any()):
            return estimates
        finished = torch.as_tensor(self.base.differentiable(images, prompts)).to(estimates)
        return torch.where(below.to(estimates.device), finished, estimates)

    def begin_stage(self, level: float) -> None:
        """Start the part of this level from the nearest trained one, where each has its own."""
        if self.levels:
            self.network.warm_start(level)

    def without_alpha(self, images: Tensor) -> Tensor:
        return self.base.without_alpha(images)

    def check(self, prompts: Sequence[str]) -> None:
        for reward in {self.base, self.scorer}:
            reward.check(prompts)

    @property
    def scores_estimates_apart(self) -> bool:
        return self.scorer is not self.base

    @cached_property
    def flops(self) -> float:
        """FLOPs of one estimate with a prompt of its own, or of the base where that is another,
        dearer reward."""
        one = [self.scorer.example]
        level = torch.tensor([0.5])
        estimate = count_flops(lambda: self.predict(self.trial_image(), one, level))
        return max(estimate, self.base.flops) if self.scores_estimates_apart else estimate

    def trial_image(self) -> Tensor:
        return self.scorer.trial_image()

    def save_pretrained(self, folder: str | Path, info: Mapping[str, Json] | None = None) -> None:
        """Write adapter.safetensors and adapter.json (files.py). info: how it was trained, say, as
        JSON."""
        header: dict[str, Json] = {
            "kind": self.kind,
            "base": self.spec,
            "fingerprint": self._fingerprint,
        }
        if self.scores_estimates_apart:
            header["network"] = self.scorer.name
        settings: dict[str, Json] = {name: getattr(self, name) for name in SETTINGS}
        write_adapter(
            Path(folder), {**header, **settings, "info": dict(info or {})}, self.trainable()
        )

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.scorer.network)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        *,
        base: Reward | None = None,
        scorer: Reward | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> Self:
        """What `save_pretrained` wrote, on the base and the scorer that the folder names, or on
        these.

        ValueError where the folder is damaged, or was trained on another network.
        """
        header = read_header(folder, KINDS)
        path = Path(str(folder))
        try:
            known = {**NEWER, **header}
            settings = {name: check(name, known.get(name), hint) for name, hint in SETTINGS.items()}
        except ValueError as error:
            raise ValueError(
                f"{path / HEADER} has settings that no {cls.__name__} wrote: {error}"
            ) from None
        later = {name: settings.pop(name) for name in NEWER}
        base = named_by(path, header, "base", base, device=device, dtype=dtype)
        if "network" in header:
            scorer = named_by(path, header, "network", scorer, device=device, dtype=dtype)
        trained_for(path, header, scorer or base)
        student = cls(
            base,
            str(header["kind"]),
            scorer=scorer,
            **settings,
            spec=str(header["base"]),
            batch_size=batch_size,
        )
        vars(student).update(later)
        fill(student.trainable(), path, header)
        return student


def level_of_rows(level: Tensor | float | None, n: int) -> Tensor:
    """level (N,), one for all, or None for 0 -> (N,) float32 on the CPU. ValueError unless they are
    noise levels."""
    levels = torch.as_tensor(0.0 if level is None else level).detach().cpu().float()
    if levels.shape not in ((), (n,)) or not bool((levels <= 1 + 1e-5).all()):
        raise ValueError(
            f"level must be {n} noise levels in [0, 1], as sigma / (alpha + sigma); got {level}"
        )
    return levels.expand(n)
