"""The protocol of a network that is distilled, and how one is made from a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ttsnap.core.names import load_object
from ttsnap.core.protocols import Reward, Scores
from ttsnap.distill.config import StudentConfig
from ttsnap.files.settings import Json
from ttsnap.reward_models.noise_aware import KINDS
from ttsnap.reward_models.registry import make_reward
from ttsnap.rewards.reward_model import RewardModel

NOISE_AWARE = "ttsnap.reward_models.noise_aware.student:NoiseAware"
"""The class of all KINDS."""


class Student(Protocol):
    """A noise-aware reward that can be trained, as
    `ttsnap.reward_models.noise_aware.student.NoiseAware`."""

    name: str
    base: Reward
    """The frozen teacher: base(images, prompts) -> (N,) of finished images."""
    space: str
    """What `predict` reads: pixels (N, 3, H, W) in [0, 1] or latents (N, C, h, w)."""
    network: nn.Module
    """Holds all parameters, frozen and trainable."""

    def __call__(self, images: Tensor, prompts: Sequence[str], level: Tensor | None) -> Scores:
        """As a Reward (core.Reward): images (N, 3, H, W), N prompts, levels (N,), 0 for finished
        images -> (N,)."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters to optimise, average and checkpoint, by names that stay the same."""

    def predict(self, x: Tensor, prompts: Sequence[str], level: Tensor) -> Tensor:
        """Scores (N,) float32 of estimates x (N, ...) at noise levels (N,), differentiable."""

    def begin_stage(self, level: float) -> None:
        """The curriculum begins to train at this noise level."""

    def save_pretrained(self, folder: Path, info: Mapping[str, Json]) -> None:
        """Write it where its from_pretrained reads it."""


@runtime_checkable
class DefersToBase(Protocol):
    """A student that leaves estimates up to a noise level to its base."""

    base_below: float


class StudentReward(RewardModel):
    """A student as a reward, which is given estimates in the student's space."""

    def __init__(self, student: Student) -> None:
        self.name = student.name
        self.base = student.base
        self.estimates = student.space
        self._student = student

    def __call__(
        self, images: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Scores:
        return self._student(images, prompts, level)

    def score_estimates(
        self, x: Tensor, prompts: Sequence[str], level: Tensor | None = None
    ) -> Tensor:
        level = torch.zeros(len(x), device=x.device) if level is None else level
        return self._student.predict(x, prompts, level)


def make_student(
    base: RewardModel,
    config: StudentConfig,
    *,
    spec: str,
    levels: Sequence[float],
    channels: int,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> Student:
    """A new student of `base`, which make_reward made from `spec`.

    A class of your own is called as Class(base, **student.options), and with those of the arguments
    here that it takes. ValueError for a base or options that do not fit.

    Args:
        base: the teacher.
        config: the kind of student, and its options.
        spec: what names the base.
        levels: noise levels that are trained on.
        channels: of the student's input.
        seed: of initial weights.
        batch_size: images per call.
        device: of the network that is trained, where that is not the base's.
    """
    try:
        made = load_object(NOISE_AWARE if config.kind in KINDS else config.kind)
    except ImportError as error:
        raise ValueError(f"cannot load student {config.kind!r}: {error}") from error
    takes = inspect.signature(made).parameters
    offered = {"spec": spec, "seed": seed, "batch_size": batch_size, "levels": tuple(levels)}
    offered |= {"space": config.space, "channels": channels}
    if config.kind in KINDS:
        if config.network:
            offered["scorer"] = make_reward(config.network, device=device, dtype=torch.float32)
        offered |= {
            "kind": config.kind,
            "rank": config.rank,
            "level_embedding": config.level_embedding,
        }
        offered["levels"] = tuple(levels) if config.kind == "per-level" or config.per_level else ()
    options = {key: value for key, value in offered.items() if key in takes} | dict(
        config.options or {}
    )
    unknown = [key for key in options if key not in takes]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        raise ValueError(
            f"student {config.kind!r} takes no {', '.join(unknown)}; it takes {', '.join(takes)}"
        )
    student: Student = made(base, **options)
    if student.space != config.space:
        raise ValueError(
            f"the student reads {student.space}, but student.space is {config.space!r}"
        )
    return student
