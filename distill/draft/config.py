"""The settings of a draft. This module imports no torch, as every command line reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from ttsnap.distill.config import RunConfig
from ttsnap.files.settings import (
    Count,
    Fraction,
    Json,
    Natural,
    Positive,
    Settings,
    Share,
)
from ttsnap.options.model import EMBEDDED
from ttsnap.options.option import option

Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class TrajectoryConfig(Settings):
    """The trajectories of the model that a draft learns from."""

    count: Count = option(
        30_000,
        "how many; more can be added later by a larger number, unless training has begun",
        determines=False,
        common=True,
    )
    seed: Natural = option(
        1_000_000,
        "trajectory i starts from seed + i, far from the seeds of searches, which count from 0;"
        " decides the embedded model's training prompts, too",
    )
    states: Count = option(
        5, "states kept of each trajectory: at grid steps 0 to states - 1; its end is kept, too"
    )
    skipped: tuple[int, ...] = option(
        (),
        "grid steps to jump over on the straight line, so that a trajectory takes fewer"
        " evaluations",
    )
    shard: Count = option(256, "trajectories in one file")
    batch: Count = option(
        32, "trajectories per call of the network; a divisor of shard keeps batches full"
    )
    precision: Precision = option(
        "no", "autocast of the network when making trajectories: no or bf16"
    )
    compile: bool = option(
        False, "compile the network first: half a minute, then up to 1.5 times as fast"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.skipped) != sorted(set(self.skipped)) or any(
            step < self.states for step in self.skipped
        ):
            raise ValueError(
                f"trajectories.skipped must be rising grid steps from {self.states} on (states"
                f" before are kept), got {list(self.skipped)}"
            )


@dataclass(frozen=True)
class TrainingConfig(RunConfig):
    """How the LoRA is trained. Rows are first calls from noise, first calls from later states, and
    second calls."""

    rank: Count = option(
        32, "rank of the LoRA, which is on every linear layer of the blocks", common=True
    )
    start: str = option(
        "", "a draft's folder whose weights to start from, of the same rank (default: from nothing)"
    )
    steps: Count = option(2000, "optimiser steps", common=True)
    batch: Count = option(48, "rows of a step")
    parts: Count = option(
        1, "in how many equal parts a batch is computed, one after the other, to save memory"
    )
    checkpointing: bool = option(
        False, "compute the network's blocks again in the backward pass, to save memory"
    )
    first_time: Fraction = option(
        0.87,
        "conditioning time of a first call, as a share of the true time; below 1 the network learns"
        " much sooner",
    )
    from_noise: Share = option(0.45, "share of rows that are first calls from noise")
    second: Share = option(
        0.15, "share of rows that are second calls, from the network's own first guess"
    )
    floor: Positive = option(
        0.6, "errors are divided by the conditioning time, or by this where that is larger"
    )
    lr: Positive = option(1.5e-3, "AdamW's learning rate")
    warmup: Natural = option(50, "steps over which the learning rate rises")
    decay: Share = option(0.4, "share of the steps, at the end, over which the learning rate falls")
    final_lr: Share = option(0.02, "the share of the learning rate that is left at the end")
    precision: Precision = option(
        "bf16", "autocast of the network: no or bf16; the LoRA itself stays in float32"
    )
    compile: bool = option(
        False, "compile the network's blocks first: a minute, then up to 1.5 times as fast"
    )
    validation: Count = option(
        192, "trajectories, the first ones, that are held back to validate on"
    )
    validate_every: Count = option(200, "optimiser steps between validations", determines=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.parts:
            raise ValueError(
                f"training.batch ({self.batch}) must be a multiple of training.parts ({self.parts})"
            )
        if self.from_noise + self.second > 1:
            raise ValueError(
                f"training.from_noise + training.second must be at most 1, got {self.from_noise} +"
                f" {self.second}"
            )


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """What the finished draft is measured on: seeds of prompts without trajectories."""

    reward: str = option(
        "",
        "what ranks the images, as imagereward (default for the embedded model: scenes)",
        common=True,
    )
    prompts: Natural = option(
        24,
        "held-out prompts: of the embedded world's hard kinds, or the first of --prompts-file; 0:"
        " no evaluation",
        common=True,
    )
    seeds: Annotated[int, Ge(2)] = option(48, "seeds of each, from 0 on, that are ranked")
    seed: Natural = option(0, "decides the embedded world's held-out prompts")
    steps: tuple[int, ...] = option(
        (0, 1, 2, 3, 4, 6, 8), "grid steps whose x0 estimates are ranked, to compare with"
    )


@dataclass(frozen=True)
class DraftConfig(Settings):
    """One distillation of a draft. ValueError, with the value, for settings that do not fit."""

    model: str = option(
        EMBEDDED, "embedded, scenes-turbo, signs, a diffusers folder, or a hub id", common=True
    )
    call: Mapping[str, Json] | None = option(
        None,
        "arguments of the pipeline's call that the draft is made for, as num_inference_steps and"
        " guidance_scale: a draft is for one grid and one guidance (default: the model's own)",
    )
    trajectories: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
