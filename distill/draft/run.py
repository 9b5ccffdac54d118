"""From recordings of a model to its draft: training, export, evaluation, card. Each part resumes
where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ttsnap.core.looks import Draft, EstimatorAt
from ttsnap.distill import curriculum
from ttsnap.distill.config import DraftConfig
from ttsnap.distill.data import FrameAt, Frames
from ttsnap.distill.draft.student import CARD, WEIGHTS, DraftStudent, check_lora, export, start_from
from ttsnap.distill.draft.train import LATENTS, DraftLesson, last_validation
from ttsnap.distill.run import Recorder, begun, open_frames
from ttsnap.distill.training import Training
from ttsnap.files.settings import Json, check
from ttsnap.files.writing import sha256, write_text
from ttsnap.options.record import RecordOptions
from ttsnap.pipelines.packaged import MODELS
from ttsnap.recordings.record import record as make_recording
from ttsnap.reward_models.registry import make_reward, refuse_credentials
from ttsnap.sampling.drafts import Checked, DraftSettings, TrainedFor, note_check
from ttsnap.simulation.looks import RankedLook, drafts_against_estimates, figures_of, ranked, table
from ttsnap.version import __version__

DRAFT = "draft"
"""The folder of the exported draft, in the folder of the run."""
EVALUATION = "evaluation"
LOOKS = tuple(EstimatorAt(Draft(calls).name, 0) for calls in (1, 2))
"""Drafts that are measured."""
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
    """How each look ranks the seeds of these prompts, the cheapest look first, which the draft
    notes; nothing without prompts or a reward."""
    packaged = MODELS.get(config.model)
    reward = config.reward or (packaged.rewards[0] if packaged is not None else "")
    if not (reward and prompts):
        return ()
    draft = out / DRAFT
    scorer = make_reward(reward, device=pipe.device)
    engine = pipe.engine(scorer, draft=str(draft), batch_size=config.batch_size, **call)
    options = RecordOptions(
        seeds=config.seeds,
        steps=[step for step in config.estimates if step < engine.grid.steps],
        looks=[*map(str, LOOKS)],
    )
    info: dict[str, Json] = {
        "model": purpose.model,
        "call": call,
        "weights": sha256(draft / WEIGHTS),
        "draft": str(draft.resolve()),
        "draft_guidance": purpose.guidance_scale,
    }
    folder = out / EVALUATION
    recording = make_recording(engine, prompts, folder, options, info=info, progress_bar=bar)
    looks = ranked(recording)
    figures = figures_of(recording, drafts_against_estimates(looks))
    scale = purpose.guidance_scale or 0.0
    note_check(draft, Checked(purpose.model, engine.grid.steps, scale, figures))
    return looks


def card(
    config: DraftConfig,
    purpose: TrainedFor,
    count: int,
    validation: Mapping[str, float],
    looks: Sequence[RankedLook],
) -> str:
    """The card in Markdown. count: of trajectories. validation: errors on those of held-out prompts.
    looks: empty before evaluation."""
    scale = (
        "no guidance" if purpose.guidance_scale is None else f"guidance {purpose.guidance_scale:g}"
    )
    started = ", from the weights of an earlier draft" if config.start else ""
    head = f"""---
library_name: diffusers
base_model: {purpose.model}
tags: [lora, ttsnap, draft]
---

# Draft LoRA for {purpose.model}

It guesses, in one call or two, without guidance, where the model's own deterministic sampler will end from a given
noise: the image that this seed would become. The guess is rough, but its reward ranks seeds much better than the first
x0 estimates do, so that a search drops most seeds before it pays for them. Made by `ttsnap distill-draft` of version
{__version__}.

    ttsnap generate PROMPT --model {purpose.model} --draft THIS_FOLDER

Trained for {purpose.steps} steps at {scale}, and for nothing else: at another number of steps, guidance or scheduler
the sampler ends elsewhere. It is told {config.first_time:g} of the true time at its first call (draft.json).

## Training

- {count:,} trajectories
- {config.updates:,} steps of {config.batch} rows, rank {config.rank}, AdamW at {config.lr:g}{started}
- no reward was used: one draft serves all rewards
"""
    if validation:
        errors = ", ".join(f"{name} {value:.3f}" for name, value in validation.items())
        head += (
            f"- mean squared error of the guesses on trajectories of held-out prompts: {errors}\n"
        )
    if looks:
        head += f"""
## How well it ranks

Spearman correlation, within a prompt, of the guess's reward with that of the finished image, on held-out prompts with
{config.seeds} seeds each; standard error over prompts. An NFE is one guided evaluation of the model; x0 estimates are
those that the sampler makes anyway.

{table(looks)}
"""
    return (
        head
        + """
## What it is not for

- pictures: loaded as an ordinary LoRA (`pipe.load_lora_weights`) it changes what the model makes, and one call with it
  is a blurred guess
- samplers that draw noise, other schedules, other guidance, other weights of the model
- prompts far from those that it was trained on, until `ttsnap record --check-draft` says how it ranks there
"""
    )
