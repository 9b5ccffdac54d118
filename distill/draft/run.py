"""From recordings of a model to its draft: training, export, evaluation. Each part resumes where it
stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ttsnap.distill import curriculum
from ttsnap.distill.config import DraftConfig
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.draft.report import DRAFT, card, evaluate
from ttsnap.distill.draft.student import CARD, WEIGHTS, DraftStudent, check_lora, export, start_from
from ttsnap.distill.draft.train import LATENTS, DraftLesson, last_validation
from ttsnap.distill.run import Recorder, begun, open_frames
from ttsnap.distill.training import Training
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import write_text
from ttsnap.pipelines.packaged import MODELS
from ttsnap.reward_models.registry import make_reward, refuse_credentials
from ttsnap.sampling.drafts import DraftSettings, TrainedFor, note_check
from ttsnap.simulation.looks import RankedLook

EVALUATION = "evaluation"
SECTION: Mapping[str, Json] = {"seed": 1_000_000, "score_steps": []}
"""Defaults of the record section: seeds far from those of searches, and no scores on the way."""
OTHER = ("lora", "task", "pictures", "path", "times", "guide", "variety")
"""What a recording notes where something else than the model and its own sampler made it."""


def distill_draft(
    config: DraftConfig,
    out: str | Path,
    pipe_on: Callable[[torch.device, str], Any],
    *,
    record: Recorder | None = None,
    bar: bool = False,
) -> Sequence[RankedLook]:
    """Make a draft in out/draft from recordings of its model, and return how each look ranks the
    seeds of held-out prompts; nothing where no reward is known to rank by.

    The same call resumes an interrupted run, as of `ttsnap.distill.run.distill`. Under a launcher
    every process calls this. The processes divide the training; the first one measures, and the
    others return nothing.

    Args:
        config: the settings.
        out: folder of the run.
        pipe_on: loads the search pipeline of the model to a device, in a dtype: that which was
            recorded, as noise depends on it.
        record: carries out the record section, where the configuration has one.
        bar: whether to print the number of processes and show progress.

    Raises:
        ValueError: where `out` is in use, holds other files or a run with other settings, or
            settings or recordings misfit.
        OSError: where the disk is full.
    """
    out = Path(out)
    refuse_credentials(config.reward)  # before it is written into a file
    looks = list[RankedLook]()
    options = {**SECTION, "model": config.model, **(config.record or {}), LATENTS: True}
    with begun("distill-draft", config, out, record, options, bar) as member:
        frames = open_frames(config, out, member)
        call, dtype = recorded_by(frames, config.model)
        trained, held_out = curriculum.held_out(frames.prompts, config.validation, config.seed)
        pipe = pipe_on(member.device, dtype)
        denoiser = pipe.denoiser(**call)
        check_lora(pipe, denoiser.net)
        if tuple(map(float, denoiser.grid.levels)) != frames.levels:
            raise ValueError("the recordings are of another scheduler than the model's")
        purpose = TrainedFor(config.model, denoiser.grid.steps, float(denoiser.scale))

        def described(looks: Sequence[RankedLook]) -> str:
            count = sum(int(frames.seeds[p]) for p in trained)
            return card(config, purpose, count, last_validation(out), looks)

        if not (out / DRAFT / WEIGHTS).exists():
            student = _student(pipe, call, config)
            lesson = DraftLesson(student, frames, (trained, held_out), config, member)
            Training(lesson, config, out, member).run()
            about = DraftSettings(first_time=config.first_time, trained_for=purpose)
            member.alone(lambda: export(student, pipe, about, described([]), out / DRAFT))

        def measure() -> None:
            texts = list(dict.fromkeys(frames.prompts[p] for p in held_out))[: config.prompts]
            looks.extend(_ranked(pipe, call, texts, config, purpose, out, bar=member.shown))
            write_text(out / DRAFT / CARD, described(looks))

        member.alone(measure)
    return looks


def recorded_by(frames: Frames, model: str) -> tuple[dict[str, Any], str]:
    """The arguments of the call that was recorded, and the model's dtype. ValueError for recordings
    of another model or of several calls, and where no draft can be learnt from them."""
    info = frames.info[0]
    for other in ({**info, "model": model}, *frames.info):
        for name in ("model", "call", "sampler", "kernel", "dtype"):
            if other.get(name) != info.get(name):
                raise ValueError(
                    f"a draft is of one model and one call: {name} is {info.get(name)} in the first"
                    f" recording, not {other.get(name)}"
                )
    strange = [name for name in OTHER if any(name in each for each in frames.info)]
    if info.get("kernel", "pipeline") != "pipeline" or strange:
        raise ValueError(
            "a draft is of a model alone and its own sampler; record without"
            f" {', '.join(strange) or 'kernel'}"
        )
    frames.check_stored(LATENTS, [frames.last])
    ends = [FrameAt(p, s, frames.last) for p, n in enumerate(frames.seeds) for s in range(n)]
    noises = len({frames.seed(end) for end in ends})
    if noises < len(ends):
        raise ValueError(
            f"{len(ends)} trajectories begin with {noises} different noises, and a draft would"
            " learn these by heart: record --latents without --images, and each recording from"
            " another --seed"
        )
    call = check("call", info.get("call"), dict[str, Any])
    return call, check("dtype", info.get("dtype"), str)


def _student(pipe: Any, call: Mapping[str, Json], config: DraftConfig) -> DraftStudent:
    """The student as training begins."""
    torch.manual_seed(config.seed)  # the LoRA's first weights
    student = DraftStudent(pipe, call, first_time=config.first_time, rank=config.rank)
    if config.start:
        start_from(student, Path(config.start))
    if config.checkpointing:
        student.checkpoint()
    if config.compile:
        student.compile()
    return student


def _ranked(
    pipe: Any,
    call: Mapping[str, Any],
    prompts: Sequence[str],
    config: DraftConfig,
    purpose: TrainedFor,
    out: Path,
    *,
    bar: bool,
) -> Sequence[RankedLook]:
    """How each look ranks the seeds of these prompts, which the draft notes; nothing without
    prompts or a reward."""
    packaged = MODELS.get(config.model)
    reward = config.reward or (packaged.rewards[0] if packaged is not None else "")
    if not (reward and prompts):
        return ()
    draft = str(out / DRAFT)
    scorer = make_reward(reward, device=pipe.device)
    engine = pipe.engine(scorer, draft=draft, batch_size=config.batch_size, **call)
    looks, checked = evaluate(engine, prompts, config, purpose, call, out / EVALUATION, bar=bar)
    note_check(draft, checked)
    return looks
