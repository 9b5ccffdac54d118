"""From a model to its draft: trajectories, training, evaluation, export. Each part goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.batches import Trajectories
from ttsnap.distill.draft.card import card
from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.evaluate import evaluate
from ttsnap.distill.draft.export import describe, export
from ttsnap.distill.draft.prompts import Prompts
from ttsnap.distill.draft.student import WEIGHTS, Student, start_from
from ttsnap.distill.draft.train import last_validation, train
from ttsnap.pipelines.compilation import compile_denoiser

from ttsnap.files.lock import locked
from ttsnap.files.typed import Json
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.drafts import DraftSettings, TrainedFor
from ttsnap.simulation.looks import Ranked

CONFIG, TRAJECTORIES, DRAFT, EVALUATION = "config.yaml", "trajectories", "draft", "evaluation"


def distill_draft(
    pipe: Any, config: DraftConfig, prompts: Prompts, out: Path, *, held_out: tuple[str, ...] = (),
    reward: RewardModel | None = None, bar: bool = False,
) -> Sequence[Ranked]:  # fmt: skip
    """Make a draft of a search pipeline in out/draft, and measure it on the prompts `held_out` by a reward.

    Called again after an interruption it goes on: trajectories after their last file, training after its last
    checkpoint, evaluation after its last unit. Nothing is returned where there is nothing to measure with. ValueError
    for what does not fit, as settings other than those that `out` was begun with; OSError where the disk is full.
    """
    with locked(out):
        config.save(out / CONFIG)
        call = dict(config.call or {})
        settings = trajectories.settings_of(config.trajectories, config.model, call, prompts)
        made = _trajectories(pipe, config, prompts, settings, call, out, bar)
        purpose = _purpose(pipe, config, call)
        if not (out / DRAFT / WEIGHTS).exists():
            _train(pipe, config, Trajectories.read(made, settings), settings, call, purpose, out, bar)
        if reward is None or not held_out:
            return []
        found = evaluate(pipe, reward, held_out, config, purpose, out / DRAFT, out / EVALUATION, bar=bar)
        first = config.training.first_time
        about = DraftSettings(first_time=first, trained_for=purpose, checked=(found.checked,))
        describe(about, card(config, purpose, last_validation(out), found.looks), out / DRAFT)
        return found.looks


def _trajectories(
    pipe: Any, config: DraftConfig, prompts: Prompts, settings: Mapping[str, Json], call: Mapping[str, Json],
    out: Path, bar: bool,
) -> list[Path]:  # fmt: skip
    denoiser = pipe.denoiser(**call)
    made = trajectories.expected(config.trajectories, out / TRAJECTORIES)
    if config.trajectories.compile and not all(path.exists() for path in made):
        compile_denoiser(pipe)
    return trajectories.make(denoiser, prompts, config.trajectories, settings, out / TRAJECTORIES, bar=bar)


def _train(
    pipe: Any, config: DraftConfig, data: Trajectories, settings: Mapping[str, Json], call: Mapping[str, Json],
    purpose: TrainedFor, out: Path, bar: bool,
) -> None:  # fmt: skip
    training = config.training
    torch.manual_seed(training.seed)  # the LoRA's first weights
    student = Student(pipe, call, states=config.trajectories.states, first_time=training.first_time, rank=training.rank)
    if training.start:
        start_from(student, Path(training.start))
    if training.checkpointing:
        student.checkpoint()
    if training.compile:
        student.compile()
    train(student, data, training, settings, out, bar=bar)
    about = DraftSettings(first_time=training.first_time, trained_for=purpose)
    export(student, pipe, about, card(config, purpose, last_validation(out), []), out / DRAFT)


def _purpose(pipe: Any, config: DraftConfig, call: Mapping[str, Json]) -> TrainedFor:
    denoiser = pipe.denoiser(**call)
    return TrainedFor(config.model, denoiser.grid.steps, float(denoiser.scale))
