"""From a model to its draft: trajectories, training, export, evaluation. Each part resumes where it
stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ttsnap.distill import processes
from ttsnap.distill.draft import trajectories
from ttsnap.distill.draft.config import DraftConfig
from ttsnap.distill.draft.prompts import Prompts
from ttsnap.distill.draft.report import DRAFT, card, evaluate
from ttsnap.distill.draft.student import CARD, WEIGHTS, DraftStudent, check_lora, export, start_from
from ttsnap.distill.draft.train import DraftLesson, check_training, last_validation
from ttsnap.distill.draft.trajectories import Trajectories
from ttsnap.distill.processes import Member
from ttsnap.distill.training import CHECKPOINTS, Training
from ttsnap.files.plain_yaml import as_yaml, load_settings
from ttsnap.files.run_folder import RunFolder, differences
from ttsnap.files.settings import Json, plain
from ttsnap.files.writing import write_text
from ttsnap.options.option import determining
from ttsnap.pipelines.memory.acceleration import compile_denoiser
from ttsnap.rewards.reward_model import RewardModel
from ttsnap.sampling.drafts import DraftSettings, TrainedFor, note_check
from ttsnap.simulation.looks import RankedLook

COMMAND = "distill-draft"
CONFIG = "config.yaml"
TRAJECTORIES = "trajectories"
EVALUATION = "evaluation"


@dataclass(frozen=True)
class Measured:
    """What a draft is measured on: prompts that it was not trained on, and the reward that ranks
    their seeds."""

    prompts: tuple[str, ...]
    reward: RewardModel


def distill_draft(
    pipe: Any,
    config: DraftConfig,
    prompts: Prompts,
    out: Path,
    *,
    measured: Measured | None = None,
    bar: bool = False,
) -> Sequence[RankedLook]:
    """Make a draft of a search pipeline in out/draft, and return how each look ranks seeds; nothing
    without `measured`.

    The same call resumes an interrupted run: trajectories and training after their last checkpoint,
    evaluation after its last unit. Ctrl-C and SIGTERM wait until the batch at hand is saved. Under
    a launcher every process calls this, with the pipeline on its own device. The processes divide
    trajectories and training; the first one measures, and the others return nothing.

    Args:
        pipe: the search pipeline.
        config: the settings.
        prompts: of the trajectories.
        out: folder of the run.
        measured: prompts and reward of the evaluation.
        bar: whether to show progress.

    Raises:
        ValueError: where `out` is in use, holds other files or a run with other settings, or
            settings misfit.
        OSError: where the disk is full.
    """
    member = processes.start(COMMAND, cpu=pipe.device.type == "cpu", shown=bar)
    if member.count > 1 and pipe.device != member.device:
        raise ValueError(
            f"this process of {member.count} computes on {member.device}, and the model is on"
            f" {pipe.device}; use pipe.to({str(member.device)!r}), or --device auto on the command"
            " line"
        )
    call = dict(config.call or {})
    looks = list[RankedLook]()
    denoiser = pipe.denoiser(**call)
    check_lora(pipe, denoiser.net)
    purpose = TrainedFor(config.model, denoiser.grid.steps, float(denoiser.scale))
    settings = trajectories.settings_of(
        config.trajectories, config.model, call, prompts, pipe.dtype
    )
    folder = out / TRAJECTORIES
    draft = out / DRAFT
    run = run_folder(config, settings, out)
    with ExitStack() as until_end:
        member.alone(lambda: until_end.enter_context(run.opened()))
        if not (draft / WEIGHTS).exists():
            files = trajectories.expected(config.trajectories, folder)
            check_training(config.training, len(files) * config.trajectories.shard, member)
            if config.trajectories.compile and not all(path.exists() for path in files):
                compile_denoiser(pipe)
            trajectories.make(
                pipe.denoiser(**call), prompts, config.trajectories, settings, folder, member
            )
            student = _train(
                pipe, config, Trajectories.read(files, settings), settings, out, member
            )
            about = DraftSettings(first_time=config.training.first_time, trained_for=purpose)
            member.alone(
                lambda: export(
                    student, pipe, about, card(config, purpose, last_validation(out), []), draft
                )
            )

        def measure() -> None:
            if measured is None:  # as in all processes but the first, which wait
                return
            engine = pipe.engine(
                measured.reward, draft=str(draft), batch_size=config.trajectories.batch, **call
            )
            found, checked = evaluate(
                engine, measured.prompts, config, purpose, out / EVALUATION, bar=member.shown
            )
            note_check(draft, checked)
            write_text(draft / CARD, card(config, purpose, last_validation(out), found))
            looks.extend(found)

        member.alone(measure)
    return looks


def _train(
    pipe: Any,
    config: DraftConfig,
    data: Trajectories,
    settings: Mapping[str, Json],
    out: Path,
    member: Member,
) -> DraftStudent:
    training = config.training
    torch.manual_seed(training.seed)  # the LoRA's first weights
    student = DraftStudent(
        pipe,
        config.call or {},
        states=config.trajectories.states,
        first_time=training.first_time,
        rank=training.rank,
    )
    if training.start:
        start_from(student, Path(training.start))
    if training.checkpointing:
        student.checkpoint()
    if training.compile:
        student.compile()
    Training(DraftLesson(student, data, training, settings, member), training, out, member).run()
    return student


def run_folder(config: DraftConfig, settings: Mapping[str, Json], out: Path) -> RunFolder:
    """The folder of a run, whose settings are fixed as far as they were used. settings: of its
    trajectories."""

    def differing() -> list[str]:
        there = load_settings(DraftConfig, out / CONFIG)
        made = sorted((out / TRAJECTORIES).glob("*.safetensors"))
        trained = (out / CHECKPOINTS).exists() or (out / DRAFT).exists()
        differing = differences(
            _settled(there, bool(made), trained), _settled(config, bool(made), trained)
        )
        if made and not differing:
            # of other prompts, some may be those to measure on
            trajectories.read_shard(made[0], settings)
        return differing

    return RunFolder(out, CONFIG, "run", differing, as_yaml(config))


def _settled(config: DraftConfig, begun: bool, trained: bool) -> dict[str, Json]:
    """The settings that are fixed once trajectories were made (`begun`), and once training began
    (`trained`)."""
    settled: dict[str, Json] = {}
    if begun:
        settled |= {
            "model": config.model,
            "call": config.call,
            "trajectories": determining(config.trajectories),
        }
    if trained:
        settled |= {
            "trajectories.count": config.trajectories.count,
            "training": determining(config.training),
        }
    return {name: plain(value) for name, value in settled.items()}
