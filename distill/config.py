"""The settings of distillations. This module imports no torch, as every command line reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from ttsnap.files.settings import (
    Count,
    Decay,
    Fraction,
    Json,
    Natural,
    NotNegative,
    Positive,
    Settings,
    Share,
)
from ttsnap.files.writing import CHECKPOINT_SECONDS
from ttsnap.options.model import EMBEDDED
from ttsnap.options.option import option
from ttsnap.reward_models.noise_aware import KINDS
from ttsnap.reward_models.registry import REWARDS

PRESETS = Path(__file__).parent / "presets"
"""Recipes by name, each a file of settings."""


@dataclass(frozen=True)
class StudentConfig(Settings):
    """The network that is trained."""

    kind: str = option(
        "lora",
        f"{', '.join(KINDS)}, or a class of yours as file.py:Class or module:Class",
        common=True,
    )
    space: Literal["pixels", "latents"] = option(
        "pixels",
        "what it reads: pixels; a class of yours may read latents, recorded with --latents",
    )
    network: str = option(
        "",
        "the reward whose network is trained, as clip, where the base has none that can be: a"
        " judge, an OCR, a detector, code of yours (default: the base)",
        common=True,
    )
    per_level: bool = option(
        False, "kind full: a network for each noise level, as per-level has a LoRA for each"
    )
    rank: Count = option(16, "rank of a LoRA or DoRA")
    level_embedding: bool = option(True, "tell the network the noise level")
    options: Mapping[str, Json] | None = option(
        None, "more arguments of its class, as a dictionary"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS and ":" not in self.kind:
            raise ValueError(
                f"unknown student.kind {self.kind!r}; choose {', '.join(KINDS)}, or write"
                " file.py:Class"
            )
        if self.kind in KINDS and self.space != "pixels":
            raise ValueError(
                f"student.kind {self.kind!r} reads pixels, not {self.space}; a class of yours may"
            )
        if self.per_level and self.kind != "full":
            raise ValueError(
                f"student.per_level is for student.kind full; {self.kind!r} has one or no part a"
                " level"
            )
        if self.network and (self.kind not in KINDS or self.network not in REWARDS):
            raise ValueError(
                f"student.network {self.network!r} is trained by student.kind {', '.join(KINDS)},"
                f" and is a reward's name, with its published weights: one of {', '.join(REWARDS)}"
            )


@dataclass(frozen=True)
class LossConfig(Settings):
    """What is minimised. Losses count in standard deviations of the targets within a prompt."""

    name: Literal["mse", "pairwise"] = option("mse", "mse or pairwise")
    centred: bool = option(True, "mse: compare seeds of a prompt only, less their mean")
    plain: NotNegative = option(
        0.1, "weight of the plain mean squared error, which is added to keep the scores' scale"
    )
    temperature: Positive = option(1.0, "pairwise: what scores are divided by to be compared")


@dataclass(frozen=True)
class RunConfig(Settings):
    """What the trainings of rewards and of drafts share. ValueError, with the value, for settings
    that do not fit."""

    recordings: tuple[str, ...] = option(
        (),
        "folders written by `ttsnap record`, with the same noise levels: with --images for a"
        " reward, with --latents for a draft",
        determines=False,
        common=True,
    )
    record: Mapping[str, Json] | None = option(
        None,
        "options of `ttsnap record`, to record first; into OUT/recording unless it has `out`",
        determines=False,
        common=True,
    )
    schedule: Literal["linear", "rex", "late"] = option(
        "rex",
        "how the learning rate falls: linear, rex, or late (over the last two fifths of the steps)",
    )
    final_lr: Share = option(0.05, "the share of the learning rate that is left at the end")
    warmup: Natural = option(20, "steps over which the learning rate rises")
    clip: NotNegative = option(
        1.0, "gradients with a larger norm are scaled down to it; 0 for no limit"
    )
    ema: Decay = option(
        0.99, "decay of the running average of the weights, which is exported; 0 for none"
    )
    precision: Literal["no", "bf16"] = option("no", "mixed precision: no or bf16")
    accumulation: Count = option(
        1, "in how many parts a batch is computed, one after the other, to save memory"
    )
    seed: Natural = option(
        0, "decides the first weights, the batches and which prompts are held out"
    )
    validation: Decay = option(0.1, "share of the prompts that is held out and evaluated")
    batch_size: Count = option(64, "images per call when scoring and evaluating", determines=False)
    checkpoint_every: NotNegative = option(
        CHECKPOINT_SECONDS, "seconds between checkpoints", determines=False
    )
    cache: Natural = option(
        256, "megabytes of compressed images and latents to keep in memory", determines=False
    )
    device: Literal["auto", "cpu"] = option(
        "auto", "auto (as accelerate finds) or cpu", determines=False, common=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recordings and self.record is None:
            raise ValueError(
                "no data: give recordings (folders), or a record section, options of ttsnap record"
            )


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """The distillation of a reward."""

    reward: str = option(
        "", "the base reward, whose score of the finished image is to be learnt", common=True
    )
    student: StudentConfig = field(default_factory=StudentConfig)
    steps: tuple[int, ...] | None = option(
        None, "recorded steps to train on (default: all that were scored)", common=True
    )
    levels: tuple[float, ...] | None = option(
        None, "in place of steps: noise levels to train on, to three digits"
    )
    order: Literal["clean-to-noisy", "uniform", "noisy-to-clean"] = option(
        "clean-to-noisy",
        "in which order levels are trained: clean-to-noisy, uniform, noisy-to-clean",
    )
    steps_per_level: Count | tuple[Count, ...] = option(
        200,
        "optimiser steps per noise level, or a list, one for each in the order of training",
        common=True,
    )
    earlier: Share = option(
        0.5, "share of a batch that comes from the levels before, so that they are not forgotten"
    )
    loss: LossConfig = field(default_factory=LossConfig)
    groups: Count = option(8, "prompts per optimiser step, each at one noise level")
    group_size: Count = option(8, "seeds per prompt of a batch, compared with each other")
    lr: Positive | tuple[Positive, ...] = option(
        1e-4, "AdamW's learning rate, or a list, likewise", common=True
    )
    span: Literal["run", "level"] = option(
        "run", "what the schedule runs over: run, or level (it starts anew with each level)"
    )
    weight_decay: NotNegative = option(
        0.01, "AdamW's weight decay, of matrices; vectors are not decayed"
    )
    workers: Natural = option(0, "processes that read images", determines=False)

    def __post_init__(self) -> None:
        if not self.reward:
            raise ValueError(
                "reward is missing: name the base reward, as imagereward or my_reward.py:score"
            )
        super().__post_init__()
        if self.steps is not None and self.levels is not None:
            raise ValueError("give steps or levels, not both")
        for name, numbers in (("steps", self.steps), ("levels", self.levels)):
            if numbers is not None and (not numbers or len(set(numbers)) < len(numbers)):
                raise ValueError(
                    f"{name} must be different numbers, at least one, got {list(numbers)}"
                )
        if isinstance(self.lr, tuple) and self.order == "uniform":
            raise ValueError(
                f"lr is a list, {list(self.lr)}, and order uniform trains all levels at once;"
                " give one"
            )
        if self.groups % self.accumulation:
            raise ValueError(
                f"groups ({self.groups}) must be a multiple of accumulation ({self.accumulation})"
            )
        compares = self.loss.name == "pairwise" or self.loss.centred
        if compares and self.group_size < 2:
            raise ValueError(
                f"loss {self.loss.name!r} compares the seeds of a group: group_size must be 2 or"
                " more"
            )


@dataclass(frozen=True)
class DraftConfig(RunConfig):
    """The distillation of a draft, from recordings with latents of one model, its own sampler and
    one call: a draft is for one grid and one guidance."""

    model: str = option(
        EMBEDDED, "the model that was recorded, as for `ttsnap record`", common=True
    )
    reward: str = option(
        "",
        "what ranks the seeds of held-out prompts, as imagereward, to say how well the draft ranks"
        " (default: that of a packaged model; of another model nothing is ranked)",
        determines=False,
        common=True,
    )
    rank: Count = option(
        32, "rank of the LoRA, which is on every linear layer of the blocks", common=True
    )
    start: str = option(
        "", "a draft's folder whose weights to start from, of the same rank (default: from nothing)"
    )
    updates: Count = option(2000, "optimiser steps", common=True)
    batch: Count = option(48, "trajectories of an optimiser step")
    checkpointing: bool = option(
        False, "compute the network's blocks again in the backward pass, to save memory"
    )
    compile: bool = option(
        False, "compile the network's blocks first: a minute, then up to 1.5 times as fast"
    )
    first_time: Fraction = option(
        0.87,
        "conditioning time of a first call, as a share of the true time; below 1 the network learns"
        " much sooner",
    )
    second: Share = option(
        0.25, "share of a batch that are second calls, from the network's own first guess"
    )
    floor: Positive = option(
        0.6, "errors are divided by the conditioning time, or by this where that is larger"
    )
    lr: Positive = option(1.5e-3, "AdamW's learning rate", common=True)
    schedule: Literal["linear", "rex", "late"] = option(
        "late", "how the learning rate falls: linear, rex, or late"
    )
    precision: Literal["no", "bf16"] = option(
        "bf16", "autocast of the network: no or bf16; the LoRA itself stays in float32"
    )
    validate_every: Count = option(200, "optimiser steps between validations", determines=False)
    prompts: Natural = option(
        24, "held-out prompts whose seeds are ranked at the end, at most", determines=False
    )
    seeds: Annotated[int, Ge(2)] = option(
        48, "seeds of each, from 0 on, that are ranked", determines=False
    )
    estimates: tuple[int, ...] = option(
        (0, 1, 2, 3, 4, 6, 8),
        "grid steps whose x0 estimates are ranked, to compare with",
        determines=False,
    )
